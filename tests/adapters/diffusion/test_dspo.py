"""DSPO matches scores, which are the noise up to a factor: one formula for every prediction."""

from __future__ import annotations

import pytest
import torch
from tiny_diffusion import adapter, preference, shake
from torch import Tensor

from mmalign.adapters.diffusion.adapter import Problem
from mmalign.adapters.protocol import DIVERGENCE, PREDICTIONS
from mmalign.objectives import LogProbs, objective

BETA = 0.8


def noise_of(found, problem: Problem, prediction: Tensor) -> Tensor:
    """The noise that a prediction implies, where x_t = signal x0 + spread eps."""
    signal, spread = (scale.view(-1, 1, 1, 1) for scale in found.process.scales(problem.step.cpu()))
    noisy, prediction = problem.noisy.double(), prediction.double()
    match found.process.prediction:
        case "epsilon":
            return prediction
        case "v_prediction":
            return spread * noisy + signal * prediction
    return noisy + signal * prediction


@pytest.mark.parametrize("name", ["stable_diffusion", "stable_diffusion_v", "sd3"])
def test_with_errors_of_the_noise_it_is_the_published_formula(name: str) -> None:
    found = adapter(name, weighting="epsilon")
    shake(found)
    rows = preference(name).candidates
    inputs = found.encode(found.collate(rows, [3, 3]))
    with torch.no_grad():
        with found.reference_mode():
            told = found.log_probs(found.policy, inputs, [PREDICTIONS])
        given = {**inputs, PREDICTIONS: told.predictions}
        own = found.log_probs(found.policy, given, [PREDICTIONS, DIVERGENCE])
    both = LogProbs(own.log_probs, told.log_probs, own.lengths, divergence=own.divergence)
    loss = objective(f"dspo(beta={BETA})")(both[:1], both[1:])

    (problem,) = inputs["problems"]
    policy, reference, target = (
        noise_of(found, problem, each)
        for each in (own.predictions[0], told.predictions[0], problem.target)
    )
    errors = [(each - target).square().flatten(1).mean(1) for each in (policy, reference)]
    inside = -0.5 * BETA * ((errors[0][0] - errors[0][1]) - (errors[1][0] - errors[1][1]))
    push = BETA * (1 - torch.sigmoid(inside))
    expected = (policy[0] - target[0] - push * (policy[0] - reference[0])).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert expected.item() != pytest.approx(errors[0][0].item(), rel=1e-4)
