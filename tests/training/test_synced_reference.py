"""TR-DPO: the reference follows the policy, goes on after a stop, and is measured against none."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
from training.toy import Toy, preferences

from mmalign.errors import UserError
from mmalign.objectives import objective
from mmalign.reference import AdapterOff, SyncedCopy
from mmalign.training.align import align
from mmalign.training.log import JsonLines
from mmalign.training.loop import train
from mmalign.training.options import TrainingOptions

SETTINGS: dict[str, Any] = {
    "batch_size": 8, "micro_batch": 1000, "learning_rate": 0.1, "steps": 12, "save_every": 1,
    "sync_reference_every": 3, "schedule": "constant", "warmup": 0.0,
}  # fmt: skip


def run(out, **changes) -> tuple[Toy, SyncedCopy]:
    toy = Toy(full=changes.pop("full", False))
    reference = SyncedCopy.of(toy)
    options = TrainingOptions(**SETTINGS | changes)
    train(toy, preferences(24), objective("dpo(beta=0.5)"), options, out, reference=reference)
    return toy, reference


def test_weights_are_mixed_as_the_paper_says():
    toy = Toy()
    reference = SyncedCopy.of(toy)
    for target, wanted in ((1.0, 0.6), (1.0, 0.84), (0.0, 0.336)):
        toy.policy.delta.data.fill_(target)
        reference.sync(0.6)
        assert reference.model.delta[0, 0].item() == pytest.approx(wanted, abs=1e-6)


def test_frozen_weights_are_shared_and_trained_ones_are_not():
    toy = Toy()
    copy = SyncedCopy.of(toy).model
    assert copy.base is toy.policy.base
    assert copy.delta is not toy.policy.delta


@pytest.mark.parametrize("full", [False, True])
def test_a_reference_that_became_the_policy_costs_log_2(tmp_path, full):
    """With share 1 every third step begins where the reference is."""
    run(tmp_path, sync_reference_share=1.0, full=full)
    losses = [row["loss"] for row in JsonLines(tmp_path / "metrics.jsonl").rows()]
    at_log_2 = [abs(loss - math.log(2)) < 1e-6 for loss in losses]
    assert at_log_2 == [step % 3 == 0 for step in range(12)]


def test_a_stopped_run_goes_on_with_its_reference(tmp_path):
    whole, reference = run(tmp_path, keep_checkpoints=20)
    for step in range(6, 13):  # as if it had been stopped after five steps
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    again, resumed = run(tmp_path, keep_checkpoints=20)
    assert torch.equal(again.policy.delta, whole.policy.delta)
    assert torch.equal(resumed.model.delta, reference.model.delta)


def test_figures_before_and_after_are_against_the_start(tmp_path):
    toy, held_out = Toy(), preferences(8, seed=1)
    options = TrainingOptions(**SETTINGS | {"sync_reference_share": 1.0})
    loss = objective("dpo(beta=0.5)")
    done = align(toy, preferences(24), held_out, loss, options, tmp_path)
    inputs = toy.collate([p.chosen for p in held_out], [0] * 8)
    start = AdapterOff(toy).log_probs(inputs, [], []).log_probs
    ratios = toy.log_probs(toy.policy, inputs).log_probs - start
    torch.testing.assert_close(done.after["chosen_ratio"].sort()[0], ratios.detach().sort()[0])
    assert done.after["reward_margin"].abs().max() > 0.1


def test_what_cannot_move_is_refused(tmp_path):
    options = TrainingOptions(**SETTINGS)
    for spec, kind, words in (("nll", "auto", "no reference"), ("dpo", "cache", "beforehand")):
        with pytest.raises(UserError, match=words):
            align(Toy(), preferences(24), (), objective(spec), options, tmp_path, reference=kind)
