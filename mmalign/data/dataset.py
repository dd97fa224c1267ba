"""Datasets of preferences as sequences: read when asked, with errors that name the row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, overload

from mmalign.data.errors import FieldError, Quarantine, RecordError, excerpt
from mmalign.data.fields import Row
from mmalign.data.formats import FORMATS, renamed
from mmalign.data.rows import BrokenRow, Rows, repeated
from mmalign.records import Media, Message, Preference, media_of

T = TypeVar("T")


class Reader(Generic[T]):
    """Reads single rows of one dataset and turns what is wrong into a RecordError."""

    def __init__(
        self,
        read: Callable[[Row, Path | None], T],
        where: str,
        names: Mapping[str, str | None],
        root: Path | None,
        per_row: int = 1,
    ) -> None:
        self.read, self.where, self.names, self.root = read, where, dict(names), root
        self.per_row = per_row

    def __call__(self, index: int, row: Row) -> T:
        if isinstance(row, BrokenRow):
            raise self._error(index, "", row.reason)
        try:
            return self.read(renamed(row, self.names), self.root)
        except FieldError as error:
            raise self._error(index, error.field, error.reason, row) from error
        except KeyError as error:
            reason = f"has no column {error}"
            raise self._error(index, str(error.args[0]), reason, row) from error
        except ValueError as error:
            raise self._error(index, "", str(error), row) from error

    def _error(self, index: int, field: str, reason: str, row: Row | None = None) -> RecordError:
        shown = excerpt(row) if row is not None else ""
        return RecordError(self.where, index, field, reason, shown, self.per_row)

    def checked(self, rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, T | RecordError]]:
        for index, row in rows:
            try:
                yield index, self(index, row)
            except RecordError as error:
                yield index, error


class _Records(Sequence[T]):
    """Records behind rows: a sequence that reads a row when it is asked for it."""

    def __init__(
        self, rows: Rows, reader: Reader[T], taken: str, indices: Sequence[int] | None = None
    ) -> None:
        self._rows, self._reader, self._indices = rows, reader, indices
        self.format = taken

    @property
    def where(self) -> str:
        return self._reader.where

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns as they are called in the files."""
        return self._rows.columns

    def __len__(self) -> int:
        return len(self._rows) if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> T | Self:
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self.where} has {len(self)} records, there is no number {index}")
        row = self.row_number(index % len(self))
        return self._reader(row, self._rows[row])

    def __iter__(self) -> Iterator[T]:
        return (self._reader(index, row) for index, row in self._numbered())

    def checked(self) -> Iterator[tuple[int, T | RecordError]]:
        """All records with their row numbers; those that cannot be read as errors."""
        return self._reader.checked(self._numbered())

    def readable(self, quarantine: Quarantine) -> Iterator[tuple[int, T]]:
        """The records that can be read, with their row numbers; the others go to quarantine."""
        return _readable(self.checked(), quarantine)

    def select(self, indices: Sequence[int]) -> Self:
        """The records at these places, in this order."""
        rows = [self.row_number(index) for index in indices]
        return type(self)(self._rows, self._reader, self.format, rows)

    def row(self, index: int) -> Row:
        """The raw row behind a record."""
        return self._rows[self.row_number(index)]

    def describe(self) -> str:
        """One line: where it is, which format was taken, how many records, which columns."""
        note = f", renamed {self._reader.names}" if self._reader.names else ""
        return (
            f"{self.where}: {len(self)} rows in format '{self.format}'"
            f" ({FORMATS[self.format].about}), columns {', '.join(self.columns)}{note}"
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.describe()}>"

    def row_number(self, index: int) -> int:
        """The number of a record's row in the files, which differs in a selection."""
        return index if self._indices is None else self._indices[index]

    def _numbered(self) -> Iterator[tuple[int, Row]]:
        if self._indices is None:
            return enumerate(self._rows)
        return ((index, self._rows[index]) for index in self._indices)


