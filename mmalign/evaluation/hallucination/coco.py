"""Reading COCO's annotation files: which objects the images show, and what people wrote of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.errors import UserError
from mmalign.evaluation.hallucination.mentions import mentions
from mmalign.evaluation.hallucination.objects import COCO, Vocabulary


@dataclass
class Annotated:
    """An image: its file's name, and the canonical names of the objects that it shows.

    segmented: by instances. written: by captions.
    """

    file: str
    segmented: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)

    @property
    def present(self) -> set[str]:
        """All objects, as CHAIR counts them: the union."""
        return self.segmented | self.written


def read_coco(files: Sequence[Path], vocabulary: Vocabulary = COCO) -> dict[int, Annotated]:
    """Images by id from instances_*.json and captions_*.json, told apart by what they hold.

    Raises UserError for a file that is neither, and for a category without a name in `vocabulary`.
    """
    images: dict[int, Annotated] = {}
    for file in files:
        content = _content(file)
        for image in content["images"]:
            images.setdefault(image["id"], Annotated(image["file_name"]))
        names = _categories(content, file, vocabulary)
        for number, each in enumerate(content["annotations"]):
            try:
                image = images[each["image_id"]]
                if "category_id" in each:
                    image.segmented.add(names[each["category_id"]])
                else:
                    image.written |= {m.name for m in mentions(each["caption"], vocabulary)}
            except KeyError as error:
                raise UserError(
                    f"{file}: annotation {number} has no or an unknown {error}",
                    hint="COCO's instances_*.json and captions_*.json are wanted",
                ) from error
    return images


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not valid JSON: {error}") from error
    missing = [name for name in ("images", "annotations") if name not in content]
    if missing or not isinstance(content, dict):
        raise UserError(
            f"{file} has no {missing[0] if missing else 'fields'}",
            hint="COCO's instances_*.json and captions_*.json are wanted",
        )
    return content


def _categories(content: dict[str, Any], file: Path, vocabulary: Vocabulary) -> dict[int, str]:
    """The objects' canonical names by COCO's numbers."""
    found = {}
    for category in content.get("categories", ()):
        name = vocabulary.names.get(category["name"])
        if name is None:
            raise UserError(
                f"{file}: no object of the list is called {category['name']!r}",
                hint="add a line for it to the file of synonyms",
            )
        found[category["id"]] = name
    return found
