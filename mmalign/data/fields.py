"""Single fields of a row: texts, media and numbers, checked, with errors that name the field."""

from __future__ import annotations

import base64
import binascii
import math
from pathlib import Path
from typing import Any, Literal

from mmalign.data.errors import FieldError
from mmalign.records import Media

Row = dict[str, Any]
"""One row of a data source, as plain Python values; media are not decoded."""

PART = "#part"
"""Where a row holds several preferences: the key that says which of them is meant, from 0."""


def text(value: Any, field: str) -> str:
    """The value, which has to be a text that can be written as UTF-8. Raises FieldError."""
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise FieldError(
                    field,
                    f"the text is not valid Unicode at character {error.start} (half of a surrogate"
                    " pair): repair the text",
                ) from error
        return value
    if value is None:
        raise FieldError(field, "is missing")
    if _is_media(value):
        raise FieldError(
            field,
            "holds an image or a video where text is wanted: media belong into the column 'images'"
            " or 'videos'",
        )
    raise FieldError(field, f"is a {type(value).__name__}, but text is wanted")


def number(value: Any, field: str) -> float:
    """The value, which has to be a finite number. Raises FieldError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FieldError(field, f"is {value!r}, but a finite number is wanted")
    return float(value)


def media(
    cell: Any, field: str, root: Path | None, *, kind: Literal["image", "video"] = "image"
) -> Media:
    """An image or video given as bytes, as {bytes, path}, as a data: URI or as a path.

    root: where relative paths start; a file that is not there is looked for from the current
        folder, as `datasets` does. None leaves paths as they are.
    Raises FieldError. Files are not opened.
    """
    match cell:
        case bytes() if cell:
            return Media(kind, data=cell)
        case {"bytes": bytes(data)} if data:
            return Media(kind, data=data)
        case {"bytes": str(data)} if data:
            return Media(kind, data=_base64(data, field))
        case {"path": str(path)} if path:
            return Media(kind, path=_located(path, root))
        case str() if cell.startswith("data:"):
            return Media(kind, data=_base64(cell.partition(",")[2], field))
        case str() if cell.startswith(("http://", "https://")):
            raise FieldError(field, f"{cell[:80]} is an address: download the {kind} first")
        case str() if cell:
            return Media(kind, path=_located(cell, root))
    if type(cell).__module__.partition(".")[0] == "PIL":
        raise FieldError(
            field,
            "is a decoded image: read the rows undecoded, as"
            " dataset.cast_column('images', datasets.List(datasets.Image(decode=False))) does",
        )
    wanted = "an image" if kind == "image" else "a video"
    raise FieldError(
        field, f"is {_name(cell)}, but {wanted} is wanted, as bytes, {{bytes, path}} or a path"
    )


def _is_media(value: Any) -> bool:
    if isinstance(value, bytes):
        return True
    return isinstance(value, dict) and set(value) == {"bytes", "path"}


def _base64(data: str, field: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise FieldError(field, f"is not valid base64: {error}") from error


def _located(path: str, root: Path | None) -> str:
    path = path.removeprefix("file://")
    if root is None or Path(path).is_absolute():
        return path
    beside = root / path
    return path if Path(path).exists() and not beside.exists() else str(beside)


def _name(cell: Any) -> str:
    empty = not any(cell.values()) if isinstance(cell, dict) else not cell
    return "missing or empty" if empty else f"a {type(cell).__name__}"
