"""Edit pairs: a text, and the same with a few words added, left out or exchanged by an expert.

SYNFAC-EDIT (arXiv:2402.13919): worsen a good text, or improve what a model said. Both texts of a
pair are nearly the same, so that training sees the facts they differ in.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal

from mmalign.data.corrections import weigh_corrections
from mmalign.data_builders.command import as_command
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.expert import OptionalJudge, open_expert
from mmalign.data_builders.expert_correction import NO_EXPERT, unseeable
from mmalign.data_builders.records import QUESTION, Record, asked_about
from mmalign.errors import BadSample, UserError
from mmalign.records import Message, Preference, Provenance, Sample, pair
from mmalign.rewards.judge import json_in

Direction = Literal["worsen", "improve"]

GOALS = {
    "worsen": "Make it wrong: change words so that it states things that are not so, and still "
    "reads as smoothly as before. Choose words that matter.",
    "improve": "Make it right: change only words that are wrong or missing. Choose words that "
    "matter.",
}
OPERATIONS = {
    "add": "add words",
    "omit": "leave words out",
    "substitute": "put other words in the place of words",
}
REQUEST = """You edit a text as a careful editor would, with as few changes as possible.

It answers: {question}

The text:
{text}

{goal} You may only {operations}. At most {extra} words more than before.{balanced}
Answer with JSON alone:
{"edits": [{"operation": "...", "words": "..."}], "text": "the whole text after the edits"}"""
BALANCED = " Add as many words as you leave out, if you can."
SCHEMA = {
    "type": "object",
    "properties": {
        "edits": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"operation": {"type": "string"}, "words": {"type": "string"}},
                "required": ["operation", "words"],
                "additionalProperties": False,
            },
        },
        "text": {"type": "string"},
    },
    "required": ["edits", "text"],
    "additionalProperties": False,
}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far an edit may go; an edit that goes further is asked for again.

    Args:
        operations: What the expert may do: add, omit, substitute.
        max_extra_words: Words that the text may have more than before.
        max_changed: Share of the words, of both texts together, that may differ.
        balanced: Ask for as many words added as left out.
    """

    operations: tuple[str, ...] = ("add", "omit")
    max_extra_words: int = 5
    max_changed: float = 0.5
    balanced: bool = True


FEW_WORDS = Limits()


def build(
    records: Iterable[Record],
    *,
    direction: Direction = "worsen",
    question: str = QUESTION,
    limits: Limits = FEW_WORDS,
    span_weight: float = 1.0,
    expert: OptionalJudge = NO_EXPERT,
    local_expert: str | None = None,
    cache: Path | None = None,
) -> Iterator[Preference | Refused]:
    """Let an expert change a few words of a text, for the worse or for the better.

    A record's text is its first answer or else its caption: a reference to worsen, or what a model
    said, to improve. The expert sees the record's image, too.

    Edits:
        direction: worsen makes the edited text the rejected one, improve the chosen one.
        question: What is asked about records without a question of their own.
        span_weight: Weight of the words that differ, for objectives that weigh tokens.

    Expert:
        local_expert: Hub id or folder of a vision-language model that edits in place of a judge.
        cache: Folder for all that the expert was asked and said (judge.jsonl); by default .cache
            beside the dataset.

    Examples:
        mmalign build edit-pairs captions.jsonl --judge gpt-4o --out worse
        mmalign build edit-pairs answers.jsonl --direction improve --judge gpt-4o --out better
    """
    if unknown := set(limits.operations) - set(OPERATIONS):
        raise UserError(
            f"operations: there is no {', '.join(sorted(unknown))}",
            hint=f"there are: {', '.join(OPERATIONS)}",
        )
    asked: list[tuple[Record, str]] = []
    for record in records:
        text = record.answers[0] if record.answers else record.caption
        if reason := unseeable(record):
            yield Refused(record.id, reason, "image")
        elif not text or not text.strip():
            yield Refused(record.id, "has neither an answer nor a caption", "answers")
        else:
            asked.append((record, text.strip()))
    requests = [_request(record, question, text, direction, limits) for record, text in asked]
    reads = [functools.partial(edit_in, text=text, limits=limits) for _, text in asked]
    edits = open_expert(expert, local_expert, cache).ask(requests, reads, SCHEMA)
    for (record, text), edit in zip(asked, edits, strict=True):
        if isinstance(edit, BadSample):
            yield Refused(record.id, str(edit))
            continue
        words, edited = edit
        better, worse = (text, edited) if direction == "worsen" else (edited, text)
        chosen, rejected = weigh_corrections(better, worse, weight=span_weight)
        prompt = asked_about(record, record.question or question)
        source = Provenance(
            "edit_pairs",
            parents=(record.id,),
            models=(expert.judge or str(local_expert),),
            details={"direction": direction, "edits": words},
        )
        yield pair(Sample(prompt, (chosen,)), Sample(prompt, (rejected,)), source=source)


def edit_in(answer: str, text: str, limits: Limits) -> tuple[list[dict[str, str]], str]:
    """The edits that an expert says it made, and the text after them.

    Raises ValueError, saying what was wanted, for another form and for edits beyond the limits.
    """
    found: Any = json_in(answer)
    edited = found.get("text") if isinstance(found, dict) else None
    edits = found.get("edits") if isinstance(found, dict) else None
    if not isinstance(edited, str) or not isinstance(edits, list):
        raise ValueError("an object with a list of edits and the edited text is wanted")
    before, after = text.split(), edited.split()
    if before == after:
        raise ValueError("the text is the same as before, and at least one word has to change")
    if len(after) > len(before) + limits.max_extra_words:
        raise ValueError(
            f"the text has {len(after) - len(before)} words more than before, and at most"
            f" {limits.max_extra_words} are allowed"
        )
    changed = 1 - SequenceMatcher(None, before, after, autojunk=False).ratio()
    if changed > limits.max_changed:
        raise ValueError(
            f"{changed:.0%} of the words differ, and at most {limits.max_changed:.0%} may"
        )
    named = [
        {"operation": str(edit.get("operation")), "words": str(edit.get("words"))}
        for edit in edits
        if isinstance(edit, dict)
    ]
    return named, edited.strip()


def _request(
    record: Record, question: str, text: str, direction: Direction, limits: Limits
) -> tuple[Message, ...]:
    filled = {
        "{question}": record.question or question,
        "{goal}": GOALS[direction],
        "{operations}": ", ".join(OPERATIONS[name] for name in limits.operations),
        "{extra}": str(limits.max_extra_words),
        "{balanced}": BALANCED if limits.balanced else "",
        "{text}": text,
    }
    request = REQUEST
    for name, words in filled.items():
        request = request.replace(name, words)
    return asked_about(record, request)


command = as_command("edit-pairs", build, parallel=False)
