"""From samples to batches, on the CPU: prompts, buckets, pixels or cached latents.

Holds no model, so that it can be sent to data workers. Axes: n rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmalign.adapters.diffusion.buckets import Buckets
from mmalign.adapters.diffusion.cache import Store, key_of
from mmalign.adapters.diffusion.media import Bucket, pixels
from mmalign.adapters.diffusion.noise import dropped
from mmalign.adapters.protocol import BadSample, Inputs
from mmalign.media import FrameChoice, digest, extent
from mmalign.records import Media, Sample, Text

RECENT_BYTES = 256 * 2**20
"""Pixels that are kept between `size`, which has to open media, and `collate`."""


@dataclass
class Row:
    """One sample on its way to the denoiser.

    prompt: what is left of it after prompt dropout. media_key, text_key: under which VAE moments
    and text embeddings are stored. pixels: None where the moments are there already.
    """

    prompt: str
    seed: int
    media_key: str
    text_key: str
    pixels: Tensor | None
    moments: dict[str, Tensor] | None
    text: dict[str, Tensor] | None


@dataclass(frozen=True)
class Part:
    """Rows of one bucket, and where they stand among all."""

    bucket: Bucket
    places: tuple[int, ...]
    rows: tuple[Row, ...]


@dataclass
class DiffusionCollator:
    """video: responses are videos, else images. latent: side of a latent in pixels.
    media_scope, text_scope: hashes of all that VAE moments and text embeddings depend on besides
    the media and the prompt."""

    buckets: Buckets
    video: bool
    latent: int
    frame_stride: int
    media_scope: str
    text_scope: str
    frame_choice: FrameChoice = "consecutive"
    prompt_dropout: float = 0.0
    draws: int = 1
    store: Store | None = None
    _recent: OrderedDict[str, Tensor] = field(default_factory=OrderedDict, repr=False)

    def __call__(self, samples: Sequence[Sample], seeds: Sequence[int]) -> Inputs:
        """`parts`: one per bucket. Rows with equal seeds are in one part.

        Raises BadSample, naming what is wrong.
        """
        if len(samples) != len(seeds):
            raise ValueError(f"{len(samples)} samples but {len(seeds)} seeds: one seed each")
        parsed = [self._parsed(sample) for sample in samples]
        groups: dict[int, list[int]] = {}
        for place, seed in enumerate(seeds):
            groups.setdefault(seed, []).append(place)
        places: dict[Bucket, list[int]] = {}
        for members in groups.values():
            bucket = self._bucket([parsed[place][1] for place in members])
            places.setdefault(bucket, []).extend(members)
        stored: dict[str, dict[str, Tensor] | None] = {}  # what rows share is read once
        parts = [
            Part(
                bucket,
                tuple(members),
                tuple(self._row(*parsed[at], seeds[at], bucket, stored) for at in members),
            )
            for bucket, members in places.items()
        ]
        return {"parts": parts, "seeds": torch.tensor(list(seeds))}

    def size(self, samples: Sequence[Sample]) -> int:
        """Latent positions (frames x height x width) that these samples cost, over all draws.

        Opens the media, so that what cannot be used is refused before it is part of a batch.
        """
        parsed = [self._parsed(sample) for sample in samples]
        bucket = self._bucket([media for _, media in parsed])
        for _, media in parsed:
            key = self._media_key(media, bucket)
            if self.store is None or key not in self.store:
                self._pixels(key, media, bucket)
        frames = (bucket.frames - 1) // self.frame_stride + 1
        area = (bucket.height // self.latent) * (bucket.width // self.latent)
        return len(samples) * self.draws * frames * area

    def prompt_of(self, prompt: Sequence[Any]) -> str:
        """The text of a prompt. Raises BadSample for one that is more than one text message."""
        if len(prompt) != 1 or not all(isinstance(part, Text) for part in prompt[0].parts):
            raise BadSample(
                "a diffusion model takes one message of text as its prompt, not "
                f"{[type(p).__name__ for message in prompt for p in message.parts]} in "
                f"{len(prompt)} messages"
            )
        return "".join(part.text for part in prompt[0].parts)

    def without_prompt(self, row: Row) -> Row:
        """The row as prompt dropout leaves it."""
        key = key_of(self.text_scope, "")
        text = None if self.store is None else self.store.read(key)
        return replace(row, prompt="", text_key=key, text=text)

    def _parsed(self, sample: Sample) -> tuple[str, Media]:
        kind = "video" if self.video else "image"
        match sample.response:
            case (Media() as media,) if media.kind == kind:
                return self.prompt_of(sample.prompt), media
        found = [p.kind if isinstance(p, Media) else "text" for p in sample.response]
        raise BadSample(f"this model is given responses of one {kind} each, not {found}")

    def _bucket(self, media: Sequence[Media]) -> Bucket:
        return self.buckets.one or self.buckets.choose([extent(m) for m in media])

    def _row(
        self,
        prompt: str,
        media: Media,
        seed: int,
        bucket: Bucket,
        stored: dict[str, dict[str, Tensor] | None],
    ) -> Row:
        kept = "" if dropped(seed, self.prompt_dropout) else prompt
        media_key, text_key = self._media_key(media, bucket), key_of(self.text_scope, kept)
        for key in (media_key, text_key):
            if key not in stored:
                stored[key] = None if self.store is None else self.store.read(key)
        moments = stored[media_key]
        found = None if moments is not None else self._pixels(media_key, media, bucket)
        return Row(kept, seed, media_key, text_key, found, moments, stored[text_key])

    def _media_key(self, media: Media, bucket: Bucket) -> str:
        return key_of(self.media_scope, digest(media), str(bucket), self.frame_choice)

    def _pixels(self, key: str, media: Media, bucket: Bucket) -> Tensor:
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key]
        found = self._recent[key] = pixels(media, bucket, choice=self.frame_choice)
        while len(self._recent) > 1 and sum(map(len_bytes, self._recent.values())) > RECENT_BYTES:
            self._recent.popitem(last=False)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_recent": OrderedDict()}


def len_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
