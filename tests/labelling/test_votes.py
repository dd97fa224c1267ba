"""Votes are kept as given; agreement and majorities are those of the textbook."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from mmalign.data.opening import open_dataset
from mmalign.data.store import write_store
from mmalign.errors import UserError
from mmalign.labelling.agreement import agreement, krippendorff_alpha
from mmalign.labelling.comparisons import Comparison, comparisons_of
from mmalign.labelling.export import copeland, each_vote, majority
from mmalign.labelling.label import label
from mmalign.labelling.votes import Ranking, Vote, Votes, checked_ranking, outcome
from mmalign.records import Message, Preference, Sample, Text, pair, thumb


def sample(answer: str) -> Sample:
    return Sample((Message("user", (Text("Which?"),)),), (Text(answer),))


def comparison(*answers: str) -> Comparison:
    graded = tuple(float(len(answers) - i) for i in range(len(answers)))
    found, _ = comparisons_of([(0, Preference(tuple(map(sample, answers)), graded))])
    return found[0]


def vote(about: Comparison, who: str, ranking: Ranking | None, name: str = "") -> Vote:
    return Vote(name or f"{about.id}-{who}", about.id, who, ranking, 1.5)


def test_alpha_of_the_textbook() -> None:
    # The nominal example with three coders and missing values: alpha = 0.691.
    rows = "*****34121133*3", "1*213343*******", "**21344*21133*4"
    units = [[word for word in unit if word != "*"] for unit in zip(*rows, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.691, abs=5e-4)


def test_alpha_is_unknown_without_two_words_that_could_differ() -> None:
    assert math.isnan(krippendorff_alpha([["a"], ["b"]]))
    assert math.isnan(krippendorff_alpha([["a", "a"], ["a", "a"]]))


def test_a_ranking_agrees_pair_by_pair() -> None:
    about = comparison("x", "y", "z")
    votes = [vote(about, "ann", ((0,), (1,), (2,))), vote(about, "bob", ((0,), (2,), (1,)))]
    found = agreement(votes)
    assert (found.units, found.share) == (3, pytest.approx(2 / 3))
    assert found.annotators == {"ann": 1, "bob": 1}


def test_the_order_on_the_page_is_blind_and_repeats_itself() -> None:
    about = comparison("x", "y")
    assert about.order("ann") == about.order("ann")
    first = [comparison("x", f"y{i}").order("ann")[0] for i in range(200)]
    assert 60 < sum(first) < 140  # neither place is given away by the dataset's order


def test_comparison_ids_ignore_order_and_grades() -> None:
    swapped, _ = comparisons_of([(7, pair(sample("y"), sample("x")))])
    assert swapped[0].id == comparison("x", "y").id
    assert swapped[0].candidates == comparison("x", "y").candidates


def test_the_newest_vote_counts_and_the_same_vote_counts_once(tmp_path: Path) -> None:
    about, votes = comparison("x", "y"), Votes(tmp_path / "votes.sqlite")
    votes.add(vote(about, "ann", ((0,), (1,)), "first-vote"))
    votes.add(vote(about, "ann", ((1,), (0,)), "second-vote"))
    votes.add(vote(about, "ann", ((0,), (1,)), "first-vote"))
    votes.close()
    again = Votes(tmp_path / "votes.sqlite")
    assert [v.ranking for v in again.counting()] == [((1,), (0,))]
    assert again.answered("ann") == {about.id}
    assert again.answered("bob") == set()


@pytest.mark.parametrize("groups", [[[0]], [[0], [0, 1]], [[0], [1], []], [0, 1], [[0], ["1"]], {}])
def test_rankings_that_make_no_sense_are_refused(groups: object) -> None:
    with pytest.raises(ValueError, match="ranking"):
        checked_ranking(groups, 2)


def test_copeland_follows_majorities_and_ties_cycles() -> None:
    assert copeland([((0,), (1,)), ((0,), (1,)), ((1,), (0,))], 2) == ((0,), (1,))
    cycle = [((0,), (1,), (2,)), ((1,), (2,), (0,)), ((2,), (0,), (1,))]
    assert copeland(cycle, 3) == ((0, 1, 2),)


def test_votes_become_preferences() -> None:
    about = comparison("x", "y")
    votes = [
        vote(about, "ann", ((1,), (0,))),
        vote(about, "bob", ((0, 1),)),
        vote(about, "cyd", ((1,), (0,))),
        vote(about, "dan", None),
    ]
    best, worst = about.candidates[1], about.candidates[0]
    ann, bob, cyd = each_vote([about], votes)
    assert (ann.chosen, ann.rejected, ann.grades) == (best, worst, (1.0, 0.0))
    assert bob.grades == (0.0, 0.0)
    assert [p.aux["annotator"] for p in (ann, bob, cyd)] == [0.0, 1.0, 2.0]
    (merged,) = majority([about], votes)
    assert (merged.chosen, merged.grades) == (best, (1.0, 0.0))
    assert merged.aux == {"votes": 3.0, "confidence": pytest.approx(2 / 3)}


def test_outcomes_have_a_sign() -> None:
    assert [outcome(((0,), (1, 2)), *pair) for pair in ((0, 1), (1, 0), (1, 2))] == [1, -1, 0]


def test_export_writes_a_dataset(tmp_path: Path) -> None:
    write_store([pair(sample("x"), sample("y")), thumb(sample("z"), up=True)], tmp_path / "pairs")
    with pytest.raises(UserError, match="no votes yet"):
        label(str(tmp_path / "pairs"), out=tmp_path / "work", export=tmp_path / "made")
    votes = Votes(tmp_path / "work" / "votes.sqlite")
    about = comparison("x", "y")
    votes.add(vote(about, "ann", ((0,), (1,))))
    votes.close()
    found = label(str(tmp_path / "pairs"), out=tmp_path / "work", export=tmp_path / "made")
    assert found["annotators"] == {"ann": 1}
    (made,) = open_dataset(tmp_path / "made")
    assert made.chosen == about.candidates[0]
    assert made.source.details["annotator"] == "ann"
