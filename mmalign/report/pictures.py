"""Pictures and videos side by side, one row a prompt and one column a stage, within the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmalign.report.figures import STAGES

KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
"""How files begin; whatever else comes is WebP, which browsers also play when it moves."""


@dataclass(frozen=True)
class Picture:
    """An encoded picture, and whether it is what was wanted (None: nobody judged)."""

    data: bytes
    good: bool | None = None


def side_by_side(
    rows: Sequence[tuple[str, Mapping[str, Picture]]], *, good: str = "good", bad: str = "bad"
) -> Markup:
    """Each prompt with its picture of every stage ("before", "after", "control" ...).

    good, bad: the words for the verdict.
    """
    return Markup().join(_row(prompt, pictures, good, bad) for prompt, pictures in rows)


def _row(prompt: str, pictures: Mapping[str, Picture], good: str, bad: str) -> Markup:
    cells = []
    for stage, picture in pictures.items():
        verdict = Markup()
        if picture.good is not None:
            verdict = Markup('<span class="verdict {}">{}</span>').format(
                "good" if picture.good else "bad", f"✓ {good}" if picture.good else f"✗ {bad}"
            )
        cells.append(
            Markup(
                '<div class="answer {}"><div class="stage">{} {}</div>'
                '<img class="picture" src="{}" alt="{}"></div>'
            ).format(
                stage if stage in STAGES else "other",
                stage,
                verdict,
                address(picture.data),
                f"{stage}: {prompt}",
            )
        )
    return Markup(
        '<article class="comparison card"><p class="prompt">{}</p>'
        '<div class="answers">{}</div></article>'
    ).format(prompt, Markup().join(cells))


def address(data: bytes) -> str:
    """The picture itself, as what an `img` shows."""
    kind = next((kind for head, kind in KINDS.items() if data.startswith(head)), "image/webp")
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
