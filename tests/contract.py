"""What every adapter of tokens promises: each adapter's tests call it with their own samples."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmalign.records import Sample


def log_probs(adapter: Any, samples: Sequence[Sample]) -> Tensor:
    inputs = adapter.encode(adapter.collate(samples, [0] * len(samples)))
    found: Tensor = adapter.log_probs(adapter.policy, inputs).log_probs
    return found


def trained(adapter: Any) -> dict[str, Tensor]:
    return {n: p for n, p in adapter.policy.named_parameters() if p.requires_grad}


def gradients(adapter: Any, total: Tensor) -> dict[str, Tensor]:
    weights = trained(adapter)
    found = torch.autograd.grad(total, list(weights.values()), allow_unused=True)
    return {n: g for n, g in zip(weights, found, strict=True) if g is not None}


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Equal gradients, but for rounding."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        scale = theirs[name].abs().max().item()
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5 * scale + 1e-7)


def stirred(adapter: Any) -> Any:
    """As after some training: the LoRA does something."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapter.policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=draws))
    return adapter


def first_step_costs_log_2(adapter: Any, pair: Sequence[Sample]) -> None:
    """adapter: fresh, with dropout in its LoRA."""
    assert adapter.policy.training
    ratio = log_probs(adapter, pair)
    with adapter.reference_mode():
        ratio = ratio - log_probs(adapter, pair)
    assert torch.equal(ratio, torch.zeros(2))  # to the last bit
    assert -F.logsigmoid(0.1 * (ratio[0] - ratio[1])).item() == pytest.approx(math.log(2))


def log_probs_repeat(adapter: Any, samples: Sequence[Sample]) -> None:
    """Also after an optimiser step."""
    optimizer = torch.optim.AdamW(trained(adapter).values(), 0.01)
    for _ in range(2):
        first, again = log_probs(adapter, samples), log_probs(adapter, samples)
        assert torch.equal(first, again)
        first.sum().backward()
        optimizer.step()
    assert not torch.equal(first, log_probs(adapter, samples))


def rows_do_not_depend_on_batch_mates(adapter: Any, samples: Sequence[Sample]) -> None:
    """Nor do gradients, which are taken of a sum with signs as a preference has them."""
    together = log_probs(adapter, samples)
    apart = torch.cat([log_probs(adapter, [sample]) for sample in samples])
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    signs = torch.tensor([1.0, -1.0, 0.5, 2.0, -1.0, 1.0, 0.3])[: len(samples)]
    assert_same(*(gradients(adapter, (signs * found).sum()) for found in (together, apart)))


def one_batch_can_be_overfitted(adapter: Any, pair: Sequence[Sample]) -> None:
    """In twenty steps."""
    optimizer = torch.optim.AdamW(trained(adapter).values(), 0.01)
    with torch.no_grad():
        start = log_probs(adapter, pair)
    for _ in range(20):
        now = log_probs(adapter, pair) - start
        loss = -F.logsigmoid(now[0] - now[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def references_agree(adapter: Any, samples: Sequence[Sample]) -> None:
    """The one with the LoRA off, and a frozen copy; asking them leaves the policy as it was."""
    frozen = copy.deepcopy(adapter.policy).base_model.unload()
    before = trained(adapter).keys()
    policy = log_probs(adapter, samples)
    with adapter.reference_mode():
        off = log_probs(adapter, samples)
    inputs = adapter.encode(adapter.collate(samples, [0] * len(samples)))
    assert torch.equal(off, adapter.log_probs(frozen, inputs).log_probs)
    assert (off - policy).abs().max() > 0.01
    assert torch.equal(policy, log_probs(adapter, samples))
    assert before == trained(adapter).keys()


def trains_on(adapter: Any, again: Any, samples: Sequence[Sample]) -> None:
    """again: loaded from what `adapter` saved, to be trained further; its reference stays what it
    was then."""
    loaded = log_probs(again, samples)
    torch.testing.assert_close(loaded, log_probs(adapter, samples), rtol=1e-5, atol=1e-5)
    loaded.sum().backward()
    torch.optim.SGD(trained(again).values(), 0.01).step()
    assert (log_probs(again, samples) - loaded).abs().max() > 1e-3
    with again.reference_mode():
        torch.testing.assert_close(log_probs(again, samples), loaded, rtol=1e-6, atol=1e-6)
