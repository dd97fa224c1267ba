"""Where an answer looks, against whole attention matrices and sums by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vision_language import picture, save_family
from torch import Tensor

from mmalign.adapters.autoregressive import causal_lm
from mmalign.adapters.packing import attention_of, set_attention
from mmalign.adapters.vision_language import (
    ImageSpan,
    VisionLanguageAdapter,
    load_vision_language,
)
from mmalign.adapters.vision_language.layouts import cells
from mmalign.data_builders.looking import (
    GRAIN,
    Look,
    attention_on,
    cell_weights,
    heat_map,
    looks,
    plain_inputs,
)
from mmalign.errors import BadSample
from mmalign.records import Message, Sample, Text

A, B = picture(1), picture(2)
TWO = (Message("user", (Text("Image1:"), A, Text("\nImage2:"), B, Text("\nWhich?"))),)
ONE = (Message("user", (A, Text("\nWhat is in the middle?"))),)


@pytest.fixture(scope="module", params=["llava", "qwen2_5_vl"])
def adapter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> VisionLanguageAdapter:
    return load_vision_language(save_family(tmp_path_factory.mktemp("model"), request.param))


def whole_attention(adapter: VisionLanguageAdapter, sample: Sample) -> tuple[Tensor, Tensor]:
    """Attention (layers h s s) by transformers' own means, and logits (s v)."""
    lm = causal_lm(adapter.policy)
    before = attention_of(lm)
    set_attention(lm, "eager")
    inputs = adapter.encode(plain_inputs(adapter, [sample]))
    with torch.no_grad(), adapter.seeing(adapter.policy, inputs["images"]) as seen:
        out = lm.eval()(**inputs["call"], **seen, output_attentions=True)
    set_attention(lm, before)
    return torch.cat(out.attentions), out.logits[0]


@pytest.mark.parametrize("rows", ["answer", "predictions"])
def test_looks_equal_sums_over_whole_attention_matrices(
    adapter: VisionLanguageAdapter, rows: str
) -> None:
    samples = [Sample(TWO, (Text("the second one"),)), Sample(ONE, (Text("a"),))]
    box = (0, 0, 40, 60)
    # silenced: lists for tuples
    found = looks(adapter, samples, [None, [box, (0, 0, 80, 60)]], layers=[0, 1], rows=rows)  # type: ignore[arg-type]
    for sample, boxes, look in zip(samples, (None, [box]), found, strict=True):
        attention, logits = whole_attention(adapter, sample)
        tokens = adapter.collator.tokens(sample)
        first = len(tokens.prompt) - (rows == "predictions")
        mean = attention[:, :, first : len(tokens.prompt) + len(tokens.completion) - 1]
        columns = mean.mean((0, 1, 2))
        spans = adapter.spans(sample.prompt)
        if boxes is None:
            expected = [float(columns[span.positions].sum()) for span in spans]
        else:
            (span,) = spans
            x0, x1 = span.rectangles[:, 0], span.rectangles[:, 2]
            inside = ((x1.clamp(max=40) - x0.clamp(max=40)) / (x1 - x0)).nan_to_num()
            on_tokens = columns[span.positions] * (span.rectangles[:, 3] > span.rectangles[:, 1])
            left = float((on_tokens * inside).sum())
            expected = [left, float(on_tokens.sum()) - left]
        assert look.masses == pytest.approx(expected, abs=2e-6)
        predicting = logits[len(tokens.prompt) - 1 :]
        assert look.length == len(tokens.completion) == len(predicting)
        likeliest = predicting.log_softmax(-1).max(-1).values.mean()
        assert look.perplexity == pytest.approx(math.exp(-likeliest), rel=1e-5)


def test_an_answer_looks_alike_alone_and_in_a_batch(adapter: VisionLanguageAdapter) -> None:
    samples = [Sample(TWO, (Text(text),)) for text in ("one", "the second of the two", "b")]
    together = looks(adapter, samples, [None] * 3)
    for sample, look in zip(samples, together, strict=True):
        (alone,) = looks(adapter, [sample], [None])
        assert alone.masses == pytest.approx(look.masses, rel=1e-4)
        assert alone.perplexity == pytest.approx(look.perplexity, rel=1e-4)
        assert 0 < sum(look.masses) < 1
        assert 0 < look.largest <= 1


def shares(spans: Sequence[ImageSpan], boxes: Any, reduce: str) -> list[float]:
    """Of attention that is the same on every token."""
    weights = cell_weights(spans, boxes, 2000)
    even = weights.sum(0)
    look = Look(tuple((even / 2000).tolist()), tuple(even.tolist()), 0.0, 1.0, 5)
    amounts = attention_on(look, reduce=reduce)  # type: ignore[arg-type]  # one of the two
    return [amount / sum(amounts) for amount in amounts]


def span(rows: int, columns: int, size: tuple[int, int] = (336, 336), start: int = 3) -> ImageSpan:
    rectangles = cells(size, rows, columns)
    return ImageSpan(torch.arange(start, start + len(rectangles)), rectangles, size)


def test_even_attention_gives_every_image_its_share() -> None:
    several = [span(24, 24), span(24, 24, start=600), span(12, 24, start=1200)]
    assert shares(several, None, "mean") == pytest.approx([1 / 3] * 3)
    assert shares(several, None, "sum") == pytest.approx([0.4, 0.4, 0.2])
    inner = (56, 56, 280, 280)  # 16 of 24 tokens each way
    assert shares([span(24, 24)], [inner, (0, 0, 336, 336)], "sum")[0] == pytest.approx(
        0.4444, 1e-3
    )
    grid = [(x, y, x + 100, y + 100) for y in (0, 236) for x in (0, 236)]
    assert shares([span(24, 24)], grid, "mean") == pytest.approx([0.25] * 4)
    assert shares([span(7, 5)], grid, "sum") == pytest.approx([0.25] * 4, rel=1e-4)


def test_a_token_counts_for_a_cell_by_the_area_they_share() -> None:
    weights = cell_weights([span(2, 2)], [(0, 0, 84, 336), (84, 0, 336, 168)], 8)
    expected = [[0.5, 0.5], [0, 1], [0.5, 0], [0, 0]]  # the rest of the third is in no cell
    torch.testing.assert_close(weights[3:7], torch.tensor(expected, dtype=torch.float))
    assert not weights[[0, 1, 2, 7]].any()
    with pytest.raises(BadSample, match="the prompt has 2"):
        cell_weights([span(2, 2), span(2, 2)], [(0, 0, 1, 1)], 8)


def test_heat_lies_where_the_attention_does() -> None:
    own = span(2, 2)
    attention = torch.zeros(10)
    attention[own.positions] = torch.tensor([0.4, 0.0, 0.1, 0.2])
    heat = torch.tensor(heat_map(own, attention)).view(2, GRAIN // 2, 2, GRAIN // 2)
    expected = torch.tensor([[0.4, 0.0], [0.1, 0.2]])
    torch.testing.assert_close(heat.sum((1, 3)), expected, rtol=1e-4, atol=1e-5)
    assert heat[0, :, 0].std() < 1e-6  # evenly within a token


def test_models_with_cross_attention_are_looked_at_there(tmp_path: Path) -> None:
    adapter = load_vision_language(save_family(tmp_path, "mllama"))
    samples = [Sample(ONE, (Text("the wall"),)), Sample(TWO, (Text("the second"),))]
    for sample, look in zip(samples, looks(adapter, samples, [None, None]), strict=True):
        assert len(look.masses) == len(look.heat) == len(adapter.spans(sample.prompt))
        assert 0.3 < sum(look.masses) <= 1 + 1e-5  # nothing else is there but separators
