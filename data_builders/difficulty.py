"""How difficult a pair about an image is, as models that were not aligned see it: DA-DPO's weight.

A vision-language model says by how much it finds the chosen answer likelier, a contrastive one by
how much it finds it nearer to the image. The released code of DA-DPO gives DPO the beta
beta (1 + |gap|), so that pairs which are easily told apart are held nearer to the reference;
arXiv:2601.00623. How the two gaps are mixed is not released: here each is brought to one scale and
has a say by how many pairs it orders rightly. Axes: n pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mmalign.data.errors import RecordError
from mmalign.data_builders.command import as_command
from mmalign.data_builders.sampling import SampledModel, cache_in, load
from mmalign.errors import BadSample, UserError
from mmalign.evaluation.scoring import score_pairs
from mmalign.records import Preference
from mmalign.rewards.scorer import Reward
from mmalign.rewards.table import reward as load_reward

Floats = NDArray[np.float64]
NAME = "difficulty"
"""The number that da_dpo() reads."""
CHUNK = 256


def weights(gaps: Mapping[str, Floats]) -> tuple[Floats, dict[str, float]]:
    """u (n,) between 1, where nothing tells the two answers apart, and 2, where all does; and each
    model's say.

    gaps: by model, how far it sees each chosen answer ahead (n,). Divided by their root mean
    square, they are averaged with shares w_m in proportion to max(accuracy_m - 1/2, 0), equal where
    no model is better than chance; u = 1 + erf(|g| / sqrt 2), g the average by its own root mean
    square.
    """
    scaled = {name: _by_size(gap) for name, gap in gaps.items()}
    above = {
        name: max(0.0, float(np.sign(gap).sum()) / max(1, 2 * len(gap)))
        for name, gap in gaps.items()
    }
    total = sum(above.values())
    say = {name: one / total if total else 1 / len(above) for name, one in above.items()}
    mixed = _by_size(np.sum([say[name] * gap for name, gap in scaled.items()], axis=0))
    return 1 + np.array([math.erf(abs(one) / math.sqrt(2)) for one in mixed]), say


def _by_size(gap: Floats) -> Floats:
    size = float(np.sqrt((gap**2).mean())) if len(gap) else 0.0
    return gap / size if size else gap


def build(
    preferences: Sequence[Preference],
    *,
    model: str | None = None,
    lora: str | None = None,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    reward: str | None = "clip",
    micro_batch: int = 8192,
    cache: Path | None = None,
) -> Iterator[Preference | RecordError]:
    """Note how easily models that were not aligned tell each pair apart, for da_dpo().

    The number "difficulty" lies between 1, for the hardest pairs, and 2; da_dpo() multiplies beta
    by it.

    Args:
        model: Hub id or folder of a vision-language model, whose likelihood per token judges.
        lora: Folder of a LoRA on it.
        precision: Arithmetic of the model.
        reward: What else judges, as `reward-pairs` names it; none leaves it out.
        micro_batch: Tokens that go through the model at once.
        cache: Folder where scores are kept; by default .cache beside the dataset.

    Examples:
        mmalign build difficulty rlaif-v --model llava-hf/llava-1.5-7b-hf --out weighted
        mmalign align-vlm --model llava-hf/llava-1.5-7b-hf --data weighted --objective "da_dpo()"
    """
    spec = None if reward in (None, "none") else reward
    if model is None and spec is None:
        raise UserError("nothing judges the pairs", hint="give --model, --reward or both")
    judges: list[Judge] = []
    if model is not None:
        who = SampledModel(model=model, modality="vlm", lora=lora, precision=precision)
        judges.append(_by_likelihood(load(who), who.name, micro_batch))
    if spec is not None:
        judges.append(_by_reward(load_reward(spec, cache=cache_in(cache))))
    gaps: dict[str, dict[int, float]] = {name: {} for name, _ in judges}
    refused: dict[int, str] = {}
    for start in range(0, len(preferences), CHUNK):  # whose images are in memory at once
        some: dict[int, Preference] = {}
        for row in range(start, min(start + CHUNK, len(preferences))):
            if len((one := preferences[row]).candidates) > 1:
                some[row] = one
            else:
                refused[row] = "a thumb up or down has nothing to be told apart from"
        for name, ahead in judges:
            found, bad = ahead(some)
            gaps[name] |= found
            refused |= bad
    for row, reason in sorted(refused.items()):
        yield RecordError("preferences", row, "candidates", reason)
    rows = [row for row in range(len(preferences)) if row not in refused]
    kept = {name: np.array([gap[row] for row in rows]) for name, gap in gaps.items()}
    u, say = weights(kept)
    for place, row in enumerate(rows):
        own = {name: float(gap[place]) for name, gap in kept.items()}
        noted = preferences[row].derived("difficulty", gaps=own, say=say)
        yield replace(noted, aux={**noted.aux, NAME: float(u[place])})


Gaps = tuple[dict[int, float], dict[int, str]]
"""By row: how far the chosen answer is ahead; and why a row cannot be judged."""
Judge = tuple[str, Callable[[Mapping[int, Preference]], Gaps]]
"""A model's name, and how far it sees the chosen answers of some rows ahead."""


def _by_likelihood(adapter: Any, name: str, micro_batch: int) -> Judge:
    """Per token."""

    def ahead(pairs: Mapping[int, Preference]) -> Gaps:
        refused: dict[int, str] = {}
        usable: dict[int, Preference] = {}
        for row, one in pairs.items():
            try:
                adapter.size([one.chosen, one.rejected])
                usable[row] = one
            except BadSample as error:
                refused[row] = str(error)
        if not usable:
            return {}, refused
        scored = score_pairs(adapter, None, list(usable.values()), micro_batch=micro_batch)
        gaps = (scored.chosen.mean_policy - scored.rejected.mean_policy).tolist()
        return dict(zip(usable, gaps, strict=True)), refused

    return name, ahead


def _by_reward(reward: Reward) -> Judge:
    def ahead(pairs: Mapping[int, Preference]) -> Gaps:
        gaps: dict[int, float] = {}
        refused: dict[int, str] = {}
        for row, one in pairs.items():
            try:
                first, second = reward([one.chosen, one.rejected]).tolist()
            except BadSample as error:
                refused[row] = str(error)
                continue
            if math.isnan(first - second):
                refused[row] = "the reward gave no score"
            else:
                gaps[row] = first - second
        return gaps, refused

    return reward.name, ahead


command = as_command("difficulty", build)
