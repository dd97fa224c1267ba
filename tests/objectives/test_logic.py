"""Preference losses as logic: published values, both directions of compilation, and the order."""

from __future__ import annotations

import math
import random
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from objectives.given import log_probs, numbers, random_log_probs
from torch import Tensor
from training.toy import Toy, preferences

from mmalign.objectives import Needs, SpecError, objective
from mmalign.objectives.listing import objectives
from mmalign.objectives.logic import (
    Sets,
    Structure,
    compare,
    compare_losses,
    compile_loss,
    decompile,
    decompiled,
    draw,
    entails,
    formula,
    lattice,
    ratio,
    sets_of,
    structure,
)
from mmalign.objectives.logic.formulas import ALL, TABLES, WORLDS, negation
from mmalign.objectives.logic.listing import logic_listing
from mmalign.objectives.logic.losses import RATIOS
from mmalign.objectives.logic.simplify import disjoint_cubes, meaning, simplified
from mmalign.objectives.pairwise import contrastive, ln_dpo, odds_ratio
from mmalign.objectives.plots import PICTURES
from mmalign.objectives.scores import LogProbs
from mmalign.training.log import JsonLines
from mmalign.training.loop import train
from mmalign.training.options import TrainingOptions

M_W, M_L = TABLES["M_w"], TABLES["M_l"]
TT, TF, FT, FF = M_W & M_L, M_W & ~M_L, ~M_W & M_L, negation(M_W | M_L)


def pair(w: float, l: float, ref_w: float = math.nan, ref_l: float = math.nan):  # noqa: E741
    """Responses with these mean log-probabilities, of three and five tokens."""
    return (
        log_probs(numbers(3 * w), numbers(3 * ref_w), numbers(3)),
        log_probs(numbers(5 * l), numbers(5 * ref_l), numbers(5)),
    )


def rho(sets: Sets, chosen: LogProbs, rejected: LogProbs, **options) -> Tensor:
    """The log-ratio, from the squared loss where it is below 1."""
    beta = 1e-3  # so that (beta rho - 1)^2 has one root
    return (
        1 - compile_loss(sets, beta=beta, link="squared", **options)(chosen, rejected).sqrt()
    ) / beta


# ---- values


VALUES = {  # w = e^-2, l = e^-2.2: rho, loss
    "CEUnl": (-1.9892171728, 2.1174366488),
    "CE": (-1.8545865421, 2.0000000000),
    "CPO": (0.2000000000, 0.5981388694),
    "ORPO": (0.2279768091, 0.5856414338),
    "cCPO": (0.3454134579, 0.5352807026),
    "cfUnl": (2.2279768091, 0.1023275015),
    "unCPO": (2.2447003689, 0.1007130890),
    "qfUnl": (0.0279768091, 0.6792566106),
}


@pytest.mark.parametrize("name", VALUES)
def test_published_losses(name):
    found = objective(f"logic(loss={name!r})")(*pair(-2, -2.2))
    assert found.item() == pytest.approx(VALUES[name][1], abs=1e-9)
    assert rho(sets_of(name), *pair(-2, -2.2)).item() == pytest.approx(VALUES[name][0], abs=1e-9)


def test_losses_at_three_and_two_tenths():
    at = pair(math.log(0.3), math.log(0.2))
    wanted = {
        "CPO": 0.5108256238,
        "ORPO": 0.4595323294,
        "unCPO": 0.1508228897,
        "CEUnl": 1.4271163556,
    }
    for name, value in wanted.items():
        assert compile_loss(sets_of(name))(*at).item() == pytest.approx(value, abs=1e-9)
    assert wanted["CEUnl"] == pytest.approx(-math.log(0.3 * 0.8), abs=1e-9)


def test_losses_with_a_reference():
    at = pair(-2, -2.2, -2.1, -2.0)
    assert rho(sets_of("DPO"), *at).item() == pytest.approx(0.3, abs=1e-9)
    assert rho(sets_of("ORPO+ref"), *at).item() == pytest.approx(0.3279768091, abs=1e-9)
    new = Structure.of("M_l and R_w implies M_w", given=str(decompile("ORPO+ref").given))
    assert compile_loss(new)(*at).item() == pytest.approx(0.5425450373, abs=1e-9)


