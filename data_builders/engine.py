"""Running a builder over a source: workers, resuming, quarantine, progress.

A builder is a function from a stream of records (or preferences) to a stream of preferences. It is
given chunks of as many inputs, whatever the number of workers, and their results are written in
order; so a build that was killed and goes on, with any number of workers, ends with the same bytes.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mmalign import __version__
from mmalign.data.dataset import Preferences
from mmalign.data.errors import DatasetError, FieldError, Quarantine, RecordError
from mmalign.data.layout import encode, needed
from mmalign.data.store import StoreWriter, load_manifest
from mmalign.errors import UserError
from mmalign.records import Preference

CHUNK = 32
QUARANTINE = "quarantine.jsonl"
NOTHING_MADE = "the builder made nothing of it"


class Item(Protocol):
    """An input of a builder: a Record or a Preference."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True)
class Refused:
    """What a builder yields for an input that it cannot use: the input's id, and why."""

    id: str
    reason: str
    field: str = ""


Builder = Callable[[Iterable[Any]], Iterable[Preference | Refused]]
"""Every preference names the ids of the inputs that it is made of in `source.parents`."""

Chunk = list[tuple[int, Any]]
"""Numbers and inputs; a RecordError for what could not be read."""

Result = tuple[list[Preference], list[RecordError]]
"""What is made of a chunk, and what is refused."""

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Built:
    """How many inputs were read and refused, and how many preferences were made."""

    read: int
    refused: int
    preferences: int


def build(
    builder: Builder,
    inputs: Iterable[tuple[int, Any]],
    out: Path,
    *,
    origin: Any = None,
    total: int | None = None,
    chunk: int = CHUNK,
    workers: int = 0,
    engine: Engine = "local",
    overwrite: bool = False,
    show: bool = True,
) -> Built:
    """Write what `builder` makes of numbered `inputs` into a dataset; go on with an unfinished one.

    Beside the dataset stands quarantine.jsonl with the inputs that were refused and the reason.
    An input that the builder neither uses nor refuses is listed there as well. If a chunk raises a
    ValueError or OSError, its inputs are tried one by one, so that only the bad ones are lost.

    inputs: in the same order each time. origin: JSON that says what is built from what; going on
        with another is an error. total: number of inputs, if known. chunk: inputs that the builder
        is given at once. workers: processes, for which the builder must be picklable; 0 builds in
        this one. engine: where they are, on this machine or on a Ray cluster.
    Raises DatasetError when every input was refused, UserError when a worker dies.
    """
    if not overwrite and (done := _finished(out, origin)):
        return done
    with StoreWriter(out, origin=origin, resume=True, overwrite=overwrite) as writer:
        start = writer.position or 0
        refused = Quarantine(out / QUARANTINE, resume_at=start)
        rest = islice(inputs, start, None)
        read = start
        with _progress(show) as bar:
            task = bar.add_task("building", total=total, completed=start)
            for numbers, (made, bad) in _results(builder, _chunks(rest, chunk), workers, engine):
                read = numbers[-1][0] + 1
                for error in bad:
                    refused.add(error)
                _write(writer, made, read, refused)
                bar.update(task, completed=read)
        if read and len(refused) >= read:
            reason = refused.reasons.most_common(1)[0][0]
            raise DatasetError(f"none of the {read} inputs could be used; mostly: {reason}")
    return Built(read, len(refused), writer.rows)


def build_whole(
    builder: Callable[[Any], Iterable[Preference | RecordError]],
    dataset: Preferences | Sequence[Preferences],
    out: Path,
    *,
    origin: Any = None,
    overwrite: bool = False,
    show: bool = True,
) -> Built:
    """Write what `builder` makes of a dataset, or of several, that it has to see as a whole.

    Records that cannot be read, those for which the builder yields a RecordError, and what is made
    and cannot be written are in quarantine.jsonl; what the builder leaves out is not. A build that
    goes on makes everything again, which has to come out the same each time, and writes what was
    not written. Arguments and errors as for `build`.
    """
    datasets = [dataset] if isinstance(dataset, Preferences) else list(dataset)
    read = sum(map(len, datasets))
    if not overwrite and (done := _finished(out, origin)):
        return replace(done, read=read)
    with StoreWriter(out, origin=origin, resume=True, overwrite=overwrite) as writer:
        refused = Quarantine(out / QUARANTINE)
        start, made = writer.position or 0, 0
        with _progress(show) as bar:
            bar.add_task("reading", total=None)
            usable = [each.usable(refused) for each in datasets]
            if not any(map(len, usable)):
                raise DatasetError(f"none of the {read} records can be read")
            task = bar.add_task("building", total=None, completed=start)
            for found in builder(usable[0] if isinstance(dataset, Preferences) else usable):
                if isinstance(found, RecordError):
                    refused.add(found)
                    continue
                made += 1
                try:
                    if made <= start:
                        encode(found, needed(found))
                    else:
                        writer.write(_with_version(found), position=made)
                except FieldError as error:
                    reason = f"what was made of it cannot be written: {error.reason}"
                    refused.add(RecordError("made", made - 1, error.field, reason))
                bar.update(task, completed=made)
        if not made:
            raise DatasetError(f"the builder keeps none of the {read} records")
    return Built(read, len(refused), writer.rows)


