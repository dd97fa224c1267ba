"""Continues prompts token by token with a cache; rows leave the batch as they end.

Equal prompts are read once, so that several responses to one prompt cost one prefill, and a batch
becomes smaller while it is decoded instead of waiting for its longest row. Axes: r rows, v
vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

COMPACT_AT = 0.8
"""Share of rows still going at which the others are dropped: selecting copies the cache."""

Pick = Callable[[Tensor, Tensor, int], Tensor]
"""The next token of each row (r,), from the scores (r v), the rows' numbers (r,) and the step."""


@dataclass
class Going:
    """The rows that are still decoded: their numbers, last tokens, masks and positions."""

    rows: Tensor
    seen: Tensor  # (r, length) 1 where the cache holds a token, 0 for padding
    position: Tensor  # (r,) of the token that comes next
    done: Tensor  # (r,) ended, but not dropped yet
    each: dict[str, Tensor] = field(default_factory=dict)  # (r ...) further arguments of every call

    def select(self, places: Tensor) -> None:
        self.rows, self.seen = self.rows[places], self.seen[places]
        self.position, self.done = self.position[places], self.done[places]
        self.each = {name: rows[places] for name, rows in self.each.items()}


Started = tuple[Tensor, DynamicCache, Going]
"""Logits (r v) after each prompt, the cache, and the rows."""


def decode(
    lm: Any,
    prompts: Sequence[Sequence[int]],
    pick: Pick,
    *,
    steps: int,
    stop_ids: Collection[int],
    pad_id: int,
    start: Started | None = None,
) -> list[list[int]]:
    """Token ids of each prompt's continuation, without the token that ended it.

    lm: a causal language model of transformers whose cache can be indexed by rows.
    start: what `read_prompts` gives, where prompts are more than their token ids.
    """
    logits, cache, going = read_prompts(lm, prompts, pad_id) if start is None else start
    stops = torch.tensor(sorted(stop_ids), device=logits.device)
    answers: list[list[int]] = [[] for _ in prompts]
    for step in range(steps):
        tokens = pick(logits.float(), going.rows, step)
        going.done = going.done | torch.isin(tokens, stops)
        for row, token, done in zip(
            going.rows.tolist(), tokens.tolist(), going.done.tolist(), strict=True
        ):
            if not done:
                answers[row].append(token)
        if step == steps - 1 or going.done.all():
            break
        if (~going.done).float().mean() <= COMPACT_AT:
            places = torch.nonzero(~going.done).flatten()
            going.select(places)
            cache.batch_select_indices(places)
            tokens = tokens[places]
        going.seen = torch.cat([going.seen, torch.ones_like(going.seen[:, :1])], dim=1)
        logits = lm(
            input_ids=tokens[:, None],
            attention_mask=going.seen,
            position_ids=going.position[:, None],
            **going.each,
            **holding(lm, cache),
            use_cache=True,
        ).logits[:, -1]
        going.position = going.position + 1
    return answers


def holding(lm: Any, cache: DynamicCache) -> dict[str, DynamicCache]:
    """The cache by the name that the model's forward has for it, which transformers changes."""
    named = "cache" in inspect.signature(lm.forward).parameters
    return {"cache" if named else "past_key_values": cache}


def read_prompts(
    lm: Any, prompts: Sequence[Sequence[int]], pad_id: int
) -> tuple[Tensor, DynamicCache, Going]:
    """Logits (r v) after each prompt, the cache and the rows, from one pass over the distinct
    prompts."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    longest = max(map(len, distinct))
    ids = torch.tensor([[pad_id] * (longest - len(row)) + list(row) for row in distinct])
    seen = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in distinct])
    ids, seen = ids.to(lm.device), seen.to(lm.device)
    cache = DynamicCache(config=lm.config)
    out = lm(
        input_ids=ids,
        attention_mask=seen,
        position_ids=(seen.cumsum(-1) - 1).clamp(min=0),
        **holding(lm, cache),
        use_cache=True,
        logits_to_keep=1,
    )
    place = {row: i for i, row in enumerate(distinct)}
    index = torch.tensor([place[tuple(row)] for row in prompts], device=lm.device)
    cache.batch_select_indices(index)
    seen = seen[index]
    rows = torch.arange(len(prompts), device=lm.device)
    going = Going(rows, seen, seen.sum(-1), torch.zeros_like(rows, dtype=torch.bool))
    return out.logits[index, -1], cache, going
