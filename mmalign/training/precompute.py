"""Fill a reference cache for a whole dataset before training, so that training only looks up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from mmalign.adapters.protocol import Adapter
from mmalign.records import Preference
from mmalign.reference import Cached
from mmalign.training.batches import Plan, candidate_rows
from mmalign.training.log import progress

WINDOW = 256
"""Records that are sorted by size together, and whose answers are stored at once. Windows lie at
fixed places, so that a run killed here and started again forms the very same batches."""


def precompute(
    cached: Cached, adapter: Adapter, data: Sequence[Preference], plan: Plan, *, passes: int = 1
) -> int:
    """Compute what is missing for the candidates of `data` and return how many samples that was.

    Unusable records are left out: training meets and reports them. Each process does its share of
    the windows. passes: over the data whose seeds are computed, which matters to denoisers only.
    """
    before = cached.computed
    starts = range(plan.rank * WINDOW, len(data), plan.processes * WINDOW)
    turns = range(passes if cached.seeded else 1)
    training = adapter.policy.training
    adapter.policy.eval()
    with progress("reference", total=len(starts) * len(turns), show=plan.rank == 0) as advance:
        for start, turn in product(starts, turns):
            with cached.together(), torch.no_grad():
                window = range(start, min(start + WINDOW, len(data)))
                for rows in candidate_rows(data, window, plan, cached.missing, turn):
                    cached.log_probs(adapter.encode(rows.inputs), rows.keys, rows.seeds)
            advance()
    adapter.policy.train(training)
    return cached.computed - before
