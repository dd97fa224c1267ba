"""A page that shows preferences: one HTML file, with images, that works from a disk.

Beside what a preference is, it draws what builders found out, where they put it into `details` of
its source under these names:

    boxes: [{"image": 0, "box": [x0, y0, x1, y1], "label": "Image2", "target": true}, ...]
        pixels of the prompt's image number "image"
    heat: [{"image": 0, "rows": 24, "columns": 24, "values": [...]}, ...]
        attention on a grid over the prompt's image, row by row
    marks: {"0": [[start, end, "hallucinated"], ...], "1": ...}
        characters of a candidate's text, by the candidate's number
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from mmalign.data.errors import RecordError
from mmalign.errors import BadSample
from mmalign.media import open_image
from mmalign.records import Media, Message, Part, Preference, Text, text_of

DRAWN = ("boxes", "heat", "marks")
SIDES = ((2_000, 320), (6_000, 200))
"""The longer side of images in pixels, for pages with up to so many; SMALLEST for more."""
SMALLEST = 112


class Gallery:
    """What the page's script is given: entries, and the images that they share.

    side: the longer side of images, in pixels.
    """

    def __init__(self, records: Iterable[tuple[int, Preference | RecordError]], side: int) -> None:
        self.side = side
        self.images: dict[str, str] = {}
        self.entries = [self._checked(row, record) for row, record in records]

    def _checked(self, row: int, record: Preference | RecordError) -> dict[str, Any]:
        try:
            if isinstance(record, RecordError):
                raise record
            return self._entry(row, record)
        except (RecordError, OSError) as error:  # OSError: a file of media is not there
            return {"row": row, "error": str(error), "candidates": [], "prompt": []}

    def _entry(self, row: int, record: Preference) -> dict[str, Any]:
        first, *others = record.candidates
        shared = all(sample.prompt == first.prompt for sample in others)
        source = record.source
        details = {name: value for name, value in source.details.items() if name not in DRAWN}
        return {
            "row": row,
            "prompt": self._turns(first.prompt) if shared else [],
            "candidates": [
                {
                    "grade": grade,
                    "prompt": [] if shared else self._turns(sample.prompt),
                    "response": self._parts(sample.response),
                }
                for sample, grade in zip(record.candidates, record.grades, strict=True)
            ],
            "numbers": numbers_of(record),
            "source": source.builder,
            "drawn": {name: source.details[name] for name in DRAWN if name in source.details},
            "provenance": {
                "id": record.id,
                "version": source.version,
                "models": list(source.models),
                "seed": source.seed,
                "parents": list(source.parents),
                **details,
            },
        }

    def _turns(self, messages: tuple[Message, ...]) -> list[dict[str, Any]]:
        return [{"role": message.role, "parts": self._parts(message.parts)} for message in messages]

    def _parts(self, parts: tuple[Part, ...]) -> list[dict[str, Any]]:
        return [self._text(p) if isinstance(p, Text) else self._media(p) for p in parts]

    def _text(self, text: Text) -> dict[str, Any]:
        spans = [[span.start, span.end, span.weight] for span in text.weights]
        return {"text": text.text, "weights": spans} if spans else {"text": text.text}

    def _media(self, media: Media) -> dict[str, Any]:
        """The number of an image, or in its place a text that says why there is none."""
        if media.kind == "video":
            return {"text": f"[video {media.path or 'held as bytes'}]"}
        try:
            size = self._kept(media)
        except BadSample as error:
            return {"text": f"[image that cannot be shown: {error}]"}
        return {"image": media.digest, "size": size}

    def _kept(self, media: Media) -> list[int]:
        small, size = thumbnail(media, self.side)
        self.images.setdefault(media.digest, small)
        return size


def numbers_of(preference: Preference) -> dict[str, float]:
    """What the page can sort and filter by."""
    texts = [text_of(sample.response) for sample in preference.candidates]
    found = {"margin": preference.grades[0] - preference.grades[-1]}
    if any(texts):
        found["chosen, characters"] = len(texts[0])
        found["rejected, characters"] = len(texts[-1])
        found["chosen longer by"] = len(texts[0]) - len(texts[-1])
    return {**found, **{name: float(value) for name, value in preference.aux.items()}}


def thumbnail(media: Media, side: int) -> tuple[str, list[int]]:
    """A small JPEG as a data: URI, and width and height of the image itself, upright.

    Raises BadSample for what cannot be shown.
    """
    small, size = small_jpeg(media, side)
    return "data:image/jpeg;base64," + base64.b64encode(small).decode(), size


def small_jpeg(media: Media, side: int) -> tuple[bytes, list[int]]:
    """The same as a file."""
    image = open_image(media)
    size = list(image.size)
    image.thumbnail((side, side))
    small = io.BytesIO()
    image.save(small, "JPEG", quality=80)
    return small.getvalue(), size


def side_for(images: int) -> int:
    """How large the images of a page may be, so that the page stays light enough to open."""
    return next((side for most, side in SIDES if images <= most), SMALLEST)


def render(gallery: Gallery, **given: Any) -> str:
    """The page. `given` goes to the template: statistics, sheets, plots."""
    from jinja2 import Environment  # for the page only

    template = files("mmalign.data").joinpath("gallery.html").read_text(encoding="utf-8")
    shown: Mapping[str, Any] = {"entries": gallery.entries, "images": gallery.images, **given}
    return Environment(autoescape=True).from_string(template).render(shown)
