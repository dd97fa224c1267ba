"""Log-probabilities of given tokens from hidden states, without a (positions x vocabulary) tensor.

Positions go through the model's head in chunks whose float32 logits fit a budget. A frozen head
(LoRA) needs no second pass backward: a position's log-probability depends on its own hidden state
only, so its slope d log p / d hidden, no larger than the hidden state, is found while the logits of
its chunk exist and is multiplied by the incoming gradient later. Where the head is trained, the
chunks are recomputed in the backward pass. Axes: p positions, h hidden size, v vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Tail = Callable[[Tensor], Tensor]
"""From hidden states (p h) to logits (p v): the head with the family's scaling and soft-capping."""

STATS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "collision": lambda log_p: torch.logsumexp(2 * log_p, -1),
    "entropy": lambda log_p: torch.special.entr(log_p.exp()).sum(-1),
    "highest": lambda log_p: log_p.max(-1).values,
    "top10_entropy": lambda log_p: torch.special.entr(_top10(log_p)).sum(-1) / math.log(2),
    "top10_mass": lambda log_p: _top10(log_p).sum(-1),
}
"""Figures per position from the log-probabilities (p v) of the whole vocabulary, all without
gradient. collision: log of the sum of squared probabilities; entropy: nats; highest: of the
likeliest token; top10_entropy: bits, of the ten likeliest tokens, not renormalised; top10_mass:
their probability."""

BUDGET = {"cpu": 128 * 2**20, "cuda": 512 * 2**20}
"""Bytes of one chunk's float32 logits. Products with fewer than about 200 rows waste a CPU: 41 rows
of a 152,000 token vocabulary take 1.7 times as long per row."""


def token_log_probs(
    hidden: Tensor,
    targets: Tensor,
    tail: Tail,
    *,
    vocabulary: int,
    head_trained: bool,
    stats: Collection[str] = (),
    reference: Tensor | None = None,
    budget: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """log p(target) in nats, float32 (p,), and the `STATS` asked for by name, each float32 (p,).

    hidden: (p h) states that predict the targets (p,). vocabulary: v, which sizes the chunks.
    head_trained: whether parameters inside `tail` need gradients.
    reference: (p v) log-probabilities of another model; "divergence", KL(other || this), is then
    among the figures, with gradient.
    budget: bytes of one chunk's float32 logits; the device's `BUDGET` by default.
    Raises ValueError for an unknown statistic.
    """
    unknown = sorted(set(stats) - set(STATS))
    if unknown:
        raise ValueError(f"unknown token statistics {unknown}; there are {sorted(STATS)}")
    names = tuple(sorted(stats))
    rows = _rows(hidden, vocabulary, budget)
    if head_trained and torch.is_grad_enabled():
        columns = _recomputed(hidden, targets, tail, names, rows, reference)
    else:
        columns = _Sloped.apply(hidden, targets, tail, names, rows, reference)
    if reference is not None:
        names = (*names, "divergence")
    return columns[0], dict(zip(names, columns[1:], strict=True))


def log_distributions(
    hidden: Tensor, tail: Tail, *, vocabulary: int, budget: int | None = None
) -> Tensor:
    """(p v) log-probabilities of the whole vocabulary, float32, without gradient.

    The one place where such a tensor exists whole: 4 v bytes for each position.
    """
    parts = hidden.detach().split(_rows(hidden, vocabulary, budget))
    with torch.no_grad():
        return torch.cat([tail(part).float().log_softmax(-1) for part in parts])


def _rows(hidden: Tensor, vocabulary: int, budget: int | None) -> int:
    """Positions of a chunk."""
    limit = BUDGET.get(hidden.device.type, BUDGET["cuda"]) if budget is None else budget
    return max(1, limit // (4 * vocabulary))


def _score(
    logits: Tensor, targets: Tensor, names: tuple[str, ...], reference: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(1 + statistics, p): log p(target), the statistics, and the divergence if there is a
    reference; and all log-probabilities (p v)."""
    log_p = torch.log_softmax(logits, -1)
    target = log_p.gather(-1, targets[:, None])[:, 0]
    figures = [STATS[name](log_p.detach()) for name in names]
    if reference is not None:
        figures.append((reference.exp() * (reference - log_p)).sum(-1))
    return torch.stack([target, *figures]), log_p


def _recomputed(
    hidden: Tensor,
    targets: Tensor,
    tail: Tail,
    names: tuple[str, ...],
    rows: int,
    reference: Tensor | None,
) -> Tensor:
    def scored(states: Tensor, wanted: Tensor, other: Tensor | None) -> Tensor:
        return _score(tail(states).float(), wanted, names, other)[0]

    others = [None] * len(hidden) if reference is None else reference.split(rows)
    chunks = [
        checkpoint(scored, h, t, other, use_reentrant=False)
        for h, t, other in zip(hidden.split(rows), targets.split(rows), others, strict=False)
    ]
    return torch.cat(chunks, dim=1) if chunks else hidden.new_zeros(1 + len(names), 0).float()


class _Sloped(torch.autograd.Function):
    """`_score` in chunks; its backward multiplies by slopes found in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        tail: Tail,
        names: tuple[str, ...],
        rows: int,
        reference: Tensor | None,
    ) -> Tensor:
        columns = 1 + len(names) + (reference is not None)
        scores = torch.empty(columns, len(hidden), device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        slopes = torch.empty_like(hidden) if wanted else None
        away = torch.empty_like(hidden) if wanted and reference is not None else None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            with torch.set_grad_enabled(wanted):
                state = hidden[part].detach().requires_grad_(wanted)
                logits = tail(state).float()
            other = None if reference is None else reference[part]
            scores[:, part], log_p = _score(logits.detach(), targets[part], names, other)
            if away is not None and other is not None:
                slope = log_p.exp() - other.exp()  # d divergence / d logits
                (away[part],) = torch.autograd.grad(logits, state, slope, retain_graph=True)
                del slope
            if slopes is not None:
                slope = log_p.exp_().neg_()  # d log p(target) / d logits: one at the target, less p
                slope[torch.arange(len(slope)), targets[part]] += 1
                (slopes[part],) = torch.autograd.grad(logits, state, slope)
                del slope
            del logits, log_p  # before the next chunk's, or two chunks are alive at a time
        if slopes is not None:
            ctx.save_for_backward(*([slopes] if away is None else [slopes, away]))
        return scores

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        slopes, *away = ctx.saved_tensors
        gradient = gradients[0][0, :, None] * slopes  # statistics carry no gradient
        for slope in away:
            gradient = gradient + gradients[0][-1, :, None] * slope
        return gradient.to(slopes.dtype), None, None, None, None, None


def _top10(log_p: Tensor) -> Tensor:
    return log_p.topk(min(10, log_p.shape[-1]), dim=-1).values.exp()
