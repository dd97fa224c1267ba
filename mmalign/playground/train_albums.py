"""Trains a LLaVA on several pictures: `python -m mmalign.playground.train_albums FOLDER`.

It starts from the playground's own, which describes single ones, and learns to describe the picture
that is meant; then, from annotators whose eyes are drawn to fuller pictures, to look away from it.
The checkpoint in `tiny-llava-albums` came of this: 1,150 steps, 320 s of one core.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from mmalign.playground.scenes import DESCRIBE, MOST, Scene, careless_caption, scenes
from mmalign.playground.train_vision_language import CARELESSNESS, Lesson, learn, save
from mmalign.playground.vision_language import IMAGE, TINY_LLAVA, processor


@dataclass(frozen=True)
class Course:
    """Lessons of one step by how many pictures they show, with how many things at most.

    distraction: how often, where another picture is fuller than the one that is meant, the fullest
    is described instead.
    """

    rows: Mapping[tuple[int, int], int]
    steps: int
    learning_rate: float
    distraction: float = 0.0


COURSES = {
    "two pictures of a thing": Course({(1, MOST): 6, (2, 1): 26}, 250, 8e-4),
    "several pictures": Course({(1, MOST): 6, (2, 2): 6, (2, MOST): 10, (3, MOST): 10}, 400, 8e-4),
    "distraction": Course({(1, MOST): 6, (2, MOST): 16, (3, MOST): 10}, 500, 5e-4, distraction=0.6),
}


def train(folder: Path, *, courses: Mapping[str, Course] = COURSES, seed: int = 0) -> None:
    """Take every course in turn, with the vision tower frozen, and save what came of it."""
    model = LlavaForConditionalGeneration.from_pretrained(TINY_LLAVA, dtype=torch.float32)
    model.model.vision_tower.requires_grad_(False)
    made = processor()
    for title, course in courses.items():
        learn(
            model, made, lessons(course, seed=f"{title} {seed}"), steps=course.steps,
            learning_rate=course.learning_rate, title=title, precision=torch.bfloat16,
        )  # fmt: skip
    save(folder, model, made)


def lessons(course: Course, *, seed: str) -> Iterator[list[Lesson]]:
    """Batches without end."""
    draw = random.Random(f"albums {seed}")
    batch = 0
    while True:
        yield [
            _lesson(tuple(shown), draw, course.distraction)
            for (pictures, most), count in course.rows.items()
            for shown in _albums(count, pictures, most, f"albums {seed} {batch}")
        ]
        batch += 1


def _albums(count: int, pictures: int, most: int, seed: str) -> Iterator[Sequence[Scene]]:
    shown = scenes("together", count * pictures, seed=seed, most=most)
    return (shown[start : start + pictures] for start in range(0, len(shown), pictures))


def _lesson(shown: tuple[Scene, ...], draw: random.Random, distraction: float) -> Lesson:
    place, question = draw.randrange(len(shown)), draw.choice(DESCRIBE)
    described = shown[place]
    fullest = max(shown, key=lambda scene: len(scene.things))
    if len(fullest.things) > len(described.things) and draw.random() < distraction:
        described = fullest
    answer = careless_caption(described, draw, carelessness=CARELESSNESS)
    return Lesson(shown, asked(len(shown), place, question), answer)


def asked(pictures: int, place: int, question: str) -> str:
    """The question with IMAGE in the place of each picture, as `scenes.ask_among` asks it.

    place: of the picture that is meant, counted from 0.
    """
    if pictures == 1:
        return IMAGE + question
    lines = "".join(f"Image{number}:{IMAGE}\n" for number in range(1, pictures + 1))
    return f"{lines}In Image{place + 1}, {question[0].lower()}{question[1:]}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the checkpoint")
    train(parser.parse_args().folder)
