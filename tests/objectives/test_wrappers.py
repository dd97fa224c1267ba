"""What wraps an objective, or weighs its pairs, gives its paper's values, in float64."""

from __future__ import annotations

import torch
from objectives.given import LOSSES, numbers, of_ratio, same, three_pairs, with_numbers
from torch import Tensor

from mmalign.objectives import objective, robust


def test_soft_labels() -> None:
    pair = with_numbers(three_pairs(), sure=numbers(0.9, 0.9, 0.9))
    cdpo = LOSSES["cdpo(beta=0.1, label_smoothing=0.1)"]
    same(objective("soft(dpo(beta=0.1), confidence='sure')")(*pair), cdpo)


def test_soft_labels_of_ipo_move_its_target() -> None:
    # q = 0.8 regresses on (q - 1/2)/tau = 3, up to a constant
    pair = with_numbers(three_pairs(), sure=numbers(0.8, 0.8, 0.8))
    found = objective("soft(ipo(tau=0.1, average=False), confidence='sure')")(*pair)
    same(found - (25 - 9), (16.0, 27.5625, 2.25))


def test_robust_ipo_moves_its_target() -> None:
    pair = of_ratio(7.0), of_ratio(0.0)
    spec = "robust(ipo(tau=0.1, average=False), flip_rate=0.1)"
    same(objective(spec)(*pair), (-13.5,))


def test_em_weights_and_gradient() -> None:
    z = numbers(0.7, -0.225, 0.15).requires_grad_()
    w = robust.posterior(z, numbers(0.9))
    same(w, (0.9477090672, 0.8778498540, 0.9127133692))
    robust.soft_label(z, w).sum().backward()
    assert z.grad is not None
    same(z.grad, (-0.2795212950, -0.4338637446, -0.3752835239))


def test_em_moves_the_reliability_once_per_step() -> None:
    term = objective("em(dpo(beta=0.1))")
    term(*three_pairs(grad=True))
    same(term.state_dict()["0.em.reliability"], (0.9,))
    term.finish_step()
    same(term.state_dict()["0.em.reliability"], (0.9012757430,))
    exact = objective("em(dpo(beta=0.1), ema=1.0)")
    exact(*three_pairs(grad=True))
    exact.finish_step()
    same(exact.state_dict()["0.em.reliability"], (0.9127574302,))


def test_em_lets_contradicted_labels_fade() -> None:
    z = numbers(-6.0, -1.0986122887).requires_grad_()
    w = robust.posterior(z, numbers(0.9))
    robust.soft_label(z, w).sum().backward()
    assert z.grad is not None
    same(w[0], 0.0218219488)
    same(z.grad, (-0.0193493256, -0.5))


def test_em_finds_the_true_reliability() -> None:
    p, truth = numbers(0.95, 0.8, 0.6, 0.9), 0.8
    seen_right = truth * p + (1 - truth) * (1 - p)

    def step(eta: Tensor) -> Tensor:
        z = p.logit()
        right, wrong = robust.posterior(z, eta), robust.posterior(-z, eta)
        return (seen_right * right + (1 - seen_right) * wrong).mean()

    eta = step(numbers(0.5))
    same(eta, 0.63875)
    for _ in range(9):
        eta = step(eta)
    same(eta, 0.7985572031)
    eta = numbers(0.99)
    for _ in range(100):
        eta = step(eta)
    same(eta, 0.8)


def test_importance_multiplies_and_dynamic_beta_scales() -> None:
    factor = numbers(0.5, -2.0, 0.0)
    pair = with_numbers(three_pairs(), weight=factor, factor=factor)
    plain = objective("dpo(beta=0.1)")(*pair)
    torch.testing.assert_close(objective("importance(dpo(beta=0.1))")(*pair), factor * plain)
    h = numbers(7, -2.25, 1.5)
    for strength, times in ((0.4, 1 + 0.4 * factor), (1.0, numbers(1.5, 0.01, 1.0))):
        found = objective(f"dynamic_beta(dpo(beta=0.1), strength={strength})")(*pair)
        torch.testing.assert_close(found, -(0.1 * times * h).sigmoid().log())


def test_da_dpo_scales_beta_by_difficulty() -> None:
    pair = with_numbers(three_pairs(), difficulty=numbers(0.5, 1.0, 2.0))
    h = numbers(7, -2.25, 1.5) * numbers(0.5, 1.0, 2.0)
    same(objective("da_dpo(beta=0.1)")(*pair), tuple((-(0.1 * h).sigmoid().log()).tolist()))


def test_without_a_reference_a_loss_is_of_the_policy_alone() -> None:
    for spec, plain in (
        ("reference_free(dpo(beta=0.1))", "contrastive(beta=0.1)"),
        ("reference_free(ln_dpo(beta=2.0))", "simpo(beta=2.0, gamma=0)"),
        ("reference_free(hinge(beta=0.1))", "0.1*slic(delta=10.0)"),
    ):
        assert not objective(spec).needs.reference
        same(objective(spec)(*three_pairs()), tuple(objective(plain)(*three_pairs()).tolist()))
