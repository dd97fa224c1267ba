"""Opening datasets of preferences, wherever they are and whichever known format they have."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, overload

from mmalign.data import hub
from mmalign.data.dataset import Preferences, PreferenceStream, Prompts, Reader
from mmalign.data.errors import DatasetError
from mmalign.data.fields import Row
from mmalign.data.formats import FORMATS, recognise, renamed_columns
from mmalign.data.grouped import GroupedRows, GroupedStream
from mmalign.data.rows import ArrowRows, ParquetRows, RepeatedRows, Rows, csv_rows, json_rows
from mmalign.data.store import MANIFEST, open_store
from mmalign.data.tfrecord import TFRecordRows

logger = logging.getLogger("mmalign")

Names = Mapping[str, str | None]
"""Our column names to those of the dataset; None leaves the column out."""

KINDS: dict[str, Callable[[Sequence[Path], Path | None], Rows]] = {
    ".parquet": ParquetRows,
    ".arrow": ArrowRows,
    ".jsonl": json_rows,
    ".json": json_rows,
    ".csv": csv_rows,
    ".tfrecord": TFRecordRows,
}
"""How a file is read, by how its name ends."""

SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Words in the names of files and folders that say which split they hold."""

METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


@overload
def open_dataset(
    where: str | Path,
    *,
    split: str | None = None,
    columns: Names | None = None,
    format: str | None = None,
    images: str | Path | None = None,
    streaming: Literal[False] = False,
) -> Preferences: ...


@overload
def open_dataset(
    where: str | Path,
    *,
    split: str | None = None,
    columns: Names | None = None,
    format: str | None = None,
    images: str | Path | None = None,
    streaming: Literal[True],
) -> PreferenceStream: ...


def open_dataset(
    where: str | Path,
    *,
    split: str | None = None,
    columns: Names | None = None,
    format: str | None = None,  # noqa: A002  # what users type
    images: str | Path | None = None,
    streaming: bool = False,
) -> Preferences | PreferenceStream:
    """Open a dataset of preferences.

    where: a folder (ours, one saved by `datasets`, or one of Parquet, JSON or CSV files), a file, a
        glob, or the name of a dataset on the Hugging Face Hub, "owner/name" or "owner/name:config".
    split: Default: the only one, or "train".
    columns: names of columns where they differ from the format's, as {"chosen": "better"};
        {"tools": None} leaves a column out.
    format: a name in FORMATS. Default: recognised by the columns.
    images: folder where relative paths of images and videos start. Default: where the files are.
    streaming: read in order only; a dataset on the Hub is then not downloaded first.
    Raises DatasetError, which says what was found and what would help.
    """
    names = dict(columns or {})
    opened: Preferences | PreferenceStream
    if streaming:
        found, label, root, rows = open_rows(where, split)
        taken = recognise(renamed_columns(found, names, label), label, only=format)
        times, by = FORMATS[taken].per_row, FORMATS[taken].group_by
        start = _images(images, root)
        reader = Reader(FORMATS[taken].read, label, names, start, times)
        if by is not None:
            rows = GroupedStream(rows, names.get(by) or by)
        opened = PreferenceStream(rows, reader, taken)
    else:
        label, source = _source(where, split)
        taken = recognise(renamed_columns(source.columns, names, label), label, only=format)
        times, by = FORMATS[taken].per_row, FORMATS[taken].group_by
        start = _images(images, source.root)
        reader = Reader(FORMATS[taken].read, label, names, start, times)
        if by is not None:
            source = GroupedRows(source, names.get(by) or by)
        opened = Preferences(source if times == 1 else RepeatedRows(source, times), reader, taken)
    logger.info("opened %s", opened.describe())
    return opened


def open_prompts(
    where: str | Path,
    *,
    split: str | None = None,
    columns: Names | None = None,
    format: str | None = None,  # noqa: A002  # what users type
    images: str | Path | None = None,
) -> Prompts:
    """Open a dataset for its prompts; responses may be there and are then left out.

    Arguments and errors as for `open_dataset`.
    """
    names = dict(columns or {})
    label, rows = _source(where, split)
    found = renamed_columns(rows.columns, names, label)
    taken = recognise(found, label, only=format, prompts=True)
    start = _images(images, rows.root)
    prompts = Prompts(rows, Reader(FORMATS[taken].prompt, label, names, start), taken)
    logger.info("opened %s", prompts.describe())
    return prompts


def _images(folder: str | Path | None, root: Path | None) -> Path | None:
    """Where relative paths of media start."""
    if folder is None:
        return root
    if not Path(folder).is_dir():
        raise DatasetError(
            f"there is no folder of images {str(folder)!r}{_seen_from(Path(folder))}"
        )
    return Path(folder).absolute()


