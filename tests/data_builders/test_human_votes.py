"""Votes of several people come to one preference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mmalign import cli
from mmalign.data import open_dataset, write_store
from mmalign.data_builders.human_votes import Ballot, build, reliabilities
from mmalign.records import Message, Preference, Sample, Text


def sample(prompt: str, answer: str) -> Sample:
    return Sample((Message("user", (Text(prompt),)),), (Text(answer),))


def vote(prompt: str, better: str, worse: str, who: float, *, tie: bool = False) -> Preference:
    grades = (1.0, 1.0) if tie else (1.0, 0.0)
    return Preference((sample(prompt, better), sample(prompt, worse)), grades, {"annotator": who})


def test_the_majority_decides_and_its_share_is_the_confidence() -> None:
    votes = [vote("p", "x", "y", 0), vote("p", "y", "x", 1), vote("p", "x", "y", 2)]
    (found,) = build(votes)
    assert found.chosen == sample("p", "x")
    assert found.grades == (1.0, 0.0)
    assert found.aux == {"votes": 3.0, "confidence": pytest.approx(2 / 3), "tie_rate": 0.0}
    assert len(found.source.details["votes"]) == 3


def test_a_draw_is_dropped_or_kept_as_a_tie() -> None:
    votes = [vote("p", "x", "y", 0), vote("p", "y", "x", 1), vote("q", "x", "y", 0, tie=True)]
    assert list(build(votes)) == []
    kept = list(build(votes, ties="keep"))
    assert [p.grades for p in kept] == [(0.0, 0.0), (0.0, 0.0)]
    assert kept[1].aux["tie_rate"] == 1.0


def test_few_votes_and_unsure_results_are_left_out() -> None:
    votes = [vote("p", "x", "y", 0), vote("q", "x", "y", 0), vote("q", "x", "y", 1)]
    assert [p.aux["votes"] for p in build(votes, least_votes=2)] == [2.0]
    split = [*votes, vote("q", "y", "x", 2)]
    assert [p.aux["votes"] for p in build(split, least_confidence=0.9)] == [1.0]


def test_rankings_of_several_candidates_are_joined() -> None:
    def ranked(*answers: str) -> Preference:
        return Preference(tuple(sample("p", a) for a in answers), (2.0, 1.0, 0.0))

    (found,) = build([ranked("a", "b", "c"), ranked("a", "c", "b"), ranked("b", "a", "c")])
    assert [s.response for s in found.candidates] == [(Text("a"),), (Text("b"),), (Text("c"),)]
    assert found.grades == (2.0, 1.0, 0.0)


def planted(pairs: int, right: list[float]) -> dict[str, list[Ballot]]:
    """Votes of annotators who are right with known probabilities; the truth is 0 before 1."""
    draws = np.random.default_rng(0)
    orders = (((1,), (0,)), ((0,), (1,)))
    return {
        str(i): [Ballot(float(a), orders[int(draws.random() < r)]) for a, r in enumerate(right)]
        for i in range(pairs)
    }


def test_reliabilities_are_those_that_were_planted() -> None:
    right = [0.95, 0.8, 0.65, 0.55]
    found = reliabilities(planted(4000, right))
    assert [found[float(a)] for a in range(4)] == pytest.approx(right, abs=0.03)


def test_one_reliable_voice_outweighs_two_careless_ones() -> None:
    good, poor = [("x", "y"), ("y", "x")]
    votes = []
    draws = np.random.default_rng(1)
    for i in range(400):
        votes += [vote(str(i), *good, who) for who in (0, 3, 4)]
        votes += [vote(str(i), *(good if draws.random() < 0.55 else poor), w) for w in (1, 2)]
    votes += [vote("last", *good, 0), vote("last", *poor, 1), vote("last", *poor, 2)]
    by_trust = list(build(votes, rule="reliability"))[-1]
    by_count = list(build(votes))[-1]
    assert by_trust.chosen == sample("last", "x")
    assert by_trust.aux["confidence"] > 0.9
    assert by_count.chosen == sample("last", "y")


def test_the_command_brings_votes_together(tmp_path: Path) -> None:
    votes = [vote("p", "x", "y", 0), vote("p", "y", "x", 1), vote("p", "x", "y", 2)]
    write_store([*votes, vote("q", "x", "y", 0)], tmp_path / "votes")
    words = ["build", "human-votes", str(tmp_path / "votes"), "--out", str(tmp_path / "out")]
    assert cli.main([*words, "--least-votes", "2"]) == 0
    (found,) = open_dataset(tmp_path / "out")
    assert found.chosen == sample("p", "x")
    assert found.aux["confidence"] == pytest.approx(2 / 3)
