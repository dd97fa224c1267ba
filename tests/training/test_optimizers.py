"""The 8-bit optimiser takes nearly AdamW's steps in a quarter of its memory, and can be resumed."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from mmalign.errors import UserError
from mmalign.objectives import objective
from mmalign.training import checkpoint
from mmalign.training.options import TrainingOptions
from mmalign.training.run import _optimizer

needs_library = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes, an extra, is missing"
)
EIGHT = TrainingOptions(optimizer="adamw-8bit", learning_rate=1e-2)


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 64)


def optimizer_of(policy: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    return _optimizer(list(policy.parameters()), options)


def steps(policy: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> nn.Module:
    for seed in seeds:
        x = torch.randn(16, 128, generator=torch.Generator().manual_seed(seed))
        policy(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy


@needs_library
def test_eight_bits_take_nearly_the_same_steps_in_less_memory() -> None:
    found, sizes = [], []
    for options in (TrainingOptions(learning_rate=1e-2), EIGHT):
        policy = model()
        optimizer = optimizer_of(policy, options)
        found.append(steps(policy, optimizer, range(20)).weight - model().weight)
        state = optimizer.state[policy.weight].values()
        sizes.append(sum(v.nbytes for v in state if isinstance(v, torch.Tensor)))
    exact, near = found
    assert (near - exact).norm() < 0.1 * exact.norm()
    assert not torch.equal(near, exact)
    assert sizes[1] < 0.4 * sizes[0]  # 8,192 weights; of larger tensors it comes to a quarter


@needs_library
def test_it_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path: Path) -> None:
    policy, loss = model(), objective("dpo(beta=0.1)")
    optimizer = optimizer_of(policy, EIGHT)
    steps(policy, optimizer, range(3))
    position = checkpoint.Position(3, 0, None, None, {})
    path = checkpoint.save(tmp_path, position, policy, optimizer, loss)
    other = copy.deepcopy(model())
    again = optimizer_of(other, EIGHT)
    checkpoint.load(path, other, again, loss)
    undisturbed = steps(policy, optimizer, range(3, 6))
    resumed = steps(other, again, range(3, 6))
    for one, two in zip(undisturbed.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, two)


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.training.run.find_spec", lambda name: None)
    with pytest.raises(UserError, match="bitsandbytes"):
        optimizer_of(model(), EIGHT)
