"""Rows that belong together as one row of lists: for formats that write one row per candidate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby
from typing import Any

from mmalign.data.fields import Row
from mmalign.data.rows import BrokenRow, Rows


class GroupedRows:
    """The rows of a source with equal values in a column, wherever they stand, as one row that has
    a list in each column. Reads that column once, and rows when they are asked for."""

    def __init__(self, rows: Rows, by: str) -> None:
        self.rows, self.by, self.root = rows, by, rows.root

    @property
    def columns(self) -> tuple[str, ...]:
        return self.rows.columns

    @cached_property
    def places(self) -> list[list[int]]:
        """Which rows make each group, in the order in which groups begin."""
        found: dict[Any, list[int]] = {}
        for place, value in enumerate(self.rows.column(self.by)):
            found.setdefault(value, []).append(place)
        return list(found.values())

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Row:
        return joined([self.rows[place] for place in self.places[index]])

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self)))

    def column(self, name: str) -> Iterator[Any]:
        values = list(self.rows.column(name))
        return ([values[place] for place in places] for places in self.places)


class GroupedStream:
    """The same of rows that can only be read in order, where rows that belong together follow each
    other."""

    def __init__(self, rows: Iterable[Row], by: str) -> None:
        self.rows, self.by = rows, by

    def __iter__(self) -> Iterator[Row]:
        for _, group in groupby(self.rows, key=lambda row: row.get(self.by)):
            yield joined(list(group))


def joined(rows: list[Row]) -> Row:
    """One row with lists; a row that could not be parsed stands for its whole group."""
    broken = next((row for row in rows if isinstance(row, BrokenRow)), None)
    if broken is not None:
        return broken
    return {name: [row.get(name) for row in rows] for name in rows[0]}
