"""How often rewards prefer what a model draws now to what it drew before training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup

from mmalign.data.cache import Cache
from mmalign.evaluation.images.scoring import Floats, wins
from mmalign.evaluation.intervals import Interval, bootstrap_mean
from mmalign.records import Media, Message, Sample, Text
from mmalign.report.curves import curves
from mmalign.report.figures import figures
from mmalign.report.page import section
from mmalign.rewards.scorer import Reward
from mmalign.rewards.table import reward
from mmalign.training.log import JsonLines

PREFIX = "win_rate/"


@dataclass
class WinRates:
    """Compares pictures of the same prompts and seeds. Axes: m prompts.

    rewards: by name; loaded at once, so that what cannot be had is known before training. before:
    (m) what was drawn before training. cache: file where scores are kept.
    """

    rewards: Sequence[str]
    prompts: Sequence[str]
    before: Sequence[Media]
    cache: Path

    def __post_init__(self) -> None:
        cache = Cache(self.cache)
        self._scorers: dict[str, Reward] = {s: reward(s, cache=cache) for s in self.rewards}

    def __call__(self, drawn: Sequence[Media]) -> dict[str, Floats]:
        """Reward -> (m,) 1 where it prefers the picture of now, 1/2 at a tie, 0 where the one of
        before. Both are scored in one call: an ensemble compares them."""
        count = len(self.prompts)
        samples = [
            Sample((Message("user", (Text(prompt),)),), (media,))
            for pictures in (drawn, self.before)
            for prompt, media in zip(self.prompts, pictures, strict=True)
        ]
        scores = {spec: score(samples) for spec, score in self._scorers.items()}
        return {spec: wins(found[:count], found[count:]) for spec, found in scores.items()}

    def intervals(self, drawn: Sequence[Media]) -> dict[str, Interval]:
        """The share of prompts, with 95 % intervals over them, by "win_rate/REWARD"."""
        return {f"{PREFIX}{spec}": _over(won) for spec, won in self(drawn).items()}


def _over(won: Floats) -> Interval:
    known = won[~np.isnan(won)]
    return bootstrap_mean(known.tolist()) if len(known) else Interval(*[float("nan")] * 3)


def win_rates_section(found: Mapping[str, Interval], out: Path, count: int) -> Markup:
    """The figures after training, and how they came about where pictures were drawn in between."""
    rows = JsonLines(out / "metrics.jsonl").rows()
    during = [name for name in found if any(name in row for row in rows)]
    shown = figures({"after": found})
    note = (
        "How often a reward prefers the picture drawn after training to the one drawn before, with "
        f"the same {count} prompts and seeds; 0.5 says that nothing changed. 95 % intervals over "
        "prompts. A model gains most by the reward that made its preferences."
    )
    return section(
        "Win rates", shown + curves(rows, during, smoothing=0.0) if during else shown, note=note
    )
