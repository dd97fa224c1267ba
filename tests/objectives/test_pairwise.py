"""Pairwise objectives give the values and gradients of their papers' examples, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from objectives.given import (
    LOSSES,
    diverging,
    log_probs,
    numbers,
    of_ratio,
    same,
    three_pairs,
    with_numbers,
)

from mmalign.objectives import objective
from mmalign.objectives.scores import log1mexp

# d loss / d s_w of the three pairs.
CHOSEN_GRADIENTS = {
    "dpo(beta=0.1)": (-0.0331812228, -0.0556013891, -0.0462570155),
    "ipo(tau=0.1, average=False)": (4.0, -14.5, -7.0),
    "ipo(tau=0.1, average=True)": (-0.47, -0.64453125, -0.123875),
    "contrastive(beta=0.1)": (-0.0182425524, -0.0580542305, -0.0952574127),
    "0.1*odds_ratio()": (-0.0025631401, -0.0027336362, -6.566510787e-04),
    "simpo(beta=2.5, gamma=1.375)": (-0.0882231285, -0.0900350079, -0.0203548395),
    "ln_dpo(beta=5)": (-0.0456063810, -0.2143592047, -0.0277491318),
    "cdpo(beta=0.1, label_smoothing=0.1)": (-0.0231812228, -0.0456013891, -0.0362570155),
    "robust(dpo(beta=0.1), flip_rate=0.1)": (-0.0456812228, -0.0681013891, -0.0587570155),
    "rpo(beta=0.01, eta=0.005)": (-0.0048750714, -0.0051062476, -0.0050125007),
}


REJECTED_GRADIENTS = {
    "0.1*odds_ratio()": (0.0019939404, 0.0034750860, 9.778492658e-04),
    "simpo(beta=2.5, gamma=1.375)": (0.0705785028, 0.1200466772, 0.0325677432),
    "ln_dpo(beta=5)": (0.0364851048, 0.2858122729, 0.0443986109),
    "rpo(beta=0.01, eta=0.005)": (0.0048250714, 0.0050562476, 0.0049625007),
}


@pytest.mark.parametrize("spec", LOSSES)
def test_losses_of_three_pairs(spec: str) -> None:
    same(objective(spec)(*three_pairs()), LOSSES[spec])


@pytest.mark.parametrize(
    ("spec", "side", "expected"),
    [(s, 0, v) for s, v in CHOSEN_GRADIENTS.items()]
    + [(s, 1, v) for s, v in REJECTED_GRADIENTS.items()],
)
def test_gradients_of_three_pairs(spec: str, side: int, expected: tuple[float, ...]) -> None:
    pair = three_pairs(grad=True)
    objective(spec)(*pair).sum().backward()
    gradient = pair[side].policy.grad
    assert gradient is not None
    same(gradient, expected, within=2e-10)


MODPO = {
    "modpo(beta=0.1, weight=0.5, margins='other')": (0.3132616875, 0.7709570478, 1.2411538747),
    "modpo(beta=0.1, weight=0.9, margins='other')": (0.3922483510, 0.8073371272, 0.6766193964),
    "modpo(beta=0.1, weight=0.1, margins='other')": (0.0328284704, 0.4932489460, 9.3000914201),
    "modpo(beta=0.1, weight=1.0, margins='other')": LOSSES["dpo(beta=0.1)"],
    "modpo(beta=0.1, weight=0.5, margins='0.3*other + 0.2*third')": (
        0.2541647540,
        0.9555092116,
        0.9493672175,
    ),
}


@pytest.mark.parametrize("spec", MODPO)
def test_margins_of_other_objectives(spec: str) -> None:
    aux = {"other": numbers(0.4, -0.3, 1.2), "third": numbers(-0.2, 0.5, 0.1)}
    pair = with_numbers(three_pairs(grad=True), **aux)
    loss = objective(spec)(*pair)
    same(loss, MODPO[spec])
    if "weight=0.5, margins='other'" in spec:
        loss.sum().backward()
        gradient = pair[0].policy.grad
        assert gradient is not None
        same(gradient, (-0.0537882843, -0.1074859691, -0.1421899005), 2e-10)


def test_modpo_is_indifferent_where_the_margins_make_up_for_the_ratio() -> None:
    pair = of_ratio(6.0), of_ratio(0.0)
    aux = {"other": numbers(1.2)}
    spec = "modpo(beta=0.1, weight=0.5, margins='other')"
    same(objective(spec)(*with_numbers(pair, **aux)), (math.log(2),))


def test_batch_means() -> None:
    pair = three_pairs()
    same(objective("dpo(beta=0.1)")(*pair).mean(), 0.6120350329)
    same(objective("ln_dpo(beta=5)")(*pair).mean(), 0.6488588716)
    same(objective("simpo(beta=2.5, gamma=1.375)")(*pair).mean(), 1.0452318812)
    same(objective("rpo()")(*pair).mean(), 0.6861901071)
    # NLL over all tokens of the batch, as TRL and ALMA average it
    tokenwise = "contrastive(beta=0.1) + nll(reduction='tokens')"
    same(objective(tokenwise)(*pair).mean(), 3.0410345261)
    same(objective("nll(reduction='tokens') + 0.1*odds_ratio()")(*pair).mean(), 1.7212282125)


def test_odds() -> None:
    chosen = log_probs(numbers(-0.5, -1e-6), numbers(0, 0))
    rejected = log_probs(numbers(-1.0, -1.0), numbers(0, 0))
    same(chosen.log_odds - rejected.log_odds, (0.9740769842, 14.3568349126))
    same(log1mexp(numbers(-1e-3, -0.6931, -0.6932, -40)), tuple(
        math.log(-math.expm1(x)) for x in (-1e-3, -0.6931, -0.6932, -40.0)
    ))  # fmt: skip


def test_alpha_po_reward() -> None:
    chosen, rejected = log_probs(numbers(-2.0), numbers(0)), log_probs(numbers(0.0), numbers(0))
    loss = objective("simpo(beta=1, gamma=0, alpha=0.25)")(chosen, rejected)
    same(torch.log(torch.expm1(loss)), (2.5948850828,))  # the inverse of sp


def test_bco_with_a_moved_baseline() -> None:
    term = objective("bco_pair(beta=0.1)")
    grown = three_pairs(grad=True)
    term(*grown)
    term.finish_step()
    assert term.state_dict()["0.bco_pair.mean"] == pytest.approx(-0.9250 / 6, abs=1e-9)
    same(term(*three_pairs()), (1.0667685209, 1.5053468865, 1.3163431210))


def test_discopop_is_finite_far_out() -> None:
    pair = of_ratio(-120.0), of_ratio(0.0)
    same(objective("discopop(beta=1.0)")(*pair), (120.0,))


def test_length_normalisation_can_change_the_sign() -> None:
    chosen = log_probs(numbers(3), numbers(0), numbers(100))
    rejected = log_probs(numbers(1), numbers(0), numbers(10))
    same(objective("dpo(beta=0.1)")(chosen, rejected), (0.5981388694,))
    same(objective("ln_dpo(beta=5)")(chosen, rejected), (0.8833821554,))


@pytest.mark.parametrize(("tau", "loss"), [(0.5, 0.0625), (0.1, 18.0625)])
def test_ipo_target_must_match_the_scale(tau: float, loss: float) -> None:
    same(objective(f"ipo(tau={tau}, average=False)")(of_ratio(0.75), of_ratio(0.0)), (loss,))


def test_tdpo_counts_how_far_the_rejected_side_diverged_further() -> None:
    chosen, rejected = diverging(2.0, 0.5), diverging(-1.0, 1.5)
    for alpha, h in ((0.0, 3.0), (0.5, 2.5), (1.0, 2.0)):
        found = objective(f"tdpo(beta=0.1, alpha={alpha})")(chosen, rejected)
        same(found, (math.log1p(math.exp(-0.1 * h)),))
