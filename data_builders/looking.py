"""How much of an answer's attention goes to each image of its prompt, or each part of a collage.

MIA-DPO's measure, arXiv:2410.17637, by one teacher-forced pass over prompt and answer.
Axes: m tokens of an image, c cells (images, or parts of one), s columns of a row.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.adapters.autoregressive import Abilities, evaluating, score
from mmalign.adapters.protocol import Inputs
from mmalign.adapters.vision_language import ImageSpan, VisionLanguageAdapter
from mmalign.adapters.vision_language.layouts import cells
from mmalign.attention import image_layer, probing
from mmalign.errors import BadSample
from mmalign.records import Sample, media_of

Box = Sequence[float]
"""x0 y0 x1 y1 in pixels of an image."""

Rows = Literal["answer", "predictions"]
"""Whose attention counts: that of the answer's tokens as they are read again, without the last, as
in the published code; or that of the positions that predict the answer's tokens."""


GRAIN = 16
"""Rows and columns of a heat map."""


@dataclass(frozen=True)
class Look:
    """Where an answer looked, and how sure it was.

    masses: attention on each cell, mean over layers, heads and rows; what is missing to 1 is on
    other tokens. tokens: of each cell, in parts where a token lies in several. largest: the share
    of one token in the attention on all cells, which is large where a token serves as a sink.
    perplexity: exp of minus the mean log-probability of the likeliest token, over the answer.
    length: of the answer in tokens, its end included. heat: for each image of the prompt, the
    attention on a grid of GRAIN by GRAIN parts of it, row by row.
    """

    masses: tuple[float, ...]
    tokens: tuple[float, ...]
    largest: float
    perplexity: float
    length: int
    heat: tuple[tuple[float, ...], ...] = ()

    @staticmethod
    def of(noted: Mapping[str, Any]) -> Look:
        """From what `asdict` made of one, also after it was JSON."""
        masses, tokens = tuple(noted["masses"]), tuple(noted["tokens"])
        heat = tuple(map(tuple, noted.get("heat", ())))
        return Look(masses, tokens, noted["largest"], noted["perplexity"], noted["length"], heat)


def looks(
    adapter: VisionLanguageAdapter,
    samples: Sequence[Sample],
    boxes: Sequence[Sequence[Box] | None],
    *,
    layers: Sequence[int] = (),
    rows: Rows = "answer",
    batch_size: int = 8,
) -> list[Look]:
    """Where each sample's response looks.

    boxes: for each sample, the cells of its one image; None: every image is a cell. What lies in
        several boxes belongs to the first of them.
    layers: to take the mean of; by default one in the middle.
    Raises BadSample for responses that are too short to have a row.
    """
    crossed = adapter.collator.processing.family.cross_attention
    if crossed and len({len(media_of(sample.prompt)) for sample in samples}) > 1:
        batch_size = 1  # one call takes prompts with equally many images
    named = [image_layer(adapter.policy, layer) for layer in layers]
    wanted = named or [image_layer(adapter.policy)]
    found: list[Look] = []
    with evaluating(adapter.policy), torch.no_grad():
        for start in range(0, len(samples), batch_size):
            part = slice(start, start + batch_size)
            found += _batch(adapter, samples[part], boxes[part], wanted, rows)
    return found


