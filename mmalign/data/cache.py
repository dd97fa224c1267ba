"""What is expensive to compute, kept under the hash of all that it depends on: one SQLite file.

Any number of processes may share the file. Values are JSON, which keeps floats exactly.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

VARIABLES = 500
"""SQLite allows 999 in a statement."""


def key_of(*parts: Any) -> str:
    """Hash of anything that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class Cache:
    """Values by key, in a file that is made when it is first used."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._opened: sqlite3.Connection | None = None

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """The values that are there."""
        found: dict[str, Any] = {}
        unique = list(dict.fromkeys(keys))
        for start in range(0, len(unique), VARIABLES):
            some = unique[start : start + VARIABLES]
            marks = ",".join("?" * len(some))
            rows = self._database.execute(f"SELECT * FROM entries WHERE key IN ({marks})", some)
            found |= {key: json.loads(value) for key, value in rows}
        return found

    def put(self, values: Mapping[str, Any]) -> None:
        """Keep the values, all of them or none; what is there already stays."""
        rows = [(key, json.dumps(value)) for key, value in values.items()]
        with self._database as database:
            database.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?)", rows)

    def through(
        self, keys: Sequence[str], compute: Callable[[list[int]], Sequence[Any]]
    ) -> list[Any]:
        """The values of `keys`; those that are not there are computed in one call, and kept.

        compute: values for these places among the keys; equal keys are computed once.
        """
        found = self.get(keys)
        missing = {key: place for place, key in enumerate(keys) if key not in found}
        if missing:
            values = compute(list(missing.values()))
            fresh = dict(zip(missing, values, strict=True))
            self.put(fresh)
            found |= fresh
        return [found[key] for key in keys]

    @property
    def _database(self) -> sqlite3.Connection:
        if self._opened is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._opened = sqlite3.connect(self.path, timeout=60)
            self._opened.execute("PRAGMA journal_mode=WAL")
            self._opened.execute("PRAGMA synchronous=NORMAL")
            self._opened.execute(
                "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
                " WITHOUT ROWID"
            )
        return self._opened

    def __getstate__(self) -> dict[str, Any]:  # each process opens the file for itself
        return {"path": self.path, "_opened": None}
