"""Reading the benchmarks' files: JSON lists and JSON lines, with errors that name row and field."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.errors import UserError

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
