"""Every objective gives the values and gradients of its paper's worked examples, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from objectives.given import log_probs, numbers, of_ratio, three_pairs, with_numbers
from torch import Tensor

from mmalign.objectives import (
    Batch,
    LogProbs,
    TokenLogProbs,
    objective,
    pairwise,
    ranking,
    robust,
    tokens,
)
from mmalign.objectives.scores import log1mexp

# Losses of the three pairs. Ten decimals are given, so 1e-9 is what can be held.
PAIRS = {
    "dpo(beta=0.1)": (0.4031860489, 0.8119620020, 0.6209570478),
    "dpo(beta=0.5)": (0.0297504183, 1.4061501362, 0.3868710061),
    "interpolated_dpo(beta=0.1, gamma=0)": (0.2014132780, 0.8687926040, 3.0485873516),
    "interpolated_dpo(beta=0.1)": (0.4031860489, 0.8119620020, 0.6209570478),
    "ipo(tau=0.1, average=False)": (4.0, 52.5625, 12.25),
    "ipo(tau=0.1, average=True)": (22.09, 26.5869140625, 24.552025),
    "ipo(beta=1.0)": (0.04, 0.4306640625, 0.207025),
    "contrastive(beta=0.1)": (0.2014132780, 0.8687926040, 3.0485873516),
    "contrastive(beta=2, average=True)": (0.5130152524, 0.3546192515, 0.4374879505),
    "smooth(contrastive(beta=0.1), rate=0.1)": (0.3514132780, 0.8362926040, 2.7485873516),
    "cpo(beta=0.1)": (2.2014132780, 2.9625426040, 4.5485873516),
    "contrastive(beta=0.1) + nll(reduction='sum')": (40.2014132780, 34.3687926040, 123.0485873516),
    "nll()": (2.0, 2.09375, 1.5),
    "odds_ratio()": (0.5856414338, 0.4836738905, 0.5244276038),
    "orpo(beta=0.1)": (2.0585641434, 2.1421173891, 1.5524427604),
    "simpo(beta=2.5, gamma=1.375)": (1.2234445810, 0.8585503842, 1.0537006783),
    "simpo(beta=2.5, gamma_beta_ratio=0.55)": (1.2234445810, 0.8585503842, 1.0537006783),
    "simpo(beta=10, gamma=3)": (1.3132616875, 0.2473269165, 0.6931471806),
    "simpo(beta=2, gamma=0)": (0.5130152524, 0.3546192515, 0.4374879505),
    "simpo(beta=2.5, gamma=0.1, alpha=0.25)": (0.3883756511, 0.1527193315, 0.3044386099),
    "simpo(beta=2.5, gamma=1.375, link='hinge')": (1.875, 1.3072916667, 1.625),
    "ln_dpo(beta=5)": (0.2014132780, 1.1582013347, 0.5869620020),
    "ln_dpo(beta=0.1)": (0.6782596763, 0.7009901978, 0.6908997118),
    "cdpo(beta=0.1, label_smoothing=0.1)": (0.4731860489, 0.7894620020, 0.6359570478),
    "smooth(dpo(beta=0.1), rate=0.2)": (0.5431860489, 0.7669620020, 0.6509570478),
    "robust(dpo(beta=0.1), flip_rate=0.1)": (0.3156860489, 0.8400870020, 0.6022070478),
    "robust(dpo(beta=0.1), flip_rate=0.2)": (0.1698527156, 0.8869620020, 0.5709570478),
    "rpo(beta=0.01, eta=0.005)": (0.6607595555, 0.7061354605, 0.6916753053),
    "rpo(beta=0.1, eta=0.005)": (0.4231860489, 0.8287120020, 0.6809570478),
    "dpo(beta=0.1) + nll()": (2.4031860489, 2.9057120020, 2.1209570478),
    "em(dpo(beta=0.1))": (0.4397897018, 0.7844782192, 0.6340500424),
    "em(ipo(tau=0.5, average=True))": (0.3021412468, 0.9462634959, 0.6224784058),
    "em(simpo(beta=2.5, gamma=1.375))": (0.4108677890, 0.2071209968, 0.3059185422),
    "em(cpo(beta=2, average=True))": (0.4719725538, 0.2834027527, 0.3800535701),
    "hinge(beta=0.1)": (0.3, 1.225, 0.85),
    "slic(delta=1)": (0.0, 4.25, 31.0),
    "exo(beta=0.1, label_smoothing=1e-3)": (1.6572915822, 3.1543932192, 2.5055165555),
    "discopop(beta=0.1, tau=0.05)": (0.4965852261, 0.8168002200, 0.8493375793),
    "aot(beta=0.1)": (0.6209570478, 0.8119620020, 0.4031860489),
    "aot_unpaired(beta=0.1)": (0.5543552445, 0.5981388694, 0.6325990353),
    "nca(beta=0.1)": (1.2342467962, 1.4471106421, 1.3638993818),
    "bco_pair(beta=0.1)": (1.0722158536, 1.5023071886, 1.3315210248),
    "sppo(beta=0.1)": (9.0, 75.3125, 51.25),
    "apo_zero(beta=0.1)": (0.8277066715, 1.0561710612, 0.9632164184),
    "apo_down(beta=0.1)": (0.8816462251, 1.0185840452, 0.9127361573),
    "f_dpo(beta=0.1, divergence='forward_kl')": (3.633924113e-07, 0.9135734844, 0.0735606271),
    "f_dpo(beta=0.1, divergence='js')": (0.4786324980, 0.7610327674, 0.6254639342),
    "f_dpo(beta=0.1, divergence='alpha')": (0.0899729118, 0.8463039883, 0.4349199698),
    "dpop(beta=0.1, penalty=5)": (0.4031860489, 1.2950469003, 1.2058650684),
    "r_dpo(beta=0.1, alpha=0.01)": (0.4200553357, 0.7899192187, 0.4932489460),
    "odpo(beta=0.1, alpha=0.3, scale='linear')": (0.5130152524, 0.9897117547, 0.7709570478),
}

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


def same(found: Tensor, expected: tuple[float, ...] | float, within: float = 1e-9) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=within)


@pytest.mark.parametrize("spec", PAIRS)
def test_losses_of_three_pairs(spec: str) -> None:
    same(objective(spec)(*three_pairs()), PAIRS[spec])


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
    "modpo(beta=0.1, weight=1.0, margins='other')": PAIRS["dpo(beta=0.1)"],
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


def test_soft_labels() -> None:
    pair = with_numbers(three_pairs(), sure=numbers(0.9, 0.9, 0.9))
    cdpo = PAIRS["cdpo(beta=0.1, label_smoothing=0.1)"]
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


# ---- EM


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


# ---- unpaired


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
    same(2 * pairs, PAIRS["apo_zero(beta=0.1)"])


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


# ---- lists


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


# ---- tokens


def sequence(policy: list[float], reference: list[float], **more: Tensor) -> LogProbs:
    p, r = numbers(*policy)[None], numbers(*reference)[None]
    weights = more.pop("weights", torch.ones_like(p))
    elements = TokenLogProbs(p, r, torch.ones_like(p, dtype=torch.bool), weights, more)
    return LogProbs(p.sum(1), r.sum(1), torch.tensor([p.shape[1]]), elements)


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


# ---- images


def test_mdpo() -> None:
    def cells(*ratios: float) -> LogProbs:
        return log_probs(numbers(*ratios)[None], numbers(*[0.0] * len(ratios))[None])

    batch = Batch(cells(0.4, -0.6), numbers(1, 0)[None], {"crop": cells(-0.2, 0.0)})
    terms = objective("mdpo(beta=0.1)").terms(batch)
    assert list(terms) == ["dpo", "contrast", "chosen_anchor"]
    same(torch.cat(list(terms.values())), (0.6444, 0.6636, 0.6733), 1e-4)
    same(objective("mdpo(beta=0.1)").loss(batch), (1.9813,), 1e-4)


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


@pytest.mark.parametrize(("tau", "loss"), [(0.5, 0.0625), (0.1, 18.0625)])
def test_ipo_target_must_match_the_scale(tau: float, loss: float) -> None:
    same(objective(f"ipo(tau={tau}, average=False)")(of_ratio(0.75), of_ratio(0.0)), (loss,))


# ---- a language model as a Q-function


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


# ---- weights and compositions of the vision-language papers


def test_importance_multiplies_and_dynamic_beta_scales() -> None:
    factor = numbers(0.5, -2.0, 0.0)
    pair = with_numbers(three_pairs(), weight=factor, factor=factor)
    plain = objective("dpo(beta=0.1)")(*pair)
    torch.testing.assert_close(objective("importance(dpo(beta=0.1))")(*pair), factor * plain)
    h = numbers(7, -2.25, 1.5)
    for strength, times in ((0.4, 1 + 0.4 * factor), (1.0, numbers(1.5, 0.01, 1.0))):
        found = objective(f"dynamic_beta(dpo(beta=0.1), strength={strength})")(*pair)
        torch.testing.assert_close(found, -(0.1 * times * h).sigmoid().log())


# ---- whole predictions


def diverging(ratio: float, kl: float) -> LogProbs:
    return replace(of_ratio(ratio), divergence=numbers(kl))


def test_tdpo_counts_how_far_the_rejected_side_diverged_further() -> None:
    chosen, rejected = diverging(2.0, 0.5), diverging(-1.0, 1.5)
    for alpha, h in ((0.0, 3.0), (0.5, 2.5), (1.0, 2.0)):
        found = objective(f"tdpo(beta=0.1, alpha={alpha})")(chosen, rejected)
        same(found, (math.log1p(math.exp(-0.1 * h)),))


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


def _both(chosen: LogProbs, rejected: LogProbs) -> LogProbs:
    def side(name: str) -> Tensor:
        return torch.stack([getattr(chosen, name), getattr(rejected, name)], 1)

    return LogProbs(
        side("policy"), side("reference"), side("length"), divergence=side("divergence")
    )


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


def test_triple_po_contrasts_two_answers_and_learns_a_third() -> None:
    policy = numbers(-3, -5, -9)[None]
    batch = Batch(log_probs(policy, policy * 0, numbers(3, 5, 3)[None]), numbers(2, 1, 0)[None])
    found = objective("triple_po(beta=0.1, alpha=0.5)").loss(batch).item()
    assert found == pytest.approx(math.log1p(math.exp(-0.4)) + 0.5, abs=1e-12)
