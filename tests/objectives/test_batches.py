"""How objectives of each kind are applied to a batch, and what they remember from step to step."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

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
    with_numbers,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from mmalign.objectives import Batch, LogProbs, MissingInputError, objective
from mmalign.objectives.table import TABLE


def test_terms_add_up_to_the_loss() -> None:
    batch = random_batch()
    term = objective("dpo() + 0.2*nll() + 0.5*nll(reduction='sum')")
    terms = term.terms(batch)
    assert list(terms) == ["dpo", "nll", "nll_2"]
    torch.testing.assert_close(sum(terms.values()), term.loss(batch))
    twice = objective("mdpo() + contrast(dpo(), worse='rejected@crop') + mdpo()")
    assert len(twice.terms(batch)) == 7
    torch.testing.assert_close(terms["nll"], 0.2 * objective("nll").loss(batch))


@pytest.mark.parametrize("name", EXAMPLES)
def test_one_number_per_preference(name: str) -> None:
    batch = random_batch(rows=3, width=TABLE[name].width)
    assert objective(EXAMPLES[name]).loss(batch).shape == (3,)


def test_pairs_of_thumbs_and_lists_are_refused_with_a_remedy() -> None:
    loss = objective("dpo(beta=0.1)").loss
    with pytest.raises(ValueError, match=r"has one \(a thumb up or down\); use kto"):
        loss(random_batch(width=1))
    with pytest.raises(ValueError, match=r"all_pairs\(dpo\(beta=0.1\)\).*plackett_luce"):
        loss(random_batch(width=3))
    batch = random_batch()
    ties = replace(batch, grades=torch.ones_like(batch.grades))
    with pytest.raises(ValueError, match="grades both alike"):
        objective("em(dpo(beta=0.1), eta=0.9)").loss(ties)
    mixed = batch.grades.clone()
    mixed[1, 1] = math.nan
    with pytest.raises(ValueError, match="a thumb up or down"):
        loss(replace(batch, grades=mixed))


def test_a_tie_is_half_a_preference_each_way() -> None:
    """Which is the least costly where the policy rates both as the reference does, at log 2."""
    loss = objective("dpo(beta=0.1) + 0.2*nll()").loss
    batch = random_batch(rows=3)
    order = torch.tensor([1, 0])
    turned = replace(batch, candidates=batch.candidates[:, order])
    grades = batch.grades.clone()
    grades[1] = 0.5
    found = loss(replace(batch, grades=grades))
    pairs = objective("dpo(beta=0.1)").loss
    both = (pairs(batch) + pairs(turned)) / 2
    nll = objective("nll()").loss
    anchors = 0.2 * (nll(batch) + nll(turned)) / 2
    torch.testing.assert_close(found[1], both[1] + anchors[1])
    torch.testing.assert_close(found[[0, 2]], loss(batch)[[0, 2]])
    assert both[1] >= math.log(2)


def test_a_tie_does_not_say_whether_a_response_was_liked() -> None:
    batch = random_batch()
    ties = replace(batch, grades=torch.full_like(batch.grades, 0.5))
    with pytest.raises(ValueError, match="is a tie, which does not say"):
        objective("kto(baseline='none')").loss(ties)


def test_what_the_data_lack_is_named() -> None:
    batch = replace(random_batch(), views={})
    plain = replace(batch, candidates=replace(batch.candidates, tokens=None, aux={}))
    with pytest.raises(MissingInputError, match="needs each response under another's prompt"):
        objective("kto()").loss(batch)
    with pytest.raises(MissingInputError, match="needs the view 'crop'; there are: none"):
        objective("mdpo()").loss(batch)
    with pytest.raises(MissingInputError, match="per token"):
        objective("ddpo()").loss(plain)
    with pytest.raises(MissingInputError, match=r"'confidence'.*the data have: grade"):
        objective("soft(dpo())").loss(plain)
    with pytest.raises(MissingInputError, match="preferences here have 2 candidates"):
        objective("at(nll(), cell='candidate2')").loss(batch)
    with pytest.raises(MissingInputError, match=r"chosen.reference has nan"):
        objective("dpo()")(log_probs(numbers(1), numbers(math.nan)), of_ratio(1.0))
    with pytest.raises(ValueError, match="one shape"):
        objective("dpo()")(of_ratio(1.0, 2.0), of_ratio(1.0))


def test_anchors_hold_up_what_is_liked() -> None:
    policy = numbers(-2, -3)[:, None]
    thumbs = Batch(log_probs(policy, policy), numbers(1, 0)[:, None])
    assert objective("nll()").loss(thumbs).tolist() == [2, 0]
    low_grades = replace(random_batch(), grades=numbers(0.4, 0.2).expand(4, 2))
    torch.testing.assert_close(
        objective("nll()").loss(low_grades), objective("nll()").loss(random_batch())
    )


def test_views_carry_the_numbers_of_their_preference() -> None:
    batch = random_batch()
    bare = {"crop": replace(batch.views["crop"], aux={})}
    spec = "contrast(soft(dpo()), worse='chosen@crop')"
    torch.testing.assert_close(
        objective(spec).loss(replace(batch, views=bare)), objective(spec).loss(batch)
    )


def test_rejected_is_the_last_candidate_present() -> None:
    batch = random_batch(width=3)
    grades = batch.grades.clone()
    grades[0, 2] = math.nan
    loss = objective("at(nll(reduction='sum'), cell='rejected')").loss(
        replace(batch, grades=grades)
    )
    policy = batch.candidates.policy
    expected = [-policy[0, 1], -policy[1, 2], -policy[2, 2], -policy[3, 2]]
    torch.testing.assert_close(loss, torch.stack(expected))


def test_equal_images_leave_nothing_to_learn_from_the_contrast() -> None:
    batch = random_batch()
    batch = replace(batch, views={"crop": batch.candidates})
    policy = batch.candidates.policy.requires_grad_()
    loss = objective("contrast(dpo(), worse='chosen@crop')").loss(batch)
    assert loss.tolist() == pytest.approx([math.log(2)] * 4)
    assert not torch.autograd.grad(loss.sum(), policy)[0].any()


def test_symmpo_regularises_the_difference_of_margins() -> None:
    def cells(*ratios: float) -> LogProbs:
        return log_probs(numbers(*ratios)[None], numbers(*[0.0] * len(ratios))[None])

    batch = Batch(cells(1.0, 2.0, 0.0), numbers(1, 1, 0)[None], {"swapped": cells(0.5, -0.5, 0)})
    # z1 = 1 - (-0.5), z2 = 2 - 0.5
    assert objective("equal_margins()").loss(batch).item() == pytest.approx(0)
    terms = objective("symmpo()").terms(batch)
    assert terms["contrast_2"].item() == pytest.approx(0.5 * math.log1p(math.exp(-0.15)))
    assert terms["contrast_2"].item() == terms["contrast_3"].item()


def test_margins_turn_with_the_pair() -> None:
    pair = with_numbers(three_pairs(), other=numbers(0.4, -0.3, 1.2))
    loss = objective("multi_objective(dpo(), weight=0.5, margins='other')")
    flipped = objective("smooth(multi_objective(dpo(), weight=0.5, margins='other'), rate=0.2)")
    straight = loss(*pair)
    z = 0.2 * (pair[0].ratio - pair[1].ratio) - numbers(0.4, -0.3, 1.2)
    torch.testing.assert_close(straight, torch.log1p((-z).exp()))
    torch.testing.assert_close(flipped(*pair), straight + 0.2 * z)  # sp(z) = sp(-z) + z


def test_pairs_of_unequal_token_counts_can_be_given_directly() -> None:
    chosen, rejected = random_log_probs((3,), 1), random_log_probs((3,), 2)
    assert rejected.tokens is not None
    longer = torch.nn.functional.pad
    tokens = replace(
        rejected.tokens,
        **{
            name: longer(getattr(rejected.tokens, name), (0, 4))
            for name in ("policy", "reference", "mask", "weights")
        },
        stats={},
    )
    term = objective("ddpo()")
    torch.testing.assert_close(
        term(chosen, replace(rejected, tokens=tokens)), term(chosen, rejected)
    )


# ---- state


def batch_of(who: Tensor) -> Batch:
    batch = random_batch(rows=len(who))
    aux = {"annotator": who.double()[:, None].expand(-1, 2)}
    return replace(batch, candidates=replace(batch.candidates, aux=aux))


def test_reliabilities_are_per_annotator() -> None:
    term = objective("em(dpo(), annotators=3)")
    batch = batch_of(torch.tensor([0, 2, 2, 0]))
    batch.candidates.policy.requires_grad_()
    term.loss(batch)
    w = term.figures()["0.em.posterior"]
    term.finish_step()
    eta = term.state_dict()["0.em.reliability"]
    assert eta[0].item() == pytest.approx(0.81 + 0.1 * (w[0] + w[3]).item() / 2)
    assert eta[1].item() == 0.9
    assert eta[2].item() == pytest.approx(0.81 + 0.1 * (w[1] + w[2]).item() / 2)
    with pytest.raises(ValueError, match="from 0 to 2, but the batch has 1 to 7"):
        term.loss(batch_of(torch.tensor([1, 7])))


STATEFUL = ["em(dpo(beta=1.0), annotators=2)", "bco_pair(beta=1.0)", "bco(beta=1.0)"]


@pytest.mark.parametrize("spec", STATEFUL)
def test_micro_batches_and_processes_make_no_difference(spec: str) -> None:
    batch = batch_of(torch.tensor([0, 1, 1, 0]))

    def part(rows: slice) -> Batch:
        return Batch(batch.candidates[rows], batch.grades[rows])

    whole, pieces = objective(spec), objective(spec)
    whole.loss(batch)
    whole.finish_step()
    pieces.loss(part(slice(0, 1)))
    pieces.loss(part(slice(1, 4)))
    pieces.finish_step()
    left, right = objective(spec), objective(spec)
    left.loss(part(slice(0, 3)))
    right.loss(part(slice(3, 4)))
    notes: list[Tensor] = []

    def send(tensor: Tensor) -> Tensor:
        notes.append(tensor)
        return tensor

    left.finish_step(send)
    right.finish_step(lambda tensor: tensor + notes[0])
    for name, value in whole.state_dict().items():
        assert value.any()
        torch.testing.assert_close(pieces.state_dict()[name], value)
        torch.testing.assert_close(right.state_dict()[name], value)


@pytest.mark.parametrize("spec", STATEFUL)
def test_evaluation_leaves_no_trace(spec: str) -> None:
    term, batch = objective(spec), batch_of(torch.tensor([0, 1, 1, 0]))
    before = term.state_dict()
    with term.evaluating():
        term.loss(batch)
    with torch.no_grad():
        term.loss(batch)
    term.finish_step()
    for name, value in term.state_dict().items():
        if not name.endswith("steps"):
            assert value.equal(before[name])


@pytest.mark.parametrize("spec", [*STATEFUL, "dpo()"])
def test_state_is_saved_and_loaded(spec: str, tmp_path: Path) -> None:
    term, batch = objective(spec), batch_of(torch.tensor([0, 1, 1, 0]))
    term.loss(batch)
    term.finish_step()
    save_file(term.state_dict(), tmp_path / "state.safetensors")
    again = objective(spec)
    again.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert again.loss(batch).equal(term.loss(batch))
    again.finish_step()
    term.finish_step()
    for name, value in term.state_dict().items():
        assert value.equal(again.state_dict()[name])
    with pytest.raises(ValueError, match="this state is not of"):
        again.load_state_dict({"other": torch.zeros(1)})


def test_state_of_another_number_of_annotators_is_refused() -> None:
    state = objective("em(dpo(), annotators=3)").state_dict()
    with pytest.raises(ValueError, match="does not fit"):
        objective("em(dpo(), annotators=2)").load_state_dict(state)


def test_a_state_dict_is_a_copy() -> None:
    term = objective("em(dpo())")
    term.state_dict()["0.em.reliability"].zero_()
    assert term.state_dict()["0.em.reliability"].item() == 0.9


def test_em_warms_up_as_label_smoothing() -> None:
    term = objective("em(dpo(), warmup=1)")
    smooth = objective("smooth(dpo(), rate=0.1)")
    batch = random_batch()
    torch.testing.assert_close(term.loss(batch), smooth.loss(batch))
    term.finish_step()
    assert not torch.allclose(term.loss(batch), smooth.loss(batch))


def test_em_warns_of_reversed_annotators() -> None:
    term = objective("em(dpo(beta=1.0), eta=0.55, ema=1.0)")
    chosen = of_ratio(-9.0)
    chosen.policy.requires_grad_()
    term(chosen, of_ratio(0.0))
    with pytest.warns(UserWarning, match="trained on reversed"):
        term.finish_step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        objective("em(dpo())").finish_step()


def test_the_kto_baseline_is_the_mean_of_the_whole_step_clamped_at_zero() -> None:
    batch = random_batch()
    everywhere = numbers(-3.0, 8.0, float("nan"), 1.0, 2.0)
    for sign, expected in ((1, 2.0), (-1, 0.0)):
        step = log_probs(sign * everywhere, torch.zeros_like(everywhere))
        term = objective("kto()")
        term.loss(replace(batch, views={"mismatched": step}))
        assert term.figures()["kto.baseline"].item() == expected
