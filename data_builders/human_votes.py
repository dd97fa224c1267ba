"""Several people's votes on the same candidates become one preference, with what is known of it.

The data hold one preference for each vote, as `mmalign label` exports them and as published vote
sets are read; equal grades are a tie. Who voted is the number "annotator" in aux.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mmalign.data_builders.command import as_command
from mmalign.labelling.comparisons import comparison_id
from mmalign.labelling.export import copeland
from mmalign.labelling.votes import Ranking, outcome, places
from mmalign.records import Preference, Provenance, Sample

Rule = Literal["majority", "reliability"]
Ties = Literal["drop", "keep"]


@dataclass(frozen=True)
class Ballot:
    """One vote: who, and the ranking of the candidates by their numbers in the order of their ids.
    An annotator who is not known counts as somebody else each time."""

    annotator: float
    ranking: Ranking


def build(
    preferences: Sequence[Preference],
    *,
    rule: Rule = "majority",
    ties: Ties = "drop",
    least_votes: int = 1,
    least_confidence: float = 0.0,
) -> Iterator[Preference]:
    """Bring several people's votes on the same candidates to one preference.

    The dataset holds a preference for each vote, with "annotator" in aux where it is known. The
    result has in aux: votes, confidence (share of words on pairs of candidates that the result
    agrees with; for reliability its posterior probability), and tie_rate.

    Args:
        rule: majority of the votes, candidate by candidate (Copeland); or reliability, in which
            annotators who agree more with the others count more (Dawid and Skene; pairs only).
        ties: What becomes of candidates that end up equal: a preference is dropped unless one of
            its candidates is better than another, or kept with equal grades.
        least_votes: Votes that a set of candidates must have.
        least_confidence: Confidence that a result must have.

    Examples:
        mmalign build human-votes votes --out preferences --rule reliability --least-votes 3
    """
    ballots: defaultdict[str, list[Ballot]] = defaultdict(list)
    for preference in preferences:
        ballots[comparison_id(preference.candidates)].append(_ballot(preference))
    trust = reliabilities(ballots) if rule == "reliability" else {}
    done: set[str] = set()
    for preference in preferences:
        name = comparison_id(preference.candidates)
        if name in done:
            continue
        done.add(name)
        cast = ballots[name]
        candidates = _in_order(preference.candidates)
        if len(cast) < least_votes or len(candidates) < 2:
            continue
        result, confidence = _result(cast, len(candidates), trust)
        if confidence >= least_confidence and (len(result) > 1 or ties == "keep"):
            yield _aggregated(preference, candidates, result, confidence, cast)


def reliabilities(
    ballots: Mapping[str, Sequence[Ballot]], *, rounds: int = 50, tolerance: float = 1e-6
) -> dict[float, float]:
    """How often each annotator is right, by expectation maximisation on pairs without ties.

    Dawid and Skene's model with one number per annotator: the truth of each pair is one of its two
    orders, equally likely beforehand, and annotator a names it with probability r_a. One imagined
    right vote and one wrong one keep r_a away from 0 and 1. Appl. Stat. 28 (1979).
    """
    words = [
        [(ballot.annotator, outcome(ballot.ranking, 0, 1)) for ballot in cast]
        for cast in ballots.values()
        if all(len(_numbers(ballot.ranking)) == 2 for ballot in cast)
    ]
    words = [[word for word in pair if word[1]] for pair in words]
    people = {annotator for pair in words for annotator, _ in pair}
    trust = dict.fromkeys(people, 0.75)  # above one half: most people mostly mean what they say
    for _ in range(rounds):
        right, said = dict.fromkeys(people, 1.0), dict.fromkeys(people, 2.0)
        for pair in words:
            first = _sigmoid(_evidence(pair, trust))
            for annotator, word in pair:
                right[annotator] += first if word > 0 else 1 - first
                said[annotator] += 1
        updated = {annotator: right[annotator] / said[annotator] for annotator in people}
        change = max((abs(updated[a] - trust[a]) for a in people), default=0.0)
        trust = updated
        if change < tolerance:
            break
    return trust


def _result(
    cast: Sequence[Ballot], candidates: int, trust: Mapping[float, float]
) -> tuple[Ranking, float]:
    """The ranking that the ballots come to, and how sure it is."""
    if trust and candidates == 2:
        words = [(b.annotator, outcome(b.ranking, 0, 1)) for b in cast]
        evidence = _evidence([word for word in words if word[1]], trust)
        if evidence == 0:
            return ((0, 1),), 0.5
        return (((0,), (1,)) if evidence > 0 else ((1,), (0,))), _sigmoid(abs(evidence))
    result = copeland([ballot.ranking for ballot in cast], candidates)
    pairs = [(i, j) for i in range(candidates) for j in range(i + 1, candidates)]
    agreeing = sum(outcome(result, *p) == outcome(b.ranking, *p) for p in pairs for b in cast)
    return result, agreeing / (len(pairs) * len(cast))


def _evidence(words: Iterable[tuple[float, int]], trust: Mapping[float, float]) -> float:
    """Log odds that the first candidate is better."""
    return sum(word * math.log(trust[who] / (1 - trust[who])) for who, word in words)


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def _ballot(preference: Preference) -> Ballot:
    number = {sample.id: i for i, sample in enumerate(_in_order(preference.candidates))}
    groups: dict[float, set[int]] = {}
    for sample, grade in zip(preference.candidates, preference.grades, strict=True):
        groups.setdefault(grade, set()).add(number[sample.id])
    ranking = tuple(tuple(sorted(groups[grade])) for grade in sorted(groups, reverse=True))
    return Ballot(float(preference.aux.get("annotator", math.nan)), ranking)


def _in_order(candidates: Sequence[Sample]) -> tuple[Sample, ...]:
    """The different candidates, in an order that every vote on them has in common."""
    distinct = {sample.id: sample for sample in candidates}
    return tuple(distinct[key] for key in sorted(distinct))


def _numbers(ranking: Ranking) -> list[int]:
    return [number for group in ranking for number in group]


def _aggregated(
    first: Preference,
    candidates: tuple[Sample, ...],
    result: Ranking,
    confidence: float,
    cast: Sequence[Ballot],
) -> Preference:
    place, order = places(result), _numbers(result)
    tied = sum(len(ballot.ranking) == 1 for ballot in cast)
    votes = [[None if math.isnan(b.annotator) else b.annotator, b.ranking] for b in cast]
    return Preference(
        candidates=tuple(candidates[number] for number in order),
        grades=tuple(float(len(result) - 1 - place[number]) for number in order),
        aux={
            "votes": float(len(cast)),
            "confidence": confidence,
            "tie_rate": tied / len(cast),
        },
        source=Provenance(
            builder="human_votes",
            parents=(first.id,),
            models=first.source.models,
            details={"votes": votes},
        ),
    )


command = as_command("human-votes", build)
