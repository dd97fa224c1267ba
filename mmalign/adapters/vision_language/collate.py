"""From samples with images to token ids and pixels: the part of the adapter that needs no model.

Prompts go through the model's own processor; responses are text and are tokenised as the text
adapter does. Every image of a batch is in it once, however many prompts show it. Axes: n samples,
s positions of a row, u images.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from mmalign.adapters.autoregressive import Tokens, group_by_prompt, pack, row_tokens
from mmalign.adapters.protocol import Inputs
from mmalign.adapters.text.collate import TextCollator, limited
from mmalign.adapters.text.template import Contents, render_prompt
from mmalign.adapters.vision_language.families import FAMILIES, TokenTypes
from mmalign.adapters.vision_language.feature_cache import FeatureCache
from mmalign.adapters.vision_language.layouts import ImageSpan
from mmalign.adapters.vision_language.positions import Grid, multimodal_positions
from mmalign.adapters.vision_language.processing import (
    CROWD,
    Pixels,
    Processing,
)
from mmalign.errors import BadSample, UserError
from mmalign.records import Media, Message, Sample, media_of

_REMEMBERED = 4096
_PIXELS_REMEMBERED = 64


@dataclass(frozen=True)
class Prompt:
    """A prompt as the model reads it. types: what it is told about each token, where the family
    has that. images: what tells its images apart, in order. grids: where positions are
    multimodal, their sizes in tokens. crossed: as `Processed` has it."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    images: tuple[str, ...]
    grids: tuple[Grid, ...] = ()
    crossed: Tensor | None = field(default=None, compare=False)


