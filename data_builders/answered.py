"""Answers as a builder's inputs: those that a dataset prefers, or those to images of any source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmalign.data.errors import DatasetError, FieldError, RecordError
from mmalign.data.opening import Names
from mmalign.data.placeholders import messages
from mmalign.data.vision import turns
from mmalign.data_builders.records import (
    QUESTION,
    Inputs,
    Record,
    read_preferences,
    read_records,
)
from mmalign.records import Message, Preference, Sample, Text, text_of

CONVERSATIONS = ("conversations", "messages")
"""Columns with a whole conversation about the image."""


@dataclass(frozen=True)
class Answered:
    """A good answer. given: the preference that it comes from, if it comes from one."""

    sample: Sample
    given: Preference | None = None

    @cached_property
    def id(self) -> str:
        """Hash of the content. Raises OSError when an image's file cannot be read."""
        return self.given.id if self.given else self.sample.id


def read_answered(
    source: str | Path, *, split: str | None = None, columns: Names | None = None
) -> Inputs:
    """The preferred answers of a dataset of preferences, or the answers of records. Raises
    DatasetError for a source that is neither."""
    try:
        found = read_preferences(source, split=split, columns=columns)
    except DatasetError:
        found = read_records(source, split=split, columns=columns)
    return Inputs(_answered(found, str(source)), found.total)


def _answered(inputs: Inputs, where: str) -> Iterator[tuple[int, Answered | RecordError]]:
    for number, item in inputs:
        try:
            yield number, _of(item)
        except FieldError as error:
            yield number, RecordError(where, number, error.field, error.reason)


def _of(item: Any) -> Any:
    match item:
        case Preference():
            return Answered(item.chosen, item)
        case Record():
            prompt, answer = conversation(item, QUESTION)
            if not answer:
                raise FieldError("answers", "is missing, and there is no caption in its place")
            return Answered(Sample(prompt, (Text(answer),)))
        case other:
            return other


def conversation(record: Record, question: str) -> tuple[tuple[Message, ...], str]:
    """A prompt that shows the record's image and ends with a question, and the answer to it, "" if
    none is known.

    question: what is asked where the record has no question.
    Raises FieldError for a record without an image, and for conversations without a question.
    """
    if record.image is None:
        raise FieldError("image", "is missing")
    name = next((name for name in CONVERSATIONS if record.extra.get(name)), None)
    if name is None:
        asked = Text(record.question or question)
        answer = record.answers[0] if record.answers else ""
        if not record.question and not answer:
            answer = record.caption or ""  # which answers no question of its own
        return (Message("user", (record.image, asked)),), answer
    said = list(messages(turns(record.extra[name], name), [record.image], name))
    answer = ""
    if said[-1].role == "assistant":
        *said, last = said
        answer = text_of(last.parts)
    if not said or said[-1].role != "user":
        raise FieldError(name, "has no question before its last answer")
    return tuple(said), answer
