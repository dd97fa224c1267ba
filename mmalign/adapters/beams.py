"""Beam search for the likeliest answers: on a policy that was trained by DPO, value-guided search.

Its log-probabilities are optimal advantages up to the reference's, log pi = log ref + (Q - V)/beta,
so that the answer with the highest sum has the highest implicit reward with the reference's share.
No length is normalised away, which would break that, and ending is a token like others.
arXiv:2404.12358, section 4.2. Axes: n prompts, b beams, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmalign.adapters.decoding import Going, holding, read_prompts


@dataclass
class Voice:
    """A model that has a say in the search: its log-probabilities count `share` times.

    mode: entered around each call, for instance a LoRA switched off.
    """

    lm: Any
    share: float
    mode: Callable[[], AbstractContextManager[Any]]
    _cache: Any = field(default=None, init=False)
    _going: Going | None = field(default=None, init=False)

    def read(self, prompts: Sequence[Sequence[int]], pad_id: int) -> Tensor:
        """Weighted log-probabilities (rows, v) of the token after each prompt."""
        with self.mode():
            logits, self._cache, self._going = read_prompts(self.lm, prompts, pad_id)
        return self.share * logits.float().log_softmax(-1)

    def go_on(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """The same after `tokens` (rows,), of which each continues one of the former rows."""
        assert self._going is not None  # prompts were read
        self._cache.batch_select_indices(rows)
        self._going.select(rows)
        going = self._going
        going.seen = torch.cat([going.seen, torch.ones_like(going.seen[:, :1])], dim=1)
        with self.mode():
            logits = self.lm(
                input_ids=tokens[:, None],
                attention_mask=going.seen,
                position_ids=going.position[:, None],
                **holding(self.lm, self._cache),
                use_cache=True,
            ).logits[:, -1]
        going.position = going.position + 1
        return self.share * logits.float().log_softmax(-1)


def search(
    voices: Sequence[Voice],
    prompts: Sequence[Sequence[int]],
    *,
    beams: int,
    steps: int,
    stop_ids: Collection[int],
    pad_id: int,
    allowed: Tensor,
) -> list[list[int]]:
    """Token ids of the best continuation of each prompt, without the token that ended it.

    allowed: (v,) true where a token may be written at all. With as many beams as there are
    continuations the search is exact.
    """
    rows = [prompt for prompt in prompts for _ in range(beams)]
    heard = _sum(voice.read(rows, pad_id) for voice in voices)
    count, size, device = len(prompts), heard.shape[-1], heard.device
    stops = torch.tensor(sorted(stop_ids), device=device)
    first = torch.arange(count, device=device)[:, None] * beams
    scores = torch.full((count, beams), -torch.inf, device=device)
    scores[:, 0] = 0  # all beams of a prompt are alike as yet
    done = torch.zeros_like(scores, dtype=torch.bool)
    written = torch.empty(count, beams, 0, dtype=torch.long, device=device)
    falling = all(voice.share >= 0 for voice in voices)  # no beam can gain by going on
    for step in range(steps):
        options = heard.masked_fill(~allowed.to(device), -torch.inf).view(count, beams, size)
        options = (scores[..., None] + options).masked_fill(done[..., None], -torch.inf)
        # An ended beam goes on in one way only, with padding that costs nothing.
        options[..., pad_id] = torch.where(done, scores, options[..., pad_id])
        scores, place = options.flatten(1).topk(beams)  # (n b), best first
        beam, token = place // size, place % size
        done = done.gather(1, beam) | torch.isin(token, stops)
        written = written.gather(1, beam[..., None].expand(-1, -1, step))
        written = torch.cat([written, token[..., None]], dim=-1)
        if done.all() or (falling and done[:, 0].all()) or step == steps - 1:
            break
        chosen = (first + beam).flatten()
        heard = _sum(voice.go_on(chosen, token.flatten()) for voice in voices)
    ends = set(stops.tolist())
    return [_until(ends, answer) for answer in written[:, 0].tolist()]


def _sum(parts: Any) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _until(ends: set[int], answer: list[int]) -> list[int]:
    length = next((i for i, token in enumerate(answer) if token in ends), len(answer))
    return answer[:length]
