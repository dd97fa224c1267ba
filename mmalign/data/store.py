"""Our datasets on disk: a folder of Parquet shards with a manifest, written to lose nothing.

A shard gets its final name when it is complete and on the disk, and counts once the manifest names
it. So a reader never sees half a shard, and a writer that was killed goes on after the last shard
in the manifest. A dataset card tells `datasets` and the Hugging Face Hub which files hold the rows:
`load_dataset(FOLDER)` reads them, and so does TRL.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mmalign.data import trl
from mmalign.data.errors import DatasetError, RecordError
from mmalign.data.fields import Row
from mmalign.data.layout import Layout, decode, encode, needed
from mmalign.data.rows import ParquetRows
from mmalign.files import clear_partials, whole_file
from mmalign.records import Preference

MANIFEST = "manifest.json"
CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: part-*.parquet
---
Preferences, written by mmalign: {rows} rows in the format "{format}".
"""
VERSION = 1

GROUP_ROWS = 1000
GROUP_BYTES = 2**21
"""Size of a row group: what has to be read to get at one row."""


@dataclass(frozen=True)
class Shard:
    """One file of a dataset. sha256: of the whole file."""

    file: str
    rows: int
    bytes: int
    sha256: str
    layout: Layout


@dataclass(frozen=True)
class Manifest:
    """What a dataset's folder holds.

    format: "mmalign" or "trl", a name in the table of formats. complete: the writer was closed.
    position: where in its source the writer stands, as the writer's user counts. origin: what the
    dataset is made from; a resumed writer has to agree. builders: rows by who made them.
    """

    format: str
    complete: bool = False
    shards: tuple[Shard, ...] = ()
    position: Any = None
    origin: Any = None
    builders: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def save(self, folder: Path) -> None:
        """Write the manifest, replacing the one that is there in one go."""
        columns = self.shards[-1].layout.schema.names if self.shards else []
        text = {"version": VERSION, "rows": self.rows, "columns": columns, **asdict(self)}
        with whole_file(folder / MANIFEST) as partial:
            partial.write_text(json.dumps(text, indent=1) + "\n")


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest of a dataset; None where there is none. Raises DatasetError if it is broken."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        text = json.loads(path.read_text())
        version = text.pop("version")
        if version == VERSION:
            del text["rows"], text["columns"]
            shards = [Shard(**{**s, "layout": Layout(**s["layout"])}) for s in text.pop("shards")]
            return Manifest(shards=tuple(shards), **text)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not a manifest of mmalign: {error!r}") from error
    raise DatasetError(
        f"{folder} was written in version {version} of the format; this mmalign reads {VERSION}",
        hint="install a newer mmalign.",
    )


def open_store(folder: Path) -> ParquetRows:
    """The rows of a finished dataset. Raises DatasetError if it is unfinished or damaged."""
    manifest = load_manifest(folder)
    if manifest is None:
        raise DatasetError(f"{folder} has no {MANIFEST}: it is no dataset of mmalign")
    if not manifest.complete:
        raise DatasetError(
            f"{folder} is unfinished: its writer stopped after {manifest.rows} rows",
            hint="run the command that writes it again, it goes on from there; to use what there"
            f" is, open '{folder}/part-*.parquet'.",
        )
    for shard in manifest.shards:
        path = folder / shard.file
        if not path.exists() or path.stat().st_size != shard.bytes:
            state = "has changed its size" if path.exists() else "is missing"
            raise DatasetError(f"{path} {state}", hint="copy the folder again from its source.")
    if not manifest.shards:
        raise DatasetError(f"{folder} is empty: its writer found nothing to write")
    files = [folder / shard.file for shard in manifest.shards]
    return ParquetRows(files, folder, [shard.rows for shard in manifest.shards])


def verify(folder: Path) -> None:
    """Read all shards and compare their hashes. Raises DatasetError naming those that differ."""
    manifest = load_manifest(folder)
    wrong = [
        shard.file
        for shard in (manifest.shards if manifest else ())
        if _sha256(folder / shard.file) != shard.sha256
    ]
    if wrong:
        raise DatasetError(f"{folder}: {', '.join(wrong)} differ from what was written")


