"""Callbacks look on and may stop a run; a running mean of the weights is what a run ends with."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from data import made
from training.test_resume import StoppedError, stop_after
from training.toy import Toy, preferences

from mmalign.errors import UserError
from mmalign.objectives import objective
from mmalign.reference import AdapterOff
from mmalign.training.callbacks import ErrorGuard
from mmalign.training.log import JsonLines
from mmalign.training.loop import train
from mmalign.training.options import TrainingOptions

SETTINGS: dict[str, Any] = {
    "batch_size": 8, "micro_batch": 1000, "learning_rate": 0.1, "steps": 8, "save_every": 1,
    "schedule": "constant", "warmup": 0.0,
}  # fmt: skip


def run(out, callbacks=(), held_out=(), **changes) -> Toy:
    toy = Toy()
    train(
        toy, preferences(24), objective("dpo(beta=0.5)"), TrainingOptions(**SETTINGS | changes),
        out, reference=AdapterOff(toy), callbacks=callbacks, held_out=held_out,
    )  # fmt: skip
    return toy


class Recorder:
    """Notes the weights as they are and as they would be left."""

    def __init__(self) -> None:
        self.weights: list[torch.Tensor] = []
        self.left: list[torch.Tensor] = []

    def watch(self, toy: Toy) -> Recorder:
        self.toy = toy
        return self

    def __call__(self, step, figures, as_left):
        self.weights.append(self.toy.policy.delta.detach().clone())
        with as_left():
            self.left.append(self.toy.policy.delta.detach().clone())
        assert torch.equal(self.toy.policy.delta, self.weights[-1])
        return {"seen": float(step), "picture": made.picture(step)}


def recorded(out, **changes) -> tuple[Toy, Recorder]:
    toy = Toy()
    recorder = Recorder().watch(toy)
    options = TrainingOptions(**SETTINGS | changes)
    train(
        toy, preferences(24), objective("dpo(beta=0.5)"), options, out,
        reference=AdapterOff(toy), callbacks=[recorder],
    )  # fmt: skip
    return toy, recorder


def test_the_mean_is_what_the_formula_says_and_what_the_run_leaves(tmp_path):
    toy, recorder = recorded(tmp_path, average=0.5)
    mean = torch.zeros_like(recorder.weights[0])
    for step, weights in enumerate(recorder.weights, 1):
        kept = min(0.5, (1 + step) / (10 + step))
        mean = kept * mean + (1 - kept) * weights
        torch.testing.assert_close(recorder.left[step - 1], mean)
    torch.testing.assert_close(toy.policy.delta.detach(), mean)
    assert not torch.equal(mean, recorder.weights[-1])


def test_without_a_mean_the_last_weights_are_left(tmp_path):
    toy, recorder = recorded(tmp_path)
    assert torch.equal(toy.policy.delta, recorder.weights[-1])
    assert torch.equal(recorder.left[-1], recorder.weights[-1])


def test_what_callbacks_find_is_logged_and_pictures_are_not_written(tmp_path):
    recorded(tmp_path)
    rows = JsonLines(tmp_path / "metrics.jsonl").rows()
    assert [row["seen"] for row in rows] == list(range(1, 9))
    assert all("picture" not in row for row in rows)


def test_pictures_reach_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")  # an extra that the tests do without
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorded(tmp_path, trackers=("tensorboard",), steps=2)
    (events,) = tmp_path.rglob("events.out.*")
    found = EventAccumulator(str(events)).Reload()
    assert [each.step for each in found.Images("picture")] == [1, 2]


@pytest.mark.parametrize("held_out", [False, True])
def test_a_stopped_run_ends_with_the_same_mean(tmp_path, monkeypatch, held_out):
    settings = {"average": 0.8, "eval_every": 2, "held_out": preferences(6) if held_out else ()}
    whole = run(tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(StoppedError):
            run(tmp_path / "killed", **settings)
    assert torch.equal(run(tmp_path / "killed", **settings).policy.delta, whole.policy.delta)


def figures(chosen: float, rejected: float) -> dict[str, float]:
    """Of errors that are larger than a reference error of 0.2 by these shares."""
    found = {}
    for side, grown in (("chosen", chosen), ("rejected", rejected)):
        found[f"{side}_logp"] = -0.5 * 0.2 * (1 + grown)
        found[f"{side}_ratio"] = -0.5 * 0.2 * grown
    return found


def test_the_guard_stops_when_both_errors_grow_and_says_what_to_do():
    guard = ErrorGuard(limit=0.1, window=3)
    for step in range(1, 10):  # one of them, or none
        grown = guard(step, figures(0.05, 0.9), nullcontext)
    assert grown == {
        "chosen_error_growth": pytest.approx(0.05),
        "rejected_error_growth": pytest.approx(0.9),
    }
    guard(10, figures(0.12, 0.9), nullcontext)
    guard(11, figures(0.12, 0.9), nullcontext)
    with pytest.raises(UserError, match=r"stopped after step 12.*13% on chosen and 90%") as caught:
        guard(12, figures(0.15, 0.9), nullcontext)
    assert "nll()" in caught.value.hint


def test_a_run_that_was_stopped_has_its_checkpoint(tmp_path):
    def stop(step, figures, as_left):
        if step == 5:
            raise UserError("enough")
        return {}

    with pytest.raises(UserError, match="enough"):
        run(tmp_path, [stop], save_every=0)
    assert [each.name for each in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    assert JsonLines(tmp_path / "metrics.jsonl").rows()[-1]["step"] == 5
