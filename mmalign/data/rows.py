"""Raw rows from Parquet, Arrow, JSON and CSV files, by index, without holding a dataset in memory.

A row is a dict of plain Python values; images stay encoded. Every source can be pickled and opens
its files again in the process that uses it.
"""

from __future__ import annotations

import csv
import json
import sys
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.data.errors import DatasetError
from mmalign.data.fields import PART, Row

CACHE = 64 * 2**20
"""Bytes of Parquet row groups that are kept decoded for random access."""
OPEN_FILES = 16
LOOK_AHEAD = 100
"""Rows of a JSON file that are read to learn its columns."""


class BrokenRow(Row):
    """An empty row in place of one that the file format's own parser refused, with the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason,)


class Rows(Protocol):
    """A source of rows. `root` is where relative paths of media start."""

    root: Path | None

    @property
    def columns(self) -> tuple[str, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Row: ...

    def __iter__(self) -> Iterator[Row]: ...

    def column(self, name: str) -> Iterator[Any]:
        """One column of all rows, read alone where the file format allows it."""
        ...


class ParquetRows:
    """Rows of Parquet files, read one row group at a time.

    counts: rows per file, where they are known already; otherwise read from the files' footers.
    """

    def __init__(
        self, files: Sequence[Path], root: Path | None, counts: Sequence[int] | None = None
    ) -> None:
        self.files, self.root = list(files), root
        schemas = [_footer(file) for file in self.files[:1]]
        self._columns = tuple(name for schema in schemas for name in schema.names)
        if counts is None:
            counts = [pq.read_metadata(file).num_rows for file in self.files]
        self._ends = list(accumulate(counts))
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._groups: dict[int, list[int]] = {}  # file -> ends of its row groups
        self._cache: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()
        self._cached = 0  # bytes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_cache": OrderedDict(), "_cached": 0}

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        file, within = _locate(self._ends, index)
        group, offset = _locate(self._group_ends(file), within)
        return plain_rows(self._table(file, group).slice(offset, 1))[0]

    def __iter__(self) -> Iterator[Row]:
        for file, group in self._all_groups():
            yield from plain_rows(self._read(file, group, None))

    def column(self, name: str) -> Iterator[Any]:
        for file, group in self._all_groups():
            yield from (row[name] for row in plain_rows(self._read(file, group, [name])))

    def _all_groups(self) -> Iterator[tuple[int, int]]:
        for file in range(len(self.files)):
            yield from ((file, group) for group in range(len(self._group_ends(file))))

    def _group_ends(self, file: int) -> list[int]:
        if file not in self._groups:
            footer = self._file(file).metadata
            sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            self._groups[file] = list(accumulate(sizes))
        return self._groups[file]

    def _file(self, file: int) -> pq.ParquetFile:
        if file not in self._open:
            self._open[file] = pq.ParquetFile(self.files[file], memory_map=True)
            if len(self._open) > OPEN_FILES:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(file)
        return self._open[file]

    def _read(self, file: int, group: int, columns: list[str] | None) -> pa.Table:
        # without threads: the reader may live in a forked worker
        return self._file(file).read_row_group(group, columns=columns, use_threads=False)

    def _table(self, file: int, group: int) -> pa.Table:
        key = (file, group)
        if key not in self._cache:
            table = self._read(file, group, None)
            self._cache[key] = table
            self._cached += table.nbytes
            while len(self._cache) > 1 and self._cached > CACHE:
                self._cached -= self._cache.popitem(last=False)[1].nbytes
        self._cache.move_to_end(key)
        return self._cache[key]


class ArrowRows:
    """Rows of Arrow stream files, as `datasets` saves them, memory-mapped."""

    def __init__(self, files: Sequence[Path], root: Path | None) -> None:
        self.files, self.root = list(files), root
        self._table: pa.Table | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}

    @property
    def table(self) -> pa.Table:
        if self._table is None:
            tables = [pa.ipc.open_stream(pa.memory_map(str(f))).read_all() for f in self.files]
            self._table = pa.concat_tables(tables)
        return self._table

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.table.column_names)

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, index: int) -> Row:
        return plain_rows(self.table.slice(index, 1))[0]

    def __iter__(self) -> Iterator[Row]:
        return _stepwise(self.table)

    def column(self, name: str) -> Iterator[Any]:
        return (row[name] for row in _stepwise(self.table.select([name])))


class JsonLinesRows:
    """Rows of JSON-lines files; random access goes by an index of line starts, made when needed."""

    def __init__(self, files: Sequence[Path], root: Path | None) -> None:
        self.files, self.root = list(files), root
        self._starts: array[int] | None = None
        self._ends: list[int] = []
        head = list(islice(self, LOOK_AHEAD))
        if head and all(isinstance(row, BrokenRow) for row in head):
            raise DatasetError(
                f"{self.files[0]} is not JSON lines",
                hint="a JSON file holds one object per line, or one array of objects.",
            )
        self._columns = tuple(dict.fromkeys(name for row in head for name in row))

    @property
    def columns(self) -> tuple[str, ...]:
        return self._columns

    def __len__(self) -> int:
        self._index()
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> Row:
        starts = self._index()
        file, _ = _locate(self._ends, index)
        with self.files[file].open("rb") as lines:
            lines.seek(starts[index])
            return _json_row(lines.readline())

    def __iter__(self) -> Iterator[Row]:
        for file in self.files:
            with file.open("rb") as lines:
                yield from (_json_row(line) for line in lines if line.strip())

    def column(self, name: str) -> Iterator[Any]:
        return (row.get(name) for row in self)

    def _index(self) -> array[int]:
        if self._starts is None:
            starts: array[int] = array("q")
            for file in self.files:
                position = 0
                with file.open("rb") as lines:
                    for line in lines:
                        if line.strip():
                            starts.append(position)
                        position += len(line)
                self._ends.append(len(starts))
            self._starts = starts
        return self._starts


class MemoryRows:
    """Rows held in memory: what CSV files and JSON arrays leave us."""

    def __init__(self, rows: Sequence[Row], root: Path | None) -> None:
        self.rows, self.root = rows, root

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for row in self.rows[:LOOK_AHEAD] for name in row))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:
        row = self.rows[index]
        return row if isinstance(row, BrokenRow) else dict(row)

    def __iter__(self) -> Iterator[Row]:
        return (self[index] for index in range(len(self.rows)))

    def column(self, name: str) -> Iterator[Any]:
        return (row.get(name) for row in self.rows)


class RepeatedRows:
    """Each row of a source several times in a row, numbered: for rows of several preferences."""

    def __init__(self, rows: Rows, times: int) -> None:
        self.rows, self.times, self.root = rows, times, rows.root

    @property
    def columns(self) -> tuple[str, ...]:
        return self.rows.columns

    def __len__(self) -> int:
        return len(self.rows) * self.times

    def __getitem__(self, index: int) -> Row:
        row, part = divmod(index, self.times)
        return numbered(self.rows[row], part)

    def __iter__(self) -> Iterator[Row]:
        return repeated(self.rows, self.times)

    def column(self, name: str) -> Iterator[Any]:
        return (value for value in self.rows.column(name) for _ in range(self.times))


def repeated(rows: Iterable[Row], times: int) -> Iterator[Row]:
    """Each row `times` times; rows that are repeated say in PART which time this is."""
    if times == 1:
        return iter(rows)
    return (numbered(row, part) for row in rows for part in range(times))


def numbered(row: Row, part: int) -> Row:
    """The row with its number among the preferences of that row."""
    return row if isinstance(row, BrokenRow) else {**row, PART: part}


def json_rows(files: Sequence[Path], root: Path | None) -> Rows:
    """Rows of JSON files: one array of objects per file, or one object per line."""
    with files[0].open("rb") as opened:
        first = opened.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if first != b"[":
        return JsonLinesRows(files, root)
    rows: list[Row] = []
    for file in files:
        try:
            found = json.loads(file.read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DatasetError(f"{file} is not valid JSON: {error}") from error
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise DatasetError(f"{file} is not an array of objects, one per record")
        rows += found
    return MemoryRows(rows, root)


def csv_rows(files: Sequence[Path], root: Path | None) -> Rows:
    """Rows of CSV files with a header; every value is a text."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    rows: list[Row] = []
    for file in files:
        # Bytes that are no UTF-8 become halves of surrogate pairs, which a field's reader refuses.
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            try:
                rows += map(_csv_row, csv.DictReader(opened))
            except csv.Error as error:
                raise DatasetError(f"{file} cannot be read as CSV: {error}") from error
    broken = [row for row in rows if isinstance(row, BrokenRow)]
    if broken and len(broken) == len(rows):
        raise DatasetError(f"{files[0]}, record 1: {broken[0].reason}")
    return MemoryRows(rows, root)


