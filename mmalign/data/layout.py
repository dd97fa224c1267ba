"""Preferences as rows of a table and back: the columns of our store, which TRL reads too.

A layout says which columns a table has. Each record needs some; a table's layout joins what its
records need, so that text data have the plain columns text trainers expect.

Columns: `prompt`, then `chosen` and `rejected` for pairs, `completion` and `label` for thumbs;
`images` and `videos` in the order of their placeholders (prompt first, then responses, best first).
Text is a string (`plain` prompts), a list of {role, content} (`chat`) or the same with content as a
list of {type, text} (`parts`). What TRL has no columns for: `candidates`, all responses where there
are more than two or where prompts differ (`prompts` has those of the second candidate and on);
`spans`, the token weights; `grades`; `aux` and `source` as JSON; `id` and `prompt_ids`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from mmalign.data import fields
from mmalign.data.errors import FieldError
from mmalign.data.fields import Row
from mmalign.records import (
    PLAIN,
    Media,
    Message,
    Part,
    Preference,
    Provenance,
    Sample,
    Span,
    Text,
)

MEDIA = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How `datasets` stores an image: encoded bytes, or a path."""

SPAN = pa.struct(
    [
        ("candidate", pa.int32()),
        ("message", pa.int32()),  # of the prompt; -1 is the response
        ("part", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("weight", pa.float64()),
    ]
)
RESPONSE = -1

STYLES = ("plain", "chat", "parts")
"""How text is written, from the narrowest to the widest."""


@dataclass(frozen=True)
class Layout:
    """Which columns a table has; `a | b` is the narrowest that holds the records of both.

    style: how text is written. contrasts: prompts differ within a preference. ours: the columns
    that only mmalign reads; without them a table holds what TRL can represent, and no more.
    margin: TRL's column of that name.
    """

    style: Literal["plain", "chat", "parts"] = "plain"
    pairs: bool = False
    thumbs: bool = False
    lists: bool = False
    contrasts: bool = False
    images: bool = False
    videos: bool = False
    spans: bool = False
    margin: bool = False
    ours: bool = True

    def __or__(self, other: Layout) -> Layout:
        if self == other:
            return self
        mine, theirs = asdict(self), asdict(other)
        joined = {name: mine[name] or theirs[name] for name in mine}
        joined["style"] = max(self.style, other.style, key=STYLES.index)
        layout = Layout(**joined)
        if not layout.ours:
            _check_trl_join(self, other)
        return layout

    @cached_property
    def schema(self) -> pa.Schema:
        prompt, completion = _prompt_type(self.style), _prompt_type(self.style)
        columns = {
            "prompt": (True, prompt),
            "chosen": (self.pairs, completion),
            "rejected": (self.pairs, completion),
            "completion": (self.thumbs, completion),
            "label": (self.thumbs, pa.bool_()),
            "images": (self.images, pa.list_(MEDIA)),
            "videos": (self.videos, pa.list_(MEDIA)),
            "margin": (self.margin, pa.float64()),
            "candidates": (self.lists, pa.list_(completion)),
            "prompts": (self.contrasts, pa.list_(prompt)),
            "spans": (self.spans, pa.list_(SPAN)),
            "grades": (self.ours, pa.list_(pa.float64())),
            "aux": (self.ours, pa.string()),
            "source": (self.ours, pa.string()),
            "id": (self.ours, pa.string()),
            "prompt_ids": (self.ours, pa.list_(pa.string())),
        }
        chosen = [(name, kind) for name, (wanted, kind) in columns.items() if wanted]
        return pa.schema(chosen, metadata=_features() if self.images else None)


def needed(preference: Preference, *, ours: bool = True) -> Layout:
    """The narrowest layout that holds this preference."""
    samples = preference.candidates
    prompts = [sample.prompt for sample in samples]
    bodies = [m.parts for prompt in prompts for m in prompt] + [s.response for s in samples]
    parts = [part for body in bodies for part in body]
    kinds = {part.kind for part in parts if isinstance(part, Media)}
    contrast = not _share_prompt(preference)
    listed = len(samples) > 2 or contrast
    return Layout(
        style=_style(prompts, bodies),
        pairs=len(samples) > 1,
        thumbs=len(samples) == 1,
        lists=listed and ours,
        contrasts=contrast and ours,
        images="image" in kinds,
        videos="video" in kinds,
        spans=ours and any(isinstance(part, Text) and part.weights for part in parts),
        margin=not ours and "margin" in preference.aux,
        ours=ours,
    )


def encode(preference: Preference, layout: Layout, *, embed: bool = True) -> Row:
    """One row of a table with this layout.

    embed: put the bytes of images that are held by path into the row (the id stays the same);
        False keeps absolute paths. Videos stay as they are held.
    Raises FieldError for what cannot be written, such as an image whose file is not there.
    """
    try:
        return _encoded(preference, layout, embed)
    except OSError as error:
        raise FieldError("images", f"cannot read {error.filename}: {error.strerror}") from error


def _encoded(preference: Preference, layout: Layout, embed: bool) -> Row:
    cells = _Cells(layout.style, embed)
    first, *others = preference.candidates
    listed = len(preference.candidates) > 2 or not _share_prompt(preference)
    row: Row = dict.fromkeys(layout.schema.names)
    row["prompt"] = cells.prompt(first.prompt, candidate=0)
    if not _share_prompt(preference):
        row["prompts"] = [cells.prompt(s.prompt, candidate=k) for k, s in enumerate(others, 1)]
    responses = [
        cells.response(sample.response, candidate=k)
        for k, sample in enumerate(preference.candidates)
    ]
    if listed:
        row["candidates"] = responses
    if len(responses) == 1:
        row["completion"], row["label"] = responses[0], preference.grades[0] > 0
    elif _trl_sees_a_pair(preference):
        row["chosen"], row["rejected"] = responses[0], responses[-1]
    row |= {"images": cells.images, "videos": cells.videos, "spans": cells.spans}
    row["margin"] = preference.aux.get("margin")
    if layout.ours:
        row |= _our_columns(preference)
    return {name: row[name] for name in layout.schema.names}


def decode(row: Row, root: Path | None = None) -> Preference:
    """The preference in a row of our store. Raises FieldError."""
    reader = _Reader(row, root)
    prompt = reader.prompt(row.get("prompt"), "prompt", candidate=0)
    if row.get("candidates") is not None:
        bodies, name = row["candidates"], "candidates"
    elif row.get("completion") is not None:
        bodies, name = [row["completion"]], "completion"
    else:
        bodies, name = [row.get("chosen"), row.get("rejected")], "chosen and rejected"
    others = row.get("prompts")
    if others is not None and len(others) != len(bodies) - 1:
        raise FieldError("prompts", f"{len(others)} prompts for {len(bodies) - 1} other candidates")
    prompts = [prompt] * len(bodies)
    for k, other in enumerate(others or (), 1):
        prompts[k] = reader.prompt(other, "prompts", candidate=k)
    responses = [reader.response(body, name, candidate=k) for k, body in enumerate(bodies)]
    reader.finish()
    candidates = tuple(Sample(p, r) for p, r in zip(prompts, responses, strict=True))
    if not isinstance(row.get("grades"), list):
        raise FieldError("grades", "is missing: one number per candidate, best first")
    grades = tuple(fields.number(grade, "grades") for grade in row["grades"])
    return Preference(candidates, grades, _json(row, "aux"), _source(_json(row, "source")))


def _check_trl_join(one: Layout, other: Layout) -> None:
    if not (one.pairs or one.thumbs):  # nothing is written yet
        return
    if (one.pairs or other.pairs) and (one.thumbs or other.thumbs):
        raise FieldError(
            "candidates",
            "a TRL dataset holds either pairs or thumbs, not both: write two datasets",
        )
    if (one.style == "plain") != (other.style == "plain"):
        raise FieldError(
            "prompt",
            "a TRL dataset holds either plain prompts or conversations, not both: write two"
            " datasets",
        )


def _prompt_type(style: str) -> pa.DataType:
    if style == "plain":
        return pa.string()
    part = pa.struct([("type", pa.string()), ("text", pa.string())])
    content = pa.string() if style == "chat" else pa.list_(part)
    return pa.list_(pa.struct([("role", pa.string()), ("content", content)]))


def _features() -> dict[bytes, bytes]:
    """Tell `datasets` that the structs in `images` are images."""
    images = {"images": {"feature": {"_type": "Image"}, "_type": "List"}}
    return {b"huggingface": json.dumps({"info": {"features": images}}).encode()}


def _share_prompt(preference: Preference) -> bool:
    first, *others = preference.candidates
    return all(sample.prompt == first.prompt for sample in others)


def _trl_sees_a_pair(preference: Preference) -> bool:
    """Pairs, and the best and worst of a list, where leaving out the others changes no image."""
    if not _share_prompt(preference):
        return False
    with_media = any(isinstance(p, Media) for s in preference.candidates for p in s.response)
    return len(preference.candidates) == 2 or not with_media


def _style(
    prompts: list[tuple[Message, ...]], bodies: list[tuple[Part, ...]]
) -> Literal["plain", "chat", "parts"]:
    if not all(len(body) == 1 and isinstance(body[0], Text) for body in bodies):
        return "parts"
    plain = all(len(prompt) == 1 and prompt[0].role == PLAIN for prompt in prompts)
    return "plain" if plain else "chat"


def _our_columns(preference: Preference) -> Row:
    try:
        written = json.dumps(vars(preference.source), ensure_ascii=False)
    except TypeError as error:
        raise FieldError("source", f"details must be values that JSON knows: {error}") from error
    return {
        "grades": list(preference.grades),
        "aux": json.dumps({k: fields.number(v, "aux") for k, v in preference.aux.items()}),
        "source": written,
        "id": preference.id,
        "prompt_ids": list(dict.fromkeys(s.prompt_id for s in preference.candidates)),
    }


@dataclass
class _Cells:
    """Writes the cells of one row, and gathers the media and spans found on the way."""

    style: str
    embed: bool
    images: list[Row] = field(default_factory=list)
    videos: list[Row] = field(default_factory=list)
    spans: list[Row] = field(default_factory=list)

    def prompt(self, messages: tuple[Message, ...], *, candidate: int) -> Any:
        contents = [
            self._content(message.parts, candidate, index) for index, message in enumerate(messages)
        ]
        if self.style == "plain":
            return contents[0]
        roles = [message.role for message in messages]
        return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]

    def response(self, parts: tuple[Part, ...], *, candidate: int) -> Any:
        content = self._content(parts, candidate, RESPONSE)
        return content if self.style == "plain" else [{"role": "assistant", "content": content}]

    def _content(self, parts: tuple[Part, ...], candidate: int, message: int) -> Any:
        cells: list[Row] = []
        for index, part in enumerate(parts):
            match part:
                case Media():
                    self._keep(part)
                    cells.append({"type": part.kind, "text": None})
                case Text(text, weights):
                    here = {"candidate": candidate, "message": message, "part": index}
                    self.spans += [{**here, **asdict(span)} for span in weights]
                    cells.append({"type": "text", "text": fields.text(text, "text")})
        return cells if self.style == "parts" else cells[0]["text"]

    def _keep(self, media: Media) -> None:
        if media.kind == "image" and self.embed:
            self.images.append({"bytes": media.content, "path": None})
            return
        path = str(Path(media.path).absolute()) if media.path is not None else None
        cells = self.images if media.kind == "image" else self.videos
        cells.append({"bytes": media.data, "path": path})


