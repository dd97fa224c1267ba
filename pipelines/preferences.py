"""Preferences as pipelines want them: readable ones to train on, and others held out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmalign.adapters.protocol import Adapter
from mmalign.data.dataset import Preferences, PreferenceStream, row_in_files
from mmalign.data.errors import Quarantine, RecordError
from mmalign.data.opening import open_dataset, parse_columns
from mmalign.data.split import held_out as hold_out
from mmalign.errors import UserError
from mmalign.files import whole_file
from mmalign.objectives import Objective
from mmalign.pipelines.options import DataOptions
from mmalign.records import Preference
from mmalign.training.batches import Plan, unusable
from mmalign.training.log import console
from mmalign.training.options import TrainingOptions


@dataclass(frozen=True)
class Streamed:
    """A stream that can be read again and hands out unreadable records as errors."""

    stream: PreferenceStream
    ties: bool

    def __iter__(self) -> Iterator[Preference | RecordError]:
        for _, record in self.stream.checked():
            if self.ties or isinstance(record, RecordError) or not is_tie(record):
                yield record

    def describe(self) -> str:
        return self.stream.describe()


def is_tie(preference: Preference) -> bool:
    """Whether all candidates were liked alike."""
    return len(preference.grades) > 1 and preference.grades[0] == preference.grades[-1]


def read_preferences(
    options: DataOptions, out: Path, objective: Objective, *, seed: int, media: bool
) -> tuple[Preferences | Streamed, Preferences | tuple[()]]:
    """What to train on, and what to measure on.

    Records that cannot be read go to `out`/unreadable.jsonl. media: whether the model takes images.
    Raises UserError for data that do not suit, and for ties that the objective cannot count.
    """
    if options.ties == "half" and not objective.takes_ties:
        raise UserError(
            f"{objective.spec} cannot count a tie as half a preference each way (--ties half)",
            hint="leave ties out (--ties drop), or choose an objective of pairs that remembers "
            "nothing, for instance dpo",
        )
    evaluation = None
    if options.eval_data:
        evaluation = _open(options.eval_data, None, options, out, media)
    if options.streaming:
        stream = open_dataset(
            options.data,
            split=options.split,
            columns=parse_columns(options.columns),
            images=options.images,
            streaming=True,
        )
        ties = options.ties == "half"
        return Streamed(stream, ties), evaluation if evaluation is not None else ()
    preferences = _open(options.data, options.split, options, out, media)
    if evaluation is not None:
        return preferences, evaluation
    if options.held_out <= 0:
        return preferences, ()
    return hold_out(preferences, fraction=options.held_out, seed=seed)


def measurable(
    adapter: Adapter,
    held_out: Sequence[Preference],
    objective: Objective,
    options: TrainingOptions,
    out: Path,
) -> Sequence[Preference]:
    """Those of the held-out records that the model can take, so that all figures are about the
    same ones. The others go to `out`/unmeasured.jsonl."""
    plan = Plan(
        adapter.collate, adapter.size, objective.needs, options.batch_size, options.micro_batch,
        seed=options.seed,
    )  # fmt: skip
    refused = unusable(held_out, plan)
    if not refused:
        return held_out
    lines = [
        json.dumps({"row": row_in_files(held_out, record.row), "reason": record.reason})
        for record in refused
    ]
    path = out / "unmeasured.jsonl"
    with whole_file(path) as partial:
        partial.write_text("\n".join(lines) + "\n")
    console.print(f"{len(refused)} of {len(held_out)} held-out records cannot be used;")
    console.print(f"{path} says why.")
    left_out = {record.row for record in refused}
    return [one for row, one in enumerate(held_out) if row not in left_out]


def _open(
    where: str, split: str | None, options: DataOptions, out: Path, media: bool
) -> Preferences:
    preferences = open_dataset(
        where, split=split, columns=parse_columns(options.columns), images=options.images
    )
    if preferences.has_media and not media:
        raise UserError(
            f"{where} holds images or videos, and this model reads text only",
            hint="leave the column out with --columns images=, or align a model that sees",
        )
    ties = options.ties == "half"
    quarantine = Quarantine(out / "unreadable.jsonl")
    readable = preferences.usable(quarantine, lambda found: ties or not is_tie(found))
    if len(quarantine):
        console.print(f"{len(quarantine)} of {len(preferences)} records of {where} cannot be read")
        console.print(f"and are left out; {quarantine.path} says why.")
    if tied := len(preferences) - len(quarantine) - len(readable):
        console.print(f"{tied} ties of {where} are left out; --ties half counts them each way.")
    if not len(readable):
        raise UserError(f"no record of {where} can be used", hint="the messages above say why")
    return readable
