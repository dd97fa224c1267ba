"""From samples with images to token ids and pixels: the part of the adapter that needs no model.

Prompts go through the model's own processor; responses are text and are tokenised as the text
adapter does. Every image of a batch is in it once, however many prompts show it. Axes: n samples,
s positions of a row, u images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmalign.adapters.autoregressive import Tokens, group_by_prompt, pack, row_tokens
from mmalign.adapters.protocol import Inputs
from mmalign.adapters.text.collate import TextCollator, limited
from mmalign.adapters.text.template import Contents, render_prompt
from mmalign.adapters.vision_language.layouts import ImageSpan
from mmalign.adapters.vision_language.positions import Grid, multimodal_positions
from mmalign.adapters.vision_language.processing import (
    Pixels,
    Processing,
    names,
    pictures,
    same_shapes,
)
from mmalign.errors import BadSample
from mmalign.records import Media, Message, Sample, media_of

_REMEMBERED = 4096
_PIXELS_REMEMBERED = 64


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it. images: what tells its images apart, in order. grids: where
    positions are multimodal, their sizes in tokens."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    images: tuple[str, ...]
    grids: tuple[Grid, ...] = ()

    def positions(self) -> tuple[Tensor, int]:
        return multimodal_positions(self.types, self.grids)


class VisionLanguageCollator:
    """Tokenises samples, prepares images and packs both.

    max_length: tokens of prompt and response together, image tokens included. A longer sample
        raises BadSample or, with truncate, loses the end of its response; a prompt is never cut.
    packed: whether neighbours with equal prompts share them in one row.
    multimodal: whether positions have a time, a row and a column.
    """

    def __init__(
        self,
        processing: Processing,
        *,
        max_length: int | None = None,
        truncate: bool = False,
        packed: bool = True,
        multimodal: bool = False,
    ) -> None:
        self.processing = processing
        self.max_length = max_length
        self.truncate = truncate
        self.packed = packed
        self.multimodal = multimodal
        contents = Contents(processing.chat_parts, processing.plain_parts)
        self.words = TextCollator(processing.processor.tokenizer, contents=contents)
        self._prompts: dict[str, Prompt] = {}  # by id: messages may hold large images
        self._pixels: OrderedDict[str, Pixels] = OrderedDict()

    def __call__(self, samples: Sequence[Sample], seeds: Sequence[int] = ()) -> Inputs:
        """One batch. Log-probabilities need no randomness: seeds are unused."""
        tokens = [self.tokens(sample) for sample in samples]
        batch = pack(tokens, packed=self.packed, pad_id=self.words.pad_id)
        groups = group_by_prompt(tokens) if self.packed else [[one] for one in tokens]
        firsts = accumulate([len(group) for group in groups[:-1]], initial=0)
        shown = [samples[first].prompt for first in firsts]
        if self.multimodal:
            responses = [[len(one.completion) - 1 for one in group] for group in groups]
            prompts = [self.prompt(messages) for messages in shown]
            batch["call"]["position_ids"] = _positions(prompts, responses, packed=self.packed)
        return {**batch, "images": self.images(shown)}

    def images(self, prompts: Sequence[tuple[Message, ...]]) -> Inputs:
        """Pixels of every image once, and which image each place of the prompts shows.

        batches: images that the tower can be given together. numbers: (u,) of the images of all
        batches, joined, by first appearance. order: one number per place.
        """
        places = [(name, m) for prompt in prompts for m in media_of(prompt) for name in names(m)]
        media = dict(places)
        unique = {name: number for number, name in enumerate(media)}
        alike: dict[object, list[str]] = {}
        pixels = {name: self._pixels_of(name, media[name]) for name in unique}
        for name in unique:
            alike.setdefault(same_shapes(pixels[name]), []).append(name)
        batches = [
            {key: torch.cat([pixels[name][key] for name in group]) for key in pixels[group[0]]}
            for group in alike.values()
        ]
        return {
            "batches": batches,
            "sizes": [len(group) for group in alike.values()],
            "numbers": [unique[name] for group in alike.values() for name in group],
            "order": [unique[name] for name, _ in places],
        }

    def size(self, samples: Sequence[Sample]) -> int:
        """Tokens that the model computes for these samples together."""
        return row_tokens([self.tokens(sample) for sample in samples], packed=self.packed)

    def tokens(self, sample: Sample) -> Tokens:
        """Raises BadSample for what the model cannot take, and for samples too long."""
        prompt = self.prompt(sample.prompt)
        found = replace(self.words.tokens(sample), prompt=prompt.ids, images=prompt.images)
        return limited(found, max_length=self.max_length, truncate=self.truncate)

    def prompt(self, messages: tuple[Message, ...]) -> Prompt:
        """Raises BadSample for images that cannot be read and texts that do not place them."""
        key = Sample(messages, ()).prompt_id
        known = self._prompts.get(key)
        if known is None:
            if len(self._prompts) >= _REMEMBERED:
                self._prompts.clear()
            known = self._prompts[key] = self._process(messages)
        return known

    def spans(self, messages: tuple[Message, ...]) -> list[ImageSpan]:
        """Where the prompt shows its images, each frame of a video being one, in order."""
        places = torch.tensor(self.prompt(messages).types).nonzero()[:, 0]
        layout, processor = self.processing.family.layout, self.processing.processor
        found, begin = [], 0
        for media in media_of(messages):
            for name, picture in pictures([media]).items():
                rectangles = layout(processor, picture.size, self._pixels_of(name, media))
                own = places[begin : begin + len(rectangles)]
                real = ~rectangles[:, 0].isnan()
                found.append(ImageSpan(own[real], rectangles[real], picture.size))
                begin += len(rectangles)
        if begin != len(places):
            raise BadSample(
                f"{type(processor).__name__} writes {len(places)} image tokens where its settings "
                f"promise {begin}: its options are not those of its model family"
            )
        return found

    def _process(self, messages: tuple[Message, ...]) -> Prompt:
        media = media_of(messages)
        opened = pictures(media)
        order = tuple(name for one in media for name in names(one))
        text = render_prompt(self.words.tokenizer, messages, self.words.contents)
        found = self.processing.prompt(text, [opened[name] for name in order])
        if not found.ids:
            raise BadSample("the prompt is empty and the tokenizer has no token to begin with")
        if len(order) == 1:
            self._remember(order[0], found.pixels)
        grids = self._grids(found.pixels) if self.multimodal else ()
        return Prompt(found.ids, found.types, order, grids)

    def _grids(self, pixels: Pixels) -> tuple[Grid, ...]:
        merged = self.processing.processor.image_processor.merge_size
        sizes = pixels.get("image_grid_thw", torch.empty(0, 3))
        return tuple(
            (int(times), int(rows) // merged, int(columns) // merged)
            for times, rows, columns in sizes.tolist()
        )

    def _pixels_of(self, name: str, media: Media) -> Pixels:
        if name not in self._pixels:
            for frame, picture in pictures([media]).items():
                self._remember(frame, self.processing.image(picture))
        self._pixels.move_to_end(name)
        return self._pixels[name]

    def _remember(self, name: str, pixels: Pixels) -> None:
        self._pixels[name] = pixels
        while len(self._pixels) > _PIXELS_REMEMBERED:
            self._pixels.popitem(last=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_prompts": {}, "_pixels": OrderedDict()}


def _positions(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[int]], *, packed: bool
) -> Tensor:
    """(3 rows s), padded with zeros. responses: tokens of each that the model is given."""
    rows = []
    for prompt, lengths in zip(prompts, responses, strict=True):
        own, after = prompt.positions()
        parts = [own, *(torch.arange(after, after + n).expand(3, -1) for n in lengths)]
        rows.append(torch.cat(parts, dim=1))
    if packed:
        return torch.cat(rows, dim=1)[:, None]
    return pad_sequence([row.T for row in rows], batch_first=True).permute(2, 0, 1)
