"""Objectives of denoisers give their papers' values, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from objectives.given import diverging, log_probs, numbers, of_ratio, same
from torch import Tensor

from mmalign.objectives import LogProbs, objective, pairwise


def test_mapo() -> None:
    def error(*values: float) -> LogProbs:  # of a denoiser: -0.5 times its mean squared error
        return log_probs(-0.5 * numbers(*values), numbers(*[0.0] * len(values)))

    chosen, rejected = error(0.10, 0.10, 0.10), error(0.14, 0.1010, 0.10)
    same(objective("mapo()")(chosen, rejected), (0.1000055449, 0.1577774809, 0.1693147181))
    same(pairwise.denoising_odds(error(1e-12), error(1e-12)), (math.log(2),))


def test_d3po_clips_the_ratio() -> None:
    better = log_probs(numbers(-1.20), numbers(-1.25))
    worse = log_probs(numbers(-1.10), numbers(-1.08))
    same(objective("clipped(dpo(beta=0.1))")(better, worse), (0.6896533055,))
    same(objective("clipped(dpo(beta=10))")(better, worse), (0.4031860489,))
    far = objective("clipped(dpo(beta=10))")(of_ratio(5.0), of_ratio(-5.0))
    same(far, (math.log1p(math.exp(-2.0067069546)),))


@pytest.mark.parametrize(("beta", "loss"), [(0.001, 0.0099962249), (1.0, 0.0065809357)])
def test_dspo_regresses_on_a_moved_target(beta: float, loss: float) -> None:
    predicted, reference, target = numbers(0.2, -0.6), numbers(0.25, -0.65), numbers(0.3, -0.7)

    def half_square(a: Tensor, b: Tensor) -> Tensor:
        return 0.5 * ((a - b) ** 2).mean()[None]

    chosen = replace(
        log_probs(-half_square(predicted, target), -half_square(reference, target)),
        divergence=half_square(predicted, reference),
    )
    inside = 0.5  # of the sigmoid: the rest of the margin is the rejected image's
    rejected = diverging(chosen.ratio.item() - inside / beta, 0.0)
    found = objective(f"dspo(beta={beta})")(chosen, rejected)
    same(found, (loss,))
    push = beta / (1 + math.exp(inside))
    plain = ((predicted - target - push * (predicted - reference)) ** 2).mean()
    same(found, (plain.item(),), within=1e-12)
