"""DA-DPO's weights: by hand, through the command, and as the beta of each pair."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_vision_language import picture, save_family

from mmalign import cli
from mmalign.adapters.vision_language import load_vision_language
from mmalign.data import open_dataset
from mmalign.data.store import write_store
from mmalign.data_builders.difficulty import weights
from mmalign.evaluation.scoring import score_pairs
from mmalign.objectives import LogProbs, objective
from mmalign.records import Message, Preference, Sample, Text, pair, thumb

ANSWERS = ("the quick fox", "a lazy dog jumps", "red and green", "blue")


def about(number: int) -> Preference:
    prompt = (Message("user", (picture(number), Text("What is there?"))),)
    good, bad = ANSWERS[number % 4], ANSWERS[(number + 1) % 4]
    return pair(Sample(prompt, (Text(good),)), Sample(prompt, (Text(bad),)))


def test_weights_by_hand() -> None:
    """The first model orders 3 of 4 rightly and the second all: they speak with 1/3 and 2/3."""
    gaps = {"one": np.array([1.0, 1.0, 1.0, -1.0]), "two": np.array([3.0, 3.0, 3.0, 3.0])}
    u, say = weights(gaps)
    assert say == pytest.approx({"one": 1 / 3, "two": 2 / 3})
    mixed = [1.0, 1.0, 1.0, 1 / 3]
    size = math.sqrt((3 + 1 / 9) / 4)
    assert u.tolist() == pytest.approx([1 + math.erf(one / size / math.sqrt(2)) for one in mixed])


def test_what_nobody_tells_apart_is_plain_dpo() -> None:
    u, say = weights({"one": np.zeros(2), "two": np.array([1.0, -1.0])})
    assert say == {"one": 0.5, "two": 0.5}
    u, _ = weights({"one": np.zeros(2)})
    assert u.tolist() == [1, 1]


def test_the_command_adds_what_the_objective_reads(tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", "llava")
    lonely = thumb(about(9).chosen, up=True)
    write_store([*map(about, range(4)), lonely], tmp_path / "pairs")
    build = ["build", "difficulty", str(tmp_path / "pairs"), "--model", str(model)]
    length = "rule(name='word_count', most=3)"
    assert cli.main([*build, "--reward", length, "--out", str(tmp_path / "out")]) == 0
    made = list(open_dataset(tmp_path / "out"))
    assert len(made) == 4
    (refused,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert "thumb" in json.loads(refused)["reason"]
    adapter = load_vision_language(model)
    scored = score_pairs(adapter, None, [about(number) for number in range(4)])
    expected = scored.chosen.mean_policy - scored.rejected.mean_policy
    for one, gap in zip(made, expected.tolist(), strict=True):
        likelihood, _ = one.source.details["gaps"].values()
        assert likelihood == pytest.approx(gap, abs=1e-5)
        assert 1 <= one.aux["difficulty"] < 2

    h = torch.tensor([0.5, 2.0], dtype=torch.float64)
    u = torch.tensor([1.0, 1.75], dtype=torch.float64)
    zero, ones = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    chosen = LogProbs(h, zero, ones, aux={"difficulty": u})
    loss = objective("da_dpo(beta=0.1)")(chosen, LogProbs(zero, zero, ones, aux={"difficulty": u}))
    torch.testing.assert_close(loss, torch.nn.functional.softplus(-0.1 * u * h))


def test_somebody_has_to_judge(tmp_path: Path) -> None:
    write_store([about(0)], tmp_path / "pairs")
    build = ["build", "difficulty", str(tmp_path / "pairs"), "--out", str(tmp_path / "out")]
    assert cli.main([*build, "--reward", "none"]) == 2
