"""A running mean of the trained weights, which is what the run ends with when it is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmalign.training.checkpoint import trained


class RunningMean:
    """Exponential moving average of the weights that are trained.

    decay: share of the mean that each step keeps; smaller in the first steps, (1 + step) / (10 +
        step), so that the start is soon forgotten.
    """

    def __init__(self, policy: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: w.detach().clone() for name, w in trained(policy).items()}

    @torch.no_grad()
    def update(self, policy: nn.Module, step: int) -> None:
        """Move towards the weights after optimiser step `step`, counted from 1."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, weight in trained(policy).items():
            self.weights[name].lerp_(weight.detach(), share)

    @contextmanager
    def in_place(self, policy: nn.Module) -> Iterator[None]:
        """Inside, the policy has the mean as its weights."""
        own = {name: weight.detach().clone() for name, weight in trained(policy).items()}
        give(policy, self.weights)
        try:
            yield
        finally:
            give(policy, own)


@torch.no_grad()
def give(policy: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put these weights into the policy."""
    for name, weight in trained(policy).items():
        weight.copy_(weights[name])
