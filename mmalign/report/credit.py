"""Responses whose tokens carry numbers: what raised them is blue, what lowered them orange."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmalign.report.scale import short


@dataclass(frozen=True)
class Credited:
    """A response in pieces, each with its number."""

    pieces: Sequence[str]
    values: Sequence[float]


def credit(prompt: str, responses: Mapping[str, Credited]) -> Markup:
    """A card with the responses of one prompt side by side, under their names.

    Colours have one scale over the card; the number itself shows under the pointer.
    """
    most = max((abs(v) for r in responses.values() for v in r.values), default=0.0) or 1.0
    answers = Markup().join(
        Markup(
            '<div class="answer other"><div class="stage">{} {}</div><p class="text">{}</p></div>'
        ).format(name, short(sum(response.values)), _coloured(response, most))
        for name, response in responses.items()
    )
    return Markup(
        '<article class="comparison card"><p class="prompt">{}</p><div class="answers">{}</div>'
        "</article>"
    ).format(prompt, answers)


def _coloured(response: Credited, most: float) -> Markup:
    return Markup().join(
        Markup('<span title="{}" style="background:rgba({},{:.2f})">{}</span>').format(
            short(value), BLUE if value > 0 else ORANGE, 0.75 * abs(value) / most, piece
        )
        for piece, value in zip(response.pieces, response.values, strict=True)
    )


BLUE, ORANGE = "56,132,255", "255,120,40"