def parse_columns(columns: Sequence[str] | None) -> dict[str, str | None]:
    """Column names as commands take them, "chosen=better" or "tools=", as a mapping."""
    for column in columns or ():
        if "=" not in column:
            raise DatasetError(
                f"{column!r} does not say which column is which",
                hint="write OURS=THEIRS, for example chosen=better; tools= leaves tools out.",
            )
    pairs = (column.split("=", 1) for column in columns or ())
    return {ours: theirs or None for ours, theirs in pairs}


def open_rows(
    where: str | Path, split: str | None
) -> tuple[tuple[str, ...], str, Path | None, Iterable[Row]]:
    """Columns, label, root and raw rows of a source that is read in order."""
    if _is_hub_name(where):
        columns, rows = hub.stream(str(where), split)
        return columns, _label(where, split), None, rows
    label, source = _source(where, split)
    return source.columns, label, source.root, source


def _source(where: str | Path, split: str | None) -> tuple[str, Rows]:
    """What messages call the dataset, and its rows; never none."""
    label = _label(where, split)
    rows = hub.download(str(where), split) if _is_hub_name(where) else _local(Path(where), split)
    if len(rows) == 0:
        raise DatasetError(f"{label} is empty: it has no rows")
    return label, rows


def _label(where: str | Path, split: str | None) -> str:
    return f"{where} (split {split})" if split is not None else str(where)


def _is_hub_name(where: str | Path) -> bool:
    """Whether this names a dataset on the Hub: not a path that exists, and spelled like a name."""
    if isinstance(where, Path) or Path(where).exists():
        return False
    name = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:[\w.-]+)?", where)
    return name is not None and Path(where).suffix.lower() not in KINDS


def _local(path: Path, split: str | None) -> Rows:
    if glob.has_magic(str(path)) and not path.exists():
        files = sorted(Path(found) for found in glob.glob(str(path), recursive=True))
        return _files(_of_split(files, path, split), path)
    if path.is_dir():
        return _folder(path, split)
    if not path.exists():
        raise DatasetError(
            f"there is no file or folder {str(path)!r}{_seen_from(path)}",
            hint="a dataset on the Hugging Face Hub is named owner/name.",
        )
    return _files([path], path)


def _folder(folder: Path, split: str | None) -> Rows:
    if (folder / MANIFEST).exists():
        if split is not None:
            raise DatasetError(f"{folder} has no splits, so there is none named {split!r}")
        return open_store(folder)
    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        return _folder(folder / _choose(splits, split, str(folder)), None)
    if (folder / "state.json").exists():
        state = json.loads((folder / "state.json").read_text())
        return ArrowRows([folder / file["filename"] for file in state["_data_files"]], folder)
    if stores := sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}")):
        return open_store(folder / _choose(stores, split, str(folder)))
    found = sorted(path for path in folder.rglob("*") if _is_data(path.relative_to(folder)))
    return _files(_of_split([path for path in found if path.is_file()], folder, split), folder)


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return path.suffix.lower() in KINDS and path.name not in METADATA and not hidden


def _files(files: Sequence[Path], where: Path) -> Rows:
    """The rows of files of one kind. Relative paths in them start where the files are."""
    kinds = {file.suffix.lower() for file in files}
    readers = {KINDS[kind] for kind in kinds if kind in KINDS}
    if len(readers) != 1 or not kinds <= set(KINDS):
        match len(kinds):
            case 0:
                state = "is empty" if where.exists() else "matches no file"
            case 1:
                state = f"is of an unknown kind, {next(iter(kinds)) or 'without an ending'}"
            case _:
                state = f"holds files of several kinds: {', '.join(sorted(kinds))}"
        raise DatasetError(
            f"{where} {state}", hint=f"files that can be read end with {', '.join(KINDS)}."
        )
    root = Path(os.path.commonpath([file.parent.absolute() for file in files]))
    return readers.pop()(files, root)


def _of_split(files: Sequence[Path], where: Path, split: str | None) -> list[Path]:
    """The files of one split; all of them where names tell of none."""
    base = where if where.is_dir() else None
    splits: dict[str, list[Path]] = {}
    for file in files:
        name = str(file.relative_to(base)) if base else file.name
        splits.setdefault(_split_of(name), []).append(file)
    if set(splits) <= {""} and split is None:
        return list(files)
    return splits[_choose([name for name in splits if name], split, str(where))]


def _split_of(name: str) -> str:
    """The split that a file's name tells of, or nothing."""
    words = re.split(r"[-_./\\\s\d]+", name.lower())
    return next((SPLITS[word] for word in words if word in SPLITS), "")


def _choose(splits: Sequence[str], split: str | None, where: str) -> str:
    wanted = split
    if split is None and splits:
        wanted = splits[0] if len(splits) == 1 else "train"
    if wanted not in splits:
        problem = "several splits" if split is None else f"no split {split!r}"
        there = ", ".join(splits) or "none"
        raise DatasetError(f"{where} has {problem}", hint=f"say split=...; there is: {there}.")
    return str(wanted)


def _seen_from(path: Path) -> str:
    return "" if path.is_absolute() else f" in {Path.cwd()}"
