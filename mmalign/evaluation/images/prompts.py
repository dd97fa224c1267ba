"""Prompts to draw, out of the files in which benchmarks publish them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.errors import UserError

TEXT_COLUMNS = ("prompt", "Prompt", "Prompts", "text", "caption")
CATEGORY_COLUMNS = ("category", "Category", "tag", "style")
READ = (".txt", ".tsv", ".csv", ".json", ".jsonl")


@dataclass(frozen=True)
class ImagePrompt:
    """What is to be drawn. id: file and place in it. row: all that the file says about it."""

    id: str
    text: str
    category: str = ""
    row: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(files: Sequence[Path]) -> list[ImagePrompt]:
    """The prompts of all files, in order; of a folder, those of the files in it.

    Text with one prompt a line; tables with a column of prompts and perhaps one of categories
    (PartiPrompts' TSV, DrawBench's CSV); JSON lists of prompts, whose category is the file's name
    (HPS v2's styles); JSON lines with "prompt" (GenEval's metadata).
    Raises UserError naming file and row.
    """
    found: list[ImagePrompt] = []
    for file in (each for given in files for each in _files(given)):
        several = len(files) > 1 or files[0].is_dir()
        for number, (text, category, row) in enumerate(_rows(file)):
            if not text.strip():
                raise UserError(f"{file}, row {number}: the prompt is empty")
            where = category or (file.stem if several or file.suffix == ".json" else "")
            found.append(ImagePrompt(f"{file.stem}-{number:05d}", text.strip(), where, row))
    if not found:
        raise UserError(f"there is no prompt in {', '.join(map(str, files))}")
    names = [prompt.id for prompt in found]
    if len(set(names)) < len(names):
        raise UserError("two prompt files have one name", hint="rename one of them")
    return found


def _files(given: Path) -> list[Path]:
    if given.is_dir():
        return sorted(file for file in given.iterdir() if file.suffix in READ)
    if given.suffix not in READ:
        raise UserError(
            f"{given} is no file of prompts that can be read", hint=f"there are {', '.join(READ)}"
        )
    return [given]


def _rows(file: Path) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Prompt, category and whole row of each prompt."""
    text = file.read_text(encoding="utf-8-sig")
    match file.suffix:
        case ".txt":
            yield from ((line, "", {}) for line in text.splitlines() if line.strip())
        case ".tsv" | ".csv":
            separator = "\t" if file.suffix == ".tsv" else ","
            for number, row in enumerate(csv.DictReader(text.splitlines(), delimiter=separator)):
                yield _named(row, file, number)
        case _:
            for number, row in enumerate(_json(text, file)):
                yield (row, "", {}) if isinstance(row, str) else _named(row, file, number)


def _json(text: str, file: Path) -> list[Any]:
    try:
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(found, list):
        raise UserError(f"{file} holds a {type(found).__name__}, and a list of prompts is wanted")
    return found


def _named(row: Any, file: Path, number: int) -> tuple[str, str, Mapping[str, Any]]:
    keys = [name for name in TEXT_COLUMNS if isinstance(row, Mapping) and row.get(name)]
    if not keys:
        has = ", ".join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        raise UserError(
            f"{file}, row {number} has no prompt",
            hint=f"it is looked for as {', '.join(TEXT_COLUMNS)}; the row has: {has}",
        )
    category = next((str(row[name]) for name in CATEGORY_COLUMNS if row.get(name)), "")
    return str(row[keys[0]]), category, row
