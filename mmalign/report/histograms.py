"""Histograms as inline SVG that follows the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from mmalign.report.scale import Scale, label, short, ticks

WIDTH, HEIGHT, FLOOR = 260.0, 110.0, 92.0
BARS = 24


def histograms(distributions: Mapping[str, Sequence[float]]) -> Markup:
    """One small drawing per distribution that has at least two different finite values."""
    drawings = []
    for name, values in distributions.items():
        finite = [value for value in values if math.isfinite(value)]
        if finite and min(finite) < max(finite):
            drawings.append(_drawing(name, finite))
    return Markup('<div class="histograms">{}</div>').format(Markup().join(drawings))


def counts(values: Sequence[float], low: float, high: float, bars: int) -> list[int]:
    """How many values lie in each of `bars` equal parts of low..high, `high` in the last."""
    found = [0] * bars
    for value in values:
        found[min(bars - 1, int((value - low) / (high - low) * bars))] += 1
    return found


def _drawing(name: str, values: Sequence[float]) -> Markup:
    low, high = min(values), max(values)
    whole = all(value == round(value) for value in values)
    bars = min(BARS, int(high - low) + 1) if whole else BARS
    if whole:  # each whole number in the middle of a bar, or bars of equal numbers of them
        low, high = low - 0.5, low - 0.5 + math.ceil((high - low + 1) / bars) * bars
    found = counts(values, low, high, bars)
    right, width = Scale(low, high, 4, WIDTH - 4), (WIDTH - 8) / bars
    up = Scale(0, max(found), 0, FLOOR - 4)
    boxes = Markup().join(
        Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            4 + i * width, FLOOR - up(count), max(1.0, width - 1), up(count)
        )
        for i, count in enumerate(found)
        if count
    )
    marks = Markup().join(
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            right(at), HEIGHT - 4, label(at)
        )
        for at in ticks(low, high)
    )
    middle = sorted(values)[len(values) // 2]
    return Markup(
        '<figure><figcaption>{} <span class="last">median {}</span></figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg></figure>'
    ).format(name, short(middle), WIDTH, HEIGHT, f"histogram of {name}", boxes, marks)
