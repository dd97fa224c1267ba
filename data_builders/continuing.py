"""Answers that are begun and continued by a model, which may be kept from seeing its images.

Axes: n rows, s columns of a row, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from mmalign.adapters.autoregressive import causal_lm, evaluating, moved
from mmalign.adapters.decoding import Going, Started, decode, holding
from mmalign.adapters.sampling import SeededDraws
from mmalign.adapters.vision_language import VisionLanguageAdapter
from mmalign.adapters.vision_language.collate import Prompt
from mmalign.attention import hiding, keep_rows
from mmalign.errors import UserError
from mmalign.records import Message, Sample, Text


@dataclass(frozen=True)
class Start:
    """A prompt and the beginning of its answer. hidden: (k,) whether each of the prompt's image
    tokens, in order, is hidden; None hides none. seed: of the draws."""

    prompt: tuple[Message, ...]
    begin: str
    hidden: Tensor | None
    seed: int


def never(text: str) -> None:
    """Where a text ends that goes on until the model ends it."""
    return


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a continuation is drawn.

    ends: where a growing continuation ends, None while it goes on; see `end_of_sentence`.
    not_empty: what is begun goes on with a token at least. layers: where image tokens are hidden,
    all by default.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    ends: Callable[[str], int | None] = never
    not_empty: bool = True
    layers: Sequence[int] = ()
    batch_size: int = 16


def image_tokens(adapter: VisionLanguageAdapter, prompt: tuple[Message, ...]) -> Tensor:
    """(k,) positions of the prompt's tokens that hold something of an image."""
    ids = torch.tensor(adapter.collator.prompt(prompt).ids)
    return (ids == adapter.collator.processing.image_id).nonzero()[:, 0]


def continuations(
    adapter: VisionLanguageAdapter, starts: Sequence[Start], drawing: Drawing
) -> list[str]:
    """What the policy writes behind each beginning, white space included.

    A row does not depend on its batch-mates.
    Raises UserError for models that look at images by cross-attention.
    """
    if adapter.collator.processing.family.cross_attention:
        raise UserError(
            "answers are not continued with models that look at images by cross-attention",
            hint="take a model whose prompt holds the image's tokens.",
        )
    read = [_begun(adapter, start) for start in starts]
    order = sorted(range(len(read)), key=lambda row: len(read[row].prompt.ids), reverse=True)
    texts: dict[int, str] = {}
    with evaluating(adapter.policy), torch.no_grad(), adapter.arithmetic():
        for first in range(0, len(order), drawing.batch_size):
            rows = order[first : first + drawing.batch_size]
            some = [starts[row] for row in rows], [read[row] for row in rows]
            texts |= dict(zip(rows, _batch(adapter, *some, drawing), strict=True))
    return [texts[row] for row in range(len(starts))]


@dataclass
class _Begun:
    """A prompt with the tokens of the answer's beginning, which are the last `count` of it."""

    prompt: Prompt
    count: int

    def begin(self) -> list[int]:
        return list(self.prompt.ids[len(self.prompt.ids) - self.count :])


def _begun(adapter: VisionLanguageAdapter, start: Start) -> _Begun:
    """Raises BadSample as the collator does."""
    collator = adapter.collator
    prompt = collator.prompt(start.prompt)
    if not start.begin:
        return _Begun(prompt, 0)
    sample = Sample(start.prompt, (Text(start.begin),))
    tokens, places = collator.tokens(sample).completion, collator.words.places(sample)
    own = tuple(token for token, place in zip(tokens, places, strict=False) if place is not None)
    types = collator.processing.family.types
    further = (types.answer,) * len(own) if types else ()
    ids = (*prompt.ids, *own)
    return _Begun(replace(prompt, ids=ids, types=(*prompt.types, *further)), len(own))


