"""The suites from a benchmark's files to figures and page, on a tiny model and on given answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from made_benchmarks import amber, coco, pope, write_lines
from tiny_vision_language import save_family

from mmalign import cli


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("llava"), "llava")


def evaluate(suite: str, *options: str | Path) -> dict[str, Any]:
    """Run a suite and return its metrics.json."""
    assert cli.main(["evaluate", suite, "--out", "run", *map(str, options)]) == 0
    return json.loads(Path("run/metrics.json").read_text())


def given(answers: dict[str, str], file: str = "given.jsonl") -> Path:
    return write_lines(Path(file), [{"id": i, "answer": text} for i, text in answers.items()])


def values(metrics: dict[str, Any], stage: str = "model") -> dict[str, float]:
    return {name: figure["value"] for name, figure in metrics[stage].items()}


def test_chair_counts_what_annotations_do_not_have(tmp_path: Path) -> None:
    files = coco(Path(), [["dog"], ["car"]], {2: "A car beside a man."})
    said = given({"1": "A dog, a dog and a cat.", "2": "A car and a person."})
    found = values(
        evaluate("chair", "--annotations", *files, "--images", "val2014", "--model", said)
    )
    assert found["chair_i"] == pytest.approx(1 / 5)
    assert found["chair_s"] == 0.5
    assert found["recall"] == 1
    assert found["words"] == 6
    page = Path("run/report.html").read_text()
    assert "<mark>cat</mark>" in page
    assert "data:image/jpeg" in page


def test_chair_compares_two_stages_on_the_same_images(tmp_path: Path) -> None:
    files = coco(Path(), [["dog"]] * 6)
    before = given({str(i): "A dog and a cat." for i in range(1, 7)}, "before.jsonl")
    after = given({str(i): "A dog." for i in range(1, 7)}, "after.jsonl")
    metrics = evaluate(
        "chair", "--annotations", *files, "--images", "val2014",
        "--model", after, "--baseline", before,
    )  # fmt: skip
    assert values(metrics, "before")["chair_i"] == 0.5
    assert values(metrics, "after")["chair_i"] == 0
    assert metrics["difference"]["chair_i"] == {"value": -0.5, "low": -0.5, "high": -0.5}


def test_chair_of_a_real_model_repeats_itself_and_resumes(model: Path, tmp_path: Path) -> None:
    files = coco(Path(), [["dog"], ["cat"], ["car", "person"]])
    options = [
        "--annotations", *files, "--images", "val2014", "--model", model,
        "--max-new-tokens", "4", "--batch-size", "2",
    ]  # fmt: skip
    first = evaluate("chair", *options)
    answers = Path("run/answers-model.jsonl").read_text()
    Path("run/answers-model.jsonl").write_text("".join(answers.splitlines(keepends=True)[:2]))
    second = evaluate("chair", *options)
    assert Path("run/answers-model.jsonl").read_text() == answers
    assert second["model"] == first["model"]
    assert second["n"] == 3
    assert not math.isnan(second["model"]["chair_s"]["low"])


def test_images_in_another_folder_are_missed(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(file) for file in coco(Path(), [["dog"]])]
    words = ["--annotations", *files, "--images", "elsewhere", "--model", str(model)]
    assert cli.main(["evaluate", "chair", *words]) == 2
    assert "none of the 1 annotated images is in elsewhere" in capsys.readouterr().err


def test_pope_with_its_own_files() -> None:
    files = pope(Path(), ["random", "popular"])
    answers = {"random/1": "Yes.", "random/2": "Yes", "popular/1": "No", "popular/2": "No."}
    found = values(
        evaluate("pope", "--questions", *files, "--images", "val2014", "--model", given(answers))
    )
    assert found["random/recall"] == 1
    assert found["random/accuracy"] == found["popular/accuracy"] == found["accuracy"] == 0.5
    assert found["yes_ratio"] == 0.5
    assert found["random/f1"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(1 / 3)


def test_pope_makes_its_questions_from_annotations(model: Path) -> None:
    shown = [["dog", "cat", "bus"], ["car", "person", "pizza"], ["dog", "cat", "person"]]
    files = coco(Path(), shown)
    metrics = evaluate(
        "pope", "--annotations", files[0], "--images", "val2014", "--model", model,
        "--max-new-tokens", "2",
    )  # fmt: skip
    assert metrics["n"] == 3 * 3 * 6
    assert Path("run/pope_adversarial.json").read_text().count("\n") == 18


def test_amber_describes_and_answers() -> None:
    questions, annotations = amber(Path())
    answers = {"1": "A dog on a lawn beside a car.", "1005": "No", "1006": "Yes, it is."}
    found = values(
        evaluate(
            "amber", "--questions", questions, "--annotations", annotations,
            "--images", "image", "--model", given(answers),
        )
    )  # fmt: skip
    assert found["chair"] == pytest.approx(1 / 3)
    assert found["cover"] == found["cog"] == found["accuracy"] == 1
    assert found["amber"] == pytest.approx((1 - 1 / 3 + 1) / 2)
    assert "no similarity" in Path("run/report.html").read_text()
