"""The text quickstart on its tiny model, from nothing to the report."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from mmalign import cli
from mmalign.playground import language_models
from mmalign.playground.lists import careless_answer, lists, vocabulary


@pytest.mark.slow
def test_the_tiny_model_learns_to_count_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    command = ["quickstart", "--modality", "text", "--model", "tiny", "--out", "run"]
    assert cli.main(command) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    kept = {stage: metrics[stage]["rule kept"] for stage in ("before", "after", "control")}
    assert kept["after"]["low"] > kept["before"]["high"] + 0.1
    assert metrics["before"]["KL per answer (nats)"]["value"] == pytest.approx(0, abs=1e-5)
    assert metrics["after"]["KL per answer (nats)"]["value"] > 0.1
    assert {"n", "seconds", "seed", "preferences", "matmul_gflops"} <= set(metrics)
    assert "after alignment" in " ".join(capsys.readouterr().err.split())
    for name in ("report.html", "run.yaml", "aligned/model/README.md", "aligned/metrics.jsonl"):
        assert Path("run", name).exists(), name

    assert cli.main(command) == 0  # goes on from the end: nothing is sampled or trained again
    again = json.loads(Path("run/metrics.json").read_text())
    assert {stage: again[stage]["rule kept"] for stage in kept} == kept


def test_without_the_real_weights_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_models, "find_spec", lambda name: None)
    monkeypatch.setattr(language_models, "tiny_language_model", lambda folder: folder)
    recipe = language_models.recipe_for("auto", seed=0)
    assert language_models.GET_SMOLLM2 in recipe.note
    assert "tiny" in recipe.note


def test_the_splits_of_the_lists_share_no_instruction_and_no_word_is_unknown() -> None:
    train, held_out = lists("train", seed=0), lists("held_out", seed=0)
    assert not {i.text for i in train} & {i.text for i in held_out}
    assert len(train) > len(held_out) > 200
    known = set(vocabulary())
    assert all(word in known for i in (*train, *held_out) for word in i.text.split())


def test_careless_answers_are_right_in_kind_and_mostly_wrong_in_number() -> None:
    draw = random.Random(0)
    asked = lists("train", seed=0)
    answers = [careless_answer(one, draw) for one in asked]
    count, kind = (
        [one.rules[rule].satisfied(text) for one, text in zip(asked, answers, strict=True)]
        for rule in (0, 1)
    )
    assert all(kind)
    assert 0.2 < sum(count) / len(count) < 0.4
