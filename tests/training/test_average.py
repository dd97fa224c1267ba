"""The running mean of the weights, against TRL's callback without its bias correction."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mmalign.training.average import RunningMean


class Two(nn.Module):
    def __init__(self, config: object = None) -> None:
        super().__init__()
        self.config = config
        self.first = nn.Parameter(torch.zeros(3))
        self.second = nn.Parameter(torch.ones(2))


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_mean_is_that_of_trls_callback(decay: float) -> None:
    """Its decay is 9 / (10 + step) of the new weights, and no less than 1 - `decay`."""
    from trl import BEMACallback

    policy = Two()
    ours = RunningMean(policy, decay)
    theirs = BEMACallback(
        update_freq=1, ema_power=1.0, lag=10 / 9, multiplier=1 / 9, bias_power=1e4,
        min_ema_multiplier=1 - decay,
    )  # fmt: skip
    theirs.on_train_begin(None, None, None, policy)
    draws = torch.Generator().manual_seed(0)
    for step in range(1, 30):
        with torch.no_grad():
            for weight in policy.parameters():
                weight.add_(torch.randn(weight.shape, generator=draws))
        ours.update(policy, step)
        theirs.on_step_end(None, SimpleNamespace(global_step=step), None, policy)
        for name, weight in theirs.running_model.named_parameters():
            torch.testing.assert_close(ours.weights[name], weight.detach())
