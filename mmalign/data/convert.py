"""From one format into another: the command `mmalign convert`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import Progress

from mmalign.data.dataset import Preferences
from mmalign.data.errors import DatasetError, FieldError, Quarantine, RecordError, excerpt
from mmalign.data.opening import open_dataset, parse_columns
from mmalign.data.store import StoreWriter, load_manifest
from mmalign.errors import BadSample
from mmalign.media import open_image
from mmalign.records import Media, Preference, media_of

QUARANTINE = "quarantine.jsonl"


def convert(
    source: str,
    target: Path,
    *,
    to: Literal["mmalign", "trl"] = "mmalign",
    format: str | None = None,  # noqa: A002  # what users type
    split: str | None = None,
    columns: list[str] | None = None,
    images: Path | None = None,
    embed: bool = True,
    check_images: bool = True,
    strict: bool = False,
    limit: int | None = None,
    quarantine: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a dataset from one format into another.

    Writes Parquet shards into a folder. Run again after an interruption, the same command goes on
    where it stopped. Records that cannot be read or written are left out, counted, and listed with
    the reason in a quarantine file.

    Args:
        source: A folder, a file, a glob, or the name of a dataset on the Hugging Face Hub.
        target: The folder to write.
        to: "mmalign" keeps everything; "trl" writes TRL's columns, which hold pairs or thumbs.
        format: Format of the source. Default: recognised by its columns.
        split: Split of the source. Default: the only one, or "train".
        columns: Names of columns that differ from the format's, as chosen=better; tools= leaves
            the column tools out.
        images: Folder where relative paths of images start. Default: where the dataset is.
        embed: Put images that are given by path into the dataset; otherwise keep their paths.
        check_images: Decode every image, and leave out records with one that is broken, missing or
            too large.
        strict: Stop at the first record that cannot be converted.
        limit: Convert the first so many records only.
        quarantine: File for the refused records. Default: quarantine.jsonl in the target.
        overwrite: Replace a dataset in the target.

    Returns:
        The target.
    """
    dataset = open_dataset(
        source, split=split, columns=parse_columns(columns), format=format, images=images
    )
    console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
    console.print(dataset.describe())
    end = len(dataset) if limit is None else min(limit, len(dataset))
    origin = {
        "source": str(Path(source).absolute()) if Path(source).exists() else source,
        "split": split,
        "columns": columns,
        **({"images": str(images.absolute())} if images is not None else {}),
        "format": dataset.format,
        "rows": end,
        "embed": embed,
        "check_images": check_images,
    }
    if not overwrite and _is_done(target, to, origin):
        console.print(f"{target} is finished already")
        return target
    with StoreWriter(
        target, to=to, embed=embed, origin=origin, resume=True, overwrite=overwrite
    ) as writer:
        start = writer.position or 0
        refused = Quarantine(quarantine or target / QUARANTINE, resume_at=start)
        _convert(dataset, range(start, end), writer, refused, strict, check_images, console)
        if len(refused) == end:
            reason = refused.reasons.most_common(1)[0][0]
            raise DatasetError(f"none of the {end} records could be converted; mostly: {reason}")
    console.print(f"{writer.rows} records in {target}")
    if refused:
        console.print(f"{len(refused)} refused, listed in {refused.path}:")
        for reason, count in refused.reasons.most_common(5):
            console.print(f"  {count} x {reason}")
    return target


def _convert(
    dataset: Preferences,
    places: range,
    writer: StoreWriter,
    refused: Quarantine,
    strict: bool,
    check_images: bool,
    console: Console,
) -> None:
    part = dataset if places == range(len(dataset)) else dataset.select(places)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("converting", total=len(part))
        for row, record in part.checked():
            error = record if isinstance(record, RecordError) else None
            if isinstance(record, Preference):
                error = _write(
                    _with_origin(record, dataset, row), writer, dataset, row, check_images
                )
            if error is not None and strict:
                raise error
            if error is not None:
                refused.add(error)
            progress.advance(task)


def _write(
    preference: Preference,
    writer: StoreWriter,
    dataset: Preferences,
    row: int,
    check_images: bool,
) -> RecordError | None:
    try:
        if check_images:
            _check_images(preference)
        writer.write(preference, position=row + 1)
    except FieldError as error:
        record = excerpt(dataset.row(row))
        return RecordError(dataset.where, row, error.field, error.reason, record)
    return None


def _check_images(preference: Preference) -> None:
    """Raises FieldError naming the first image that cannot be opened."""
    prompts = dict.fromkeys(sample.prompt for sample in preference.candidates)
    parts = [part for prompt in prompts for part in media_of(prompt)]
    parts += [p for s in preference.candidates for p in s.response if isinstance(p, Media)]
    for image in parts:
        if image.kind == "image":
            try:
                open_image(image)
            except BadSample as error:
                raise FieldError("images", str(error)) from error


def _with_origin(preference: Preference, dataset: Preferences, row: int) -> Preference:
    """Note in which dataset and row a record of a public format was found."""
    if dataset.format == "mmalign":
        return preference
    notes = {**preference.source.details, "dataset": dataset.where, "row": row}
    return replace(preference, source=replace(preference.source, details=notes))


def _is_done(target: Path, to: str, origin: dict[str, Any]) -> bool:
    found = load_manifest(target)
    return found is not None and found.complete and (found.format, found.origin) == (to, origin)
