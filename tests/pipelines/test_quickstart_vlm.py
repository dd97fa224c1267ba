"""The vision-language quickstart, from the checkpoint that comes with mmalign to the report."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from peft import PeftModel
from tiny_vision_language import save_family
from transformers import AutoModelForImageTextToText

from mmalign import cli
from mmalign.pipelines import quickstart_vlm
from mmalign.playground.vision_language import TINY_LLAVA, TINY_LLAVA_ALBUMS

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
def test_another_llava_takes_the_place_of_the_one_that_comes_with_mmalign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = replace(quickstart_vlm.RECIPE.training, steps=1, batch_size=4)
    small = replace(quickstart_vlm.RECIPE, pictures=24, unseen=6, training=short)
    monkeypatch.setattr(quickstart_vlm, "RECIPE", small)
    assert cli.main(["quickstart", "--model", str(TINY_LLAVA_ALBUMS), "--out", "run"]) == 0
    page = Path("run/aligned/model/README.md").read_text()
    assert "tiny-llava-albums" in page
    untaught = save_family(tmp_path / "untaught", "llava")
    assert cli.main(["quickstart", "--model", str(untaught), "--out", "other"]) == 2
    assert "take another --model" in " ".join(capsys.readouterr().err.split())


SMALL = """
import sys
from dataclasses import replace
from mmalign import cli
from mmalign.pipelines import quickstart_vlm
short = replace(quickstart_vlm.RECIPE.training, steps=8, batch_size=4, save_every=1)
small = replace(quickstart_vlm.RECIPE, pictures=40, unseen=12, training=short)
quickstart_vlm.RECIPE = small
sys.exit(cli.main(["quickstart", "--out", sys.argv[1]]))
"""


def start(out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SMALL, str(out)], stderr=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_while_building_and_while_training_it_ends_the_same(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    for begun in ("captions-before.json", "aligned/checkpoints/step-*"):
        process = start(killed)
        while not any(killed.glob(begun)):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "metrics.json").exists()
    steps = {int(one.name.removeprefix("step-")) for one in (killed / "aligned").glob("*/step-*")}
    assert max(steps) < 8  # in the midst of training
    assert start(killed).wait() == 0
    assert start(tmp_path / "whole").wait() == 0
    found, expected = (
        json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("killed", "whole")
    )
    assert {stage: found[stage] for stage in STAGES} == {s: expected[s] for s in STAGES}


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
