"""What the papers say must hold: limits, symmetries, gradients, and that nothing overflows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from objectives.given import (
    EXAMPLES,
    log_probs,
    numbers,
    of_ratio,
    random_batch,
    random_log_probs,
    three_pairs,
)
from torch import Tensor

from mmalign.objectives import Batch, LogProbs, objective
from mmalign.objectives.pairwise import dpo
from mmalign.objectives.table import TABLE

PAIRS = [EXAMPLES[n] for n, e in TABLE.items() if e.kind == "pair" and not e.around]
# aot compares s and r each sorted: a shift that differs from pair to pair reorders both
NOT_OF_RATIOS = {
    "simpo()", "contrastive()", "slic()", "odds_ratio()", "denoising_odds()", "aot()", "dspo()",
    "logic(loss='cCPO')",
}  # fmt: skip


def random_pair(rows: int = 6) -> tuple[LogProbs, LogProbs]:
    better = random_log_probs((rows,), 1).with_aux(grade=torch.ones(rows, dtype=torch.float64))
    worse = random_log_probs((rows,), 2).with_aux(grade=torch.zeros(rows, dtype=torch.float64))
    return better, worse


def with_policy(batch: Batch, policy: Tensor) -> Batch:
    """The batch with other log-probabilities (b k t) of the tokens."""
    candidates = batch.candidates
    assert candidates.tokens is not None
    tokens = replace(candidates.tokens, policy=policy)
    sums = torch.where(tokens.mask, policy, 0.0).sum(-1)
    return replace(batch, candidates=replace(candidates, policy=sums, tokens=tokens))


def changed(batch: Batch, change: object) -> Batch:
    views = {name: view.map(change) for name, view in batch.views.items()}
    return replace(batch, candidates=batch.candidates.map(change), views=views)


# wpo and em hold their weights constant, on purpose: their gradients are tested below.
@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - {"em", "wpo"}))
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    batch, loss = random_batch(2, TABLE[name].width), objective(EXAMPLES[name]).loss
    assert batch.candidates.tokens is not None
    policy = batch.candidates.tokens.policy.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: loss(with_policy(batch, p)), [policy])


@pytest.mark.parametrize("name", EXAMPLES)
def test_float32_agrees_with_float64(name: str) -> None:
    batch, term = random_batch(width=TABLE[name].width), objective(EXAMPLES[name])

    def single(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.is_floating_point() else tensor

    found = term.loss(changed(batch, single))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), term.loss(batch), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("ratio", [(-2000.0, 2000.0), (2000.0, -2000.0), (0.0, 0.0)])
def test_extreme_log_ratios_neither_overflow_nor_lose_the_gradient(
    name: str, ratio: tuple[float, float]
) -> None:
    width = TABLE[name].width
    batch, sides = random_batch(width=width), torch.linspace(*ratio, width)
    policy = (-2500 + sides).expand(4, width).clone().requires_grad_()

    def single(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.is_floating_point() else tensor

    batch = changed(batch, single)
    candidates = replace(batch.candidates, policy=policy, reference=torch.full((4, width), -2500.0))
    loss = objective(EXAMPLES[name]).loss(replace(batch, candidates=candidates))
    assert loss.isfinite().all()
    (gradient,) = torch.autograd.grad(loss.sum() + 0 * policy.sum(), policy)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("spec", ["dpo(beta=1.0)", "robust(dpo(beta=1.0), flip_rate=0.0)"])
def test_a_hopeless_pair_costs_its_margin(spec: str) -> None:
    chosen = of_ratio(-2000.0)
    chosen.policy.requires_grad_()
    loss = objective(spec)(chosen, of_ratio(0.0))
    loss.sum().backward()
    assert loss.item() == 2000
    assert chosen.policy.grad is not None
    assert chosen.policy.grad.item() == -1


LOG_2 = [
    "dpo()", "ln_dpo()", "interpolated_dpo()", "aot()", "aot_unpaired()", "dpop()", "f_dpo()",
    "odpo()", "ld_dpo()", "critical_token_dpo()", "ddpo()", "chosen_anchor()", "weighted(dpo())",
    "averaged(dpo())", "clipped(dpo())", "contrast(dpo(), worse='chosen@crop')", "guided(dpo(),"
    " strength=1.0)", "smooth(dpo(), rate=0.3)", "robust(dpo(), flip_rate=0.3)", "em(dpo())",
    "0.5*bco_pair()", "0.5*nca()", "plackett_luce()", "all_pairs(dpo())",
]  # fmt: skip
TOTALS = {
    "mdpo()": 3.0, "svco()": 4.0, "symmpo()": 4.0, "icvco()": 2.5, "opa_dpo()": 2 + 0.4 + 2,
    "p2_dpo(calibration=0)": 1.0, "chip()": 1.0, "chip(token_weights=True)": 1.0, "tdpo()": 1.0,
    "da_dpo()": 1.0, "povid()": 1.0,
}  # fmt: skip
"""In units of log 2."""


@pytest.mark.parametrize("spec", [*LOG_2, *TOTALS])
def test_an_untrained_policy_costs_log_2(spec: str) -> None:
    batch = random_batch(width=4 if spec[:2] in ("op", "p2") else 2)

    def untrained(seen: LogProbs) -> LogProbs:
        assert seen.tokens is not None
        tokens = replace(seen.tokens, reference=seen.tokens.policy)
        none = torch.zeros_like(seen.policy)
        return replace(seen, reference=seen.policy, tokens=tokens, divergence=none)

    views = {name: untrained(view) for name, view in batch.views.items()}
    batch = replace(batch, candidates=untrained(batch.candidates), views=views)
    found = objective(spec).loss(batch)
    expected = math.log(2) * TOTALS.get(spec, 1.0)
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", ["kto()", "kto(baseline='none')", "apo_zero_unpaired()"])
def test_unpaired_losses_start_at_one_half(spec: str) -> None:
    batch = random_batch()
    same = replace(batch.candidates, reference=batch.candidates.policy)
    batch = replace(batch, candidates=same, views={"mismatched": same})
    assert objective(spec).loss(batch).tolist() == [0.5] * 4


@pytest.mark.parametrize("spec", [s for s in PAIRS if s not in NOT_OF_RATIOS])
def test_losses_of_log_ratios_ignore_what_policy_and_reference_share(spec: str) -> None:
    chosen, rejected = random_pair()

    def moved(response: LogProbs) -> LogProbs:
        assert response.tokens is not None
        # the tokens' reference and policy move together, by 0.7 each
        tokens = replace(
            response.tokens,
            policy=response.tokens.policy + 0.7,
            reference=response.tokens.reference + 0.7,
        )
        shift = 0.7 * response.length
        policy, reference = response.policy + shift, response.reference + shift
        return replace(response, policy=policy, reference=reference, tokens=tokens)

    term = objective(spec)
    torch.testing.assert_close(term(moved(chosen), moved(rejected)), term(chosen, rejected))


def test_dpo_is_exactly_antisymmetric() -> None:
    chosen, rejected = random_pair()
    h = chosen.ratio - rejected.ratio
    difference = dpo(chosen, rejected) - dpo(rejected, chosen)
    torch.testing.assert_close(difference, -0.1 * h, rtol=0, atol=1e-15)


def test_dpo_gradients_of_both_sides_cancel() -> None:
    pair = three_pairs(grad=True)
    dpo(*pair).sum().backward()
    assert pair[0].policy.grad is not None
    assert pair[1].policy.grad is not None
    assert (pair[0].policy.grad + pair[1].policy.grad).tolist() == [0, 0, 0]


EQUAL = {
    "plackett_luce(beta=0.3)": "dpo(beta=0.3)",
    "all_pairs(dpo(beta=0.3))": "dpo(beta=0.3)",
    "best_worst(dpo(beta=0.3))": "dpo(beta=0.3)",
    "weighted(all_pairs(dpo()))": "weighted(dpo())",
    "lambda_ranking(beta=0.3, gain='linear', discount='none')": "dpo(beta=0.3)",
    "lambda_ranking(beta=0.3, normalize='weights')": "dpo(beta=0.3)",
    "interpolated_dpo(gamma=0)": "contrastive()",
    "f_dpo(divergence='alpha', alpha=1.0)": "dpo()",
    "ld_dpo(alpha=1.0)": "dpo()",
    "dpop(beta=0.1, penalty=0)": "dpo()",
    "r_dpo(alpha=0)": "dpo()",
    "odpo(alpha=1.0)": "dpo()",  # log of a gap of 1
    "robust(dpo(), flip_rate=0)": "dpo()",
    "smooth(dpo(), rate=0)": "dpo()",
    "smooth(dpo(), rate=0.2)": "cdpo(label_smoothing=0.2)",
    "averaged(dpo(beta=5))": "ln_dpo(beta=5)",
    "averaged(ipo(tau=0.1, average=False))": "ipo(tau=0.1, average=True)",
    "averaged(contrastive(beta=2))": "simpo(beta=2, gamma=0)",
    "guided(dpo(), strength=1)": "dpo()",
    "contrast(dpo(), worse='rejected')": "dpo()",
    "at(chosen_anchor(), cell='chosen')": "chosen_anchor()",
    "modpo(weight=1.0, margins='safety')": "dpo()",
    "multi_objective(dpo(), weight=0.5, margins='0*safety')": "dpo(beta=0.2)",
    "mpo(beta=0.1)": "0.8*dpo(beta=0.1) + 0.2*bco_pair(beta=0.1) + nll()",
    "rpo(beta=0.1, eta=0)": "dpo(beta=0.1)",
    "orpo(beta=0)": "nll()",
    "2*(dpo() + nll())": "2*dpo() + nll()*2",
    "dpo": "dpo()",
    "simpo(alpha=1e-8)": "simpo()",
    "2*apo_zero_unpaired(beta=0.1)": "apo_zero(beta=0.1)",
    "2*bco(beta=0.1)": "bco_pair(beta=0.1)",
}


@pytest.mark.parametrize("spec", EQUAL)
def test_equal_by_construction(spec: str) -> None:
    batch = random_batch()
    found, expected = objective(spec).loss(batch), objective(EQUAL[spec]).loss(batch)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-7 if "1e-8" in spec else 1e-12)


def test_equal_lengths_make_ln_dpo_dpo() -> None:
    chosen, rejected = (log_probs(numbers(d), numbers(0), numbers(10)) for d in (2.0, -5.0))
    assert objective("ln_dpo(beta=5)")(chosen, rejected).item() == pytest.approx(
        objective("dpo(beta=0.5)")(chosen, rejected).item(), abs=1e-15
    )


def test_robust_is_unbiased_and_decreasing() -> None:
    h = torch.linspace(-30, 30, 61, dtype=torch.float64)
    zero = torch.zeros_like(h)
    better, worse = log_probs(h, zero), log_probs(zero, zero)
    term = objective("robust(dpo(beta=1.0), flip_rate=0.2)")
    expected = 0.8 * term(better, worse) + 0.2 * term(worse, better)
    torch.testing.assert_close(expected, dpo(better, worse, beta=1.0))
    assert (term(better, worse).diff() < 0).all()
    assert objective("robust(dpo(beta=1), flip_rate=0.1)")(
        of_ratio(50.0), of_ratio(0.0)
    ).item() == pytest.approx(-6.25, abs=1e-9)


@pytest.mark.parametrize("spec", ["cdpo(beta=1.0)", "exo(beta=1.0, label_smoothing=0.1)"])
def test_conservative_losses_aim_at_a_finite_margin(spec: str) -> None:
    h = torch.linspace(1.9, 2.5, 601, dtype=torch.float64)
    zero = torch.zeros_like(h)
    loss = objective(spec)(log_probs(h, zero), log_probs(zero, zero))
    assert h[loss.argmin()].item() == pytest.approx(math.log(9), abs=1e-3)
    entropy = 0.3250829734 if spec.startswith("cdpo") else 0.0
    assert loss.min().item() == pytest.approx(entropy, abs=1e-6)


def test_nca_has_a_finite_optimum_of_the_chosen_reward() -> None:
    chosen = of_ratio(math.log(2))
    chosen.policy.requires_grad_()
    objective("nca(beta=1.0)")(chosen, of_ratio(0.3)).sum().backward()
    assert chosen.policy.grad is not None
    assert chosen.policy.grad.item() == pytest.approx(0, abs=1e-15)


def test_aot_ignores_the_order_and_the_pairing() -> None:
    chosen, rejected = random_pair()
    shuffled = torch.tensor([3, 0, 5, 1, 4, 2])
    aot, unpaired = objective("aot()"), objective("aot_unpaired()")
    torch.testing.assert_close(
        aot(chosen[shuffled], rejected[shuffled]).sort().values, aot(chosen, rejected).sort().values
    )
    torch.testing.assert_close(unpaired(chosen[shuffled], rejected), unpaired(chosen, rejected))
    one = slice(0, 1)
    torch.testing.assert_close(
        aot(chosen[one], rejected[one]), objective("dpo(beta=0.01)")(chosen[one], rejected[one])
    )


@pytest.mark.parametrize("spec", ["plackett_luce()", "lambda_ranking()", "infonca()", "exo_list()"])
def test_list_gradients_sum_to_zero(spec: str) -> None:
    batch = random_batch(width=5)
    policy = batch.candidates.policy.clone().requires_grad_()
    candidates = replace(batch.candidates, policy=policy, tokens=None)
    objective(spec).loss(replace(batch, candidates=candidates, views={})).sum().backward()
    assert policy.grad is not None
    torch.testing.assert_close(policy.grad.sum(1), torch.zeros(4, dtype=torch.float64))


LISTS = ["plackett_luce()", "lambda_ranking()", "infonca()", "nca_list()", "exo_list()",
         "all_pairs(dpo())", "best_worst(dpo())", "kto(baseline='none')", "nll()"]  # fmt: skip


@pytest.mark.parametrize("spec", LISTS)
def test_absent_candidates_change_nothing(spec: str) -> None:
    short = random_batch(width=3)
    wide = random_batch(width=3)

    def extended(tensor: Tensor) -> Tensor:
        filler = torch.full_like(tensor[:, :1].double(), math.nan).to(tensor.dtype)
        return torch.cat([tensor, filler], dim=1)

    wide = replace(
        wide, candidates=wide.candidates.map(extended), grades=extended(wide.grades), views={}
    )
    policy = wide.candidates.policy.requires_grad_()
    loss = objective(spec).loss(wide)
    torch.testing.assert_close(loss, objective(spec).loss(short))
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("spec", LISTS[:7])
def test_ties_alone_teach_no_ranking(spec: str) -> None:
    batch = random_batch(width=3)
    tied = replace(batch, grades=torch.ones_like(batch.grades))
    policy = batch.candidates.policy.requires_grad_()
    loss = objective(spec).loss(tied)
    (gradient,) = torch.autograd.grad(loss.sum() + 0 * policy.sum(), policy)
    assert loss.isfinite().all()
    if "list" not in spec and "infonca" not in spec:
        assert loss.tolist() == [0] * 4
        assert not gradient.any()


def test_no_gradient_through_baseline_and_weights() -> None:
    batch = random_batch()
    mismatched = batch.views["mismatched"].policy.requires_grad_()
    policy = batch.candidates.policy.requires_grad_()
    loss = objective("kto()").loss(batch)
    assert torch.autograd.grad(loss.sum(), mismatched, allow_unused=True)[0] is None
    assert policy.grad is None

    plain = torch.autograd.grad(objective("dpo()").loss(batch).sum(), policy)[0]
    weighted = objective("wpo(dpo())").loss(batch)
    weight = (weighted / objective("dpo()").loss(batch)).detach()
    found = torch.autograd.grad(weighted.sum(), policy)[0]
    torch.testing.assert_close(found, weight[:, None] * plain)


def test_the_gradient_of_em_is_that_of_the_marginal_likelihood() -> None:
    pair = three_pairs(grad=True)
    found = torch.autograd.grad(objective("em(dpo(), eta=0.8)")(*pair).sum(), pair[0].policy)[0]
    p = (0.1 * (pair[0].ratio - pair[1].ratio)).sigmoid()
    marginal = -(0.8 * p + 0.2 * (1 - p)).log().sum()
    torch.testing.assert_close(found, torch.autograd.grad(marginal, pair[0].policy)[0])


WRAPPERS = ["robust({}, flip_rate=0.2)", "smooth({}, rate=0.2)", "soft({})", "em({})", "wpo({})",
            "multi_objective({}, weight=0.5, margins='safety')", "weighted({})", "averaged({})",
            "clipped({})", "all_pairs({})", "best_worst({})", "guided({})",
            "contrast({}, worse='chosen@crop')", "em(robust({}, flip_rate=0.1))",
            "0.5*smooth({} + 0.1*nll(), rate=0.1)"]  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("inner", PAIRS)
def test_every_wrapper_goes_around_every_pairwise_objective(wrapper: str, inner: str) -> None:
    spec = wrapper.format(inner)
    rows = ("soft", "wpo", "em", "all_pairs", "best_worst")
    if inner.startswith("aot") and wrapper.startswith(rows):
        with pytest.raises(ValueError, match="sorts the batch"):
            objective(spec)
        return
    batch = random_batch()
    policy = batch.candidates.policy.requires_grad_()
    loss = objective(spec).loss(batch)
    assert loss.shape == (4,)
    assert loss.isfinite().all()
    assert objective(str(objective(spec))) == objective(spec)
    assert torch.autograd.grad(loss.sum() + 0 * policy.sum(), policy)[0].isfinite().all()


SYMMETRIC = {
    "svco()": 2,
    "icvco()": 2,
    # without the one term that belongs to the first image alone
    "symmpo() + -1*contrast(dpo(beta=0.1), better='candidate0', worse='rejected')": 3,
}


@pytest.mark.parametrize("spec", SYMMETRIC)
def test_neither_of_two_images_comes_first(spec: str) -> None:
    """Exchanged with their answers, in every view, they cost the same."""
    batch, order = random_batch(width=SYMMETRIC[spec]), [1, 0, 2][: SYMMETRIC[spec]]
    rows = torch.arange(4)[:, None]
    exchanged = replace(
        batch,
        candidates=batch.candidates[rows, order],
        views={name: view[rows, order] for name, view in batch.views.items()},
    )
    loss = objective(spec).loss
    torch.testing.assert_close(loss(exchanged), loss(batch), rtol=1e-12, atol=1e-12)
