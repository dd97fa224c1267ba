"""Where adapter and objective meet: micro-batch in, losses and metrics out.

Axes: b preferences, k candidates, n rows of the adapter, t response elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.adapters.protocol import DIVERGENCE, PREDICTIONS, Adapter, Inputs, Scored
from mmalign.objectives import Objective
from mmalign.objectives.metrics import metrics
from mmalign.objectives.scores import BASELINES, Batch, LogProbs, TokenLogProbs
from mmalign.reference import Reference
from mmalign.training.batches import MicroBatch, Rows


class Scorer(nn.Module):
    """The policy's log-probabilities as a module's forward, which is what DDP and FSDP wrap."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self.policy = adapter.policy
        self._log_probs = adapter.log_probs

    def forward(self, inputs: Inputs, stats: Collection[str] = ()) -> Scored:
        return self._log_probs(self.policy, inputs, stats)


def preference_step(
    adapter: Adapter,
    scorer: nn.Module,
    micro: MicroBatch,
    objective: Objective,
    reference: Reference | None,
    baselines: Mapping[str, LogProbs],
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses (b,) of a micro-batch, with gradient, and named figures (b,) about it, without.

    reference: None for objectives that need none. baselines: see `step_baselines`.
    """

    def score(rows: Rows) -> LogProbs:
        return _score(adapter, scorer, rows, micro, objective, reference)

    views = {name: score(rows) for name, rows in micro.views.items() if name not in BASELINES}
    candidates = score(micro.candidates)
    grades = micro.grades.to(candidates.policy.device)
    batch = Batch(candidates, grades, {**views, **baselines})
    terms = objective.terms(batch)
    losses = torch.stack(list(terms.values())).sum(0)
    with torch.no_grad():
        figures = {"loss": losses.detach(), **metrics(batch)}
        if len(terms) > 1:
            figures |= {f"loss/{name}": term.detach() for name, term in terms.items()}
    return losses, figures


def step_baselines(
    adapter: Adapter,
    scorer: nn.Module,
    micro_batches: Sequence[MicroBatch],
    objective: Objective,
    reference: Reference | None,
    gather: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> dict[str, LogProbs]:
    """What an objective compares a whole step with: (m,) rows of all micro-batches and processes.

    Computed before the step, so that it does not depend on how the step is cut into micro-batches.
    gather: joins the rows of all processes.
    """
    found: dict[str, LogProbs] = {}
    for name in sorted(objective.needs.views & BASELINES):
        with torch.no_grad():
            parts = [
                _score(adapter, scorer, micro.views[name], micro, objective, reference)[
                    micro.views[name].slots >= 0
                ]
                for micro in micro_batches
            ]
        found[name] = LogProbs(
            policy=gather(torch.cat([part.policy for part in parts])),
            reference=gather(torch.cat([part.reference for part in parts])),
            length=gather(torch.cat([part.length for part in parts])),
        )
    return found


def _score(
    adapter: Adapter,
    scorer: nn.Module,
    rows: Rows,
    micro: MicroBatch,
    objective: Objective,
    reference: Reference | None,
) -> LogProbs:
    inputs = adapter.encode(rows.inputs)
    stats = sorted(objective.needs.stats)
    # Of the candidates as they are; no objective compares predictions in other views.
    compared = objective.needs.divergence and rows is micro.candidates
    told = None
    if reference is not None:
        wanted = [PREDICTIONS] if compared else []
        told = reference.log_probs(inputs, rows.keys, rows.seeds, wanted)
        if compared:
            inputs, stats = {**inputs, PREDICTIONS: told.predictions}, [*stats, DIVERGENCE]
    policy = scorer(inputs, stats)
    return arrange(policy, told, rows.slots, {**micro.aux, "grade": micro.grades})


def arrange(
    policy: Scored, reference: Scored | None, slots: Tensor, aux: dict[str, Tensor]
) -> LogProbs:
    """Rows (n) laid out as candidates (b k). Empty places hold the figures of row 0; objectives
    know them by their grade, which is nan."""
    place = slots.clamp(min=0).to(policy.log_probs.device)
    unknown = torch.full_like(policy.log_probs, math.nan)

    def lay(tensor: Tensor) -> Tensor:
        return tensor[place]

    tokens = None
    if policy.tokens is not None:
        told = None if reference is None else reference.tokens
        elements = policy.tokens
        tokens = TokenLogProbs(
            policy=lay(elements.log_probs),
            reference=lay(
                torch.full_like(elements.log_probs, math.nan) if told is None else told.log_probs
            ),
            mask=lay(elements.mask),
            weights=lay(elements.weights),
            stats={name: lay(stat) for name, stat in elements.stats.items()},
        )
    return LogProbs(
        policy=lay(policy.log_probs),
        reference=lay(unknown if reference is None else reference.log_probs),
        length=lay(policy.lengths),
        tokens=tokens,
        divergence=None if policy.divergence is None else lay(policy.divergence),
        aux={name: _per_candidate(tensor, place) for name, tensor in aux.items()},
    )


def _per_candidate(tensor: Tensor, place: Tensor) -> Tensor:
    tensor = tensor.to(place.device)
    return tensor if tensor.dim() == 2 else tensor[:, None].expand(place.shape)


class Averages:
    """Sums figures (b,) over micro-batches, and over processes when asked for their means."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def add(self, figures: dict[str, Tensor]) -> None:
        for name, values in figures.items():
            known = ~values.isnan()
            self._sums[name] = self._sums.get(name, 0.0) + values.where(known, 0).sum().double()
            self._counts[name] = self._counts.get(name, 0.0) + known.sum().double()

    def means(self, total: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> dict[str, float]:
        """Means over all that was added, in all processes. Every process must have the same
        figures, which it has when it runs the same objective."""
        names = sorted(self._sums)
        stacked = torch.stack([*(self._sums[n] for n in names), *(self._counts[n] for n in names)])
        both: Any = total(stacked).cpu().view(2, -1)
        return {
            name: (both[0, i] / both[1, i]).item() if both[1, i] > 0 else math.nan
            for i, name in enumerate(names)
        }
