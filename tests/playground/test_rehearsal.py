"""The rehearsal: files as real ones are, an exact measure, and commands that help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmalign import cli
from mmalign.data import open_dataset
from mmalign.evaluation.hallucination.coco import read_coco
from mmalign.evaluation.hallucination.objects import read_synonyms
from mmalign.playground.captioning import judge
from mmalign.playground.rehearsal import write_coco, write_rehearsal
from mmalign.playground.scenes import mentioned, scenes
from mmalign.records import text_of

SUITE = (
    "--annotations", "scenes/instances.json", "--images", "scenes/images",
    "--synonyms", "scenes/objects.txt", "--question", "Describe the image.",
    "--max-new-tokens", "48", "--batch-size", "100",
)  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def evaluate(out: str, *more: str) -> dict[str, dict[str, dict[str, float]]]:
    assert cli.main(["evaluate", "chair", *SUITE, "--out", out, *more]) == 0
    return json.loads(Path(out, "metrics.json").read_text())


def test_pairs_differ_in_one_thing_that_is_not_there() -> None:
    write_rehearsal(Path("scenes"), pairs=30, images=1)
    pairs = open_dataset("scenes/pairs.jsonl")
    assert len(pairs) == 30
    for pair in pairs:
        good, bad = (mentioned(text_of(each.response)) for each in pair.candidates)
        assert len(good) == len(bad)
        assert len(set(bad) - set(good)) == 1


def test_annotations_say_what_was_drawn() -> None:
    shown = scenes("apart", 20, seed="look")
    write_coco(Path(), shown)
    annotated = read_coco([Path("instances.json")], read_synonyms(Path("objects.txt")))
    assert [found.present for found in annotated.values()] == [set(s.present) for s in shown]


@pytest.mark.slow
def test_the_commands_of_the_rehearsal_help() -> None:
    write_rehearsal(Path("scenes"))
    before = evaluate("before", "--model", "scenes/model")
    align = [
        "align-vlm", "--model", "scenes/model", "--data", "scenes/pairs.jsonl", "--epochs", "4",
        "--learning-rate", "5e-4", "--objective", 'dpo(beta=0.2) + nll(reduction="mean")',
        "--out", "aligned",
    ]  # fmt: skip
    assert cli.main(align) == 0
    after = evaluate(
        "after", "--model", "scenes/model", "--adapter", "aligned/model",
        "--baseline", "before/answers-model.jsonl",
    )  # fmt: skip
    assert before["model"] == after["before"]
    assert after["difference"]["chair_i"]["high"] < 0
    assert after["difference"]["recall"]["high"] >= 0


@pytest.mark.slow
def test_the_suite_measures_what_the_exact_checker_does() -> None:
    write_rehearsal(Path("scenes"), pairs=1, images=40)
    found = evaluate("run", "--model", "scenes/model")["model"]
    shown = scenes("apart", 40, seed="rehearsal 0")
    lines = Path("run/answers-model.jsonl").read_text().splitlines()[1:]
    answers = {int(row["id"]): row["answer"] for row in map(json.loads, lines)}
    exact = judge([answers[number] for number in range(40)], shown).figures()
    assert exact["chair_i"].value > 0
    for name in ("chair_i", "chair_s", "recall", "mentions"):
        assert found[name]["value"] == pytest.approx(exact[name].value)
