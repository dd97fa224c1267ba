"""Objectives of lists give their papers' values, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.given import log_probs, numbers, same
from torch import Tensor

from mmalign.objectives import Batch, LogProbs, TokenLogProbs, objective, ranking, tokens


def listed(ratios: Tensor, grades: Tensor) -> Batch:
    return Batch(log_probs(ratios[None], torch.zeros_like(ratios)[None]), grades[None])


FOUR = listed(numbers(1.0, 2.5, -0.5, -1.5), numbers(1.0, 0.6, 0.2, -0.4))


def test_plackett_luce() -> None:
    ratios = numbers(1.2, 0.4, -0.3)
    order = numbers(3, 2, 1)
    term = objective("plackett_luce(beta=0.5)")
    same(term.loss(listed(ratios, order)), (1.2954426171,))
    same(term.loss(listed(ratios.flip(0), order)), (2.4250757140,))
    same(term.loss(FOUR), (2.1352032026,))


def test_lambda_ranking() -> None:
    ratios = FOUR.candidates.policy.clone().requires_grad_()
    candidates = log_probs(ratios, torch.zeros_like(ratios))
    loss = ranking.lambda_ranking(candidates, FOUR.grades, beta=0.5)
    same(loss, (0.5966349631,))
    (gradient,) = torch.autograd.grad(loss.sum(), ratios)
    same(gradient[0] / 0.5, (-0.3066401790, 0.0526351800, 0.0851283650, 0.1688766340))


def test_list_wrappers() -> None:
    same(objective("6*all_pairs(dpo(beta=0.5))").loss(FOUR), (2.5780893668,))
    same(objective("all_pairs(dpo(beta=0.5))").loss(FOUR), (0.4296815611,))
    same(objective("best_worst(dpo(beta=0.5))").loss(FOUR), (0.2519290813,))


def test_tpo_step_scores() -> None:
    means = torch.tensor(
        [[0.2, 0.1, 0.3], [0.2, -0.1, 0.05], [0.2, -0.4, -0.2]], dtype=torch.float64
    )
    similarity = torch.tensor([[1, 1, 1], [1, 0.6, 0.2], [1, 0.1, -0.3]], dtype=torch.float64)
    steps = torch.tensor([0, 0, 1, 2, 2, 2, -1]).expand(3, 7)
    ratios = torch.where(steps >= 0, means.gather(1, steps.clamp(min=0)), torch.nan)

    def scored(importance: Tensor) -> LogProbs:
        weights = tokens.step_weights(importance, steps)
        elements = TokenLogProbs(ratios, torch.zeros_like(ratios), steps >= 0, weights)
        sums = ratios.nansum(1)
        return LogProbs(sums, torch.zeros_like(sums), (steps >= 0).sum(1), elements)

    repository = scored(1 + similarity)
    found = tokens.weighted(repository, average=True).ratio
    same(found, (0.2, 0.0625, -0.0473684211), 1e-10)
    same(tokens.weighted(scored(torch.ones(3, 3, dtype=torch.float64)), average=True).ratio,
         (0.2, 0.05, -0.1333333333), 1e-10)  # fmt: skip
    different = torch.cat([torch.ones(1, 3, dtype=torch.float64), 1 - similarity[1:]])
    same(tokens.weighted(scored(different), average=True).ratio, (0.2, 0.0, -0.2818181818), 1e-10)

    batch = Batch(repository[None], numbers(1, 0.5, -0.5)[None])
    spec = "all_pairs(weighted(dpo(beta=0.5), average=True))"
    same(objective(spec).loss(batch), (0.6528787380,))


def test_lists_of_soft_targets() -> None:
    z, grades = numbers(1.0, -0.5, 0.2), numbers(1.0, 0.5, 0.0)
    batch = listed(z, grades)
    p, q = z.softmax(0), grades.softmax(0)
    same(objective("infonca(beta=1)").loss(batch), (-(q * p.log()).sum().item(),))
    same(objective("exo_list(beta=1)").loss(batch), ((p * (p / q).log()).sum().item(),))
    nca = -(q * z.sigmoid().log() + (-z).sigmoid().log() / 3).sum()
    same(objective("nca_list(beta=1)").loss(batch), (nca.item(),))


def test_triple_po_contrasts_two_answers_and_learns_a_third() -> None:
    policy = numbers(-3, -5, -9)[None]
    batch = Batch(log_probs(policy, policy * 0, numbers(3, 5, 3)[None]), numbers(2, 1, 0)[None])
    found = objective("triple_po(beta=0.1, alpha=0.5)").loss(batch).item()
    assert found == pytest.approx(math.log1p(math.exp(-0.4)) + 0.5, abs=1e-12)