def test_named_objectives_are_their_compiled_forms():
    chosen, rejected = random_log_probs((50,), seed=1), random_log_probs((50,), seed=2)
    named = {
        "CPO": contrastive(chosen, rejected, beta=0.7, average=True),
        "DPO": ln_dpo(chosen, rejected, beta=0.7),
    }
    for name, wanted in named.items():
        found = compile_loss(sets_of(name), beta=0.7)(chosen, rejected)
        assert torch.allclose(found, wanted, rtol=1e-12, atol=0)
    odds = compile_loss(sets_of("ORPO"))(chosen, rejected)
    assert torch.allclose(odds, odds_ratio(chosen, rejected), rtol=1e-12, atol=0)
    cross_entropy = compile_loss(sets_of("CE"))(chosen, rejected)
    assert torch.allclose(cross_entropy, -chosen.mean_policy, rtol=1e-12, atol=0)


def test_a_reference_by_option_and_by_formula_is_the_same():
    at = pair(-2, -2.2, -2.1, -2.0)
    for name in RATIOS:
        option = compile_loss(sets_of(name), reference=True)(*at)
        assert torch.equal(option, compile_loss(sets_of(f"{name}+ref"))(*at))
        shift = rho(sets_of(name), *at) - rho(sets_of(f"{name}+ref"), *at)
        assert shift.item() == pytest.approx(-2.1 + 2.0, abs=1e-9)


def test_a_loss_is_the_probability_of_its_formula_where_the_sets_are_complements():
    text, (w, l) = "M_w or not M_l", (0.3, 0.6)  # noqa: E741
    loss = compile_loss(Structure.of(text))(*pair(math.log(w), math.log(l)))
    assert loss.item() == pytest.approx(-math.log(1 - l * (1 - w)), abs=1e-12)


@pytest.mark.parametrize("name", ["CPO", "ORPO"])
def test_swapping_chosen_and_rejected_turns_the_sign(name):
    at = pair(-1.3, -0.4)
    assert rho(sets_of(name), *at).item() == pytest.approx(-rho(sets_of(name), *at[::-1]).item())


@pytest.mark.parametrize(
    ("link", "value"), [("logistic", 0.9130152524), ("hinge", 1.4), ("squared", 1.96)]
)
def test_links(link, value):  # z = 2 * -0.2
    found = objective(f"logic(loss='CPO', beta=2, link={link!r})")(*pair(-2.2, -2))
    assert found.item() == pytest.approx(value, abs=1e-9)


def test_scale_multiplies_log_probabilities():
    found = objective("logic(loss='ORPO', scale=0.5)")(*pair(-2, -2.2))
    assert found.item() == pytest.approx(compile_loss(sets_of("ORPO"))(*pair(-1, -1.1)).item())


@pytest.mark.parametrize("name", RATIOS)
@pytest.mark.parametrize("level", [0.0, -1e-12, -1e-7, -300.0, -1e6])
def test_float32_stays_finite_at_the_ends(name, level):
    w = torch.tensor([level, level, -1.0], requires_grad=True)
    l = torch.tensor([level, -1.0, level], requires_grad=True)  # noqa: E741
    loss = compile_loss(sets_of(name))(log_probs(w, w.detach()), log_probs(l, l.detach()))
    assert torch.isfinite(loss).all()
    gradients = torch.autograd.grad(loss.sum(), (w, l), allow_unused=True)
    assert all(torch.isfinite(g).all() for g in gradients if g is not None)


def test_summed_log_probabilities_would_make_losses_collapse():
    at = log_probs(numbers(-60), numbers(-60)), log_probs(numbers(-70), numbers(-70))
    assert rho(sets_of("ORPO"), *at).item() == pytest.approx(rho(sets_of("CPO"), *at).item())


# ---- symbols


