"""Reading the benchmarks' files: JSON lists and JSON lines, with errors that name row and field."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.errors import UserError
from mmalign.records import Media

Row = Mapping[str, Any]


def read_rows(file: Path, fields: Sequence[str]) -> list[dict[str, Any]]:
    """The objects of a JSON list or of JSON lines; benchmarks name both .json.

    Raises UserError for what is neither, and for an object without one of the `fields`.
    """
    text = file.read_text(encoding="utf-8")
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise UserError(f"{file} holds neither a JSON list nor JSON lines: {error}") from error
    for number, row in enumerate(rows):
        missing = [name for name in fields if not isinstance(row, dict) or name not in row]
        if missing:
            has = ", ".join(row) if isinstance(row, dict) else type(row).__name__
            raise UserError(
                f"{file}, row {number} has no {missing[0]!r}",
                hint=f"fields {', '.join(fields)} are wanted; it has: {has}",
            )
    if not rows:
        raise UserError(f"{file} is empty")
    return list(rows)


def image_of(row: Row, folder: Path | None, names: Sequence[str], file: Path) -> Path | Media:
    """The image of a row: base64 in its field `image`, or a file in the folder, which is the first
    of that field and `names` that is there.

    file: of the row, for messages. Raises UserError where there is neither.
    """
    held = row.get("image")
    if isinstance(held, str) and "." in held:  # a name: base64 has no dots
        names = [held, *names]
    elif isinstance(held, str) and held:
        try:
            return Media("image", data=base64.b64decode(held.partition("base64,")[2] or held))
        except binascii.Error as error:
            raise UserError(f"{file}: an image is not valid base64: {error}") from error
    if folder is None:
        raise UserError(f"{file} does not hold its images", hint="say where with --images")
    found = (folder / name for name in names if (folder / name).exists())
    return next(found, folder / names[0])
