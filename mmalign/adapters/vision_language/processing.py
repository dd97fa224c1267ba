"""A model's own processor, asked for one prompt or one image at a time.

Its text side says where image tokens stand, its image side what the vision tower is given. A video
counts as evenly spaced frames, each of them an image. Axes: s tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from mmalign.adapters.vision_language.families import Family
from mmalign.adapters.vision_language.layouts import FRAMES
from mmalign.errors import BadSample
from mmalign.media import extent, frames, open_image
from mmalign.records import Media, Part, Text

TEXT_SIDE = frozenset(
    {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "mm_token_type_ids",
        "labels",
        "cross_attention_mask",
    }
)
"""What a processor returns about tokens; all else is about images."""
CROWD = "/crowd"
"""Ends the name of an image that is among several in its prompt, where that makes a difference."""


@dataclass(frozen=True)
class Clip:
    """Frames of a video: their numbers among all of its `total` frames, of which there are `fps` in
    a second."""

    pictures: list[Image.Image]
    numbers: list[int]
    total: int
    fps: float

    @property
    def size(self) -> tuple[int, int]:
        return self.pictures[0].size


Picture = Image.Image | Clip
Pixels = dict[str, Tensor]
"""What the vision tower is given for one image, by the names of the model's arguments."""


@dataclass(frozen=True)
class Processed:
    """ids: (s) with every image's tokens written out. types: (s) what the model is told about each
    of them, nothing in most families. pixels: of all images, in the processor's layout. crossed:
    (s i k) which of each image's k tiles a token looks at, where that is by cross-attention."""

    ids: tuple[int, ...]
    types: tuple[int, ...]
    pixels: Pixels
    crossed: Tensor | None = None


