"""Questions about one image asked among several: in a sequence, a grid, or one inside another.

The first step of MIA-DPO, arXiv:2410.17637: what is known about a single image is asked again where
other images distract, in words that name the image that is meant. The known answer is the one to
prefer; attention_filter.py lets a model give the other.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from random import Random
from typing import Literal

from mmalign.data.errors import FieldError
from mmalign.data_builders.answered import conversation
from mmalign.data_builders.canvases import (
    GRIDS,
    Canvas,
    Picture,
    fitted,
    fitting,
    grid,
    inside,
    label_of,
    picture_in_picture,
)
from mmalign.data_builders.command import as_command
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.records import QUESTION, Record
from mmalign.data_builders.weights import drawn, shares
from mmalign.errors import BadSample, UserError
from mmalign.media import extent, png
from mmalign.records import (
    Media,
    Message,
    Part,
    Preference,
    Provenance,
    Sample,
    Text,
    text_of,
    thumb,
)
from mmalign.training.seeds import derive

NEIGHBOURS = 64
"""Inputs that are read together: companions are drawn among these."""

KEPT_PIXELS = 2**25
"""How much of decoded images is kept in their own size for their next use."""

LAYOUTS = ("sequence", "grid", "picture-in-picture")
TO_THE_MIDDLE = (
    "In the picture in the middle",
    "In the image at the center",
    "Looking at the smaller image in the middle",
    "As for the picture that lies on top of the other",
    "With regard to the image in the center",
    "In the inner picture",
    "Concerning the image placed in the middle",
    "Judging by the central image alone",
)
COORDINATES = re.compile(r"[\[(]\s*\d*\.?\d+\s*(?:,\s*\d*\.?\d+\s*){3}[\])]")
"""A box in a text, which is wrong once the image has moved."""


@dataclass(frozen=True)
class Drawing:
    """How canvases are drawn and stored; see `build`."""

    cell: int
    margin: int
    labels: bool
    inner_scale: float
    square: bool
    image_format: Literal["jpeg", "png"]

    def __post_init__(self) -> None:
        if self.cell < 1 or self.margin < 0 or not 0 < self.inner_scale < 1:
            raise UserError(
                "a collage cannot be drawn with these measures",
                hint="cell must be 1 or more, margin 0 or more, inner_scale between 0 and 1",
            )

    def grid(self, pictures: Sequence[Picture]) -> Canvas:
        return grid(
            pictures, cell=self.cell, margin=self.margin, labels=self.labels, square=self.square
        )

    def picture_in_picture(self, inner: Picture, outer: Picture) -> Canvas:
        return picture_in_picture(inner, outer, scale=self.inner_scale, square=self.square)

    def stored(self, image: Picture) -> Media:
        if self.image_format == "png":
            return png(image)
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=95)
        return Media("image", data=buffer.getvalue())


class Album:
    """The different images of some inputs. What is decoded is kept for its next use: as small as it
    is in grids, and some of it in its own size."""

    def __init__(self, records: Iterable[Record], cell: int) -> None:
        self.records = {r.image.digest: r for r in records if r.image is not None}
        self._cell = cell
        self._small: dict[str, Picture] = {}
        self._recent: OrderedDict[str, Picture] = OrderedDict()
        self._kept = 0  # pixels of these
        self._sound: set[str] = set()

    def check(self, digest: str) -> None:
        """Raises FieldError for an image that cannot be decoded."""
        if digest not in self._sound:
            self.records[digest].pixels(least=1)
            self._sound.add(digest)

    def whole(self, digest: str) -> Picture:
        """Raises FieldError as well."""
        if digest not in self._recent:
            self._recent[digest] = self.records[digest].pixels()
            self._kept += _pixels(self._recent[digest])
        self._recent.move_to_end(digest)
        while self._kept > KEPT_PIXELS and len(self._recent) > 1:
            self._kept -= _pixels(self._recent.popitem(last=False)[1])
        return self._recent[digest]

    def small(self, digest: str) -> Picture:
        """As it fits into a cell. Raises FieldError as well."""
        if digest not in self._small:
            self._small[digest] = fitted(self._enough(digest), self._cell, self._cell)
        return self._small[digest]

    def inner(self, digest: str, width: int, height: int) -> Picture:
        """To be fitted into this area; already small if it gets no larger than in a cell."""
        whole = self.whole(digest)
        fits = fitting(whole.size, width, height)
        return self.small(digest) if fits == fitting(whole.size, self._cell, self._cell) else whole

    def _enough(self, digest: str) -> Picture:
        """In a size that is decoded at least cost and is no smaller than a cell."""
        record = self.records[digest]
        assert record.image is not None  # as all here
        try:
            size = extent(record.image)
        except BadSample as error:
            raise FieldError("image", str(error)) from error
        if digest in self._recent or max(size.width, size.height) < 2 * self._cell:
            return self.whole(digest)
        return record.pixels(least=self._cell)


def _pixels(picture: Picture) -> int:
    return picture.width * picture.height


def build(
    images: Iterable[Record],
    *,
    layouts: tuple[str, ...] = LAYOUTS,
    sequence: tuple[str, ...] = ("2=55", "3=16", "4=16", "5=13"),
    grids: tuple[str, ...] = ("2=49", "3=14", "4=14", "6=11", "9=12"),
    per_image: int = 1,
    question: str = QUESTION,
    cell: int = 448,
    margin: int = 40,
    labels: bool = True,
    inner_scale: float = 0.7,
    square: bool = True,
    image_format: Literal["jpeg", "png"] = "jpeg",
    seed: int = 0,
) -> Iterator[Preference | Refused]:
    """Ask about one image among several, in words that name it.

    An input is an image with a question and its answer, a caption, or a conversation (in a column
    `conversations`, as LLaVA's data have it, or `messages`); without any of these the answer stays
    empty, for attention-filter to ask the model about the image alone. What is made is a thumb up
    for the known answer to the new question. Companions are drawn among the 64 inputs that are read
    together, no image twice. Where the text has coordinates the layout is a sequence.

    Args:
        layouts: What to draw from: sequence, grid, picture-in-picture. With weights:
            sequence=3 grid=1.
        sequence: Numbers of images in a sequence, with weights.
        grids: Numbers of images in a grid, out of 2, 3, 4, 6 and 9, with weights.
        per_image: Questions made of each input, each with other companions.
        question: What is asked about images without a question.
        cell: Side of a grid's cell in pixels.
        margin: White between a grid's columns and above its rows, in pixels.
        labels: Write Image1, Image2 ... above a grid's cells.
        inner_scale: Share of the outer image's width and height that the inner one may fill.
        square: Pad what is drawn to a square, from which no model's processor crops.
        image_format: How it is stored: jpeg of quality 95, or png without loss.
        seed: The same seed makes the same questions.

    Examples:
        mmalign build collage --images photographs --out asked
        mmalign build collage llava_v1_5_mix665k.json --out asked --layouts grid --grids 4 9
    """
    kinds = shares("layouts", layouts, LAYOUTS)
    counts = {
        "sequence": shares("sequence", sequence, tuple(map(str, range(2, 10)))),
        "grid": shares("grids", grids, tuple(map(str, GRIDS))),
        "picture-in-picture": {"2": 1.0},
    }
    drawing = Drawing(cell, margin, labels, inner_scale, square, image_format)
    records = list(images)
    album = Album(records, cell)
    for record in records:
        try:
            asked, answer = _question(record, question)
            possible = _possible(kinds, asked, answer)
            for draw in range(per_image):
                random = Random(derive(seed, "collage", record.id, draw))
                layout = drawn(possible, random)
                count = int(drawn(counts[layout], random))
                made = _among_others(record, asked, answer, layout, count, album, drawing, random)
                yield replace(made, source=replace(made.source, seed=seed))
        except FieldError as error:
            yield Refused(record.id, error.reason, error.field)


def _question(record: Record, default: str) -> tuple[tuple[Message, ...], str]:
    """A conversation that ends with a question, without its image, and the answer."""
    asked, answer = conversation(record, default)
    return tuple(Message(m.role, (Text(text_of(m.parts).strip()),)) for m in asked), answer


def _possible(
    kinds: Mapping[str, float], asked: Sequence[Message], answer: str
) -> Mapping[str, float]:
    texts = [answer, *(text_of(message.parts) for message in asked)]
    if not any(COORDINATES.search(text) for text in texts):
        return kinds
    if not kinds.get("sequence"):
        raise FieldError("answers", "has coordinates, which hold in sequences only")
    return {"sequence": 1.0}


def _among_others(
    record: Record,
    asked: Sequence[Message],
    answer: str,
    layout: str,
    count: int,
    album: Album,
    drawing: Drawing,
    random: Random,
) -> Preference:
    """Raises FieldError where the record's image cannot be decoded or has no other beside it."""
    assert record.image is not None  # _question saw to it
    own = record.image.digest
    companions = _companions(own, count - 1, album, layout, random)
    shown = [own, *companions]
    if layout != "picture-in-picture":
        random.shuffle(shown)
    target = shown.index(own) + 1
    details: dict[str, object] = {
        "layout": layout,
        "count": len(shown),
        "target": target,
        "images": shown,
        "question": text_of(asked[-1].parts),
    }
    by_name = f"In {label_of(target)}"
    if layout == "sequence":
        head = _sequence([album.records[digest].image for digest in shown])
    else:
        if layout == "grid":
            canvas = drawing.grid([album.small(digest) for digest in shown])
        else:
            outer = album.whole(shown[1])
            inner = album.inner(shown[0], *inside(outer, drawing.inner_scale))
            canvas = drawing.picture_in_picture(inner, outer)
            by_name = details["named"] = random.choice(TO_THE_MIDDLE)
        head = (drawing.stored(canvas.image), Text("\n"))
        boxes = _drawn_boxes(canvas, target, labels=layout == "grid")
        details |= {"canvas": list(canvas.image.size), "boxes": boxes}
    prompt = _named(asked, head, by_name)
    parents = (record.id, *(album.records[digest].id for digest in companions))
    source = Provenance("collage", parents=parents, details=details)
    return thumb(Sample(prompt, (Text(answer),) if answer else ()), up=True, source=source)


def _drawn_boxes(canvas: Canvas, target: int, *, labels: bool) -> list[dict[str, object]]:
    """As galleries draw them; see mmalign/data/gallery.py."""
    return [
        {"image": 0, "box": list(box), "target": number == target}
        | ({"label": label_of(number)} if labels else {})
        for number, box in enumerate(canvas.boxes, start=1)
    ]


def _companions(own: str, wanted: int, album: Album, layout: str, random: Random) -> list[str]:
    """Other images, as many as wanted or, where there are fewer, as the layout has room for."""
    look = {"grid": album.small, "picture-in-picture": album.whole}.get(layout, album.check)
    look(own)
    found: list[str] = []
    others = [digest for digest in album.records if digest != own]
    for digest in random.sample(others, len(others)):
        if len(found) == wanted:
            break
        try:
            look(digest)
            found.append(digest)
        except FieldError:
            pass  # it is refused where it is the input itself
    if layout == "grid":
        found = found[: max((n - 1 for n in GRIDS if n <= len(found) + 1), default=0)]
    if not found:
        raise FieldError("image", "has no other image beside it that could be shown with it")
    return found


def _sequence(media: Iterable[Media | None]) -> tuple[Part, ...]:
    parts: list[Part] = []
    for number, image in enumerate(media, start=1):
        assert image is not None  # albums have records with images only
        parts += [Text(f"{label_of(number)}:"), image, Text("\n")]
    return tuple(parts)


def _named(asked: Sequence[Message], head: Sequence[Part], by_name: str) -> tuple[Message, ...]:
    """Every question names the image; the first is preceded by `head`."""
    found: list[Message] = []
    for message in asked:
        if message.role == "user":
            text = Text(f"{by_name}, {_lowered(text_of(message.parts))}")
            message = Message("user", (*head, text))
            head = ()
        found.append(message)
    return tuple(found)


def _lowered(question: str) -> str:
    """The first letter in lower case, unless the first word is I or an abbreviation."""
    first = re.match(r"[\w']*", question)
    word = first[0] if first else ""
    keep = word == "I" or word.startswith("I'") or (len(word) > 1 and word.isupper())
    return question if keep else question[:1].lower() + question[1:]


command = as_command("collage", build, chunk=NEIGHBOURS)
