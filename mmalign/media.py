"""Opening images and videos that may be anything: upright, in RGB, whole, or refused with a reason.

Every part of mmalign that looks at pixels opens them here.
"""

from __future__ import annotations

import importlib
import io
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps, ImageSequence, UnidentifiedImageError

from mmalign.errors import BadSample, UserError
from mmalign.records import Media

MAX_PIXELS = 89_478_485
"""Pixels of a frame above which a file is refused: what Pillow warns about, too."""

FrameChoice = Literal["consecutive", "uniform"]
"""Which frames of a longer video are taken: its middle at its own speed, or frames spread over all
of it (which changes the speed of motion)."""


@dataclass(frozen=True)
class Extent:
    """The size that media have by themselves. fps: frames per second, 0 for an image."""

    height: int
    width: int
    frames: int
    fps: float = 0.0


def open_image(media: Media, *, least: int | None = None) -> Image.Image:
    """An image in 8-bit RGB, turned as its EXIF data say, decoded completely.

    What is transparent becomes white, 16-bit greys keep their upper half, CMYK and palettes are
    converted; of an animation it is the first frame.
    least: an image that will be made smaller may come in a half, quarter or eighth of its size,
        which JPEG files are decoded in at less cost, as long as its longer side has so many pixels.
    Raises BadSample when the file is missing, empty, no image, cut off, or too large to be decoded
    safely; the message says which.
    """
    if media.kind != "image":
        raise BadSample(f"an image is needed, not a {media.kind}")
    with _reading(media), _opened(media) as image:
        if least is not None:
            scale = min(1.0, least / max(image.size))
            image.draft(None, (ceil(image.width * scale), ceil(image.height * scale)))
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)


def frames(media: Media, wanted: int, *, choice: FrameChoice = "consecutive") -> list[Image.Image]:
    """`wanted` frames of a video, in 8-bit RGB; an image has one.

    Raises BadSample for what cannot be decoded completely, and for a video with too few frames;
    UserError where the format needs PyAV, which is not installed.
    """
    if media.kind == "video" and not _is_picture(media):
        return _stream_frames(media, wanted, choice)
    with _reading(media), _opened(media) as image:
        repeats = _repeats(image) if media.kind == "video" else [1]
        numbers = _chosen(sum(repeats), wanted, choice)
        shown: list[Image.Image] = []
        place = 0
        for frame, times in zip(ImageSequence.Iterator(image), repeats, strict=False):
            if mine := [number for number in range(place, place + times) if number in numbers]:
                shown += [_rgb(ImageOps.exif_transpose(frame))] * len(mine)
            place += times
        return shown


def animation(pictures: Sequence[Image.Image], *, fps: float) -> Media:
    """Pictures of one size as animated WebP, without loss.

    The format joins neighbouring frames that are alike, so their number stands in the EXIF data,
    where `frames` looks for it.
    """
    exif = Image.Exif()
    exif[_DESCRIPTION] = f"{len(pictures)} frames"
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=pictures[1:],
        lossless=True,
        duration=round(1000 / fps),
        exif=exif,
    )
    return Media("video", data=buffer.getvalue())


def png(image: Image.Image, *, level: int = 6) -> Media:
    """An image as a record holds it, without loss. level: of compression, 0 to 9."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=level)
    return Media("image", data=buffer.getvalue())


def digest(media: Media) -> str:
    """Hash of the file's bytes. Raises BadSample when it does not exist."""
    with _reading(media):
        return media.digest


def extent(media: Media) -> Extent:
    """Size of media, read from headers where the format allows it.

    Raises BadSample when the file is missing, is no image or video, or is too large.
    """
    if media.kind == "video" and not _is_picture(media):
        return _stream_extent(media)
    with _reading(media), _opened(media) as image:
        width, height = image.size
        if image.getexif().get(0x0112, 1) in (5, 6, 7, 8):  # EXIF: lies on its side
            width, height = height, width
        if media.kind == "video":
            image.load()  # WebP says how long a frame is shown when it decodes it
        duration = image.info.get("duration") or 100.0  # of a frame, in milliseconds
        fps = 1000.0 / duration if media.kind == "video" else 0.0
        return Extent(height, width, sum(_repeats(image)), fps)


