"""Specs: what is read, what comes back as text, and what an error tells."""

from __future__ import annotations

import pytest
from objectives.given import EXAMPLES, three_pairs

from mmalign.objectives import Needs, SpecError, objective
from mmalign.objectives.parse import parse

TYPED = {
    "dpo": "dpo(beta=0.1)",
    " dpo( beta = 1 ) ": "dpo(beta=1.0)",
    "ipo(beta=0.1)": "ipo(tau=0.1, average=True)",
    "em(ipo(beta=0.1), eta=0.9)": (
        "em(ipo(tau=0.1, average=True), eta=0.9, ema=0.1, annotators=1, warmup=0)"
    ),
    "simpo(beta=2.5, gamma_beta_ratio=0.5)": (
        "simpo(beta=2.5, gamma=1.25, alpha=0.0, link='logistic')"
    ),
    "nll()*0.2 + dpo": "0.2*nll(reduction='mean') + dpo(beta=0.1)",
    "0.5*(dpo + 2*nll)": "0.5*dpo(beta=0.1) + nll(reduction='mean')",
    "-1*nll": "-1.0*nll(reduction='mean')",
    "mdpo(beta=0.2)": "mdpo(beta=0.2, delta=0.0)",
    "interpolated_dpo(gamma=2)": "interpolated_dpo(beta=0.1, gamma=2.0)",
}


@pytest.mark.parametrize("spec", TYPED)
def test_canonical_text(spec: str) -> None:
    assert objective(spec).spec == TYPED[spec]


@pytest.mark.parametrize("spec", [*TYPED, *EXAMPLES.values()])
def test_the_text_makes_the_same_objective(spec: str) -> None:
    once = objective(spec)
    again = objective(str(once))
    assert again == once
    assert again.spec == once.spec
    assert hash(again) == hash(once)
    assert again.needs == once.needs
    assert str(parse(str(once))) == str(once)


WRONG = {
    "dpoo()": "did you mean 'dpo'.*there are: dpo, cdpo",
    "dpo(bta=1)": "no option 'bta'.*did you mean 'beta'.*its options are: beta",
    "dpo(beta=0)": "beta=.*must be a number > 0, not 0",
    "dpo(beta='a')": "must be a number > 0, not 'a'",
    "dpo(beta=True)": "must be a number > 0, not True",
    "dpo(beta=1e999)": "must be a number > 0, not inf",
    "dpo(beta=None)": "must be a number > 0, not None",
    "dpo(beta=[1])": r"takes a number, a string in quotes, True, False or None, not \[1\]",
    "dpo(beta=1+1)": "takes a number",
    "dpo(0.1)": r"options are named: dpo\(option=0.1\)",
    "dpo(nll())": "takes options only",
    "dpo(**x)": "options are written out",
    "dpo(beta=1, beta=2)": "repeated",
    "robust(flip_rate=0.1)": r"goes around an objective: robust\(dpo",
    "robust(dpo)": "needs flip_rate",
    "robust(dpo, flip_rate=0.5)": ">= 0 and < 0.5, not 0.5",
    "robust(dpo, nll, flip_rate=0.1)": "takes one objective",
    "robust(kto, flip_rate=0.1)": "around a pairwise objective, which kto.* is not",
    "robust(nll, flip_rate=0.1)": "around a pairwise objective",
    "robust(contrast(dpo, worse='rejected'), flip_rate=0.1)": "guided and all_pairs go outer",
    "at(dpo, cell='chosen')": "around one anchor",
    "weighted(kto())": "changes the scores of pairs, lists and anchors",
    "em(aot)": "sorts the batch",
    "robust(em(dpo), flip_rate=0.1)": r"put em outside, em\(robust",
    "em(em(dpo) + nll())": "put em outside",
    "em(dpo, eta=0.5)": "> 0.5 and < 1, not 0.5",
    "em(dpo, annotators=2.0)": "a whole number >= 1, not 2.0",
    "ipo(tau=0.1)": "average=True .*per token.* or average=False",
    "ipo(tau=0.1, beta=0.1)": "the same, give one",
    "ipo(average=True)": "needs tau",
    "simpo(gamma=1, gamma_beta_ratio=1)": "not both",
    "simpo(gamma_beta_ratio='a')": "must be a number",
    "nll(reduction='median')": "must be 'mean' or 'sum' or 'tokens', not 'median'",
    "contrast(dpo, worse='chosen@')": "is not a cell; cells are 'chosen'",
    "modpo(weight=0.01, margins='a')": ">= 0.05 and <= 1",
    "modpo(weight=0.5, margins='a+b')": "is a name of aux or a sum such as",
    "dpo * nll": "only numbers multiply",
    "dpo - nll": "is not an objective",
    "0.5": "is not an objective",
    "dpo.__class__()": "called by its name alone",
    "__import__('os')": r"options are named",
    "(lambda: 1)()": "called by its name alone",
    "dpo(": "cannot read",
    "": "cannot read",
    "x = 1": "cannot read",
    "(" * 3000 + "dpo" + ")" * 900: "cannot read",
    "dpo+" * 1000 + "dpo": "at most 4000 characters",
}  # fmt: skip


@pytest.mark.parametrize("spec", WRONG)
def test_errors_say_what_would_be_right(spec: str) -> None:
    with pytest.raises(SpecError, match=rf"(?s){WRONG[spec]}"):
        objective(spec)
    assert issubclass(SpecError, ValueError)


def test_sums_and_multiples() -> None:
    both = objective("dpo(beta=0.1)") + 0.2 * objective("nll()")
    assert both == objective("dpo(beta=0.1) + 0.2*nll()")
    assert both != objective("dpo(beta=0.1)")
    assert both(*three_pairs()).tolist() == pytest.approx(
        (objective("dpo")(*three_pairs()) + 0.2 * objective("nll")(*three_pairs())).tolist()
    )


NEEDS = {
    "dpo()": Needs(reference=True),
    "simpo()": Needs(),
    "kto()": Needs(reference=True, views=frozenset({"mismatched"})),
    "kto(baseline='batch_mean')": Needs(reference=True),
    "mdpo()": Needs(reference=True, views=frozenset({"crop"}), cells=frozenset({"chosen@crop"})),
    "svco()": Needs(
        reference=True,
        views=frozenset({"no_image", "swapped"}),
        cells=frozenset(f"candidate{i}@{view}" for i in (0, 1) for view in ("no_image", "swapped")),
    ),
    "wpo(simpo())": Needs(tokens=True, stats=frozenset({"collision"})),
    "weighted(dpo())": Needs(reference=True, tokens=True),
    "em(simpo(), annotators=3)": Needs(aux=frozenset({"annotator"})),
    "odpo(offset='score')": Needs(reference=True, aux=frozenset({"score"})),
    "odpo()": Needs(reference=True),
    "modpo(weight=0.5, margins='0.2*a + 0.3*b')": Needs(reference=True, aux=frozenset({"a", "b"})),
    "simpo() + 0.1*chosen_anchor()": Needs(reference=True),
}


@pytest.mark.parametrize("spec", NEEDS)
def test_needs(spec: str) -> None:
    assert objective(spec).needs == NEEDS[spec]
