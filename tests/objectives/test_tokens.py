"""Objectives that weigh tokens give their papers' values, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.given import numbers, same, sequence
from torch import Tensor

from mmalign.objectives import LogProbs, TokenLogProbs, objective, tokens


def test_ddpo_weighs_corrected_tokens() -> None:
    weights = numbers(1, 5, 5, 1)[None]
    answer = sequence([-1, -2, -3, -1], [0, 0, 0, 0], weights=weights)
    same(tokens.weighted(answer, average=True).policy, (-2.25,))
    same(tokens.weighted(answer).policy, (-27.0,))


def test_contrastive_scores() -> None:
    positive = torch.tensor(
        [[[2, 0.5, -1, 0], [0.2, 1, 0.3, -0.5], [1.5, -0.5, 0, 0.4]]], dtype=torch.float64
    )
    negative = torch.tensor(
        [[[1.8, 0.7, -0.8, 0.1], [2.5, 0.1, -0.2, -1], [1.2, -0.2, 0.3, 0.2]]], dtype=torch.float64
    )
    chosen_tokens = torch.zeros(1, 3, dtype=torch.long)

    def scores(strength: float) -> Tensor:
        return tokens.contrastive_scores(positive, negative, chosen_tokens, strength=strength)[0]

    same(scores(1.0), (0.7793013005, 0.0122042803, 0.6675905147))
    same(scores(0.5), (0.7463077065, 0.0539997095, 0.6320335453))
    same(scores(0.0), (0.7100999229, 0.2071552608, 0.5912483908))

    chosen = sequence([0.3, 0.5, -0.1, 0.2], [0, 0, 0, 0])
    rejected = sequence([0.2, -0.4, 0.6], [0, 0, 0], weights=1 - scores(1.0)[None])
    loss = "critical_token_dpo(beta={})"
    same(objective(loss.format(1.0))(chosen, rejected), (0.2996613502,))
    same(objective(loss.format(0.1))(chosen, rejected), (0.6419520531,))
    same(objective("dpo(beta=1.0)")(chosen, rejected), (0.4740769842,))


def test_critical_token_gradient() -> None:
    weights = numbers(0.2206986995, 0.9877957197, 0.3324094853)[None]
    rejected = sequence([0.2, -0.4, 0.6], [0, 0, 0], weights=weights)
    assert rejected.tokens is not None
    rejected.tokens.policy.requires_grad_()
    chosen = sequence([0.3, 0.5, -0.1, 0.2], [0, 0, 0, 0])
    tokens.critical_token_dpo(chosen, rejected).sum().backward()
    assert rejected.tokens.policy.grad is not None
    same(rejected.tokens.policy.grad[0], (0.0571457038, 0.2557707941, 0.0860710735))


@pytest.mark.parametrize(("alpha", "h"), [(1.0, 0.8), (0.5, 0.6), (0.0, 0.4)])
def test_ld_dpo(alpha: float, h: float) -> None:
    chosen = sequence([-0.5, -0.2, -0.9, -0.4, -0.3], [-0.6, -0.3, -0.8, -0.5, -0.6])
    rejected = sequence([-0.7, -0.6, -0.1], [-0.5, -0.4, -0.2])
    found = objective(f"ld_dpo(beta=1.0, alpha={alpha})")(chosen, rejected)
    same(found, (math.log1p(math.exp(-h)),))


def test_wpo_weighs_by_how_likely_the_policy_wrote_it() -> None:
    def answer(distributions: list[list[float]], ids: list[int]) -> LogProbs:
        p = torch.tensor(distributions, dtype=torch.float64)
        picked = p[torch.arange(len(ids)), torch.tensor(ids)].log().tolist()
        return sequence(picked, [-1.0] * len(ids), collision=(p**2).sum(1).log()[None])

    first = answer([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]], [0, 1])
    second = answer([[0.4, 0.4, 0.2], [0.6, 0.3, 0.1]], [2, 0])
    plain = objective("dpo")(first, second)
    same(objective("wpo(dpo())")(first, second) / plain, (0.8611551952,))
    same(objective("wpo(dpo())")(first, first) / math.log(2), (1.0,))
    unclamped = objective("wpo(dpo(), clamp=False)")(first, first) / math.log(2)
    same(unclamped.sqrt(), (1.0116282978,))


def test_token_rewards_are_optimal_advantages() -> None:
    # Vocabulary {a, b}, two tokens, beta = 0.5.
    beta = 0.5
    reference = numbers(0.6, 0.4), torch.tensor([[0.7, 0.3], [0.5, 0.5]], dtype=torch.float64)
    rewards = numbers(0.2, -0.1), torch.tensor([[1, -0.5], [0.3, 0.8]], dtype=torch.float64)
    second = rewards[1] + beta * reference[1].log()
    after = tokens.values_from_logits(second / beta, beta=beta)
    same(after, (0.8322189589, 0.6100572535))
    first = rewards[0] + beta * reference[0].log() + after
    root = tokens.values_from_logits(first / beta, beta=beta)
    same(root, 0.8821877219)
    policy = ((first - root) / beta).exp(), ((second - after[:, None]) / beta).exp()
    same(policy[0], (0.8099658847, 0.1900341153))
    sequences = [(0, 0), (0, 1), (1, 0), (1, 1)]
    p = torch.stack([torch.stack([policy[0][a], policy[1][a, b]]) for a, b in sequences]).log()
    r = torch.stack(
        [torch.stack([reference[0][a], reference[1][a, b]]) for a, b in sequences]
    ).log()
    ones = torch.ones_like(p)
    responses = LogProbs(p.sum(1), r.sum(1), ones.sum(1), TokenLogProbs(p, r, ones.bool(), ones))
    token_rewards = tokens.token_rewards(responses, beta=beta)
    same(token_rewards[:, 0], (0.1500312370, 0.1500312370, -0.3721304684, -0.3721304684))
    same(token_rewards[:, 1], (0.1677810411, -1.3322189589, -0.3100572535, 0.1899427465))
    expected = (0.3178122781, -1.1821877219, -0.6821877219, -0.1821877219)
    same(token_rewards.sum(1), expected)
    same(beta * responses.ratio, expected)
    same(objective("dpo(beta=0.5)")(responses[0:1], responses[3:4]), (0.4740769842,))


def test_step_sums() -> None:
    sums = tokens.step_sums(numbers(1, 2, 4, 8)[None], torch.tensor([[0, 0, 1, -1]]), 3)
    same(sums[0], (3.0, 4.0, 0.0))
