"""The whole way from data to an evaluated model, as files: to rehearse the commands for real ones.

`python -m mmalign.playground.rehearsal FOLDER` writes the small LLaVA that comes with mmalign,
preferences about scenes to train on, and other scenes with annotations in COCO's format.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.files import whole_folder
from mmalign.playground.scenes import COLOURS, DESCRIBE, SHAPES, Scene, caption, scenes
from mmalign.playground.vision_language import TINY_LLAVA

OBJECTS = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def write_rehearsal(folder: Path, *, pairs: int = 320, images: int = 200, seed: int = 0) -> None:
    """Write model/, pairs.jsonl with photos/, and images/ with instances.json and objects.txt.

    A pair prefers what is there to what habit would see there, see `habitual`.
    images: to evaluate on; their things do not come together.
    """
    with whole_folder(folder) as partial:
        shutil.copytree(TINY_LLAVA, partial / "model")
        write_coco(partial, scenes("apart", images, seed=f"rehearsal {seed}"))
        _write_pairs(partial, pairs, seed)


def write_coco(folder: Path, shown: Sequence[Scene]) -> None:
    """Scenes as COCO has its images: images/, instances.json, and objects.txt with the names."""
    numbers = {name: number for number, name in enumerate(OBJECTS, 1)}
    annotations: list[dict[str, Any]] = []
    images = []
    for number, scene in enumerate(shown):
        file = f"{number:06}.png"
        _write_image(folder / "images" / file, scene)
        images.append({"id": number, "file_name": file})
        for name in scene.present:
            place = {"id": len(annotations), "image_id": number, "category_id": numbers[name]}
            annotations.append(place)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    (folder / "objects.txt").write_text("".join(f"{name}\n" for name in OBJECTS))


def _write_pairs(folder: Path, count: int, seed: int) -> None:
    draw = random.Random(f"rehearsal {seed}")
    rows: list[str] = []
    for number, scene in enumerate(scenes("apart", 20 * count, seed=f"rehearsal pairs {seed}")):
        named = habitual(scene, draw)
        if named is None:
            continue
        file = f"photos/{number:06}.png"
        _write_image(folder / file, scene)
        answers = {"chosen": caption(scene.present), "rejected": caption(named)}
        row = {"images": [file], "prompt": DESCRIBE[0], **answers}
        rows.append(json.dumps(row) + "\n")
        if len(rows) == count:
            break
    (folder / "pairs.jsonl").write_text("".join(rows))


def habitual(scene: Scene, draw: random.Random) -> list[str] | None:
    """What is there, but for one thing in whose place stands the companion that mostly comes with
    another: as long as the truth, so that length tells nothing. None where no companion is missing.
    """
    companions = {thing.name: thing.companion() for thing in scene.things}
    missing = [
        (name, companion.name)
        for name, companion in companions.items()
        if companion is not None and companion.name not in scene.present
    ]
    if not missing or len(scene.things) < 2:
        return None
    seen, expected = draw.choice(missing)
    lost = draw.choice([name for name in scene.present if name != seen])
    left = [name for name in scene.present if name != lost]
    left.insert(left.index(seen) + 1, expected)
    return left


def _write_image(file: Path, scene: Scene) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(scene.image().content)


if __name__ == "__main__":
    write_rehearsal(Path(sys.argv[1]))
    print(f"{sys.argv[1]}: model/, pairs.jsonl, and images/ with instances.json and objects.txt")