def _write(writer: StoreWriter, made: Sequence[Preference], read: int, refused: Quarantine) -> None:
    """Write all, or all but what is made of inputs for which something cannot be written."""
    try:
        writer.write(*made, position=read)
    except FieldError:
        bad: dict[int, RecordError] = {}
        for preference in made:
            try:
                encode(preference, needed(preference))
            except FieldError as error:
                number = preference.source.details["row"]
                bad.setdefault(number, _error(number, error))
        for number in sorted(bad):
            refused.add(bad[number])
        good = [p for p in made if p.source.details["row"] not in bad]
        writer.write(*good, position=read)


def _finished(out: Path, origin: Any) -> Built | None:
    found = load_manifest(out)
    if found is None or not found.complete or found.origin != origin:
        return None
    path = out / QUARANTINE
    refused = len(path.read_bytes().splitlines()) if path.exists() else 0
    return Built(found.position or 0, refused, found.rows)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def _progress(show: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed} inputs"),
        _Rate(),
        TimeRemainingColumn(),
        disable=not show,
    )


def _chunks(inputs: Iterable[tuple[int, Any]], size: int) -> Iterator[Chunk]:
    stream = iter(inputs)
    while chunk := list(islice(stream, size)):
        yield chunk


def _results(
    builder: Builder, chunks: Iterator[Chunk], workers: int, engine: Engine
) -> Iterator[tuple[Chunk, Result]]:
    """What comes of each chunk, in order; with workers, a few chunks ahead."""
    if engine == "ray":
        from mmalign.data_builders.ray_engine import ray_results

        yield from ray_results(builder, chunks, workers)
    elif workers > 0:
        yield from _process_results(builder, chunks, workers)
    else:
        for chunk in chunks:
            yield chunk, run_chunk(builder, chunk)


def _process_results(
    builder: Builder, chunks: Iterator[Chunk], workers: int
) -> Iterator[tuple[Chunk, Result]]:
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
    waiting: deque[tuple[Chunk, Future[Result]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(run_chunk, builder, chunk)))
            if len(waiting) > 2 * workers:
                chunk, future = waiting.popleft()
                yield chunk, future.result()
        for chunk, future in waiting:
            yield chunk, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process died, perhaps for want of memory",
            hint="run the same again to go on; fewer workers need less memory.",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_with_parent() -> None:
    """Let a worker end when the process that started it is killed: nothing else would end it."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # a pool calls this in its workers

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_chunk(builder: Builder, chunk: Chunk) -> Result:
    """What a builder makes of a chunk: a function of its arguments, in any process."""
    bad = {number: item for number, item in chunk if isinstance(item, RecordError)}
    good: Chunk = []
    for number, item in chunk:
        if number not in bad:
            try:
                item.id  # noqa: B018  # opens the image's file
                good.append((number, item))
            except (OSError, ValueError) as error:
                bad[number] = _error(number, error)
    made, refused = _tried(builder, good)
    bad |= refused
    return made, [bad[number] for number in sorted(bad)]


def _tried(builder: Builder, items: Chunk) -> tuple[list[Preference], dict[int, RecordError]]:
    try:
        return _applied(builder, items)
    except (ValueError, OSError) as error:
        if _is_fatal(error):
            raise
        if len(items) == 1:
            return [], {items[0][0]: _error(items[0][0], error)}
    made: list[Preference] = []
    bad: dict[int, RecordError] = {}
    for item in items:
        more, worse = _tried(builder, [item])
        made += more
        bad |= worse
    return made, bad


def _applied(builder: Builder, items: Chunk) -> tuple[list[Preference], dict[int, RecordError]]:
    numbers: dict[str, list[int]] = {}
    for number, item in items:
        numbers.setdefault(item.id, []).append(number)
    made: list[Preference] = []
    bad: dict[int, RecordError] = {}
    used: set[str] = set()
    for result in builder(item for _, item in items) if items else ():
        if isinstance(result, Refused):
            for number in numbers[result.id]:
                bad[number] = RecordError("input", number, result.field, result.reason)
            continue
        own = [parent for parent in result.source.parents if parent in numbers]
        if not own:
            raise TypeError("a builder names its inputs' ids in source.parents of what it makes")
        used.update(own)
        made.append(_with_origin(result, numbers[own[0]][0]))
    for id_, places in numbers.items():
        if id_ not in used:
            for number in places:
                bad.setdefault(number, RecordError("input", number, "", NOTHING_MADE))
    return made, bad


def _with_origin(preference: Preference, number: int) -> Preference:
    details = {**preference.source.details, "row": number}
    source = replace(preference.source, details=details)
    return _with_version(replace(preference, source=source))


def _with_version(preference: Preference) -> Preference:
    version = preference.source.version or __version__
    return replace(preference, source=replace(preference.source, version=version))


def _error(number: int, error: Exception) -> RecordError:
    if isinstance(error, FieldError):
        return RecordError("input", number, error.field, error.reason)
    return RecordError("input", number, "", str(error))


def _is_fatal(error: Exception) -> bool:
    """Errors that are not about an input: wrong settings, and a disk that is full."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE)
    return isinstance(error, UserError) and not isinstance(error, RecordError)