class _Reader:
    """Reads the cells of one row, handing out media and spans in the order they were written."""

    def __init__(self, row: Row, root: Path | None) -> None:
        self.media = {
            "image": iter([fields.media(c, "images", root) for c in row.get("images") or ()]),
            "video": iter(
                [fields.media(c, "videos", root, kind="video") for c in row.get("videos") or ()]
            ),
        }
        self.spans: dict[tuple[int, int, int], list[Span]] = {}
        for span in row.get("spans") or ():
            place = (span["candidate"], span["message"], span["part"])
            found = Span(span["start"], span["end"], span["weight"])
            self.spans.setdefault(place, []).append(found)

    def prompt(self, value: Any, name: str, *, candidate: int) -> tuple[Message, ...]:
        if isinstance(value, str):
            return (Message(PLAIN, self._parts(value, name, (candidate, 0))),)
        return tuple(
            Message(
                fields.text(message.get("role"), name),
                self._parts(message.get("content"), name, (candidate, index)),
            )
            for index, message in enumerate(_list(value, name))
        )

    def response(self, value: Any, name: str, *, candidate: int) -> tuple[Part, ...]:
        if isinstance(value, str):
            return self._parts(value, name, (candidate, RESPONSE))
        messages = _list(value, name)
        if len(messages) != 1:
            raise FieldError(name, f"has {len(messages)} messages, but a response is one")
        return self._parts(messages[0].get("content"), name, (candidate, RESPONSE))

    def finish(self) -> None:
        for kind, left in self.media.items():
            if count := len(list(left)):
                raise FieldError(f"{kind}s", f"{count} more than the text has places for")

    def _parts(self, content: Any, name: str, place: tuple[int, int]) -> tuple[Part, ...]:
        if isinstance(content, str):
            return (self._text(content, name, (*place, 0)),)
        return tuple(
            self._part(cell, name, (*place, index))
            for index, cell in enumerate(_list(content, name))
        )

    def _part(self, cell: Row, name: str, place: tuple[int, int, int]) -> Part:
        kind = cell.get("type")
        if kind == "text":
            return self._text(cell.get("text"), name, place)
        if kind not in self.media:
            raise FieldError(name, f"has a part of type {kind!r}: text, image and video are known")
        found = next(self.media[kind], None)
        if found is None:
            raise FieldError(f"{kind}s", "has fewer entries than the text has places for")
        return found

    def _text(self, value: Any, name: str, place: tuple[int, int, int]) -> Text:
        return Text(fields.text(value, name), tuple(self.spans.get(place, ())))


def _list(value: Any, name: str) -> list[Row]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise FieldError(name, "is missing" if value is None else "is not a list of messages")
    return value


def _json(row: Row, name: str) -> dict[str, Any]:
    try:
        value = json.loads(row.get(name) or "{}")
    except json.JSONDecodeError as error:
        raise FieldError(name, f"is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FieldError(name, "is not a JSON object")
    return value


def _source(value: dict[str, Any]) -> Provenance:
    try:
        source = Provenance(**value)
    except TypeError as error:
        raise FieldError("source", f"is not a provenance: {error}") from error
    return replace(source, parents=tuple(source.parents), models=tuple(source.models))