CORES = {
    "CE": "M_w", "CEUnl": "M_w and not M_l", "CPO": "M_l implies M_w", "ORPO": "M_l implies M_w",
    "unCPO": "M_l implies M_w", "cCPO": "M_l implies M_w", "fUnl": "not M_l", "cUNL": "not M_l",
    "l20": "not M_l", "sCE": "M_w", "l3": "M_w", "qfUnl": "M_l implies M_w",
    "cfUnl": "M_l implies M_w", "l14": "M_l implies M_w", "bCPO": "M_l implies M_w",
    "l5": "M_l implies M_w",
}  # fmt: skip
OPEN_WORLDS = {  # both valid / neither valid
    "CE": "check cross", "CEUnl": "cross cross", "CPO": "both none", "ORPO": "none none",
    "unCPO": "check check", "cCPO": "check none", "fUnl": "cross check", "cUNL": "cross none",
    "l20": "cross both", "sCE": "both cross", "l3": "none cross", "qfUnl": "none both",
    "cfUnl": "none check", "l14": "both check", "bCPO": "check both", "l5": "both both",
}  # fmt: skip


@pytest.mark.parametrize("name", RATIOS)
def test_decompiled_losses_say_what_the_paper_says(name):
    assert str(decompile(name).formula) == CORES[name]
    sets = sets_of(name)

    def side(world: int) -> str:
        words = {(1, 0): "check", (0, 1): "cross", (1, 1): "both", (0, 0): "none"}
        return words[bool(sets.check & world), bool(sets.cross & world)]

    assert f"{side(TT)} {side(FF)}" == OPEN_WORLDS[name]
    assert (side(TF), side(FT)) == ("check", "cross")


def test_published_conditions():
    assert decompile("CPO").given == formula("M_w or M_l")
    assert decompile("ORPO").given == formula("M_w xor M_l")
    assert decompile("CE").given == decompile("CEUnl").given == formula("true")
    assert decompile("unCPO") == Structure.of("M_l >> M_w")
    assert str(decompile("DPO").formula) == "M_l and R_w implies M_w and R_l"
    assert str(decompile("ORPO+ref").formula) == "M_l and R_w implies M_w"
    assert decompile("dpo") == decompile("DPO") == decompile("CPO+ref")


def two_valued_sets() -> list[Sets]:
    tables = [sum(worlds) for worlds in product((0, TT), (0, TF), (0, FT), (0, FF))]
    return [Sets(check, cross) for check in tables for cross in tables]


def test_all_256_structures_survive_compilation_and_back():
    sets = two_valued_sets()
    assert len({(s.check, s.cross) for s in sets}) == 256
    for one in sets:
        assert decompiled(*ratio(one)) == one
        assert structure(one).sets == one


def test_structures_with_a_reference_survive_compilation_and_back():
    generator = random.Random(0)
    for _ in range(100):
        one = Sets(generator.randint(0, ALL), generator.randint(0, ALL))
        assert decompiled(*ratio(one)) == one
        again = structure(one)
        assert again.sets == one
        texts = [str(part) for part in (again.formula, again.given, again.both)]
        assert Structure.of(*texts) == again, texts


def test_compiled_losses_equal_their_ratios_as_text():
    generator = random.Random(1)
    logs = {"w": -0.3, "l": -1.7, "rw": -0.9, "rl": -0.5}
    at = pair(logs["w"], logs["l"], logs["rw"], logs["rl"])
    for _ in range(50):
        one = Sets(generator.randint(1, ALL), generator.randint(1, ALL))
        values = {name: math.exp(value) for name, value in logs.items()}
        top, bottom = (eval(text, {}, values) for text in ratio(one))
        assert compile_loss(one)(*at).item() == pytest.approx(math.log1p(bottom / top), abs=1e-9)


