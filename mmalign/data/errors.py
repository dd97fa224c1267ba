"""What can be wrong with a dataset or one of its records, and where refused records are kept."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.errors import UserError
from mmalign.files import whole_file

EXCERPT = 200
"""Characters of each field that an excerpt of a record shows."""


class DatasetError(UserError):
    """A dataset that cannot be opened or written."""


class FieldError(ValueError):
    """A field of a row that cannot be read; readers raise it, not knowing the row's number."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(field, reason)
        self.field, self.reason = field, reason

    def __str__(self) -> str:
        return f"field '{self.field}': {self.reason}"


class RecordError(UserError):
    """A record that was refused: which dataset, which row, which field, and why.

    row: number of the record. field: "" where the record as a whole is at fault. excerpt: the row,
    shortened for reading. per_row: records that a row of the files holds; the message names the
    row of the files.
    """

    def __init__(
        self,
        where: str,
        row: int,
        field: str,
        reason: str,
        excerpt: str = "",
        per_row: int = 1,
    ) -> None:
        named = f", field '{field}'" if field else ""
        super().__init__(f"{where}, row {row // per_row}{named}: {reason}")
        self.where, self.row, self.field = where, row, field
        self.reason, self.excerpt, self.per_row = reason, excerpt, per_row

    def __reduce__(self) -> tuple[Any, ...]:  # worker processes send their errors pickled
        values = (self.where, self.row, self.field, self.reason, self.excerpt, self.per_row)
        return type(self), values


class Quarantine:
    """Records that were refused: counted, and kept as JSON lines {row, field, reason, record}.

    Each line is one write to a descriptor opened for appending, so that processes do not mix their
    lines and a kill tears the last one at worst; a torn line is dropped when the file is reopened.

    path: the file, made when the first record is refused; None counts only.
    resume_at: lines of earlier runs are kept for rows before this one, the rest is removed: a
        resumed run reads those rows again. Default 0: start afresh.
    """

    def __init__(self, path: Path | str | None = None, *, resume_at: int = 0) -> None:
        self.path = Path(path) if path is not None else None
        self.reasons: Counter[str] = Counter()
        if self.path is not None and self.path.exists():
            kept = [line for line in _entries(self.path) if line["row"] < resume_at]
            for line in kept:
                self.reasons[line["reason"]] += 1
            _replace(self.path, kept)

    def __len__(self) -> int:
        return self.reasons.total()

    def add(self, error: RecordError) -> None:
        """Count the refused record and append it to the file."""
        self.reasons[error.reason] += 1
        if self.path is None:
            return
        line = {"row": error.row, "field": error.field, "reason": error.reason}
        text = json.dumps({**line, "record": error.excerpt}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def excerpt(row: Mapping[str, Any]) -> str:
    """A row as short JSON: long texts cut, bytes given by their number."""
    return json.dumps({name: _short(value) for name, value in row.items()}, ensure_ascii=True)


def _short(value: Any) -> Any:
    match value:
        case str():
            return value if len(value) <= EXCERPT else value[:EXCERPT] + " ..."
        case bytes():
            return f"<{len(value)} bytes>"
        case list() | tuple():
            return [_short(item) for item in value[:8]] + ["..."] * (len(value) > 8)
        case dict():
            return {str(name): _short(item) for name, item in value.items()}
        case None | bool() | int() | float():
            return value
    return f"<{type(value).__name__}>"


def _entries(path: Path) -> list[dict[str, Any]]:
    complete = path.read_bytes().rpartition(b"\n")[0]
    return [json.loads(line) for line in complete.splitlines() if line]


def _replace(path: Path, entries: list[dict[str, Any]]) -> None:
    if not entries:
        path.unlink()
        return
    with whole_file(path) as partial:
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