_DESCRIPTION = 0x010E  # of EXIF


def _repeats(image: Image.Image) -> list[int]:
    """How often each stored frame is shown: once, unless `animation` wrote several alike."""
    stored = getattr(image, "n_frames", 1)
    found = re.fullmatch(r"(\d+) frames", str(image.getexif().get(_DESCRIPTION, "")))
    if found is None or int(found[1]) <= stored:
        return [1] * stored
    if stored == 1:  # a still picture, which has no duration
        return [int(found[1])]
    durations = []
    for number in range(stored):
        image.seek(number)
        image.load()
        durations.append(float(image.info["duration"]))
    image.seek(0)
    one = sum(durations) / int(found[1])
    return [round(duration / one) for duration in durations]


def _chosen(count: int, wanted: int, choice: FrameChoice) -> dict[int, None]:
    """Numbers of the frames to take."""
    if count < wanted:
        raise BadSample(
            f"the video has {count} frames and {wanted} are needed: leave it out, or train with "
            "fewer frames (frames=...)"
        )
    if choice == "uniform":
        return dict.fromkeys(np.linspace(0, count - 1, wanted).round().astype(int).tolist())
    first = (count - wanted) // 2
    return dict.fromkeys(range(first, first + wanted))


@contextmanager
def _reading(media: Media) -> Iterator[None]:
    """Whatever a decoder throws at a broken file becomes BadSample with the reason."""
    try:
        yield
    except BadSample:
        raise
    except FileNotFoundError as error:
        raise BadSample(f"the {media.kind} {_name(media)} does not exist") from error
    except Image.DecompressionBombError as error:
        raise BadSample(_too_large(media)) from error
    except UnidentifiedImageError as error:  # its message has an address in memory
        raise BadSample(
            f"the {media.kind} {_name(media)} cannot be read: it is in no known format; is the file"
            " whole?"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadSample(
            f"the {media.kind} {_name(media)} cannot be read: {reason}; is the file whole?"
        ) from error


@contextmanager
def _opened(media: Media) -> Iterator[Image.Image]:
    with Image.open(io.BytesIO(media.content)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise BadSample(_too_large(media))
        yield image


def _rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; what is transparent becomes white."""
    if image.mode.startswith("I;16"):  # 16-bit greys, which Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _name(media: Media) -> str:
    return media.path or f"of {len(media.content)} bytes"


def _too_large(media: Media) -> str:
    return f"the {media.kind} {_name(media)} has more than {MAX_PIXELS} pixels: scale it down first"


_PICTURES = (b"\x89PNG", b"GIF8", b"\xff\xd8\xff")


def _is_picture(media: Media) -> bool:
    """Whether Pillow reads it: animated WebP, GIF and PNG, and still pictures."""
    with _reading(media):
        head = media.content[:12]
    return head.startswith(_PICTURES) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def _av() -> Any:
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise UserError(
            "reading MP4, WebM and the like needs PyAV, which is not installed",
            hint="pip install av; animated WebP, GIF and PNG are read without it",
        ) from error


@contextmanager
def _stream(media: Media) -> Iterator[Any]:
    av = _av()
    try:
        with _reading(media), av.open(io.BytesIO(media.content)) as container:
            if not container.streams.video:
                raise BadSample(f"the video {_name(media)} holds no pictures")
            yield container
    except av.error.FFmpegError as error:
        raise BadSample(f"the video {_name(media)} cannot be read: {error}") from error


def _stream_extent(media: Media) -> Extent:
    with _stream(media) as container:
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise BadSample(_too_large(media))
        count = stream.frames or sum(1 for _ in container.decode(video=0))
        return Extent(stream.height, stream.width, count, float(stream.average_rate or 0.0))


def _stream_frames(media: Media, wanted: int, choice: FrameChoice) -> list[Image.Image]:
    numbers = _chosen(_stream_extent(media).frames, wanted, choice)
    with _stream(media) as container:
        frames = [
            frame.to_image()
            for number, frame in enumerate(container.decode(video=0))
            if number in numbers
        ]
    if len(frames) < wanted:  # the header promised more than there is
        raise BadSample(f"the video {_name(media)} ends early: is the file whole?")
    return frames
