"""What is in a dataset: the command `mmalign inspect`, on the terminal and as an HTML page."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text as Cell

from mmalign.data.dataset import Preferences
from mmalign.data.errors import RecordError
from mmalign.data.gallery import Gallery, render, side_for
from mmalign.data.opening import open_dataset, parse_columns
from mmalign.data.statistics import Statistics
from mmalign.data.store import MANIFEST
from mmalign.files import whole_file
from mmalign.records import Media, Preference, media_of


def inspect(
    dataset: str,
    *,
    out: Path | None = None,
    format: str | None = None,  # noqa: A002  # what users type
    split: str | None = None,
    columns: list[str] | None = None,
    images: Path | None = None,
    limit: int | None = None,
    show: int = 2000,
) -> dict[str, Any]:
    """Show what is in a dataset of preferences.

    Prints statistics: kinds, lengths, length bias, ties, repetitions, empty and identical
    responses, images, grades and sources. Records that cannot be read are counted with the reason.

    Args:
        dataset: A folder, a file, a glob, or the name of a dataset on the Hugging Face Hub.
        out: A folder for statistics.json and index.html, a page that shows the preferences.
        format: Format of the dataset. Default: recognised by its columns.
        split: Split of the dataset. Default: the only one, or "train".
        columns: Names of columns that differ from the format's, as chosen=better; tools= leaves
            the column tools out.
        images: Folder where relative paths of images start. Default: where the dataset is.
        limit: Look at the first so many records only.
        show: How many preferences the page shows.

    Returns:
        The statistics, as in statistics.json.
    """
    opened = open_dataset(
        dataset, split=split, columns=parse_columns(columns), format=format, images=images
    )
    part = opened if limit is None else opened[:limit]
    gathered = Statistics()
    gathered.add_all(part.checked())
    about = {"dataset": opened.where, "format": opened.format, "rows": len(opened)}
    about["quarantine"] = quarantined(Path(dataset))
    statistics = {**about, "columns": list(opened.columns), **gathered.summary()}
    _show(opened.describe(), statistics)
    if out is not None:
        with whole_file(out / "statistics.json") as partial:
            partial.write_text(json.dumps(statistics, indent=1) + "\n")
        with whole_file(out / "index.html") as partial:
            partial.write_text(page(part, gathered, about, show), encoding="utf-8")
    return statistics


def page(preferences: Preferences, gathered: Statistics, about: dict[str, Any], show: int) -> str:
    """The HTML page with the statistics and the first `show` preferences; needs no other file.

    about: dataset, format and rows of the whole.
    """
    from mmalign.report.histograms import histograms  # for the page only

    statistics = {**about, **gathered.summary()}
    part = preferences[:show]
    images = sum(_images(record) for _, record in part.checked())
    plots = histograms({name: found.values for name, found in gathered.distributions.items()})
    gallery = Gallery(part.checked(), side_for(images))
    return render(gallery, statistics=statistics, sheets=_sheets(statistics), plots=plots)


def _images(record: Preference | RecordError) -> int:
    """Images of a record; candidates mostly share those of the prompt."""
    if isinstance(record, RecordError):
        return 0
    answers = [part for sample in record.candidates for part in sample.response]
    return len(media_of(record.chosen.prompt)) + sum(isinstance(part, Media) for part in answers)


def _show(about: str, statistics: dict[str, Any]) -> None:
    console = Console(markup=False, emoji=False, highlight=False)
    console.print(about, soft_wrap=True)
    for sheet in _sheets(statistics):
        table = Table()
        for index, column in enumerate(sheet.header):
            table.add_column(column, justify="right" if index else "left")
        for row in sheet.rows:
            table.add_row(*map(Cell, row))
        console.print(table)


@dataclass(frozen=True)
class Sheet:
    """A small table: what the terminal and the page both show. The first header is its title."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def _sheets(statistics: dict[str, Any]) -> list[Sheet]:
    counts = {"in the dataset": statistics["rows"], "looked at": statistics["records"]}
    sheets = [_counted("records", counts | statistics["kinds"])]
    if statistics["chosen_longer"] is not None:
        shares = {
            "chosen longer than rejected": f"{statistics['chosen_longer']:.1%}",
            "rejected longer than chosen": f"{statistics['rejected_longer']:.1%}",
        }
        sheets.append(_counted("length bias", shares))
    sheets += [
        _counted("faults", statistics["faults"]),
        _counted("refused", statistics["refused"]),
        _counted("in quarantine, from when it was made", statistics["quarantine"]),
        _agreement(statistics["agreement"]),
        _counted("prompts", statistics["prompts"]),
        _counted("messages per prompt", statistics["turns"]),
        _counted("images per prompt", statistics["images_per_prompt"]),
        _counted("videos per prompt", statistics["videos_per_prompt"]),
        _measured("lengths and margins", statistics["lengths"]),
        _measured("aux", statistics["aux"]),
        _counted("sources", statistics["sources"]),
    ]
    return [sheet for sheet in sheets if sheet.rows]


def quarantined(folder: Path) -> dict[str, int]:
    """Reasons for which records were refused when the dataset in `folder` was made, with counts."""
    reasons: Counter[str] = Counter()
    for file in sorted(folder.glob("*.jsonl")) if (folder / MANIFEST).exists() else ():
        for line in file.read_text(encoding="utf-8").splitlines():
            reasons[json.loads(line)["reason"]] += 1
    return dict(reasons)


def _agreement(found: dict[str, float] | None) -> Sheet:
    if found is None:
        return Sheet(("agreement", ""), [])
    repeated, share = found.values()
    counts = {
        "pairs judged more than once": f"{repeated:g}",
        "verdicts with the majority": f"{share:.1%}",
    }
    return _counted("agreement", counts)


def _counted(title: str, counts: dict[str, Any]) -> Sheet:
    return Sheet((title, ""), [(name, str(count)) for name, count in counts.items()])


def _measured(title: str, summaries: dict[str, dict[str, float]]) -> Sheet:
    header = (title, "count", "mean", "min", "median", "p95", "max")
    rows = [(name, *(f"{found[c]:.6g}" for c in header[1:])) for name, found in summaries.items()]
    return Sheet(header, rows)
