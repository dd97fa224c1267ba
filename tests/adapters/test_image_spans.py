"""Image tokens are where the processor puts them, and each stands for its part of the image."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image, ImageOps
from tiny_vision_language import FAMILIES, picture, save_family
from torch import Tensor

from mmalign.adapters.vision_language import VisionLanguageAdapter, load_vision_language
from mmalign.media import open_image, png
from mmalign.records import Media, Message, Text, media_of

WIDE, TALL = picture(1, 90, 50), picture(2, 40, 130)
PROMPT = (
    Message("user", (Text("Look: "), WIDE, Text(" and "), TALL, TALL)),
    Message("assistant", (Text("Yes."),)),
    Message("user", (Text("And now?"), WIDE)),
)


@pytest.fixture(scope="module", params=FAMILIES)
def adapter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> VisionLanguageAdapter:
    """With little attention in the tower, which would spread what changes in one place."""
    made = load_vision_language(save_family(tmp_path_factory.mktemp("model"), request.param))
    for name, weight in made.policy.named_parameters():
        if re.search("vis.*att.*proj.*weight", name):
            weight.data *= 0.1
    return made


def test_tokens_of_each_image_are_as_many_as_the_processor_counts(
    adapter: VisionLanguageAdapter,
) -> None:
    processing, spans = adapter.collator.processing, adapter.spans(PROMPT)
    sizes = [open_image(one).size for one in media_of(PROMPT)]
    assert [span.size for span in spans] == sizes
    counts = [
        counted(adapter, open_image(one), 1 + processing.family.crowd) for one in media_of(PROMPT)
    ]
    places = places_of(adapter, PROMPT, sum(counts))
    assert sum(counts) == len(places)
    for span, own in zip(spans, places.split(counts), strict=True):
        assert torch.isin(span.positions, own).all()
        assert len(span.positions) == len(span.rectangles)


def places_of(adapter: VisionLanguageAdapter, prompt: tuple[Message, ...], count: int) -> Tensor:
    """Of image tokens in the prompt; of columns where images are seen through cross-attention."""
    if adapter.collator.processing.family.cross_attention:
        return torch.arange(count)
    ids = torch.tensor(adapter.collator.prompt(prompt).ids)
    return (ids == adapter.collator.processing.image_id).nonzero()[:, 0]


def counted(adapter: VisionLanguageAdapter, image: Image.Image, times: int) -> int:
    """Tokens of an image, found where the processor is given nothing else."""
    processing = adapter.collator.processing
    if processing.family.cross_attention:
        return len(features(adapter, image))
    ids = processing.processor(text=[processing.placeholder * times], images=[[image] * times])
    return int(sum(token == processing.image_id for token in ids["input_ids"][0]) / times)


@pytest.mark.parametrize("shown", [WIDE, TALL], ids=["wide", "tall"])
def test_a_token_stands_for_the_part_that_changes_it(
    adapter: VisionLanguageAdapter, shown: Media
) -> None:
    """Painting a token's rectangle changes no other token of its view as much."""
    plain = open_image(shown)
    [span] = adapter.spans((Message("user", (shown,)),))
    before = features(adapter, plain)
    places = places_of(adapter, (Message("user", (shown,)),), len(before))
    own = torch.isin(places, span.positions)  # without separators
    before = before[own]
    for number in range(0, len(span.positions), 1 + len(span.positions) // 12):
        rectangle = span.rectangles[number]
        x0, y0, x1, y1 = (int(edge) for edge in rectangle.round().tolist())
        if x1 - x0 < 4 or y1 - y0 < 4:
            continue  # nearly nothing but padding
        painted = plain.copy()
        painted.paste(ImageOps.invert(plain.crop((x0, y0, x1, y1))), (x0, y0))
        change = (features(adapter, painted)[own] - before).norm(dim=-1)
        extent = span.rectangles[:, 2:] - span.rectangles[:, :2]
        view = (extent - extent[number]).abs().amax(-1) < 2
        assert change.where(view, 0).argmax() == number


def features(adapter: VisionLanguageAdapter, image: Image.Image) -> Tensor:
    """(m h) of an image's tokens."""
    prompt = (Message("user", (png(image),)),)
    inputs = adapter.encode({"images": adapter.collator.images([prompt])})
    [own] = inputs["images"]["features"].values()
    pooled = next(layer for name, layer in own.items() if name.startswith("pooled"))
    return pooled.reshape(-1, pooled.shape[-1])
