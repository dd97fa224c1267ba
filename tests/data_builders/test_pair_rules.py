"""Which candidates a rule compares, and what is remembered of their rewards."""

from __future__ import annotations

import math
from random import Random

import pytest

from mmalign.data_builders.pair_rules import Rule, preferences
from mmalign.errors import UserError
from mmalign.records import Message, Preference, Provenance, Sample, Text, text_of

PROMPT = (Message("user", (Text("Name one."),)),)
REWARDS = [0.2, 0.9, 0.5, 0.9, 0.1]


def made(rule: Rule, rewards: list[float] = REWARDS, seed: int = 0) -> list[Preference]:
    candidates = [Sample(PROMPT, (Text(str(i)),)) for i in range(len(rewards))]
    return preferences(candidates, rewards, rule, Provenance("test"), Random(seed))


def orders(rule: Rule, rewards: list[float] = REWARDS, seed: int = 0) -> list[tuple[int, ...]]:
    return [
        tuple(int(text_of(sample.response)) for sample in preference.candidates)
        for preference in made(rule, rewards, seed)
    ]


def test_the_best_against_one_other() -> None:
    assert orders(Rule(rule="max-min")) == [(1, 4)]
    assert orders(Rule(rule="best-kth", kth=3)) == [(1, 2)]
    assert orders(Rule(rule="best-kth", kth=6)) == []
    drawn = {orders(Rule(rule="max-random", ties="keep"), seed=s)[0] for s in range(40)}
    assert drawn == {(1, 0), (1, 2), (1, 3), (1, 4)}


def test_every_two_that_are_far_enough_apart() -> None:
    found = orders(Rule(rule="margin", least_margin=0.35), [0.0, 0.4, 0.7])
    assert found == [(2, 0), (1, 0)]
    assert len(orders(Rule(rule="margin"))) == 9  # ten, less the two that are equal
    assert len(orders(Rule(rule="margin", ties="keep"))) == 10


def test_what_is_acceptable_against_what_is_not() -> None:
    assert orders(Rule(rule="feasible", threshold=0.5)) == [(1, 4)]
    assert orders(Rule(rule="feasible", threshold=0.95)) == []
    assert orders(Rule(rule="feasible", threshold=0.05)) == []
    # rewards below zero are rewards like any other
    assert orders(Rule(rule="feasible", threshold=-1.0), [-3.0, -0.5, -2.0]) == [(1, 0)]


def test_a_list_has_its_rewards_as_grades() -> None:
    (found,) = made(Rule(rule="list"))
    assert [text_of(sample.response) for sample in found.candidates] == ["1", "3", "2", "0", "4"]
    assert found.grades == (0.9, 0.9, 0.5, 0.2, 0.1)
    assert found.aux["margin"] == pytest.approx(0.8)


def test_ties_make_no_pair_or_one_that_says_so() -> None:
    assert orders(Rule(), [1.0, 1.0]) == []
    (tie,) = made(Rule(ties="keep"), [1.0, 1.0])
    assert tie.grades == (0.0, 0.0)
    (pair,) = made(Rule(ties="keep"), [1.0, 2.0])
    assert pair.grades == (1.0, 0.0)


def test_thresholds_and_candidates_without_a_reward() -> None:
    assert orders(Rule(least_best=0.95)) == []
    assert orders(Rule(least_margin=0.8)) == []
    assert orders(Rule(), [math.nan, 0.4, 0.3]) == [(1, 2)]
    assert orders(Rule(), [math.nan, 0.4]) == []
    with pytest.raises(UserError, match="kth"):
        Rule(kth=1)


def test_equal_candidates_are_one() -> None:
    same = [Sample(PROMPT, (Text("same"),))] * 3
    assert preferences(same, [1.0, 0.5, 0.0], Rule(), Provenance("test"), Random(0)) == []