class StoreWriter:
    """Writes preferences into a folder, shard by shard; a context manager.

        with StoreWriter(folder) as writer:
            for preference in preferences:
                writer.write(preference)

    Leaving the block without an error closes the dataset. After an error or a kill the shards that
    were complete stay, and a writer with `resume=True` goes on: `rows` says how many preferences
    are safe and `position` what was last passed with them.

    to: "mmalign", or "trl" for a dataset with TRL's columns only.
    embed: put the bytes of images held by path into the shards; False keeps absolute paths.
    origin: JSON that says what the dataset is made from; resuming with another is an error.
    resume: go on with an unfinished dataset, if there is one. overwrite: replace a dataset.
    shard_rows, shard_bytes: a shard is written when it has so many rows, or so many bytes before
        compression; until then it is held in memory.
    Raises DatasetError when the folder holds what neither option allows.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        to: Literal["mmalign", "trl"] = "mmalign",
        embed: bool = True,
        origin: Any = None,
        resume: bool = False,
        overwrite: bool = False,
        shard_rows: int = 10_000,
        shard_bytes: int = 128 * 2**20,
    ) -> None:
        self.folder, self.to, self.embed = Path(folder), to, embed
        self.shard_rows, self.shard_bytes = shard_rows, shard_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        fresh = Manifest(to, origin=json.loads(json.dumps(origin)))
        found = _continued(self.folder, fresh, resume, overwrite)
        found.save(self.folder)
        self._manifest = found
        _remove_unlisted(self.folder, found)
        shards = self._manifest.shards
        self._layout = shards[-1].layout if shards else Layout(ours=to == "mmalign")
        self._position = self._manifest.position
        self._builders = Counter(self._manifest.builders)
        self._groups = _Groups(self._layout)
        self._broken = False

    @property
    def rows(self) -> int:
        """Preferences that are safely on the disk."""
        return self._manifest.rows

    @property
    def position(self) -> Any:
        """What was passed as `position` with the last preference that is safely on the disk."""
        return self._manifest.position

    def write(self, *preferences: Preference, position: Any = None) -> None:
        """Add preferences, all or none of them.

        position: where the source stands after these, as JSON. What one input of a builder gave
        belongs into one call: a shard ends between calls, never within.
        Raises FieldError when a preference cannot be written; none of the call's is then, and the
        writer can go on. Raises OSError when the disk cannot take a shard; the writer then cannot.
        """
        if self._broken:
            raise DatasetError(
                f"{self.folder}: the writer stopped at an error", hint="open one with resume=True."
            )
        layout = self._layout
        for preference in preferences:
            if self.to == "trl":
                trl.check(preference)
            layout = layout | needed(preference, ours=layout.ours)
        rows = [encode(preference, layout, embed=self.embed) for preference in preferences]
        if layout != self._layout:
            self._finish_shard()
            self._layout, self._groups = layout, _Groups(layout)
        for row in rows:
            self._groups.add(row)
        self._builders.update(preference.source.builder for preference in preferences)
        self._position = self._position if position is None else position
        if self._groups.rows >= self.shard_rows or self._groups.bytes >= self.shard_bytes:
            self._finish_shard()

    def close(self) -> None:
        """Finish the dataset: the last shard, one layout for all shards, the mark `complete`."""
        self._finish_shard()
        for index, shard in enumerate(self._manifest.shards):
            if shard.layout != self._layout:
                self._widen(index)
        with whole_file(self.folder / "README.md") as partial:
            partial.write_text(CARD.format(rows=self.rows, format=self.to))
        self._save(complete=True, position=self._position)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()

    def _finish_shard(self) -> None:
        if not self._groups.rows:
            return
        number = len(self._manifest.shards)
        path = self.folder / f"part-{number:05d}.parquet"
        shard = self._write_shard(path, self._groups.tables())
        self._groups = _Groups(self._layout)
        self._save(
            shards=(*self._manifest.shards, shard),
            position=self._position,
            builders=dict(self._builders),
        )

    def _widen(self, index: int) -> None:
        """Write a shard again with the columns that later shards turned out to need.

        It gets a new name, so that what the manifest says of a file is true at every moment.
        """
        old = self._manifest.shards[index]
        groups = _Groups(self._layout)
        for row in ParquetRows([self.folder / old.file], None):
            preference = decode(row) if self._layout.ours else trl.read(row)
            groups.add(encode(preference, self._layout, embed=False))
        path = self.folder / f"{Path(old.file).stem}w.parquet"
        shards = list(self._manifest.shards)
        shards[index] = self._write_shard(path, groups.tables())
        self._save(shards=tuple(shards))
        (self.folder / old.file).unlink()

    def _write_shard(self, path: Path, tables: Iterable[pa.Table]) -> Shard:
        try:
            return write_shard(path, tables, self._layout)
        except OSError as error:
            raise self._stopped(error) from error

    def _save(self, **changes: Any) -> None:
        changed = replace(self._manifest, **changes)
        try:
            changed.save(self.folder)
        except OSError as error:
            raise self._stopped(error) from error
        self._manifest = changed

    def _stopped(self, error: OSError) -> OSError:
        self._broken = True
        return OSError(
            error.errno,
            f"cannot write to {self.folder}: {error.strerror or error}. {self.rows} rows in"
            f" {len(self._manifest.shards)} shards are safe; make room and run the same again to go"
            " on after them",
        )


class _Groups:
    """Rows gathered into tables of a row group's size, in memory."""

    def __init__(self, layout: Layout) -> None:
        self.schema, self.rows, self.bytes = layout.schema, 0, 0
        self._tables: list[pa.Table] = []
        self._pending: list[Row] = []
        self._pending_bytes = 0

    def add(self, row: Row) -> None:
        size = _size(row)
        self._pending.append(row)
        self._pending_bytes += size
        self.rows, self.bytes = self.rows + 1, self.bytes + size
        if len(self._pending) >= GROUP_ROWS or self._pending_bytes >= GROUP_BYTES:
            self._gather()

    def tables(self) -> list[pa.Table]:
        self._gather()
        return self._tables

    def _gather(self) -> None:
        if self._pending:
            self._tables.append(pa.Table.from_pylist(self._pending, self.schema))
            self._pending, self._pending_bytes = [], 0