def test_disjoint_cubes_hold_in_each_world_once():
    generator = random.Random(2)
    for _ in range(100):
        table = generator.randint(0, ALL)
        cubes = [meaning(cube) for cube in disjoint_cubes(table)]
        assert sum(cubes) == table
        assert all(a & b == 0 for i, a in enumerate(cubes) for b in cubes[:i])


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("M_w or not M_l", "M_l implies M_w"),
        ("not (M_w and M_l)", "not M_w or not M_l"),
        ("M_w and not M_l or not M_w and M_l", "M_w xor M_l"),
        ("M_w and true or M_l and M_w", "M_w"),
        ("M_w and not M_w", "false"),
        ("M_w >> M_w", "true"),
        ("(M_w or M_l) and (R_w or R_l)", "(M_w or M_l) and (R_w or R_l)"),
    ],
)
def test_simplified(text, short):
    assert str(simplified(formula(text).table)) == short
    assert formula(short) == formula(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("not M_w and M_l", "(not M_w) and M_l"),
        ("M_w or M_l and R_w", "M_w or (M_l and R_w)"),
        ("M_w or M_l xor R_w", "M_w or (M_l xor R_w)"),
        ("M_w and M_l >> R_w or R_l", "(M_w and M_l) implies (R_w or R_l)"),
        ("M_w >> M_l >> R_w", "M_w >> (M_l >> R_w)"),
    ],
)
def test_binding(text, same):
    assert formula(text) == formula(same)


def test_tables_hold_the_worlds_where_a_formula_is_true():
    found = formula("M_w and not R_l").table
    for world in WORLDS:
        assert bool(found >> world & 1) == (bool(world & 1) and not world & 8)
    assert formula("M_w and not R_l or M_w and R_l").propositions == ("M_w",)


# ---- order


def random_pairs(count: int = 200) -> tuple[LogProbs, LogProbs]:
    generator = torch.Generator().manual_seed(0)
    w, l, a, b = torch.rand(4, count, dtype=torch.float64, generator=generator).log()  # noqa: E741
    return log_probs(w, a), log_probs(l, b)


def test_a_stricter_loss_is_never_smaller():
    chosen, rejected = random_pairs()
    for stricter, looser in lattice().covers:
        for reference in (False, True):
            first, second = (
                compile_loss(sets_of(name), reference=reference)(chosen, rejected)
                for name in (stricter, looser)
            )
            assert (first > second).all(), (stricter, looser)


def test_losses_that_are_not_comparable_cross():
    chosen, rejected = random_pairs()
    losses = {name: compile_loss(sets_of(name))(chosen, rejected) for name in RATIOS}
    for a, b in product(RATIOS, RATIOS):
        if compare_losses(a, b) == "incomparable":
            assert (losses[a] > losses[b]).any(), (a, b)


def test_the_lattice_has_32_steps_and_five_ranks():
    order = lattice()
    assert len(order.losses) == 16
    assert len(set(order.covers)) == 32
    ranks = [order.rank(name) for name in order.losses]
    assert [ranks.count(rank) for rank in range(5)] == [1, 4, 6, 4, 1]
    assert order.rank("CEUnl") == 0
    assert order.rank("unCPO") == 4


def test_the_sixteen_are_all_with_one_world_for_and_one_against():
    fitting = [
        sets
        for sets in two_valued_sets()
        if sets.check & TF and not sets.cross & TF and sets.cross & FT and not sets.check & FT
    ]
    assert {(s.check, s.cross) for s in fitting} == {
        (s.check, s.cross) for s in map(sets_of, RATIOS)
    }


def test_comparison_of_two():
    assert compare_losses("CE", "cCPO") == "stricter"
    assert compare_losses("cCPO", "CE") == "looser"
    assert compare_losses("CPO", "ORPO") == "incomparable"
    assert compare_losses("simpo", "contrastive") == "equivalent"
    assert entails("CEUnl", "unCPO")
    assert entails("CPO", "CPO")
    assert not entails("unCPO", "CEUnl")
    assert compare(sets_of("CE"), sets_of("CE+ref")) == "incomparable"


# ---- as an objective


def test_a_spec_is_stored_as_formulas():
    spec = objective("logic(loss='cCPO', beta=0.5)").spec
    assert spec == (
        "logic(formula='M_l implies M_w', given='M_w or M_l', both='false', reference=False, "
        "beta=0.5, link='logistic', scale=1.0)"
    )
    assert objective("logic(check='w', cross='l*(1-w)', beta=0.5)").spec == spec