def _batch(
    adapter: VisionLanguageAdapter,
    starts: Sequence[Start],
    read: Sequence[_Begun],
    drawing: Drawing,
) -> list[str]:
    picking = _Picking(
        SeededDraws(
            [start.seed for start in starts],
            steps=drawing.max_new_tokens,
            temperature=drawing.temperature,
            top_p=drawing.top_p,
            allowed=adapter.speakable(),
        ),
        [each.begin() for each in read],
        adapter,
        drawing,
        adapter.stop_ids,
    )
    blind = any(start.hidden is not None for start in starts)
    layers = list(drawing.layers) or None
    with (
        hiding(adapter.policy, _hidden(adapter, starts, read), layers=layers)
        if blind
        else (nullcontext())
    ):
        answers = decode(
            causal_lm(adapter.policy),
            [each.prompt.ids for each in read],
            picking,
            steps=drawing.max_new_tokens,
            stop_ids=adapter.stop_ids,
            pad_id=adapter.collator.words.pad_id,
            start=_read(adapter, starts, [each.prompt for each in read]),
        )
    texts = [picking.text(row, answer) for row, answer in enumerate(answers)]
    return [text[: drawing.ends(text)] for text in texts]


def _hidden(
    adapter: VisionLanguageAdapter, starts: Sequence[Start], read: Sequence[_Begun]
) -> Tensor:
    """(n s) true for hidden columns of rows that are padded on the left."""
    longest = max(len(each.prompt.ids) for each in read)
    hidden = torch.zeros(len(starts), longest, dtype=torch.bool)
    for row, (start, each) in enumerate(zip(starts, read, strict=True)):
        if start.hidden is not None:
            gap = longest - len(each.prompt.ids)
            hidden[row, gap + image_tokens(adapter, start.prompt)] = start.hidden
    return hidden


def _read(
    adapter: VisionLanguageAdapter, starts: Sequence[Start], prompts: Sequence[Prompt]
) -> Started:
    """One pass over prompts and beginnings, a row for each, since each has a mask of its own."""
    lm = causal_lm(adapter.policy)
    call, after = adapter.collator.padded(prompts)
    shown = adapter.encode({"images": adapter.collator.images([s.prompt for s in starts])})
    cache = _Rows(config=lm.config.get_text_config())
    with adapter.seeing(adapter.policy, shown["images"]) as further:
        out = lm(
            **moved(call, adapter.device),
            **further,
            **holding(lm, cache),
            use_cache=True,
            logits_to_keep=1,
        )
    rows = torch.arange(len(starts), device=adapter.device)
    seen, after = call["attention_mask"].to(adapter.device), after.to(adapter.device)
    return out.logits[:, -1], cache, Going(rows, seen, after, torch.zeros_like(rows).bool())


class _Rows(DynamicCache):
    """Tells the attention which rows are left when decoding drops those that have ended."""

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        keep_rows(indices)


@dataclass
class _Picking:
    """Picks tokens until a row's text has ended, and knows what each row has written."""

    draws: SeededDraws
    begins: Sequence[list[int]]
    adapter: VisionLanguageAdapter
    drawing: Drawing
    stops: Collection[int]
    written: dict[int, list[int]] = field(default_factory=dict)

    def __call__(self, scores: Tensor, rows: Tensor, step: int) -> Tensor:
        stops = sorted(self.stops)
        if step == 0 and self.drawing.not_empty:
            scores = scores.clone()
            scores[:, stops] = -torch.inf
        tokens = self.draws(scores, rows, step)
        for place, row in enumerate(rows.tolist()):
            own = self.written.setdefault(row, [])
            if self.drawing.ends(self.text(row, own)) is not None:
                tokens[place] = stops[0]
            else:
                own.append(int(tokens[place]))
        return tokens

    def text(self, row: int, ids: Sequence[int]) -> str:
        """What these tokens add to the row's beginning; decoded together, for the spaces' sake."""
        begin = self._decoded(self.begins[row])
        return self._decoded([*self.begins[row], *ids]).removeprefix(begin)

    def _decoded(self, ids: Sequence[int]) -> str:
        tokenizer: Any = self.adapter.tokenizer
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))
