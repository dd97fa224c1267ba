"""Votes in an SQLite file: each is on the disk before it is acknowledged, and none is overwritten.

An annotator may vote again on a comparison: the newest vote counts, the older ones stay.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mmalign.errors import UserError

Ranking = tuple[tuple[int, ...], ...]
"""Groups of candidates, best first; candidates of one group are equally good."""

_TABLE = """
CREATE TABLE IF NOT EXISTS votes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    comparison TEXT NOT NULL,
    annotator TEXT NOT NULL,
    ranking TEXT,
    seconds REAL NOT NULL,
    at TEXT NOT NULL
)
"""


@dataclass(frozen=True)
class Vote:
    """One annotator's word on one comparison.

    id: made by whoever sends the vote, so that sending it twice counts once.
    ranking: of the comparison's candidates; None where it was skipped.
    seconds: that the annotator looked at it.
    """

    id: str
    comparison: str
    annotator: str
    ranking: Ranking | None
    seconds: float


class Votes:
    """The votes in a file, which threads and processes may share."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=60, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")  # an acknowledged vote survives a crash
            with self._db:
                self._db.execute(_TABLE)
        except sqlite3.DatabaseError as error:
            raise UserError(
                f"{path} is no file of votes: {error}", hint="choose another --out"
            ) from error

    def add(self, vote: Vote) -> None:
        """Keep a vote; one whose id is there already is the same vote, sent again."""
        ranking = None if vote.ranking is None else json.dumps(vote.ranking)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._lock, self._db:
            self._db.execute(
                "INSERT OR IGNORE INTO votes (id, comparison, annotator, ranking, seconds, at)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (vote.id, vote.comparison, vote.annotator, ranking, vote.seconds, now),
            )

    def counting(self) -> list[Vote]:
        """The newest vote of every annotator on every comparison, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, comparison, annotator, ranking, seconds FROM votes WHERE number IN"
                " (SELECT MAX(number) FROM votes GROUP BY comparison, annotator) ORDER BY number"
            ).fetchall()
        return [
            Vote(name, comparison, annotator, _ranking(text), seconds)
            for name, comparison, annotator, text, seconds in rows
        ]

    def answered(self, annotator: str) -> set[str]:
        """Ids of the comparisons on which an annotator has voted, skipped ones included."""
        with self._lock:
            rows = self._db.execute(
                "SELECT DISTINCT comparison FROM votes WHERE annotator = ?", (annotator,)
            ).fetchall()
        return {row[0] for row in rows}

    def close(self) -> None:
        self._db.close()


def checked_ranking(groups: object, candidates: int) -> Ranking:
    """A ranking as it comes from outside. Raises ValueError unless it names every candidate once.

    groups: lists of numbers of candidates, best first.
    """
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        raise ValueError("a ranking is a list of lists")
    named = [number for group in groups for number in group]
    whole = all(type(number) is int for number in named)
    if not whole or sorted(named) != list(range(candidates)) or not all(groups):
        raise ValueError(f"a ranking names each of the {candidates} candidates once, not {groups}")
    return tuple(tuple(group) for group in groups)


def places(ranking: Ranking) -> dict[int, int]:
    """The place of each candidate, 0 for the best; equal for candidates that are tied."""
    return {number: place for place, group in enumerate(ranking) for number in group}


def outcome(ranking: Ranking, first: int, second: int) -> int:
    """1 where `first` is better than `second`, -1 where it is worse, 0 for a tie."""
    found: dict[int, int] = places(ranking)
    return (found[second] > found[first]) - (found[second] < found[first])


def _ranking(text: str | None) -> Ranking | None:
    if text is None:
        return None
    groups: Sequence[Sequence[int]] = json.loads(text)
    return tuple(tuple(group) for group in groups)
