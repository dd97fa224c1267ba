"""Axes: from numbers to places on a drawing, and the round numbers to write beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps `low`..`high` onto `start`..`end` of a drawing."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)


def ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round numbers within `low`..`high`: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def bounds(values: Iterable[float], *, margin: float = 0.06) -> tuple[float, float]:
    """The least range that shows all values with a little air; never empty."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    if low == high:
        around = abs(low) / 2
        low, high = (low - around, high + around) if low - around < low else (low - 1, high + 1)
    air = margin * (high - low)
    return low - air, high + air


def short(value: float) -> str:
    """A number as a person would say it: three digits, a dash for what is not known."""
    if not math.isfinite(value):
        return "\N{EN DASH}"
    size = abs(value)
    if size and not 1e-3 <= size < 1e6:
        return _signs(f"{value:.2e}")
    digits = max(0, 2 - math.floor(math.log10(size))) if size else 0
    return _signs(f"{value:,.{digits}f}")


def with_interval(value: float, low: float, high: float) -> tuple[str, str]:
    """A figure and its interval in words, as precise as the interval allows: 0.14, [0.08, 0.25]."""
    width = high - low
    if not math.isfinite(width) or not 1e-4 < width < 1e6:
        return short(value), f"[{short(low)}, {short(high)}]" if math.isfinite(width) else ""
    digits = max(0, 1 - math.floor(math.log10(width)))
    shown = [_signs(f"{number:,.{digits}f}") for number in (value, low, high)]
    return shown[0], f"[{shown[1]}, {shown[2]}]"


def label(value: float) -> str:
    """A tick: it is round already, and needs no zeros at its end."""
    return _signs(f"{value:g}" if abs(value) < 1e5 else f"{value:.3g}")


def _signs(text: str) -> str:
    """A minus sign as typeset, and an exponent without padding."""
    text = text.replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return "\N{MINUS SIGN}" + text[1:] if text.startswith("-") else text
