"""A judge within a suite: all answers judged with progress, or a clear stop."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmalign.errors import BadSample, UserError
from mmalign.rewards.judge import Judge, Prompt, Read, T
from mmalign.training.log import progress


def judgements(judge: Judge, prompts: Sequence[Prompt], read: Read[T]) -> list[T]:
    """One for each prompt. Raises UserError where one cannot be had; the others are recorded."""
    with progress("judging", total=len(set(prompts))) as advance:
        found = judge.ask_all(prompts, read, progress=lambda done, _: advance(to=done))
    usable = [answer for answer in found if not isinstance(answer, BadSample)]
    if len(usable) < len(found):
        first = next(answer for answer in found if isinstance(answer, BadSample))
        raise UserError(
            f"{len(found) - len(usable)} of {len(found)} answers were not judged: {first}",
            hint="what was judged is kept: the same command goes on from there; for answers that "
            "are cut off give more --judge-tokens, for those that cannot be read another judge",
        )
    return usable


def filled(template: str, values: Mapping[str, str]) -> str:
    """A template with its {names} filled in, or its {} in the order of the values. Braces in the
    values are left alone."""
    if "{}" in template:
        pieces = template.split("{}")
        if len(pieces) != len(values) + 1:
            raise UserError(
                f"the judge's prompt has {len(pieces) - 1} gaps {{}}",
                hint=f"{len(values)} are wanted: {', '.join(values)}; or write them by name",
            )
        told = [*values.values(), ""]
        return "".join(piece + value for piece, value in zip(pieces, told, strict=True))
    if missing := [name for name in values if f"{{{name}}}" not in template]:
        raise UserError(f"the judge's prompt has no {{{missing[0]}}}")
    return re.sub(r"\{(\w+)\}", lambda gap: values.get(gap[1], gap[0]), template)


def template_of(file: Path | None, own: str) -> str:
    """The judge's prompt in a file, or our own."""
    return own if file is None else file.read_text(encoding="utf-8")
