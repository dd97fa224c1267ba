"""From votes to preferences: one for each vote, or one for each comparison by majority."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

from mmalign.labelling.comparisons import Comparison
from mmalign.labelling.votes import Ranking, Vote, outcome, places
from mmalign.records import Preference, Provenance


def each_vote(comparisons: Sequence[Comparison], votes: Iterable[Vote]) -> Iterator[Preference]:
    """A preference for each vote that is not a skip; ties have equal grades.

    aux["annotator"] numbers the annotators in the order of their names, as `em` wants it; the name
    is in the source.
    """
    known = {comparison.id: comparison for comparison in comparisons}
    counted = [vote for vote in votes if vote.ranking is not None and vote.comparison in known]
    numbers = {name: i for i, name in enumerate(sorted({vote.annotator for vote in counted}))}
    for vote in counted:
        assert vote.ranking is not None  # filtered above
        yield _preference(
            known[vote.comparison],
            vote.ranking,
            aux={"annotator": float(numbers[vote.annotator])},
            details={"annotator": vote.annotator, "seconds": vote.seconds},
        )


def majority(comparisons: Sequence[Comparison], votes: Iterable[Vote]) -> Iterator[Preference]:
    """A preference for each comparison with votes, ordered by Copeland's rule.

    A candidate's score is its wins less its losses against each other one, by majority of the
    votes; equal scores are ties. aux: "votes", and "confidence", the share of all words on pairs of
    candidates that the result agrees with.
    """
    ballots: defaultdict[str, list[Ranking]] = defaultdict(list)
    for vote in votes:
        if vote.ranking is not None:
            ballots[vote.comparison].append(vote.ranking)
    for comparison in comparisons:
        cast = ballots.get(comparison.id)
        if not cast:
            continue
        result = copeland(cast, len(comparison.candidates))
        confidence = _share_that_agrees(result, cast, len(comparison.candidates))
        aux = {"votes": float(len(cast)), "confidence": confidence}
        yield _preference(comparison, result, aux=aux, details={})


def copeland(ballots: Sequence[Ranking], candidates: int) -> Ranking:
    """The candidates by wins less losses in majorities over the ballots."""
    scores = [0] * candidates
    for first, second in combinations(range(candidates), 2):
        lead = sum(outcome(ballot, first, second) for ballot in ballots)
        won = (lead > 0) - (lead < 0)
        scores[first] += won
        scores[second] -= won
    return tuple(
        tuple(number for number in range(candidates) if scores[number] == score)
        for score in sorted(set(scores), reverse=True)
    )


def _share_that_agrees(result: Ranking, ballots: Sequence[Ranking], candidates: int) -> float:
    pairs = list(combinations(range(candidates), 2))
    agreeing = sum(
        outcome(result, *pair) == outcome(ballot, *pair) for pair in pairs for ballot in ballots
    )
    return agreeing / (len(pairs) * len(ballots))


def _preference(
    comparison: Comparison,
    ranking: Ranking,
    *,
    aux: dict[str, float],
    details: dict[str, object],
) -> Preference:
    """Candidates best first; grades count down to 0, so that a pair has (1, 0)."""
    place = places(ranking)
    order = [number for group in ranking for number in group]
    return Preference(
        candidates=tuple(comparison.candidates[number] for number in order),
        grades=tuple(float(len(ranking) - 1 - place[number]) for number in order),
        aux=aux,
        source=Provenance(
            builder="label",
            parents=tuple(sample.id for sample in comparison.candidates),
            details={"comparison": comparison.id, "row": comparison.row, **details},
        ),
    )
