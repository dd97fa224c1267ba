"""Sampling in which a row's draw depends on its own seed only, whatever it is batched with.

A token is drawn by inverting the distribution function at a uniform number that the row's seed
fixed in advance. Axes: r rows, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

T = TypeVar("T")
Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""


def check_request(
    kind: str, prompts: Sequence[Any], seeds: Sequence[int], unknown: Mapping[str, Any]
) -> None:
    """Raises TypeError for an option that sampling of this kind of model does not have, and
    ValueError unless each prompt has its seed."""
    if unknown:
        raise TypeError(f"{kind} sampling has no option {sorted(unknown)[0]!r}")
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds: one seed each")


def in_batches(
    lengths: Sequence[int],
    draw: Callable[[list[int]], Sequence[T]],
    *,
    batch_size: int,
    progress: Progress | None,
) -> list[T]:
    """What `draw` makes of each prompt, in the order of the prompts.

    lengths: of the prompts; the longest ones come first, so that a batch has little padding and
    what needs most memory fails at once. draw: called with the numbers of some prompts.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    made: dict[int, T] = {}
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        made.update(zip(rows, draw(rows), strict=True))
        if progress is not None:
            progress(len(made), len(order))
    return [made[index] for index in range(len(order))]


class SeededDraws:
    """Draws each row's next token from its own stream of uniform numbers.

    seeds: one per row. steps: tokens at most. temperature 0 is greedy. top_k 0 and top_p 1 keep all
    tokens. allowed: (v,) true where a token may be drawn at all; all by default.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        *,
        steps: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        allowed: Tensor | None = None,
    ) -> None:
        self.uniforms = torch.stack([uniforms(seed, steps) for seed in seeds])
        self.steps = steps
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.allowed = allowed

    def __call__(self, scores: Tensor, rows: Tensor, step: int) -> Tensor:
        """(r,) the next tokens of the rows numbered `rows` (r,), from their scores (r v)."""
        if self.allowed is not None:
            scores = scores.masked_fill(~self.allowed.to(scores.device), -torch.inf)
        if self.temperature == 0:
            return scores.argmax(-1)
        uniform = self.uniforms[rows.cpu(), step].to(scores.device)
        return draw(
            scores, uniform, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )

    def processor(self, start: int) -> LogitsProcessor:
        """The same for transformers' `generate`, whose prompts have `start` tokens: scores in which
        the token is already drawn, so that picking greedily finds it."""
        return _Drawn(self, start)


class _Drawn(LogitsProcessor):
    def __init__(self, draws: SeededDraws, start: int) -> None:
        self.draws, self.start = draws, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        rows = torch.arange(len(scores))
        token = self.draws(scores, rows, input_ids.shape[1] - self.start)
        return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)


def uniforms(seed: int, steps: int) -> Tensor:
    """(steps,) float64 in [0, 1): the randomness of one row."""
    return torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(
    logits: Tensor,
    uniform: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Tensor:
    """(r,) tokens at the quantiles `uniform` (r,) of the distributions `logits` (r v).

    top_p keeps the smallest set of likeliest tokens whose probability reaches top_p.
    """
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probs = torch.softmax(logits, -1)
    if top_p < 1:
        sorted_probs, order = probs.sort(dim=-1, descending=True, stable=True)
        beyond = sorted_probs.cumsum(-1) - sorted_probs >= top_p
        probs = probs.masked_fill(torch.zeros_like(beyond).scatter(1, order, beyond), 0.0)
    # In the vocabulary's order, which rounding cannot change as it can the order of likelihood.
    below = probs.cumsum(-1, dtype=torch.float64)
    # Less than the total even after rounding, so that no token of probability 0 is ever met.
    quantile = uniform.clamp(max=1 - 1e-12)[:, None] * below[:, -1:]
    return torch.searchsorted(below, quantile, right=True)[:, 0]
