"""Draws codes, and plans in words, token by token with a cache; guidance, forced ends of rows.

A row's draws follow from its own seed, whatever it is batched with. Axes: r rows, c codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mmalign.adapters.decoding import decode, read_prompts
from mmalign.adapters.image_tokens.collate import ImageTokenCollator
from mmalign.adapters.image_tokens.family import Family, Layout
from mmalign.adapters.image_tokens.model import Speaker
from mmalign.adapters.sampling import SeededDraws


@dataclass(frozen=True)
class Taste:
    """How tokens are picked. guidance 1 is none; temperature 0 is greedy; top_k 0 and top_p 1 keep
    all codes."""

    guidance: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def draw_codes(
    lm: Any,
    family: Family,
    collator: ImageTokenCollator,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    taste: Taste,
    *,
    begun: Sequence[Sequence[int]] | None = None,
    upto: int | None = None,
) -> list[list[int]]:
    """Codes of one image per prompt, in reading order, `upto` so many (all by default).

    prompts: ids that end with the opening. begun: the first codes of each image, all equally many,
    to go on from; they are part of what is returned. A code's draw depends on the row's seed and
    the code's place, so an image that is begun and continued is the one drawn at once.
    """
    layout, first = collator.layout, collator.layout.first_code
    begun = [[] for _ in prompts] if begun is None else begun
    have, wanted = len(begun[0]), layout.count if upto is None else upto
    if have >= wanted:
        return [list(row) for row in begun]
    # Between what is begun and what is wanted: None for a code, else the id that must stand there.
    places = _places(layout, have, wanted)
    guided = taste.guidance != 1
    known = [(*prompt, *_as_ids(collator, row)) for prompt, row in zip(prompts, begun, strict=True)]
    if guided:
        known += [
            (*collator.unconditional(prompt), *_as_ids(collator, row))
            for prompt, row in zip(prompts, begun, strict=True)
        ]
    draws = SeededDraws(
        list(seeds), steps=layout.count, temperature=taste.temperature,
        top_k=taste.top_k, top_p=taste.top_p,
    )  # fmt: skip
    numbers = _numbers(places, have)

    def pick(scores: Tensor, rows: Tensor, step: int) -> Tensor:
        forced = places[step]
        if forced is not None:
            return rows.new_full((len(scores),), forced)
        if guided:
            told, untold = scores.chunk(2)
            scores, rows = untold + taste.guidance * (told - untold), rows.chunk(2)[0]
        codes = draws(scores, rows, numbers[step]) + first
        return codes.repeat(2) if guided else codes

    speaker = Speaker(lm, family, layout, "codes")
    start = read_prompts(speaker, known, collator.pad_id)
    begins = [sum(token < first for token in row) for row in known]
    start[2].each = {"begins": torch.tensor(begins, device=speaker.device)}
    found = decode(
        speaker, known, pick, steps=len(places), stop_ids=(), pad_id=collator.pad_id, start=start
    )
    drawn = [[token - first for token in row if token >= first] for row in found[: len(prompts)]]
    return [[*old, *new] for old, new in zip(begun, drawn, strict=True)]


def draw_plans(
    lm: Any,
    family: Family,
    collator: ImageTokenCollator,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    taste: Taste,
    *,
    most: int,
) -> list[str]:
    """A plan in words per prompt, of `most` tokens or until the model ends it or opens an image."""
    tokenizer = collator.tokenizer
    stops = {tokenizer.eos_token_id, *collator.opening[:1]} - {None}
    draws = SeededDraws(
        list(seeds), steps=most, temperature=taste.temperature, top_k=taste.top_k,
        top_p=taste.top_p,
    )  # fmt: skip
    speaker = Speaker(lm, family, collator.layout, "text")
    found = decode(speaker, prompts, draws, steps=most, stop_ids=stops, pad_id=collator.pad_id)
    return [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids in found]


def _as_ids(collator: ImageTokenCollator, codes: Sequence[int]) -> list[int]:
    """The first codes of an image as ids, with the ends of the rows between them."""
    return collator.image_ids(collator.layout.rows(codes))[0]


def _places(layout: Layout, have: int, wanted: int) -> list[int | None]:
    row_starts, end = set(accumulate(layout.widths)), layout.row_end
    places: list[int | None] = []
    for number in range(have, wanted):
        if end is not None and number in row_starts:
            places.append(end)
        places.append(None)
    return places


def _numbers(places: Sequence[int | None], have: int) -> list[int]:
    """Which code of the image is drawn at each step."""
    numbers, number = [], have
    for forced in places:
        numbers.append(number)
        number += forced is None
    return numbers
