"""Objectives of images and answers about them give their papers' values, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from objectives.given import diverging, log_probs, numbers, of_ratio, same, sequence
from torch import Tensor

from mmalign.objectives import Batch, LogProbs, TokenLogProbs, objective, tokens


def test_mdpo() -> None:
    def cells(*ratios: float) -> LogProbs:
        return log_probs(numbers(*ratios)[None], numbers(*[0.0] * len(ratios))[None])

    batch = Batch(cells(0.4, -0.6), numbers(1, 0)[None], {"crop": cells(-0.2, 0.0)})
    terms = objective("mdpo(beta=0.1)").terms(batch)
    assert list(terms) == ["dpo", "contrast", "chosen_anchor"]
    same(torch.cat(list(terms.values())), (0.6444, 0.6636, 0.6733), 1e-4)
    same(objective("mdpo(beta=0.1)").loss(batch), (1.9813,), 1e-4)


def _both(chosen: LogProbs, rejected: LogProbs) -> LogProbs:
    def side(name: str) -> Tensor:
        return torch.stack([getattr(chosen, name), getattr(rejected, name)], 1)

    return LogProbs(
        side("policy"), side("reference"), side("length"), divergence=side("divergence")
    )


def test_chip_is_one_sigmoid_over_answers_images_and_tokens() -> None:
    batch = Batch(
        _both(diverging(0.4, 0.5), diverging(-0.6, 1.5)),
        numbers(1, 0)[None],
        {"noise": _both(diverging(-0.2, 0.0), diverging(0.0, 0.0))},
    )
    z = (0.4 + 0.6) + (0.4 + 0.2) - 0.1 * (1.5 - 0.5)
    same(objective("chip(beta=0.5)").loss(batch), (math.log1p(math.exp(-0.5 * z)),))
    without = objective("chip(beta=0.5, tau=0)").loss(batch)
    same(without, (math.log1p(math.exp(-0.5 * 1.6)),))


def test_opa_dpo() -> None:
    """Worked: beta 0.1, log-ratio 2 of the dataset's answer and -1 of the policy's own."""
    weights = numbers(1, 2.5, 2.5)[None]
    revised = sequence([0.2, 0.4, -0.1], [0, 0, 0], weights=weights)
    same(tokens.weighted(revised).ratio, (0.95,))

    def row(*values: float) -> Tensor:
        return numbers(*values)[None]

    def listed_tokens(sums: Tensor) -> LogProbs:
        each = TokenLogProbs(
            sums[..., None], torch.zeros_like(sums)[..., None],
            torch.ones_like(sums)[..., None].bool(), torch.ones_like(sums)[..., None],
        )  # fmt: skip
        return LogProbs(sums, torch.zeros_like(sums), torch.ones_like(sums), each)

    batch = Batch(
        listed_tokens(row(2.0, 0.95, 0.5, -1.0)),
        row(3, 2, 1, 0),
        {"speckle": listed_tokens(row(1.0, 0.0, 0.25, 0.0))},
    )
    terms = objective("opa_dpo()").terms(batch)

    def sp(h: float, weight: float = 1.0) -> float:
        return weight * math.log1p(math.exp(-0.1 * h))

    expected = (sp(3.0), sp(1.95), sp(1.0, 0.2), sp(0.25, 0.2), sp(2.0), sp(0.95))
    same(torch.cat(list(terms.values())), expected)
    assert expected[0] == pytest.approx(0.5544, abs=1e-4)


def test_p2_dpo() -> None:
    """Written out: log-probabilities of four answers, two of them also closer and degraded."""

    def cells(*policy: float) -> LogProbs:
        p = numbers(*policy)[None]
        return log_probs(p, p - numbers(0.5, -0.1, 0.2, -0.3)[None])

    batch = Batch(
        cells(-2.0, -3.0, -2.5, -4.0),
        numbers(3, 2, 1, 0)[None],
        {"with_crop": cells(-1.5, 0, 0, -3.0), "noise": cells(-2.5, 0, 0, -3.5)},
    )
    batch = replace(
        batch, candidates=batch.candidates.with_aux(crop_gain=numbers(1.05, 1.05, 1.05, 1.05)[None])
    )

    def sp(z: float) -> float:
        return math.log1p(math.exp(-z))

    a = 0.5 + 0.2 * math.tanh(0.5)
    focus, robust = sp(0.1 * (0.5 + 0.3)), sp(0.1 * (-0.1 - 0.2))
    gain, expected = -1.5 + 2.5, (-3.0 + 0.3) - (-3.5 + 0.3)
    value = a * (focus + 0.3 * sp(0.1 * (gain - expected))) + (1 - a) * robust
    same(objective("p2_dpo()").loss(batch), (value,), within=1e-12)


def test_povid_is_the_mean_of_two_contrasts() -> None:
    ratios = numbers(2.0, -0.5, -1.0)[None]
    batch = Batch(log_probs(ratios, torch.zeros_like(ratios)), numbers(2, 1, 0)[None])
    expected = 0.5 * math.log1p(math.exp(-0.3)) + 0.5 * math.log1p(math.exp(-0.25))
    same(objective("povid(beta=0.1)").loss(batch), (expected,), within=1e-12)


def test_v_dpo_guides_and_lifts_the_answer_above_the_blind_one() -> None:
    """The policy counts g log pi(y, m) - (g - 1) log pi(y, m0); m0 itself is left alone."""
    policy = numbers(-4.0, -5.0)[None]
    blind = numbers(-4.5, -4.8)[None].requires_grad_()
    reference = numbers(-4.2, -4.9)[None]
    unseen = log_probs(blind, numbers(-4.6, -4.7)[None])
    batch = Batch(log_probs(policy, reference), numbers(1, 0)[None], {"grey": unseen})
    terms = objective("v_dpo(beta=0.1, strength=1.5, language_bias=1.0)").terms(batch)
    guided = [1.5 * -4.0 - 0.5 * -4.5 + 4.2, 1.5 * -5.0 - 0.5 * -4.8 + 4.9]
    lifted = (-4.0 + 4.2) - (-4.5 + 4.6)
    expected = [math.log1p(math.exp(-0.1 * h)) for h in (guided[0] - guided[1], lifted)]
    same(torch.cat(list(terms.values())), tuple(expected), within=1e-12)
    assert not torch.stack(list(terms.values())).requires_grad


def icvco_batch(multi: float) -> Batch:
    """Single margins 0; of both images, sigmoid(0.1 z) = multi for either answer."""
    z = 10 * math.log(multi / (1 - multi))
    zero = of_ratio(0.0, 0.0).map(lambda tensor: tensor[None])
    ahead = of_ratio(z, z).map(lambda tensor: tensor[None])
    views = {"swapped": zero, "both": ahead, "both_swapped": zero}
    return Batch(zero, numbers(1, 1)[None], views)


def test_icvco_distils_only_what_both_images_tell_apart() -> None:
    loss = objective("distilled_margins(beta=0.1)")
    assert loss.loss(icvco_batch(0.6)).item() == pytest.approx(math.log(2), abs=1e-12)
    assert loss.loss(icvco_batch(0.4)).item() == 0
    untrained = icvco_batch(0.5)
    assert objective("icvco").loss(untrained).item() == pytest.approx(2.5 * math.log(2), abs=1e-12)
