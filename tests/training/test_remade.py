"""Records that the policy makes anew before each step, by its weights of then."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from training.test_resume import StoppedError, same_weights, stop_after
from training.toy import LETTERS, Toy, preferences

from mmalign.objectives import objective
from mmalign.records import Preference, Sample, Text, pair, text_of
from mmalign.reference import AdapterOff
from mmalign.training.loop import train
from mmalign.training.options import TrainingOptions

OPTIONS = TrainingOptions(steps=6, batch_size=4, learning_rate=0.1, save_every=2)


def likeliest(toy: Toy, seen: list[torch.Tensor]):
    """Rejected: the letter that the policy finds likeliest behind the prompt."""

    def remake(
        records: Sequence[Preference], seeds: Sequence[int]
    ) -> list[Preference | ValueError]:
        assert len(set(seeds)) == len(records)
        seen.append(toy.policy.delta.detach().clone())
        letters = [LETTERS.index(text_of(r.chosen.prompt[-1].parts)[-1]) for r in records]
        with torch.no_grad():
            best = toy.policy(torch.tensor(letters)).argmax(-1).tolist()
        made: list[Preference | ValueError] = []
        for record, letter in zip(records, best, strict=True):
            said = LETTERS[letter] * 2
            if said == text_of(record.chosen.response):
                made.append(ValueError("says the same"))
            else:
                made.append(pair(record.chosen, Sample(record.chosen.prompt, (Text(said),))))
        return made

    return remake


def run(out: Path) -> tuple[Toy, list[torch.Tensor]]:
    toy, seen = Toy(), []
    train(
        toy, preferences(12), objective("dpo(beta=0.5)"), OPTIONS, out,
        reference=AdapterOff(toy), remake=likeliest(toy, seen),
    )  # fmt: skip
    return toy, seen


def test_each_step_is_made_by_the_weights_before_it(tmp_path: Path) -> None:
    toy, seen = run(tmp_path)
    assert len(seen) == 6
    assert not seen[0].any()
    steps = [*seen, toy.policy.delta.detach()]
    assert all(not torch.equal(a, b) for a, b in pairwise(steps))


def test_a_stopped_run_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = run(tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        with pytest.raises(StoppedError):
            run(tmp_path / "stopped")
    again, seen = run(tmp_path / "stopped")
    assert len(seen) == 4
    assert same_weights(whole, again)
