"""Corruption: the answer as it is, before one with a planted fault or under an altered image.

Text faults are POVID's and HALVA's kind of rejected answer, altered images the image-conditional
pairs of mDPO (arXiv:2406.11839): same question, same answer, and the image no longer shows it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random
from typing import Any, Literal

import numpy as np

from mmalign.data.views import ALTERATIONS
from mmalign.data_builders.command import as_command
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.records import QUESTION, Record, asked_about
from mmalign.data_builders.text_faults import KINDS, faulty
from mmalign.errors import UserError
from mmalign.media import png
from mmalign.records import Preference, Provenance, Sample, Span, Text, pair
from mmalign.training.seeds import derive


def build(
    records: Iterable[Record],
    *,
    side: Literal["answer", "image", "both"] = "both",
    faults: tuple[str, ...] = tuple(KINDS),
    alterations: tuple[str, ...] = ("crop",),
    question: str = QUESTION,
    span_weight: float = 1.0,
    seed: int = 0,
) -> Iterator[Preference | Refused]:
    """Plant faults into true answers, and show images that the answers are not about.

    A record's answer is its first answer or else its caption. It is preferred to the same answer
    with one fault, and to itself under the altered image.

    Args:
        side: What is made worse: the answer, the image, or each of them in a pair of its own.
        faults: Kinds of text faults to draw from: attribute, count, relation, swap (another
            object), plant (one object more).
        alterations: What to draw from for images: black, blur, crop, grey, mask, noise.
        question: What is asked about images without a question of their own.
        span_weight: Weight of the characters that a fault changed, before and after, for
            objectives that weigh tokens.
        seed: The same seed makes the same faults.

    Examples:
        mmalign build corrupt captioned-photos --out pairs
        mmalign build corrupt captions.jsonl --out pairs --side answer --faults count relation
    """
    _check("faults", faults, KINDS)
    _check("alterations", alterations, ALTERATIONS)
    for record in records:
        answer = record.answers[0] if record.answers else record.caption
        if not answer:
            yield Refused(record.id, "has neither an answer nor a caption", "answers")
            continue
        image = record.pixels() if record.image is not None else None
        asked = record.question or question
        random = Random(derive(seed, "corrupt", record.id))
        made = []
        if side != "image":
            made.append(_worse_answer(record, asked, answer, faults, span_weight, random, seed))
        if side != "answer" and image is not None:
            name = random.choice(list(alterations))
            altered = ALTERATIONS[name](image, np.random.default_rng(random.getrandbits(63)))
            source = _source(record, seed, alteration=name)
            chosen, rejected = (
                Sample(asked_about(shown, asked), (Text(answer),))
                for shown in (record, replace(record, image=png(altered)))
            )
            made.append(pair(chosen, rejected, source=source))
        found = [each for each in made if each is not None]
        if not found:
            nothing = (
                "no image to alter" if side == "image" else "no fault finds a place in its text"
            )
            yield Refused(record.id, nothing)
        yield from found


def _worse_answer(
    record: Record,
    asked: str,
    answer: str,
    faults: tuple[str, ...],
    weight: float,
    random: Random,
    seed: int,
) -> Preference | None:
    fault = faulty(answer, random, kinds=faults)
    if fault is None:
        return None
    texts = ((answer, fault.before), (fault.text, fault.after))
    prompt = asked_about(record, asked)
    chosen, rejected = (
        Sample(prompt, (Text(text, (Span(*at, weight),) if weight != 1 and at[0] < at[1] else ()),))
        for text, at in texts
    )
    source = _source(record, seed, fault=fault.kind, before=fault.before, after=fault.after)
    return pair(chosen, rejected, source=source)


def _source(record: Record, seed: int, **details: Any) -> Provenance:
    return Provenance("corrupt", parents=(record.id,), seed=seed, details=details)


def _check(option: str, names: tuple[str, ...], known: dict[str, Any]) -> None:
    if not names or not set(names) <= set(known):
        raise UserError(
            f"{option}: there is no {', '.join(sorted(set(names) - set(known))) or 'name given'}",
            hint=f"there are: {', '.join(known)}",
        )


command = as_command("corrupt", build)