def _csv_row(row: dict[str | None, Any]) -> Row:
    if None in row or None in row.values():
        return BrokenRow(
            "the number of values is not that of the header: texts with commas or line breaks have"
            " to be quoted"
        )
    return {str(name): value for name, value in row.items()}


def plain_rows(table: pa.Table) -> list[Row]:
    """The rows of a table as plain Python values, with Arrow's JSON values parsed."""
    rows: list[Row] = table.to_pylist()
    for column in table.schema:
        if _has_json(column.type):
            for row in rows:
                row[column.name] = _parsed(row[column.name], column.type)
    return rows


def _stepwise(table: pa.Table) -> Iterator[Row]:
    for batch in table.to_batches(max_chunksize=256):
        yield from plain_rows(pa.Table.from_batches([batch]))


def _locate(ends: list[int], index: int) -> tuple[int, int]:
    """In which of the stretches that end at `ends` an index lies, and where within it."""
    place = bisect_right(ends, index)
    return place, index - (ends[place - 1] if place else 0)


def _footer(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except pa.ArrowInvalid as error:
        raise DatasetError(
            f"{file} is not a readable Parquet file: {error}",
            hint="it may be cut short: copy or download it again.",
        ) from error


def _json_row(line: bytes) -> Row:
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        return BrokenRow(f"the line is not valid JSON: {error}")
    if not isinstance(row, dict):
        return BrokenRow(f"the line holds a {type(row).__name__}, not an object")
    return row


def _has_json(kind: pa.DataType) -> bool:
    """Whether values hold Arrow's JSON type, which `datasets` uses for mixed contents."""
    if isinstance(kind, pa.JsonType):
        return True
    return any(_has_json(kind.field(index).type) for index in range(kind.num_fields))


def _parsed(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if isinstance(kind, pa.JsonType):
        return json.loads(value)
    if isinstance(value, list):
        return [_parsed(item, kind.field(0).type) for item in value]
    if isinstance(value, dict):
        return {name: _parsed(item, kind.field(name).type) for name, item in value.items()}
    return value
