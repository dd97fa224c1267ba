"""Objectives of single responses with thumbs give their papers' values, in float64."""

from __future__ import annotations

import torch
from objectives.given import LOSSES, log_probs, numbers, same, three_pairs
from torch import Tensor

from mmalign.objectives import Batch, LogProbs, objective


def thumbs(grades: Tensor, ratios: Tensor, mismatched: Tensor | None = None) -> Batch:
    """Each preference has one candidate."""

    def column(ratio: Tensor) -> LogProbs:
        return log_probs(ratio[:, None], torch.zeros_like(ratio)[:, None])

    views = {} if mismatched is None else {"mismatched": column(mismatched)}
    return Batch(column(ratios), grades[:, None], views)


SIX = numbers(2, -1.5, -2, -5, 0.75, -3.5).requires_grad_()


UP = numbers(1, 1, 1, 0, 0, 0)


def test_kto() -> None:
    term = objective("kto(beta=0.1)")
    z0 = numbers(0.3, 0.9, -0.15, 0.3, 0.9, -0.15)
    loss = term.loss(thumbs(UP, SIX, z0))
    desirable = (0.4588433318, 0.5461185410, 0.5584811124)
    undesirable = (0.3693514743, 0.5099986669, 0.4049215261)
    same(loss, desirable + undesirable)
    same(loss.mean(), 0.4746191088)
    same(term.figures()["kto.baseline"], 0.35)
    (gradient,) = torch.autograd.grad(loss.sum(), SIX)
    up = (-0.0248306129, -0.0247873080, -0.0246579959)
    down = (0.0232930963, 0.0249900027, 0.0240960084)
    same(gradient, up + down)
    weighted = objective("kto(beta=0.1, desirable=1.5)").loss(thumbs(UP, SIX, z0))
    same(weighted.mean(), 0.6049060242)
    clamped = term.loss(thumbs(UP, SIX, -z0))
    same(clamped.mean(), 0.4745156919)
    same(term.figures()["kto.baseline"], 0.0)


def test_kto_of_pairs_is_the_mean_of_both_sides() -> None:
    pairs = objective("kto(beta=0.1, baseline='none')")(*three_pairs())
    single = objective("apo_zero_unpaired(beta=0.1)").loss(thumbs(UP, SIX))
    same(pairs, tuple(((single[:3] + single[3:]) / 2).tolist()))
    same(pairs.mean(), single.mean().item())
    same(2 * pairs, LOSSES["apo_zero(beta=0.1)"])


def test_diffusion_kto() -> None:
    up = numbers(1, 1, 0, 0)
    batch = thumbs(up, numbers(4e-4, -2e-4, 1e-4, -5e-4))
    loss = objective("kto(beta=1000, baseline='batch_mean')").loss(batch)
    same(1 - loss, (0.5986876601, 0.4501660027, 0.4750208125, 0.6224593312))
    same(loss.mean(), 0.4634165484)
    moved = thumbs(up, numbers(6e-4, 2e-4, 1e-4, -5e-4))
    loss = objective("kto(beta=1000, baseline='batch_mean')").loss(moved)
    same(1 - loss, (0.6224593312, 0.5249791875, 0.5, 0.6456563062))
    same(loss.mean(), 0.4267262938)
    averse = "kto(beta=1000, baseline='batch_mean', utility='loss_averse')"
    same(objective(averse).loss(moved).mean(), 0.5622771938)


def test_class_balanced_baseline() -> None:
    balanced = objective("kto(beta=1, baseline='class_balanced')")
    balanced.loss(thumbs(numbers(1, 1, 1, 0), numbers(1, 2, 3, 4)))
    same(balanced.figures()["kto.baseline"], 3.0)
