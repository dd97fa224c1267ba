"""The vision-language quickstart, from the checkpoint that comes with mmalign to the report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from mmalign import cli
from mmalign.pipelines import quickstart_vlm
from mmalign.playground.vision_language import TINY_LLAVA

STAGES = ("before", "after", "control")


def test_a_small_run_leaves_everything_and_goes_on_from_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = replace(quickstart_vlm.RECIPE.training, steps=2, batch_size=4)
    small = replace(quickstart_vlm.RECIPE, pictures=24, unseen=12, training=short)
    monkeypatch.setattr(quickstart_vlm, "RECIPE", small)
    assert cli.main(["quickstart", "--out", "run"]) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    names = {"chair_i", "chair_s", "recall", "mentions", "chosen_logp", "rejected_logp"}
    assert all(names <= set(metrics[stage]) for stage in STAGES)
    assert metrics["n"] == 12
    assert metrics["after"]["chosen_logp"] != metrics["before"]["chosen_logp"]
    assert "were not there before" in " ".join(capsys.readouterr().err.split())
    html = Path("run/report.html").read_text()
    assert "mmalign align-vlm --model" in html
    base = AutoModelForImageTextToText.from_pretrained(TINY_LLAVA)
    assert PeftModel.from_pretrained(base, "run/aligned/model")

    monkeypatch.setattr(quickstart_vlm, "build", None)  # what is done is not done again
    assert cli.main(["quickstart", "--out", "run"]) == 0
    again = json.loads(Path("run/metrics.json").read_text())
    assert all(again[stage] == metrics[stage] for stage in STAGES)
    assert cli.main(["quickstart", "--out", "run", "--seed", "1"]) == 2
    assert "holds a run with seed 0, not 1" in " ".join(capsys.readouterr().err.split())


def test_what_it_says_to_type_next_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    for line in quickstart_vlm.NEXT.replace("\\\n", " ").splitlines():
        command, options = re.split(" (?=--)", line, maxsplit=1)
        assert cli.main([*command.split()[1:], "--help"]) == 0
        known = capsys.readouterr().out
        assert all(option in known for option in re.findall(r"--[a-z-]+", options)), line


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_hallucinations_fall_by_most_and_recall_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["quickstart", "--out", "run"]) == 0
    metrics = json.loads(Path("run/metrics.json").read_text())
    chair_i = {stage: metrics[stage]["chair_i"] for stage in STAGES}
    assert chair_i["after"]["value"] < 0.5 * chair_i["before"]["value"]
    assert chair_i["after"]["value"] < chair_i["control"]["value"]
    assert metrics["after"]["recall"]["high"] >= metrics["before"]["recall"]["value"]