def write_shard(path: Path, tables: Iterable[pa.Table], layout: Layout) -> Shard:
    """Write one file, each table a row group; it appears when it is complete."""
    rows = 0
    with whole_file(path) as partial:
        with (
            partial.open("wb") as file,
            pq.ParquetWriter(
                file,
                layout.schema,
                compression=_compression(layout.schema),
                use_dictionary=False,
                write_statistics=False,
            ) as writer,
        ):
            for table in tables:
                writer.write_table(table)
                rows += table.num_rows
        sha256 = _sha256(partial)
        size = partial.stat().st_size
    return Shard(path.name, rows, size, sha256, layout)


def _compression(schema: pa.Schema) -> dict[str, str]:
    """zstd for all but the bytes of images and videos, which are compressed in themselves."""
    return {
        path: "none" if path.endswith(".bytes") else "zstd"
        for field in schema
        for path in _leaves(field.type, field.name)
    }


def _leaves(kind: pa.DataType, path: str) -> Iterator[str]:
    """What Parquet calls the columns that a column with this path consists of."""
    if pa.types.is_list(kind):
        yield from _leaves(kind.value_type, f"{path}.list.element")
    elif pa.types.is_struct(kind):
        for field in kind:
            yield from _leaves(field.type, f"{path}.{field.name}")
    else:
        yield path


def write_store(
    preferences: Iterable[Preference],
    folder: Path | str,
    *,
    to: Literal["mmalign", "trl"] = "mmalign",
    embed: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write preferences into a new dataset; see StoreWriter. Returns the folder.

    Raises RecordError, naming its place, for a preference that cannot be written.
    """
    with StoreWriter(folder, to=to, embed=embed, overwrite=overwrite) as writer:
        for index, preference in enumerate(preferences):
            try:
                writer.write(preference, position=index + 1)
            except ValueError as error:
                name = getattr(error, "field", "")
                raise RecordError("preferences", index, name, str(error)) from error
    return Path(folder)


def _continued(folder: Path, fresh: Manifest, resume: bool, overwrite: bool) -> Manifest:
    """The manifest to go on with. Raises DatasetError if the folder's is not to be touched."""
    found = load_manifest(folder)
    if found is None:
        foreign = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
        if foreign:
            raise DatasetError(
                f"{folder} is not empty (it holds {foreign[0]!r}) and is no dataset of mmalign",
                hint="choose another folder.",
            )
        return fresh
    if overwrite:
        return fresh
    state = "finished" if found.complete else "unfinished"
    summary = f"{folder} holds a {state} dataset of {found.rows} rows".replace("a un", "an un")
    if found.complete:
        raise DatasetError(summary, hint="choose another folder, or replace it with overwrite.")
    if not found.shards:  # it came to nothing, by wrong settings perhaps
        return fresh
    if (found.format, found.origin) != (fresh.format, fresh.origin):
        raise DatasetError(
            f"{summary}, made from something else: {found.format}, {found.origin}",
            hint="choose another folder, or replace it with overwrite.",
        )
    if not resume:
        raise DatasetError(
            summary, hint="go on after its position with resume, or replace it with overwrite."
        )
    return found


def _remove_unlisted(folder: Path, manifest: Manifest) -> None:
    """Remove what a killed writer left: half files, and shards that the manifest does not name."""
    clear_partials(folder)
    listed = {shard.file for shard in manifest.shards}
    for path in folder.glob("part-*.parquet"):
        if path.name not in listed:
            path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(value: Any) -> int:
    """About how many bytes a cell takes."""
    match value:
        case str() | bytes():
            return len(value)
        case list():
            return sum(map(_size, value))
        case dict():
            return sum(map(_size, value.values()))
    return 8