def _batch(
    adapter: VisionLanguageAdapter,
    samples: Sequence[Sample],
    boxes: Sequence[Sequence[Box] | None],
    layers: Sequence[int],
    rows: Rows,
) -> list[Look]:
    inputs = plain_inputs(adapter, samples)
    tokens = [adapter.collator.tokens(sample) for sample in samples]
    spans = [adapter.spans(sample.prompt) for sample in samples]
    last = [int(span.positions.max()) for own in spans for span in own if len(span.positions)]
    columns = max(inputs["call"]["input_ids"].shape[1], *(place + 1 for place in last))
    first = 0 if rows == "answer" else -1
    queries = torch.full((len(samples), inputs["mask"].shape[1]), -1)
    weighed = [cell_weights(*given, columns) for given in zip(spans, boxes, strict=True)]
    groups = torch.zeros(len(samples), columns, max(weights.shape[1] for weights in weighed))
    for row, (one, weights) in enumerate(zip(tokens, weighed, strict=True)):
        places = torch.arange(len(one.prompt) + first, len(one.prompt) + len(one.completion) - 1)
        if not len(places):
            raise BadSample("the answer is empty, so there is nothing that could look at images")
        queries[row, : len(places)] = places
        groups[row, :, : weights.shape[1]] = weights
    inputs = adapter.encode(inputs)
    with (
        adapter.arithmetic(),
        adapter.seeing(adapter.policy, inputs["images"]) as seen,
        probing(adapter.policy, queries, groups, layers=layers) as probe,
    ):
        call = {**inputs, "call": {**inputs["call"], **seen}}
        plain = Abilities(packed=False, tail=adapter.abilities.tail)
        scored = score(adapter.policy, call, plain, ["highest"])
    masses = torch.stack([probe.mean_mass(layer) for layer in layers]).mean(0).cpu()
    on_columns = torch.stack([probe.columns[layer] for layer in layers]).mean(0).cpu()
    assert scored.tokens is not None  # score always gives them
    highest = scored.tokens.stats["highest"].sum(-1) / scored.lengths
    return [
        Look(
            masses=tuple(masses[row, : weights.shape[1]].tolist()),
            tokens=tuple(weights.sum(0).tolist()),
            largest=_largest(on_columns[row, : len(weights)] * weights.sum(1)),
            perplexity=math.exp(-float(highest[row])),
            length=len(tokens[row].completion),
            heat=tuple(heat_map(span, on_columns[row]) for span in spans[row]),
        )
        for row, weights in enumerate(weighed)
    ]


def plain_inputs(adapter: VisionLanguageAdapter, samples: Sequence[Sample]) -> Inputs:
    """The samples collated with a row for each, padded behind."""
    collator = copy.copy(adapter.collator)
    collator.packed = False
    return collator(samples)


def cell_weights(spans: Sequence[ImageSpan], boxes: Sequence[Box] | None, columns: int) -> Tensor:
    """(s c) the share of each column's token in each cell.

    Raises BadSample for boxes where there is not exactly one image.
    """
    if boxes is None:
        weights = torch.zeros(columns, len(spans))
        for cell, span in enumerate(spans):
            weights[span.positions, cell] = 1
        return weights
    if len(spans) != 1:
        raise BadSample(f"parts of one image are asked for, but the prompt has {len(spans)}")
    (span,) = spans
    weights = torch.zeros(columns, len(boxes))
    for cell, box in enumerate(boxes):
        inside = _share(span.rectangles, box)
        for earlier in boxes[:cell]:
            inside -= _share(span.rectangles, _common(box, earlier))
        weights[span.positions, cell] = inside
    return weights


def _share(rectangles: Tensor, box: Box) -> Tensor:
    """(m,) how much of each rectangle (m 4) lies in a box; 0 for rectangles without area."""
    corners = torch.tensor([float(corner) for corner in box])
    sides = torch.minimum(rectangles[:, 2:], corners[2:]) - torch.maximum(
        rectangles[:, :2], corners[:2]
    )
    whole = (rectangles[:, 2:] - rectangles[:, :2]).prod(-1)
    return torch.where(whole > 0, sides.clamp(min=0).prod(-1) / whole, 0.0)


def _common(one: Box, other: Box) -> Box:
    x0, y0 = max(one[0], other[0]), max(one[1], other[1])
    return x0, y0, max(x0, min(one[2], other[2])), max(y0, min(one[3], other[3]))


def heat_map(span: ImageSpan, attention: Tensor) -> tuple[float, ...]:
    """(s) attention on columns, as parts of an image: each token's is spread over its rectangle."""
    parts = cells(span.size, GRAIN, GRAIN)
    known = attention[span.positions]
    shares = torch.stack([_share(span.rectangles, part) for part in parts.tolist()], dim=1)  # (m p)
    return tuple(round(value, 7) for value in (known @ shares).tolist())


def _largest(attention: Tensor) -> float:
    total = float(attention.sum())
    return float(attention.max()) / total if total > 0 else math.nan


def attention_on(look: Look, *, reduce: Literal["mean", "sum"]) -> list[float]:
    """The attention on each cell: the mean over its tokens, so that no image has an advantage by
    its size, or their sum."""
    if reduce == "sum":
        return list(look.masses)
    return [
        mass / tokens if tokens else 0.0
        for mass, tokens in zip(look.masses, look.tokens, strict=True)
    ]
