"""`mmalign align-text` from data to model, and what it says to somebody who mistypes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from tiny_models import save_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmalign import cli
from mmalign.training.log import JsonLines

COLOURS = ("red", "green", "blue", "grey", "pink", "gold", "black", "white")


def conversation(question: str, answer: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question}],
        "chosen": [{"role": "assistant", "content": answer}],
        "rejected": [{"role": "assistant", "content": f"{answer} {answer} no"}],
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv(cli.DEBUG, raising=False)
    return write(
        tmp_path / "pairs.jsonl", [conversation(f"the {a} {b}?", a) for a in COLOURS for b in "ab"]
    )


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def align(model: Path, data: Path | str, *more: str) -> int:
    """Run the command with quick settings, of which `more` may replace any."""
    quick = {
        "--model": str(model), "--data": str(data), "--batch-size": "8",
        "--learning-rate": "0.01", "--lora-rank": "4",
    }  # fmt: skip
    kept = [word for flag, value in quick.items() if flag not in more for word in (flag, value)]
    return cli.main(["align-text", *kept, *more])


def test_leaves_all_that_it_promises(model: Path, data: Path) -> None:
    assert align(model, data, "--out", "run", "--epochs", "6", "--held-out", "0.3") == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["before"]["reward_accuracy"]["value"] == 0.5
    assert metrics["after"]["reward_accuracy"]["value"] > 0.9
    assert set(metrics) >= {"before", "after", "n", "seconds", "seed"}
    rows = JsonLines(Path("run/metrics.jsonl")).rows()
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert rows[-1]["loss"] < 0.3
    assert "</html>" in Path("run/report.html").read_text()
    assert "library_name: peft" in Path("run/model/README.md").read_text()


def test_the_saved_lora_loads_with_plain_peft_and_changes_the_model(
    model: Path, data: Path
) -> None:
    assert align(model, data, "--out", "run", "--epochs", "4") == 0
    base = AutoModelForCausalLM.from_pretrained(model)
    ids = AutoTokenizer.from_pretrained("run/model")("the red", return_tensors="pt").input_ids
    with torch.no_grad():
        before = base(ids).logits
        after = PeftModel.from_pretrained(base, "run/model")(ids).logits
    assert not torch.allclose(before, after)


def test_the_merged_model_answers_as_the_model_with_its_lora(model: Path, data: Path) -> None:
    assert align(model, data, "--out", "run", "--epochs", "4", "--merged") == 0
    ids = AutoTokenizer.from_pretrained("run/merged")("the red", return_tensors="pt").input_ids
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained("run/merged")(ids).logits
        base = AutoModelForCausalLM.from_pretrained(model)
        lora = PeftModel.from_pretrained(base, "run/model")(ids).logits
    assert torch.allclose(merged, lora, atol=1e-5)


def test_run_yaml_repeats_the_run_and_the_same_command_goes_on(model: Path, data: Path) -> None:
    assert align(model, data, "--out", "run", "--steps", "3") == 0
    config = ["align-text", "--config", "run/run.yaml"]
    assert cli.main([*config, "--out", "again"]) == 0
    first, again = (JsonLines(Path(f"{name}/metrics.jsonl")).rows() for name in ("run", "again"))
    assert [row["loss"] for row in first] == [row["loss"] for row in again]
    weights = Path("run/model/adapter_model.safetensors").read_bytes()
    assert cli.main(config) == 0
    assert Path("run/model/adapter_model.safetensors").read_bytes() == weights
    assert len(JsonLines(Path("run/metrics.jsonl")).rows()) == 3


def test_other_settings_need_another_folder_or_a_new_start(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(model, data, "--out", "run", "--steps", "2") == 0
    assert align(model, data, "--out", "run", "--steps", "3") == 2
    assert "--no-resume" in capsys.readouterr().err
    assert align(model, data, "--out", "run", "--steps", "3", "--no-resume") == 0
    assert len(JsonLines(Path("run/metrics.jsonl")).rows()) == 3


@pytest.mark.parametrize(
    "options",
    [
        ["--lora-rank", "0", "--reference", "copy"],
        ["--lora-rank", "0", "--reference", "cache"],
        ["--reference", "cache", "--epochs", "2"],
        ["--objective", "simpo(beta=2.0, gamma=0.5)"],
        ["--objective", "dpo(beta=0.1) + 0.2*nll()", "--gradient-checkpointing"],
        ["--streaming", "--steps", "3"],
        ["--lora-dropout", "0.1", "--eval-every", "1", "--save-every", "1"],
    ],
    ids=lambda options: " ".join(options),
)
def test_ways_to_train(model: Path, data: Path, options: list[str]) -> None:
    assert align(model, data, "--out", "run", *options) == 0
    assert Path("run/model/README.md").exists()


def test_all_references_give_the_same_losses(model: Path, data: Path) -> None:
    losses = []
    for kind in ("adapter-off", "copy", "cache"):
        assert align(model, data, "--out", kind, "--steps", "4", "--reference", kind) == 0
        losses.append([row["loss"] for row in JsonLines(Path(kind) / "metrics.jsonl").rows()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)


def test_an_adapter_can_be_trained_on_with_itself_as_reference(model: Path, data: Path) -> None:
    assert align(model, data, "--out", "first", "--steps", "3") == 0
    assert align(model, data, "--out", "second", "--steps", "2", "--adapter", "first/model") == 0
    first_loss = JsonLines(Path("second/metrics.jsonl")).rows()[0]["loss"]
    assert first_loss == pytest.approx(0.6931, abs=1e-4)


def test_unreadable_records_are_left_out_with_their_reason(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a") as file:
        file.write('{"prompt": 3, "chosen": null, "rejected": []}\n')
    assert align(model, data, "--out", "run", "--steps", "1") == 0
    assert "1 of 17 records" in " ".join(capsys.readouterr().err.split())
    (line,) = Path("run/unreadable.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 16


PICTURE = {"images": ["a.png"]}
MISTAKES: dict[str, tuple[list[str], list[str]]] = {
    "typo in an option": (["--learningrate", "1"], ["--learning-rate"]),
    "wrong objective": (["--objective", "dop(beta=0.1)"], ["dop", "dpo"]),
    "wrong option of an objective": (["--objective", "dpo(bta=0.1)"], ["bta", "beta"]),
    "missing dataset": (["--data", "nowhere.jsonl"], ["nowhere.jsonl"]),
    "missing column": (["--data", "column.jsonl"], ["rejected", "chosen"]),
    "empty dataset": (["--data", "empty.jsonl"], ["empty"]),
    "pictures for a text model": (["--data", "pictures.jsonl"], ["images", "text"]),
    "missing model": (["--model", "nowhere/model"], ["nowhere/model"]),
    "full training without an adapter": (
        ["--lora-rank", "0", "--reference", "adapter-off"],
        ["--reference copy"],
    ),
    "tracker that is not installed": (["--trackers", "trackio"], ["mmalign[trackio]"]),
    "stream without steps": (["--streaming"], ["steps"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_answered_in_words(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    write(Path("empty.jsonl"), [])
    write(Path("column.jsonl"), [{"prompt": "a", "chosen": "b", "worse": "c"}] * 4)
    write(Path("pictures.jsonl"), [row | PICTURE for row in rows])
    options, words = MISTAKES[mistake]
    assert align(model, data, "--out", "run", *options) == 2
    said = capsys.readouterr()
    text = " ".join((said.err + said.out).split())
    assert "Traceback" not in text
    for word in words:
        assert word in text


def test_settings_of_the_run_are_complete(model: Path, data: Path) -> None:
    assert align(model, data, "--out", "run", "--steps", "1") == 0
    saved = yaml.safe_load(Path("run/run.yaml").read_text())
    assert saved["objective"] == "dpo(beta=0.1)"
    assert saved["learning_rate"] == 0.01
    assert saved["lora_rank"] == 4


def test_watches_what_the_model_writes(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    watched = ("--watch-every", "2", "--watch-prompts", "2", "--watch-tokens", "6")
    assert align(model, data, "--steps", "4", "--held-out", "0.3", *watched, "--out", "run") == 0
    rows = JsonLines(tmp_path / "run" / "metrics.jsonl").rows()
    seen = {row["step"]: row for row in rows if "outputs/top10_entropy" in row}
    assert list(seen) == [2, 4]
    assert 0 < seen[4]["outputs/top10_mass"] < 1
    assert seen[4]["outputs/kl_per_token"] > 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "outputs/top10_entropy over step" in page
    assert "Credit by token" in page
    uncopied = ("--lora-rank", "0", "--reference", "cache", "--out", "other")
    assert align(model, data, *watched, *uncopied) == 2
    assert "or a copy of all weights" in capsys.readouterr().err