class VisionLanguageCollator:
    """Tokenises samples, prepares images and packs both.

    max_length: tokens of prompt and response together, image tokens included. A longer sample
        raises BadSample or, with truncate, loses the end of its response; a prompt is never cut.
    packed: whether neighbours with equal prompts share them in one row.
    multimodal: whether positions have a time, a row and a column.
    features: where those of images are kept on disk. ticks: by which positions advance in a second
    of video, where that matters.
    """

    def __init__(
        self,
        processing: Processing,
        *,
        max_length: int | None = None,
        truncate: bool = False,
        packed: bool = True,
        multimodal: bool = False,
        features: FeatureCache | None = None,
        ticks: float | None = None,
    ) -> None:
        self.processing = processing
        self.max_length = max_length
        self.truncate = truncate
        self.packed = packed
        self.multimodal = multimodal
        self.features = features
        self.ticks = ticks
        contents = Contents(processing.chat_parts, processing.plain_parts)
        self.words = TextCollator(processing.processor.tokenizer, contents=contents)
        self._prompts: dict[str, Prompt] = {}  # by id: messages may hold large images
        self._pixels: OrderedDict[str, Pixels] = OrderedDict()

    def __call__(self, samples: Sequence[Sample], seeds: Sequence[int] = ()) -> Inputs:
        """One batch. Log-probabilities need no randomness: seeds are unused."""
        return self.batch([self.tokens(sample) for sample in samples], samples)

    def batch(self, tokens: Sequence[Tokens], samples: Sequence[Sample]) -> Inputs:
        """tokens: of the samples, whose prompts hold the images."""
        counts = [len(one.images) for one in tokens]
        if self.processing.family.cross_attention and len(set(counts)) > 1:
            return self._by_count(tokens, samples, counts)
        batch = pack(tokens, packed=self.packed, pad_id=self.words.pad_id)
        groups = group_by_prompt(tokens) if self.packed else [[one] for one in tokens]
        firsts = accumulate([len(group) for group in groups[:-1]], initial=0)
        shown = [samples[first].prompt for first in firsts]
        prompts = [self.prompt(messages) for messages in shown]
        responses = [[len(one.completion) - 1 for one in group] for group in groups]
        if self.multimodal:
            rows = [
                _followed(*self.positions(prompt), lengths)
                for prompt, lengths in zip(prompts, responses, strict=True)
            ]
            batch["call"]["position_ids"] = _joined(rows, packed=self.packed)
        if types := self.processing.family.types:
            rows = [_types(*given, types) for given in zip(prompts, responses, strict=True)]
            batch["call"][types.name] = _joined(rows, packed=self.packed)[0]
            numbers = [types.blocks(torch.tensor(prompt.types)) for prompt in prompts]
            batch["blocks"] = {"numbers": numbers, "beyond_window": types.beyond_window}
        if crossed := [prompt.crossed for prompt in prompts if prompt.crossed is not None]:
            masks = [_watched(own, sum(n)) for own, n in zip(crossed, responses, strict=True)]
            batch["call"]["cross_attention_mask"] = pad_sequence(masks, batch_first=True)
        return {**batch, "images": self.images(shown)}

    def _by_count(
        self, tokens: Sequence[Tokens], samples: Sequence[Sample], counts: Sequence[int]
    ) -> Inputs:
        """Batches of samples with equally many images, with which one call of a decoder with
        cross-attention has to do: what a row computes there depends on how many it has room for."""
        rows = sorted(range(len(tokens)), key=counts.__getitem__)
        images = self.images([sample.prompt for sample in samples])
        number = {name: i for i, name in enumerate(images["names"])}
        parts = []
        for _, group in groupby(rows, key=counts.__getitem__):
            places = list(group)
            part = self.batch([tokens[i] for i in places], [samples[i] for i in places])
            order = [number[name] for i in places for name in tokens[i].images]
            parts.append({**part, "images": {**images, "order": order}})
        return {"parts": parts, "rows": torch.tensor(rows), "images": images}

    def images(self, prompts: Sequence[tuple[Message, ...]]) -> Inputs:
        """Pixels of every image once, and which image each place of the prompts shows.

        batches: images that the tower can be given together. numbers: of the images of all
        batches, joined, by first appearance. cached: features by number, of images that need no
        tower. names: by number. order: one number per place.
        """
        places = [place for prompt in prompts for place in self._places(media_of(prompt))]
        media = dict(places)
        unique = {name: number for number, name in enumerate(media)}
        cached = {
            number: found
            for name, number in unique.items()
            if self.features and (found := self.features.find(name)) is not None
        }
        alike: dict[object, list[str]] = {}
        pixels = {
            name: self._pixels_of(name, media[name])
            for name, number in unique.items()
            if number not in cached
        }
        for name in pixels:
            alike.setdefault(self.processing.together(name, pixels[name]), []).append(name)
        batches = [
            {key: torch.cat([pixels[name][key] for name in group]) for key in pixels[group[0]]}
            for group in alike.values()
        ]
        return {
            "batches": batches,
            "sizes": [len(group) for group in alike.values()],
            "numbers": [unique[name] for group in alike.values() for name in group],
            "cached": cached,
            "names": list(unique),
            "order": [unique[name] for name, _ in places],
        }

    def size(self, samples: Sequence[Sample]) -> int:
        """Tokens that the model computes for these samples together."""
        return row_tokens([self.tokens(sample) for sample in samples], packed=self.packed)

    def tokens(self, sample: Sample) -> Tokens:
        """Raises BadSample for what the model cannot take, and for samples too long."""
        prompt = self.prompt(sample.prompt)
        found = replace(self.words.tokens(sample), prompt=prompt.ids, images=prompt.images)
        if not self.processing.seen_ids.isdisjoint(found.completion):
            raise BadSample(
                "the response holds the token that stands for an image, where there is none: take "
                "it out"
            )
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
        ids = torch.tensor(self.prompt(messages).ids)
        places = torch.isin(ids, torch.tensor(sorted(self.processing.seen_ids))).nonzero()[:, 0]
        crossed = self.processing.family.cross_attention  # its columns are counted apart
        layout, processor = self.processing.family.layout, self.processing.processor
        if layout is None:
            raise UserError(
                f"how {type(processor).__name__} lays out the tokens of an image is not known",
                hint=f"known are {', '.join(sorted(FAMILIES))}",
            )
        found, begin = [], 0
        media = media_of(messages)
        opened = self.processing.pictures(media)
        for name, one in self._places(media):
            size = opened[name.removesuffix(CROWD)].size
            rectangles = layout(processor, size, self._pixels_of(name, one))
            end = begin + len(rectangles)
            own = torch.arange(begin, end) if crossed else places[begin:end]
            real = ~rectangles[:, 0].isnan()
            found.append(ImageSpan(own[real], rectangles[real], size))
            begin = end
        if begin != len(places) and not crossed:
            raise BadSample(
                f"{type(processor).__name__} writes {len(places)} image tokens where its settings "
                f"promise {begin}: its options are not those of its model family"
            )
        return found

    def padded(self, prompts: Sequence[Prompt]) -> tuple[dict[str, Tensor], Tensor]:
        """The model's arguments for prompts in rows of one length, padded on the left, and the
        position (n) that comes next in each."""
        ids = [torch.tensor(prompt.ids) for prompt in prompts]
        counted = [(torch.arange(len(row)), len(row)) for row in ids]
        positions = list(map(self.positions, prompts)) if self.multimodal else counted
        call = {
            "input_ids": _left(ids, self.words.pad_id),
            "attention_mask": _left([torch.ones_like(row) for row in ids]),
            "position_ids": _left([own for own, _ in positions]),
        }
        if types := self.processing.family.types:
            call[types.name] = _left([torch.tensor(prompt.types) for prompt in prompts])
        if crossed := [prompt.crossed for prompt in prompts if prompt.crossed is not None]:
            masks = _left([own.permute(1, 2, 0) for own in crossed])
            call["cross_attention_mask"] = masks.permute(2, 3, 0, 1)
        return call, torch.tensor([after for _, after in positions])

    def positions(self, prompt: Prompt) -> tuple[Tensor, int]:
        """(3 s) positions where they are multimodal, and the one that comes next."""
        image = [token in self.processing.seen_ids for token in prompt.ids]
        return multimodal_positions(image, prompt.grids)

    def _process(self, messages: tuple[Message, ...]) -> Prompt:
        media = media_of(messages)
        opened = self.processing.pictures(media)
        order = self.processing.names(media)
        text = render_prompt(self.words.tokenizer, messages, self.words.contents)
        found = self.processing.prompt(text, [opened[name.removesuffix(CROWD)] for name in order])
        if not found.ids:
            raise BadSample("the prompt is empty and the tokenizer has no token to begin with")
        if len(order) == 1 and not self.processing.whole(media[0]):
            self._remember(order[0], found.pixels)
        grids = self._grids(found.pixels, media) if self.multimodal else ()
        return Prompt(found.ids, found.types, tuple(order), grids, found.crossed)

    def _places(self, media: Sequence[Media]) -> list[tuple[str, Media]]:
        """Names of a prompt's images and frames, and the files that hold them."""
        files = [one for one in media for _ in range(self.processing.count(one))]
        return list(zip(self.processing.names(media), files, strict=True))

    def _grids(self, pixels: Pixels, media: Sequence[Media]) -> tuple[Grid, ...]:
        """Of what the prompt shows, in order."""
        merged = self.processing.processor.image_processor.merge_size
        images = iter(pixels.get("image_grid_thw", torch.empty(0, 3)).tolist())
        videos = iter(pixels.get("video_grid_thw", torch.empty(0, 3)).tolist())
        seconds = iter(pixels.get("second_per_grid_ts", ()))
        found: list[Grid] = []
        for _, one in self._places(media):
            whole = self.processing.whole(one)
            times, rows, columns = map(int, next(videos if whole else images))
            size = (rows // merged, columns // merged)
            if whole and self.processing.family.video == "captioned":
                found += [(1, *size, 1.0)] * times
            else:
                step = self.ticks * float(next(seconds)) if whole and self.ticks else 1.0
                found.append((times, *size, step))
        return tuple(found)

    def _pixels_of(self, name: str, media: Media) -> Pixels:
        if name not in self._pixels:
            crowd = name.endswith(CROWD)
            for frame, picture in self.processing.pictures([media]).items():
                pixels = self.processing.image(picture, crowd=crowd)
                self._remember(frame + CROWD * crowd, pixels)
        self._pixels.move_to_end(name)
        return self._pixels[name]

    def _remember(self, name: str, pixels: Pixels) -> None:
        self._pixels[name] = pixels
        while len(self._pixels) > _PIXELS_REMEMBERED:
            self._pixels.popitem(last=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_prompts": {}, "_pixels": OrderedDict()}


def _left(rows: Sequence[Tensor], pad: int = 0) -> Tensor:
    """From (... s) of each to (... rows s), padded on the left."""
    longest = max(row.shape[-1] for row in rows)
    padded = [F.pad(row, (longest - row.shape[-1], 0), value=pad) for row in rows]
    return torch.stack(padded, dim=-2)


def _followed(positions: Tensor, after: int, responses: Sequence[int]) -> Tensor:
    """(3 s) of a prompt and its responses. responses: tokens of each that the model is given."""
    behind = [torch.arange(after, after + length).expand(3, -1) for length in responses]
    return torch.cat([positions, *behind], dim=1)


def _types(prompt: Prompt, responses: Sequence[int], types: TokenTypes) -> Tensor:
    """(1 s) of a prompt and its responses."""
    return torch.tensor([[*prompt.types, *[types.answer] * sum(responses)]])


def _watched(crossed: Tensor, behind: int) -> Tensor:
    """Which tiles a prompt and the tokens behind it look at: those at the end, as the last one."""
    return torch.cat([crossed, crossed[-1:].expand(behind, -1, -1)])


def _joined(rows: Sequence[Tensor], *, packed: bool) -> Tensor:
    """From (k s) of each prompt with its responses to (k rows s): one row, or padded with zeros."""
    if packed:
        return torch.cat(list(rows), dim=1)[:, None]
    return pad_sequence([row.T for row in rows], batch_first=True).permute(2, 0, 1)
