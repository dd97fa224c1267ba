"""Preferences as pipelines want them: readable ones to train on, and others held out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mmalign.data.dataset import Preferences, PreferenceStream
from mmalign.data.errors import Quarantine, RecordError
from mmalign.data.opening import open_dataset, parse_columns
from mmalign.data.split import held_out as hold_out
from mmalign.errors import UserError
from mmalign.pipelines.options import DataOptions
from mmalign.records import Preference
from mmalign.training.log import console


@dataclass(frozen=True)
class Streamed:
    """A stream that can be read again and hands out unreadable records as errors."""

    stream: PreferenceStream

    def __iter__(self) -> Iterator[Preference | RecordError]:
        return (record for _, record in self.stream.checked())

    def describe(self) -> str:
        return self.stream.describe()


def read_preferences(
    options: DataOptions, out: Path, *, seed: int, media: bool
) -> tuple[Preferences | Streamed, Preferences | tuple[()]]:
    """What to train on, and what to measure on.

    Records that cannot be read go to `out`/unreadable.jsonl. media: whether the model takes images.
    Raises UserError for data that do not suit.
    """
    names = parse_columns(options.columns)
    data, split, eval_data = options.data, options.split, options.eval_data
    evaluation = _open(eval_data, out, None, names, media) if eval_data else None
    if options.streaming:
        stream = open_dataset(data, split=split, columns=names, streaming=True)
        return Streamed(stream), evaluation if evaluation is not None else ()
    preferences = _open(data, out, split, names, media)
    if evaluation is not None:
        return preferences, evaluation
    if options.held_out <= 0:
        return preferences, ()
    return hold_out(preferences, fraction=options.held_out, seed=seed)


def _open(
    where: str, out: Path, split: str | None, names: dict[str, str | None], media: bool
) -> Preferences:
    preferences = open_dataset(where, split=split, columns=names)
    if preferences.has_media and not media:
        raise UserError(
            f"{where} holds images or videos, and this model reads text only",
            hint="leave the column out with --columns images=, or align a model that sees",
        )
    quarantine = Quarantine(out / "unreadable.jsonl")
    readable = preferences.usable(quarantine)
    if len(quarantine):
        console.print(f"{len(quarantine)} of {len(preferences)} records of {where} cannot be read")
        console.print(f"and are left out; {quarantine.path} says why.")
    return readable
