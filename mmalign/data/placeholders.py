"""Texts that say with a placeholder, `<image>` for example, where an image stands."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mmalign.data import fields
from mmalign.data.errors import FieldError
from mmalign.records import Media, Message, Part, Text

PLACEHOLDERS = {
    "image": (
        "<image>",
        "<IMAGE>",
        "<img>",
        "<image-placeholder>",
        "<|image|>",
        "<|image_pad|>",
        "<image_soft_token>",
    ),
    "video": ("<video>", "<VIDEO>", "<|video_pad|>"),
}
"""What the public datasets write where an image or a video stands."""

_ANY = re.compile("|".join(re.escape(mark) for marks in PLACEHOLDERS.values() for mark in marks))
_KIND = {mark: kind for kind, marks in PLACEHOLDERS.items() for mark in marks}

Turn = tuple[str, str]
"""The role and the text of one message."""


def messages(turns: Sequence[Turn], media: Sequence[Media], field: str) -> tuple[Message, ...]:
    """The turns with media in the places that the text keeps for them, in order.

    Line breaks between an image and a text are dropped: the model's template sets its own. Media
    without a place come first in the first message of the user, as every format means it.
    field: what to call the text in errors.
    Raises FieldError where the text has places for more media than there are, or where a place is
    for media of the other kind.
    """
    places = sum(len(_ANY.findall(text)) for _, text in turns)
    if places > len(media):
        raise FieldError(
            field, f"has {places} places for images or videos, but the row has {len(media)}"
        )
    waiting = len(media) - places
    first, rest = list(media[:waiting]), list(media[waiting:])
    found = []
    for role, text in turns:
        parts: list[Part] = []
        if role == "user" and first:
            parts, first = [*first], []
        parts += _parts(text, rest, field)
        found.append(Message(role, tuple(parts)))
    if first:
        raise FieldError(field, "there are images, but no message of the user to hold them")
    return tuple(found)


def response(value: object, field: str) -> tuple[Text]:
    """A response that is a text. Raises FieldError where it is missing, empty, or holds a
    placeholder, which a processor would take for an image."""
    text = fields.text(value, field)
    if not text.strip():
        raise FieldError(field, "is empty")
    if mark := _ANY.search(text):
        raise FieldError(
            field,
            f"holds the placeholder {mark.group()}, which models take for an image: remove it",
        )
    return (Text(text),)


def _parts(text: str, left: list[Media], field: str) -> list[Part]:
    """The text in pieces; the media it has places for are taken from `left`."""
    parts: list[Part] = []
    end = 0
    for mark in _ANY.finditer(text):
        parts += _piece(text[end : mark.start()])
        if left[0].kind != _KIND[mark.group()]:
            raise FieldError(field, f"{mark.group()} stands where the row has a {left[0].kind}")
        parts.append(left.pop(0))
        end = mark.end()
    return parts + (_piece(text[end:]) if end else [Text(text)])


def _piece(text: str) -> list[Part]:
    text = text.strip("\n")
    return [Text(text)] if text.strip() else []
