"""The command of a builder, `mmalign build NAME`: its own options, and those that all builds share.

A builder is a function whose first parameter is what it reads and whose others can be typed on a
command line. The type of the first one says how it is given its inputs:

    Iterable[Record], Iterable[Preference], Iterable[Asked], Iterable[Answered]: in chunks, in any
        number of processes
    Sequence[Preference]: the whole dataset at once, for what looks at all of it
    Sequence[Sequence[Preference]]: several datasets at once

    command = as_command("fair-length", build)      # and one line in mmalign/cli.py
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from rich.console import Console

from mmalign.data.opening import open_dataset, parse_columns
from mmalign.data_builders.answered import Answered, read_answered
from mmalign.data_builders.engine import CHUNK, QUARANTINE, Built, Engine, build, build_whole
from mmalign.data_builders.records import (
    Asked,
    Inputs,
    Record,
    read_preferences,
    read_prompts,
    read_records,
)
from mmalign.records import Preference
from mmalign.settings import flat, save_settings

SETTINGS = "run.yaml"
CACHE = ".cache"
"""In the output's folder: what a builder with a `cache` keeps unless it is told where, or runs on a
cluster, whose nodes may not share a database. It may be deleted when the dataset is finished."""
FREE = (
    "cache",
    "engine",
    "judge_at_once",
    "judge_budget",
    "judge_key",
    "judge_per_minute",
    "out",
    "overwrite",
    "scores",
    "workers",
)
"""Settings that change nothing in a dataset: a build may go on with others."""
SOURCES = {
    Record: "Folder of images (a .txt file beside an image is its caption), table (CSV, JSON, JSON "
    "lines, Parquet), webdataset tars, each also as a glob, or a dataset on the Hugging Face Hub.",
    Preference: "Folder, file, glob or hub id of a dataset of preferences.",
    Asked: "Text file with a prompt in each line, dataset of prompts (folder, file, glob or hub "
    "id), or images, of which a description is asked.",
    Answered: "Dataset of preferences (folder, file, glob or hub id), whose chosen answers are "
    "taken; or images with answers or captions (folder, table, tars).",
}
READERS: dict[type, Callable[..., Inputs]] = {
    Record: read_records,
    Preference: read_preferences,
    Asked: read_prompts,
    Answered: read_answered,
}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is read of the source.

    Args:
        split: Split of the source. Default: the only one, or "train".
        columns: Columns that go by other names, as in image=picture caption=alt.
        limit: Read the first so many inputs only.
    """

    split: str | None = None
    columns: list[str] | None = None
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is written.

    Args:
        out: Folder for the dataset, its quarantine.jsonl and run.yaml. Run again after an
            interruption, the same command goes on where it stopped.
        overwrite: Replace a dataset in that folder.
    """

    out: Path
    overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class Running:
    """How chunks are built; the dataset is the same in any case.

    Args:
        workers: Processes that build; 0 builds in this one, or with all processors of a cluster.
        engine: local, on this machine; ray, on the cluster that RAY_ADDRESS names.
    """

    workers: int = 0
    engine: Engine = "local"


ALONE = Running()


def as_command(
    name: str,
    builder: Callable[..., Iterable[Any]],
    *,
    chunk: int = CHUNK,
    parallel: bool = True,
) -> Callable[..., Built]:
    """The function behind `mmalign build NAME`.

    Its first parameter is called what the builder calls it and takes a source (see SOURCES); then
    follow the builder's options and the shared ones. chunk: inputs that the builder is given at
    once, where it is given chunks. parallel: whether processes may share the work; what mostly
    waits for an endpoint gains nothing by it.
    Raises TypeError for a builder with another first parameter.
    """
    first, *own = inspect.signature(builder).parameters.values()
    hints = get_type_hints(builder)
    kind = (get_args(hints[first.name]) or (None,))[0]
    whole = get_origin(hints[first.name]) is Sequence
    several = whole and kind == Sequence[Preference]
    if not several and (kind not in SOURCES or (whole and kind is not Preference)):
        raise TypeError(f"{name}: a builder reads Records, Preferences or Asked, not {kind}")

    def command(*positional: Any, **named: Any) -> Built:
        bound = signature.bind(*positional, **named)
        bound.apply_defaults()
        given = bound.arguments
        source, reading, output = given[first.name], given["reading"], given["output"]
        running = given.get("running", ALONE)
        options = {each.name: given[each.name] for each in own}
        if "cache" in options and options["cache"] is None and running.engine == "local":
            options["cache"] = output.out / CACHE
        made = functools.partial(builder, **options)
        origin = _origin(name, command, given)
        if whole:
            built = _build_whole(made, source, reading, output, origin)
        else:
            columns = parse_columns(reading.columns)
            inputs = READERS[kind](source, split=reading.split, columns=columns)
            built = _build(made, inputs.first(reading.limit), chunk, running, output, origin)
        save_settings(output.out / SETTINGS, f"build {name}", command, given)
        _say(built, output.out)
        return built

    shared: dict[str, type] = {"reading": Reading}
    if parallel and not whole:
        shared["running"] = Running
    signature = _signature(first.name, list[str] if several else str, own, hints, shared)
    command.__signature__ = signature  # type: ignore[attr-defined]  # inspect reads it
    command.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
    words = "Datasets of preferences." if several else SOURCES[kind]
    command.__doc__ = _explained(builder, first.name, words)
    command.__name__ = command.__qualname__ = name
    return command


def _signature(
    source: str,
    given: Any,
    own: Sequence[inspect.Parameter],
    hints: Mapping[str, Any],
    shared: Mapping[str, type],
) -> inspect.Signature:
    parameter = inspect.Parameter
    return inspect.Signature(
        [
            parameter(source, parameter.POSITIONAL_OR_KEYWORD, annotation=given),
            *(p.replace(kind=parameter.KEYWORD_ONLY, annotation=hints[p.name]) for p in own),
            parameter("output", parameter.KEYWORD_ONLY, annotation=Output),
            *(
                parameter(name, parameter.KEYWORD_ONLY, annotation=kind, default=kind())
                for name, kind in shared.items()
            ),
        ]
    )


def _build(
    builder: Callable[[Any], Iterable[Any]],
    inputs: Inputs,
    chunk: int,
    running: Running,
    output: Output,
    origin: Mapping[str, Any],
) -> Built:
    return build(
        builder,
        inputs,
        output.out,
        origin={**origin, "inputs": inputs.total},
        total=inputs.total,
        chunk=chunk,
        workers=running.workers,
        engine=running.engine,
        overwrite=output.overwrite,
    )


def _build_whole(
    builder: Callable[[Any], Iterable[Any]],
    source: str | list[str],
    reading: Reading,
    output: Output,
    origin: Mapping[str, Any],
) -> Built:
    columns = parse_columns(reading.columns)
    opened = [
        open_dataset(each, split=reading.split, columns=columns)[: reading.limit]
        for each in ([source] if isinstance(source, str) else source)
    ]
    return build_whole(
        builder,
        opened[0] if isinstance(source, str) else opened,
        output.out,
        origin={**origin, "inputs": [len(each) for each in opened]},
        overwrite=output.overwrite,
    )


def _origin(name: str, command: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """What the dataset is made from: all settings but those that change nothing in it."""
    settings = {"builder": name, **flat(command, given)}
    for free in FREE:
        settings.pop(free, None)
    source = next(iter(given))
    settings[source] = _located(settings[source])
    return settings


def _located(source: Any) -> Any:
    """A source that lies here, wherever the command is run."""
    if isinstance(source, list):
        return [_located(each) for each in source]
    return str(Path(source).absolute()) if Path(source).exists() else source


def _explained(builder: Callable[..., Any], source: str, words: str) -> str:
    """The builder's docstring with a section about its source, unless it has its own words."""
    text = inspect.getdoc(builder) or ""
    if re.search(rf"^ +{source}: ", text, flags=re.MULTILINE):
        return text
    sections = re.search(r"^[A-Z][\w ]*:\n(?= +\S)", text, flags=re.MULTILINE)
    end = sections.start() if sections else len(text)
    return f"{text[:end].rstrip()}\n\nInput:\n    {source}: {words}\n\n{text[end:]}"


def _say(built: Built, out: Path) -> None:
    console = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
    console.print(f"{built.preferences} preferences from {built.read} inputs in {out}")
    if built.refused:
        console.print(f"{built.refused} inputs refused, listed in {out / QUARANTINE}")
