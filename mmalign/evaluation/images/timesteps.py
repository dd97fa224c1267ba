"""At which timesteps a denoiser tells chosen from rejected: layout is decided where there is much
noise, detail where there is little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from mmalign.adapters.diffusion import DiffusionAdapter
from mmalign.adapters.diffusion.timesteps import TimestepLaw
from mmalign.evaluation.intervals import Interval, wilson
from mmalign.objectives import objective
from mmalign.records import Preference
from mmalign.reference import Reference
from mmalign.training.batches import Plan
from mmalign.training.evaluate import held_out_figures
from mmalign.training.step import Scorer


def accuracy_by_time(
    adapter: DiffusionAdapter,
    preferences: Sequence[Preference],
    reference: Reference,
    *,
    parts: int = 5,
    seed: int = 0,
    micro_batch: int = 8192,
) -> dict[str, Interval]:
    """Share of pairs whose chosen side's error fell more than the other's against the reference, in
    each of `parts` equal stretches of the time that the adapter's law covers, of 0 (clean) to 1.

    Every pair is seen once in each stretch, at a time within it that its seed decides. Preferences
    of other than two candidates are ranked by their best and worst.
    """
    found = {}
    for part in range(parts):
        width = (adapter.law.high - adapter.law.low) / parts
        low = adapter.law.low + part * width
        high = min(low + width, adapter.law.high)
        law = TimestepLaw(law="uniform", low=low, high=high)
        here = replace(adapter, law=law)
        dpo = objective("dpo(beta=1.0)")
        plan = Plan(here.collate, here.size, dpo.needs, 32, micro_batch, seed=seed)
        pairs = [_ends(preference) for preference in preferences]
        right = held_out_figures(here, Scorer(here), pairs, dpo, reference, plan)["reward_accuracy"]
        found[f"time {low:.2g} to {high:.2g}"] = wilson(right.sum().item(), len(right))
    return found


def _ends(preference: Preference) -> Preference:
    if len(preference.candidates) == 2:
        return preference
    ends = preference.candidates[0], preference.candidates[-1]
    return replace(preference, candidates=ends, grades=(1.0, 0.0))
