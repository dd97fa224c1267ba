"""Small benchmarks in the exact formats of the published files, written by us."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from tiny_vision_language import picture


def write_images(folder: Path, names: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(picture(number).content)
    return folder


def write_json(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def write_lines(file: Path, rows: list[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def coco(
    folder: Path, shown: list[list[str]], captions: dict[int, str] | None = None
) -> list[Path]:
    """instances and captions of images 1, 2, ... that show these categories, and the images."""
    categories = sorted({name for names in shown for name in names})
    numbers = {name: 10 + i for i, name in enumerate(categories)}
    images = [
        {"id": i, "file_name": f"COCO_val2014_{i:012d}.jpg", "width": 80, "height": 60}
        for i in range(1, len(shown) + 1)
    ]
    write_images(folder / "val2014", [image["file_name"] for image in images])
    instances = [
        {"id": 100 * i + k, "image_id": i, "category_id": numbers[name], "iscrowd": 0,
         "bbox": [1, 2, 3, 4], "area": 12.0, "segmentation": [[1, 2, 4, 2, 4, 6]]}
        for i, names in enumerate(shown, 1)
        for k, name in enumerate(names)
    ]  # fmt: skip
    written = [
        {"id": i, "image_id": image, "caption": text}
        for i, (image, text) in enumerate((captions or {}).items())
    ]
    classes = [{"id": n, "name": name, "supercategory": "thing"} for name, n in numbers.items()]
    info = {"info": {"year": 2014}, "licenses": [], "images": images}
    return [
        write_json(
            folder / "instances_val2014.json",
            {**info, "annotations": instances, "categories": classes},
        ),
        write_json(folder / "captions_val2014.json", {**info, "annotations": written}),
    ]


def pope(folder: Path, settings: list[str]) -> list[Path]:
    """coco_pope_SETTING.json of two questions, JSON lines in spite of the name, and their image."""
    image = "COCO_val2014_000000000001.jpg"
    write_images(folder / "val2014", [image])
    rows = [
        {"question_id": number, "image": image, "image_id": 1, "text": text, "label": label}
        for number, (text, label) in enumerate(
            (
                ("Is there a dog in the image?", "yes"),
                ("Is there a car in the image?", "no"),
            ),
            1,
        )
    ]
    return [write_lines(folder / f"coco_pope_{setting}.json", rows) for setting in settings]


def amber(folder: Path) -> tuple[Path, Path]:
    """query_all.json and annotations.json, with relation.json and safe_words.txt beside them: one
    image to be described and two questions about it."""
    write_images(folder / "image", ["AMBER_1.jpg"])
    queries = [
        {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
        {"id": 1005, "image": "AMBER_1.jpg", "query": "Is there a car in this image?"},
        {"id": 1006, "image": "AMBER_1.jpg", "query": "Does the dog lie in this image?"},
    ]
    known = [
        {"id": 1, "type": "generative", "truth": ["dog", "grass"], "hallu": ["car", "television"]},
        {"id": 1005, "type": "discriminative-hallucination", "truth": "no"},
        {"id": 1006, "type": "discriminative-attribute-action", "truth": "yes"},
    ]
    write_json(
        folder / "data" / "relation.json",
        {"dog": ["puppy"], "grass": ["lawn"], "car": ["wheel"], "television": ["TV", "screen"]},
    )
    (folder / "data" / "safe_words.txt").write_text("orange\nsign")
    return (
        write_json(folder / "data" / "query" / "query_all.json", queries),
        write_json(folder / "data" / "annotations.json", known),
    )


def object_hal(folder: Path, images: list[int]) -> Path:
    """obj_halbench.jsonl: questions about COCO's images of these ids, the images within."""
    rows = [
        {
            "image_id": image,
            "image": base64.b64encode(picture(image).content).decode(),
            "question": "Provide a thorough description of the given image.",
        }
        for image in images
    ]
    return write_lines(folder / "obj_halbench_300_with_image.jsonl", rows)


def mmhal(folder: Path, count: int) -> Path:
    """response_template.json and the images it speaks of."""
    names = [f"{number:016x}" for number in range(count)]
    write_images(folder / "images", [f"{name}.jpg" for name in names])
    rows = [
        {
            "question_type": "attribute",
            "question_topic": "vehicle",
            "image_id": name,
            "image_src": f"https://images.example/{name}_o.jpg",
            "image_content": ["Fire hydrant", "Street"],
            "question": f"What colour is hydrant {number}?",
            "gt_answer": "The cap is red and the body is blue.",
            "model_answer": "",
        }
        for number, name in enumerate(names)
    ]
    return write_json(folder / "response_template.json", rows)


def hallusion_bench(folder: Path) -> Path:
    """HallusionBench.json: a question over a figure, its edited version, and without any."""
    write_images(folder / "hallusion_bench" / "VD" / "illusion", ["0_0.png", "0_1.png"])
    common = {"sample_note": "circle", "question_id": "0", "set_id": "0"}
    rows = [
        {
            **common,
            "category": category,
            "subcategory": sub,
            "visual_input": visual,
            "figure_id": figure,
            "question": "Is the left circle larger?",
            "gt_answer_details": f"The left circle is {'not ' * (figure == '0')}larger.",
            "gt_answer": figure,
            **({"filename": file} if file else {}),
        }
        for category, sub, visual, figure, file in (
            ("VD", "illusion", "1", "0", "./hallusion_bench/VD/illusion/0_0.png"),
            ("VD", "illusion", "1", "1", "./hallusion_bench/VD/illusion/0_1.png"),
            ("VS", "chart", "0", "0", None),
        )
    ]
    return write_json(folder / "HallusionBench.json", rows)