class Preferences(_Records[Preference]):
    """Preferences in a dataset, as a sequence: `len`, `[i]`, slices, iteration.

    Reading a record that is wrong raises RecordError, which names row and field; `checked`,
    `readable` and `usable` are for those who would rather go on. Media are not decoded. Can be
    pickled, so that worker processes may read.
    """

    def usable(
        self, quarantine: Quarantine, wanted: Callable[[Preference], bool] = lambda _: True
    ) -> Preferences:
        """Those that can be read and are wanted, found by reading all once; those that cannot be
        read, or whose images or videos are not there, go to quarantine. None is decoded."""
        good = set()
        for row, preference in self.readable(quarantine):
            if missing := _missing(preference):
                reason = f"the {missing.kind} {missing.path} does not exist"
                quarantine.add(RecordError(self.where, row, "", reason))
            elif wanted(preference):
                good.add(row)
        places = [i for i in range(len(self)) if self.row_number(i) in good]
        return self if len(places) == len(self) else self.select(places)

    def prompt_ids(self) -> Iterator[tuple[str, ...]]:
        """For each preference, the ids of the prompts of its candidates; usually one."""
        if self.format == "mmalign" and self._indices is None:
            return (tuple(ids) for ids in self._rows.column("prompt_ids"))
        return (tuple(dict.fromkeys(s.prompt_id for s in p.candidates)) for p in self)

    @property
    def has_media(self) -> bool:
        """Whether there are images or videos, which text models cannot take.

        Looks for a value in the columns that may hold media, and at the first record.
        """
        names = {ours: theirs for ours, theirs in self._reader.names.items() if theirs}
        columns = [names.get(column, column) for column in FORMATS[self.format].media]
        for column in set(columns) & set(self.columns):
            if any(map(bool, self._values(column))):
                return True
        return bool(len(self)) and _holds_media(self[0])

    def _values(self, column: str) -> Iterator[Any]:
        if self._indices is None:
            return self._rows.column(column)
        return (self._rows[index].get(column) for index in self._indices)


def row_in_files(data: object, index: int) -> int:
    """The row number of a record in its files, where the data know it."""
    return data.row_number(index) if isinstance(data, _Records) else index


class Prompts(_Records[tuple[Message, ...]]):
    """Prompts in a dataset, as a sequence: what methods that sample their responses start from."""


class PreferenceStream:
    """Preferences that can be iterated over and nothing else, for datasets read over a network."""

    def __init__(self, rows: Iterable[Row], reader: Reader[Preference], taken: str) -> None:
        self._rows, self._reader, self.format = rows, reader, taken

    @property
    def where(self) -> str:
        return self._reader.where

    @property
    def total(self) -> int | None:
        """How many there are, where that is known before they are read."""
        rows = self._rows
        return len(rows) * self._reader.per_row if isinstance(rows, Sized) else None

    def __iter__(self) -> Iterator[Preference]:
        return (self._reader(index, row) for index, row in self._numbered())

    def checked(self) -> Iterator[tuple[int, Preference | RecordError]]:
        """All records with their row numbers; those that cannot be read as errors."""
        return self._reader.checked(self._numbered())

    def readable(self, quarantine: Quarantine) -> Iterator[tuple[int, Preference]]:
        """The records that can be read, with their row numbers; the others go to quarantine."""
        return _readable(self.checked(), quarantine)

    def describe(self) -> str:
        """One line: where it is and which format was taken."""
        return f"{self.where}: stream in format '{self.format}' ({FORMATS[self.format].about})"

    def _numbered(self) -> Iterator[tuple[int, Row]]:
        return enumerate(repeated(self._rows, self._reader.per_row))


def _readable(
    checked: Iterator[tuple[int, T | RecordError]], quarantine: Quarantine
) -> Iterator[tuple[int, T]]:
    for index, record in checked:
        if isinstance(record, RecordError):
            quarantine.add(record)
        else:
            yield index, record


def _media(preference: Preference) -> Iterator[Media]:
    for sample in preference.candidates:
        yield from media_of(sample.prompt)
        yield from (part for part in sample.response if isinstance(part, Media))


def _missing(preference: Preference) -> Media | None:
    """The first of its files that is not there."""
    return next((m for m in _media(preference) if m.path and not Path(m.path).exists()), None)


def _holds_media(preference: Preference) -> bool:
    return any(True for _ in _media(preference))
