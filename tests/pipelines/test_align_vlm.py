"""`mmalign align-vlm` from images and answers to an adapter that plain libraries read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tiny_vision_language import picture, save_family
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign import cli
from mmalign.data.store import write_store
from mmalign.records import Message, Preference, Sample, Text, pair
from mmalign.training.log import JsonLines

COLOURS = ("red", "green", "blue", "grey", "pink", "gold", "black", "white")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("llava"), "llava")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "store"
    write_store((preference(seed) for seed in range(16)), folder)
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


def preference(seed: int) -> Preference:
    """Short answers are preferred. A few prompts have two images or none."""
    images = [picture(10 * seed + i) for i in range(seed % 8 and 1 + (seed % 5 == 0))]
    prompt = (Message("user", (*images, Text(f"what is {seed}?"))),)
    good, bad = COLOURS[seed % 8], f"{COLOURS[seed % 8]} and a cat no no"
    return pair(Sample(prompt, (Text(good),)), Sample(prompt, (Text(bad),)))


def align(model: Path, data: Path, *more: str) -> int:
    """Run the command with quick settings, of which `more` may replace any."""
    quick = {"--batch-size": "8", "--learning-rate": "0.01", "--lora-rank": "4", "--out": "run"}
    kept = [word for flag, value in quick.items() if flag not in more for word in (flag, value)]
    return cli.main(["align-vlm", "--model", str(model), "--data", str(data), *kept, *more])


def test_leaves_all_that_it_promises(model: Path, data: Path) -> None:
    assert align(model, data, "--epochs", "6", "--held-out", "0.3", "--merged") == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["before"]["reward_accuracy"]["value"] == 0.5
    assert metrics["after"]["reward_accuracy"]["value"] > 0.9
    # Short answers are preferred, which nobody has to look for in an image.
    assert metrics["after"]["reward_accuracy_without_image"]["value"] > 0.9
    assert "</html>" in Path("run/report.html").read_text()
    assert "library_name: peft" in Path("run/model/README.md").read_text()


def test_plain_transformers_and_peft_read_the_adapter_and_the_merged_model(
    model: Path, data: Path
) -> None:
    assert align(model, data, "--epochs", "3", "--merged") == 0
    base = AutoModelForImageTextToText.from_pretrained(model).eval()
    processor = AutoProcessor.from_pretrained("run/model")
    inputs = processor(
        text="<image> what is it?", images=Image.new("RGB", (28, 28)), return_tensors="pt"
    )
    with torch.no_grad():
        before = base(**inputs).logits
        tuned = PeftModel.from_pretrained(base, "run/model").eval()
        after = tuned(**inputs).logits
        merged = AutoModelForImageTextToText.from_pretrained("run/merged").eval()(**inputs).logits
    assert (before - after).abs().max() > 0.1
    assert torch.allclose(merged, after, atol=1e-4)


def test_only_the_language_model_is_trained_unless_more_is_asked_for(
    model: Path, data: Path
) -> None:
    assert align(model, data, "--steps", "1") == 0
    assert trained_parts() == {"language_model"}
    assert align(model, data, "--steps", "1", "--no-resume", "--lora-targets", "q_proj") == 0
    assert trained_parts() == {"language_model"}
    more = ("--train-projector", "--train-vision", "--lora-targets", "all-linear")
    assert align(model, data, "--steps", "1", "--no-resume", *more) == 0
    assert trained_parts() == {"language_model", "multi_modal_projector", "vision_tower"}


def trained_parts() -> set[str]:
    names = load_file("run/model/adapter_model.safetensors")
    parts = ("language_model", "multi_modal_projector", "vision_tower")
    return {part for part in parts if any(f".{part}." in name for name in names)}


def test_all_references_give_the_same_losses(model: Path, data: Path) -> None:
    losses = []
    for kind in ("adapter-off", "copy", "cache"):
        assert align(model, data, "--out", kind, "--steps", "3", "--reference", kind) == 0
        losses.append([row["loss"] for row in JsonLines(Path(kind) / "metrics.jsonl").rows()])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(losses[2], abs=1e-5)


@pytest.mark.parametrize("kind", ["copy", "cache"])
def test_all_weights_are_compared_with_the_reference_that_the_run_has(
    model: Path, data: Path, kind: str
) -> None:
    watched = ("--watch-every", "2", "--watch-tokens", "4") if kind == "copy" else ()
    every = ("--lora-rank", "0", "--reference", kind, "--steps", "2", "--held-out", "0.3")
    assert align(model, data, *every, "--learning-rate", "0.002", *watched) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert "reward_accuracy_without_image" in metrics["after"]
    assert "Credit by token" in Path("run/report.html").read_text()
    row = JsonLines(Path("run/metrics.jsonl")).rows()[-1]
    if watched:
        assert row["outputs/kl_per_token"] > 0


@pytest.mark.parametrize(
    "options",
    [
        ["--objective", "mdpo(beta=0.1)", "--max-refused", "0.2"],
        ["--gradient-checkpointing", "--eval-every", "1"],
        ["--streaming", "--steps", "2"],
    ],
    ids=lambda options: " ".join(options),
)
def test_ways_to_train(model: Path, data: Path, options: list[str]) -> None:
    assert align(model, data, *options) == 0
    assert Path("run/model/README.md").exists()


def test_online_the_rejected_answers_are_the_models_own(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    online = ("--online", "bdhs", "--embedder", "words", "--expected-visible", "1")
    more = ("--steps", "2", "--max-refused", "0.5")  # those without an image
    assert align(model, data, *online, *more, "--out", "bdhs") == 0
    assert align(model, data, *more, "--out", "given") == 0
    rows = [JsonLines(Path(run, "metrics.jsonl")).rows() for run in ("bdhs", "given")]
    first, other = (each[0] for each in rows)
    assert first["rejected_length"] != other["rejected_length"]
    reasons = {row["reason"] for row in JsonLines(Path("bdhs/refused-0.jsonl")).rows()}
    assert reasons == {"its prompt shows no image that could be hidden"}
    assert align(model, data, *online, "--reference", "cache", "--out", "cached") == 2
    assert "computed beforehand" in capsys.readouterr().err
    assert align(model, data, *online, "--workers", "1", "--out", "ahead") == 2
    assert "--workers 0" in capsys.readouterr().err


def test_a_layer_that_no_trained_part_has_is_named(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert align(model, data, "--lora-targets", "qkv") == 2
    assert "qkv" in capsys.readouterr().err
