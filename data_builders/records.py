"""What builders start from: records (an image, a caption, a question ...) out of any source.

A source is a folder of images (a .txt file beside an image is its caption), a table (CSV, JSON,
JSON lines, Parquet; a file, folder or glob), webdataset tars, or a dataset on the Hugging Face Hub,
which is streamed. What cannot be read comes as a RecordError in its place.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from mmalign.data import fields
from mmalign.data.errors import DatasetError, FieldError, RecordError, excerpt
from mmalign.data.fields import Row
from mmalign.data.formats import renamed
from mmalign.data.opening import KINDS, Names, open_dataset, open_prompts, open_rows
from mmalign.data.rows import BrokenRow
from mmalign.errors import BadSample
from mmalign.media import open_image
from mmalign.records import PLAIN, Media, Message, Part, Sample, Text

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
QUESTION = "Describe the image."
"""Asked about images without a question of their own."""
COLUMNS = {
    "image": ("image", "images", "file_name", "image_path", *(s[1:] for s in IMAGES)),
    "caption": ("caption", "text", "txt"),
    "question": ("question", "prompt"),
    "answers": ("answers", "answer"),
}
"""The columns that a record's fields are read from; the first that is there counts."""


@dataclass(frozen=True)
class Record:
    """One input of a builder. `extra` holds the columns that have no field of their own."""

    image: Media | None = None
    caption: str | None = None
    question: str | None = None
    answers: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def id(self) -> str:
        """Hash of the content. Raises OSError when the image's file cannot be read."""
        image = self.image.digest if self.image is not None else None
        text = json.dumps([image, self.caption, self.question, self.answers, excerpt(self.extra)])
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def pixels(self, *, least: int | None = None) -> Image.Image:
        """The image in RGB, turned as its EXIF says. Raises FieldError if it cannot be decoded.

        least: pixels of the longer side that are enough, see `open_image`.
        """
        if self.image is None:
            raise FieldError("image", "is missing")
        try:
            return open_image(self.image, least=least)
        except BadSample as error:
            raise FieldError("image", str(error)) from error


def asked_about(record: Record, text: str) -> tuple[Message, ...]:
    """A user's message with the record's image, if it has one, and the text."""
    parts: tuple[Part, ...] = (Text(text),)
    return (Message("user", parts if record.image is None else (record.image, *parts)),)


@dataclass(frozen=True)
class Asked:
    """A prompt as an input of a builder: one that samples the responses itself."""

    messages: tuple[Message, ...]

    @cached_property
    def id(self) -> str:
        """Hash of the content. Raises OSError when an image's file cannot be read."""
        return Sample(self.messages, ()).prompt_id


@dataclass(frozen=True)
class Inputs:
    """A builder's inputs in a fixed order, numbered from 0; errors stand for unreadable ones.

    total: how many there are, where that is known before they are read.
    """

    items: Iterable[tuple[int, Any]]
    total: int | None = None

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        return iter(self.items)

    def first(self, count: int | None) -> Inputs:
        """No more than the first `count`."""
        if count is None:
            return self
        total = None if self.total is None else min(count, self.total)
        return Inputs(islice(self.items, count), total)


def read_records(
    source: str | Path, *, split: str | None = None, columns: Names | None = None
) -> Inputs:
    """The records of a source.

    columns: the source's names of columns that go by other names there, as {"image": "picture"}.
    Raises DatasetError for a source that is not there or holds nothing of a known kind.
    """
    names = dict(columns or {})
    rows: Iterable[Row]
    total: int | None = None
    root: Path | None = None
    paths = _paths(source)
    if images := [path for path in paths if path.suffix.lower() in IMAGES]:
        rows, total = map(_image_row, images), len(images)
    elif tars := [path for path in paths if path.suffix.lower() == ".tar"]:
        rows = (row for path in tars for row in _tar_rows(path))
    else:
        _, _, root, rows = open_rows(source, split)
        total = len(rows) if isinstance(rows, Sized) else None
    records = (_checked(row, names, root, str(source), n) for n, row in enumerate(rows))
    return Inputs(enumerate(records), total)


def read_preferences(
    source: str | Path, *, split: str | None = None, columns: Names | None = None
) -> Inputs:
    """The preferences of a dataset; one on the Hub is streamed. Raises DatasetError."""
    stream = open_dataset(source, split=split, columns=columns, streaming=True)
    return Inputs(stream.checked(), stream.total)