def test_needs_follow_from_the_formula():
    assert objective("logic(loss='CPO')").needs == Needs()
    assert objective("logic(loss='CPO', reference=True)").needs == Needs(reference=True)
    assert objective("logic(loss='DPO')").needs == Needs(reference=True)
    assert objective("logic(formula='M_w and (R_w or not R_w)')").needs == Needs()


def test_logic_can_be_wrapped_summed_and_trained():
    loss = objective("robust(logic(formula='M_l implies M_w'), flip_rate=0.1) + 0.1*nll()")
    w = numbers(-2, -1).requires_grad_()
    chosen, rejected = log_probs(w, w.detach()), log_probs(numbers(-1, -2), numbers(-1, -2))
    loss(chosen, rejected).sum().backward()
    assert (w.grad < 0).all()  # descent makes the chosen more likely


def test_a_formula_trains_a_model(tmp_path):
    options = TrainingOptions(steps=8, batch_size=16, micro_batch=1000, learning_rate=0.3)
    train(Toy(), preferences(16), objective("logic(loss='cCPO')"), options, tmp_path)
    losses = [row["loss"] for row in JsonLines(tmp_path / "metrics.jsonl").rows()]
    assert losses[-1] < 0.8 * losses[0]


def test_the_same_answer_with_and_without_its_image():
    spec = "contrast(logic(formula='M_w and not M_l'), worse='chosen@no_image')"
    assert objective(spec).needs.views == {"no_image"}


WRONG = {
    "logic()": "needs formula",
    "logic(formula='M_x')": "'M_x' is no proposition.*M_w, M_l, R_w, R_l",
    "logic(formula='M_w and')": "ends where a proposition is expected",
    "logic(formula='(M_w')": "closing bracket",
    "logic(formula='M_w M_l')": "'M_l' was not expected",
    "logic(formula='true')": "no world counts against",
    "logic(formula='false')": "no world counts for",
    "logic(formula='M_w', given='M_w')": "no world counts against",
    "logic(loss='CPo')": "no loss 'CPo'.*did you mean 'CPO'",
    "logic(loss='CPO', formula='M_w')": "or loss, or check and cross",
    "logic(check='w')": r"logic\(cross=\.\.\.\) must be a string",
    "logic(check='w*w', cross='l')": "both factors of w \\* w depend on M_w",
    "logic(check='w+l', cross='l')": "both terms of w \\+ l can hold",
    "logic(check='x', cross='l')": "x is not made of w, l, rw, rl",
    "logic(check='w(', cross='l')": "cannot read the polynomial",
    "logic(formula='M_w', link='cubic')": "link",
}


@pytest.mark.parametrize("spec", WRONG)
def test_errors_say_what_is_wrong(spec):
    with pytest.raises(SpecError, match=WRONG[spec]):
        objective(spec)


def test_deep_nesting_is_an_error_of_the_spec():
    with pytest.raises(SpecError, match="nested too deeply"):
        formula("(" * 3000 + "M_w" + ")" * 3000)


# ---- for people


def test_the_picture_names_every_loss_and_is_repeatable(tmp_path):
    for name in ("one.svg", "two.svg"):
        draw(tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "two.svg").read_text()
    assert all(f">{name}</text>" in text for name in RATIOS)


def test_the_picture_in_the_documentation_is_current(tmp_path):
    draw(tmp_path / "lattice.svg")
    words = re.compile(r">([^<>]+)</text>")
    stored = (Path(__file__).parents[2] / "docs" / "images" / "loss-lattice.svg").read_text()
    drawn = (tmp_path / "lattice.svg").read_text()
    assert sorted(words.findall(drawn)) == sorted(words.findall(stored))


def test_the_command_draws(tmp_path, capsys):
    objectives(logic=True, draw=tmp_path / "lattice.svg")
    objectives(draw=tmp_path / "losses")
    assert "lattice.svg" in capsys.readouterr().out
    assert (tmp_path / "lattice.svg").read_text().startswith("<?xml")
    assert {path.stem for path in (tmp_path / "losses").glob("*.svg")} == set(PICTURES)


def test_the_listing_shows_every_loss():
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(logic_listing())
    text = console.export_text()
    assert all(name in text for name in RATIOS)