class Processing:
    """Prompts and images as the model reads them. Travels to data workers.

    image_id: of the tokens that images become. placeholder: what stands for an image in a text.
    image_ids: all tokens that no answer may hold. seen_ids: those that stand for what is seen.
    video_frames: that are taken of a video, or all that it has.
    """

    def __init__(
        self, processor: Any, family: Family, image_id: int, *, video_frames: int = 8
    ) -> None:
        self.processor = processor
        self.family = family
        self.image_id = image_id
        self.seen_ids = {image_id}
        self.placeholder = str(processor.image_token)
        if family.video in ("timed", "captioned"):
            self.seen_ids.add(processor.video_token_id)
        self.image_ids = frozenset({image_id} | image_token_ids(processor))
        written = processor.tokenizer.convert_ids_to_tokens(sorted(self.seen_ids))
        self._films = family.video != "images" and _shows_videos(processor)
        filmed = (str(processor.video_token),) if self._films else ()
        self._markers = (self.placeholder, *written, *filmed)
        self.video_frames = video_frames
        self._frames: dict[str, int] = {}  # of videos, by digest

    def chat_parts(self, parts: Sequence[Part]) -> list[dict[str, str]]:
        """As chat templates of processors expect them."""
        return [
            item
            for part in parts
            for item in (
                [{"type": "text", "text": self._said(part)}]
                if isinstance(part, Text)
                else [{"type": "video" if self.whole(part) else "image"}] * self.count(part)
            )
        ]

    def plain_parts(self, parts: Sequence[Part]) -> str:
        """As a prompt that is used verbatim has them."""
        return "".join(
            self._said(part) if isinstance(part, Text) else self._mark(part) * self.count(part)
            for part in parts
        )

    def prompt(self, text: str, pictures: Sequence[Picture]) -> Processed:
        """Raises BadSample where the text does not place every picture."""
        found = self.call(text, pictures)
        ids = found["input_ids"][0].tolist()
        return Processed(
            tuple(ids),
            self._types(found),
            {name: value for name, value in found.items() if name not in TEXT_SIDE},
            found["cross_attention_mask"][0] if "cross_attention_mask" in found else None,
        )

    def call(self, text: str, pictures: Sequence[Picture]) -> Any:
        """All that the processor says about a prompt. Raises BadSample."""
        bos = self.processor.tokenizer.bos_token
        begun = bos is not None and text.startswith(bos)
        try:
            return self.processor(
                text=[text],
                **self._images([one for one in pictures if not isinstance(one, Clip)]),
                **_videos([one for one in pictures if isinstance(one, Clip)]),
                return_tensors="pt",
                **({"add_special_tokens": False} if begun else {}),
            )
        except ValueError as error:
            raise BadSample(f"the processor refuses the prompt: {error}") from error

    def image(self, picture: Picture, *, crowd: bool = False) -> Pixels:
        """One image or video by itself. crowd: as it is among several."""
        if isinstance(picture, Clip):
            pixels = self.prompt(str(self.processor.video_token), [picture]).pixels
            count = {FRAMES: torch.tensor([len(picture.pictures)])}
            return pixels | count if self.family.video == "frames" else pixels
        pixels = self.prompt(self.placeholder * (1 + crowd), [picture] * (1 + crowd)).pixels
        return {name: value[:1] for name, value in pixels.items()} if crowd else pixels

    def names(self, media: Sequence[Media]) -> list[str]:
        """What tells a prompt's images and frames apart, in order, without decoding them."""
        found = [(name, self.whole(one)) for one in media for name in self._named(one)]
        crowd = self.family.crowd and sum(not whole for _, whole in found) > 1
        return [name + CROWD if crowd and not whole else name for name, whole in found]

    def count(self, media: Media) -> int:
        """Images that media count as; 1 for a video that is seen as such. Raises BadSample for one
        that cannot be read."""
        return 1 if media.kind == "image" or self.whole(media) else self._taken(media)

    def whole(self, media: Media) -> bool:
        """Whether media are a video that is seen as such."""
        return media.kind == "video" and self._films

    def _mark(self, media: Media) -> str:
        return str(self.processor.video_token) if self.whole(media) else self.placeholder

    def _taken(self, media: Media) -> int:
        """Frames that are looked at."""
        if media.digest not in self._frames:
            self._frames[media.digest] = min(self.video_frames, extent(media).frames)
        return self._frames[media.digest]

    def pictures(self, media: Sequence[Media]) -> dict[str, Picture]:
        """Every image and frame once, by name. Raises BadSample."""
        found: dict[str, Picture] = {}
        for one in media:
            names = self._named(one)
            if one.kind == "image":
                found.setdefault(names[0], open_image(one))
            elif names[0] not in found:
                count = self._taken(one)
                taken = frames(one, count, choice="uniform")
                if self.whole(one):
                    whole = extent(one)
                    numbers = np.linspace(0, whole.frames - 1, count).round().astype(int).tolist()
                    found[names[0]] = Clip(taken, numbers, whole.frames, whole.fps)
                else:
                    found |= dict(zip(names, taken, strict=True))
        return found

    def _named(self, media: Media) -> list[str]:
        if media.kind == "image":
            return [media.digest]
        count = self._taken(media)
        if self.whole(media):
            return [f"{media.digest}/video/{count}"]
        return [f"{media.digest}/{number}/{count}" for number in range(count)]

    def together(self, name: str, pixels: Pixels) -> object:
        """Equal for images that the tower can be given together."""
        match self.family.together:
            case "all":
                return "pixel_values_videos" in pixels
            case "equal":
                return tuple(sorted((key, tuple(value.shape)) for key, value in pixels.items()))
        return name

    def _types(self, found: Mapping[str, Tensor]) -> tuple[int, ...]:
        types = self.family.types
        return () if types is None else tuple(found[types.name][0].tolist())

    def _said(self, part: Text) -> str:
        for marker in self._markers:
            if marker in part.text:
                raise BadSample(
                    f"a text holds {marker!r}, which stands for an image: put the image "
                    "there as a part of the message, or take the marker out"
                )
        return part.text

    def _images(self, pictures: Sequence[Image.Image]) -> dict[str, Any]:
        if not pictures:
            return {"images": None}
        return {"images": [[self._uncropped(picture) for picture in pictures]]}

    def _uncropped(self, picture: Image.Image) -> Image.Image:
        """Padded to the shape of a processor that would otherwise crop it at the centre."""
        settings = self.processor.image_processor
        if not (self.family.crops and getattr(settings, "do_center_crop", None)):
            return picture
        crop = settings.crop_size
        width, height = crop["width"], crop["height"]
        scale = max(picture.width / width, picture.height / height)
        size = (round(width * scale), round(height * scale))
        mean = getattr(settings, "image_mean", None) or (0.5, 0.5, 0.5)
        return ImageOps.pad(picture, size, color=tuple(round(255 * m) for m in mean))


def _shows_videos(processor: Any) -> bool:
    """Whether the chat template has a place for videos; without one they count as images."""
    return processor.chat_template is None or processor.video_token in processor.chat_template


def _videos(clips: Sequence[Clip]) -> dict[str, Any]:
    """A processor's arguments for frames that have been chosen already."""
    if not clips:
        return {}
    told = [
        {
            "total_num_frames": clip.total,
            "fps": clip.fps or None,  # unknown: the processor assumes a rate
            "frames_indices": clip.numbers,
            "width": clip.size[0],
            "height": clip.size[1],
        }
        for clip in clips
    ]
    videos = [np.stack([np.asarray(picture) for picture in clip.pictures]) for clip in clips]
    return {"videos": videos, "video_metadata": told, "do_sample_frames": False}


def image_token_ids(processor: Any) -> set[int]:
    """Ids that stand for images or videos, which no answer may hold."""
    tokenizer = processor.tokenizer
    names = ("image_token", "video_token", "boi_token", "eoi_token")
    texts = [getattr(processor, name, None) for name in names]
    ids = {tokenizer.convert_tokens_to_ids(text) for text in texts if isinstance(text, str)}
    ids |= set(getattr(processor, "image_token_ids", ()))
    return {i for i in ids if isinstance(i, int) and i != tokenizer.unk_token_id}