def read_prompts(
    source: str | Path, *, split: str | None = None, columns: Names | None = None
) -> Inputs:
    """The prompts of a dataset, or of a text file with one in each line. Raises DatasetError.

    Of images (a folder, a glob or tars) the question beside them is asked, or QUESTION.
    """
    path = Path(source)
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        if not lines:
            raise DatasetError(f"{path} holds no prompts")
        found = (_line(line, str(path), number) for number, line in enumerate(lines))
        return Inputs(enumerate(found), len(lines))
    if any(p.suffix.lower() in (*IMAGES, ".tar") for p in _paths(source)):
        records = read_records(source, split=split, columns=columns)
        return Inputs(((n, _asked(record)) for n, record in records), records.total)
    prompts = open_prompts(source, split=split, columns=columns)
    return Inputs(
        (
            (n, found if isinstance(found, RecordError) else Asked(found))
            for n, found in prompts.checked()
        ),
        len(prompts),
    )


def _line(line: bytes, where: str, number: int) -> Asked | RecordError:
    try:
        return Asked((Message(PLAIN, (Text(line.decode("utf-8-sig")),)),))
    except UnicodeDecodeError as error:
        return RecordError(where, number, "prompt", f"the line is not UTF-8: {error}")


def _asked(record: Record | RecordError) -> Asked | RecordError:
    if isinstance(record, RecordError):
        return record
    assert record.image is not None  # the source is one of images
    return Asked((Message("user", (record.image, Text(record.question or QUESTION))),))


def _paths(source: str | Path) -> list[Path]:
    """The files behind a source; none for a table's folder and a name on the Hub."""
    path = Path(source)
    if glob.has_magic(str(source)) and not path.exists():
        return sorted(map(Path, glob.glob(str(source), recursive=True)))
    if not path.is_dir():
        return [path] if path.exists() else []
    found = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
    if any(p.suffix.lower() in KINDS for p in found):  # a table that names the images
        return []
    if not any(p.suffix.lower() in (*IMAGES, ".tar") for p in found):
        raise DatasetError(f"{path} holds no images, tables or tars")
    return found


def _image_row(path: Path) -> Row:
    row: Row = {"image": str(path)}
    beside = path.with_suffix(".txt")
    if beside.exists():
        try:
            row["caption"] = beside.read_text(encoding="utf-8").strip()
        except UnicodeDecodeError as error:
            return BrokenRow(f"{beside.name} is not UTF-8: {error}")
    return row


def _tar_rows(path: Path) -> Iterator[Row]:
    """Samples of a webdataset: neighbouring files that share their name up to the first dot."""
    row: Row = {}
    key = None
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, name = os.path.split(member.name)
                base, _, ending = name.partition(".")
                if (folder, base) != key and row:
                    yield row
                    row = {}
                key = (folder, base)
                opened = archive.extractfile(member)
                assert opened is not None  # it is a file
                row = _with_member(row, ending.lower(), opened.read())
    except tarfile.TarError as error:
        if row:
            yield row
        yield BrokenRow(f"{path.name} cannot be read further: {error}")
        return
    if row:
        yield row


def _with_member(row: Row, ending: str, data: bytes) -> Row:
    if isinstance(row, BrokenRow):
        return row
    try:
        if ending == "json":
            found = json.loads(data)
            return {**row, **found} if isinstance(found, dict) else {**row, "json": found}
        text = f".{ending}" not in IMAGES
        return {**row, ending: data.decode() if text else data}
    except ValueError as error:
        return BrokenRow(f"its file .{ending} cannot be read: {error}")


def _checked(
    row: Row, names: Names, root: Path | None, where: str, number: int
) -> Record | RecordError:
    if isinstance(row, BrokenRow):
        return RecordError(where, number, "", row.reason)
    try:
        return _record(renamed(row, names) if names else row, root)
    except FieldError as error:
        return RecordError(where, number, error.field, error.reason, excerpt(row))
    except KeyError as error:
        return RecordError(
            where, number, str(error.args[0]), f"has no column {error}", excerpt(row)
        )


def _record(row: Row, root: Path | None) -> Record:
    names = {ours: _first(theirs, row) for ours, theirs in COLUMNS.items()}
    values = {ours: row.get(name) if name else None for ours, name in names.items()}
    image = values["image"]
    if isinstance(image, list):
        if len(image) != 1:
            raise FieldError("images", f"has {len(image)} entries, but a record has one image")
        image = image[0]
    answers = values["answers"]
    listed = answers if isinstance(answers, list) else [answers] if answers is not None else []
    used = set(filter(None, names.values()))
    return Record(
        image=fields.media(image, names["image"] or "image", root) if image is not None else None,
        caption=_text(values["caption"], "caption"),
        question=_text(values["question"], "question"),
        answers=tuple(fields.text(answer, "answers") for answer in listed),
        extra={name: value for name, value in row.items() if name not in used},
    )


def _first(names: Sequence[str], row: Row) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _text(value: Any, name: str) -> str | None:
    return None if value is None else fields.text(value, name)
