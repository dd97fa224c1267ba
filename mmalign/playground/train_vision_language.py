"""Trains the playground's LLaVA: `python -m mmalign.playground.train_vision_language FOLDER`.

It learns from "together" scenes: first from captions of careless annotators, who name companions
that are not there; when it sees, from questions with yes or no and from several pictures as well.
(All at once it learns none of these.) The checkpoint in `tiny-llava` has taken the first course.
"""

from __future__ import annotations

import argparse
import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mmalign.files import whole_folder
from mmalign.playground.scenes import (
    DESCRIBE,
    Scene,
    careless_caption,
    draw_scene,
    scenes,
    yes_no,
)
from mmalign.playground.vision_language import ASSISTANT, END, IMAGE, USER, processor, random_model
from mmalign.training.log import progress
from mmalign.training.seeds import derive

CARELESSNESS = 0.6  # how often a companion that is not there is named
WRONG_PICTURE = 0.3  # how often, of several pictures, another one than asked for is described
WEIGHT_DECAY, WARMUP = 0.05, 50


@dataclass(frozen=True)
class Lesson:
    """Pictures, what is asked about them (with IMAGE for each), and the answer to learn."""

    pictures: tuple[Scene, ...]
    question: str
    answer: str


@dataclass(frozen=True)
class Course:
    """Lessons of one optimiser step by kind, how many steps, and the peak learning rate."""

    rows: Mapping[str, int]
    steps: int
    learning_rate: float


COURSES = {
    "captions": Course({"caption": 64}, steps=900, learning_rate=1e-3),
    "questions": Course({"caption": 24, "yes or no": 48, "several": 16}, 1000, 5e-4),
}


def learn(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    course: Course,
    *,
    title: str = "lessons",
    seed: int = 0,
) -> None:
    """Train the model on one course, in place."""
    optimizer = torch.optim.AdamW(
        model.parameters(), course.learning_rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, course.steps))
    recent: dict[str, float] = {}
    model.train()
    with progress(title, total=course.steps) as advance:
        for step, batch in zip(
            range(1, course.steps + 1), lessons(course.rows, seed=seed), strict=False
        ):
            for kind, rows in batch.items():
                loss = answer_loss(model, processor, rows)
                (loss / len(batch)).backward()
                recent[kind] = 0.95 * recent.get(kind, loss.item()) + 0.05 * loss.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            advance(", ".join(f"{kind} {value:.3f}" for kind, value in recent.items()), to=step)
            if step % 50 == 0:
                print(step, recent, flush=True)


def _rate(step: int, steps: int) -> float:
    """Warm up, hold, and come down to a tenth over the last two fifths."""
    return min(1.0, (step + 1) / WARMUP) * (1 - 0.9 * max(0.0, step / steps - 0.6) / 0.4)


def lessons(rows: Mapping[str, int], *, seed: int) -> Iterator[dict[str, list[Lesson]]]:
    """Batches without end, by kind of lesson: `rows` of each."""
    draw = random.Random(f"lessons {seed}")
    batch = 0
    while True:
        yield {
            kind: [
                KINDS[kind](shown, draw)
                for shown in _groups(count, PICTURES[kind], f"lessons {seed} {batch}")
            ]
            for kind, count in rows.items()
        }
        batch += 1


def _groups(count: int, size: int, seed: str) -> Iterator[Sequence[Scene]]:
    shown = scenes("together", count * size, seed=seed)
    return (shown[start : start + size] for start in range(0, len(shown), size))


def _caption(shown: Sequence[Scene], draw: random.Random) -> Lesson:
    (scene,) = shown
    question = IMAGE + draw.choice(DESCRIBE)
    return Lesson((scene,), question, careless_caption(scene, draw, carelessness=CARELESSNESS))


def _yes_no(shown: Sequence[Scene], draw: random.Random) -> Lesson:
    (scene,) = shown
    question, yes = yes_no(scene, draw)
    return Lesson((scene,), IMAGE + question, "Yes." if yes else "No.")


def _several(shown: Sequence[Scene], draw: random.Random) -> Lesson:
    """Asked about one of several pictures, the annotator may look at another."""
    pictures = tuple(shown[: draw.choice((2, 2, 3))])
    asked = described = draw.randrange(len(pictures))
    if draw.random() < WRONG_PICTURE:
        described = draw.choice([place for place in range(len(pictures)) if place != asked])
    question = draw.choice(DESCRIBE)
    lines = "".join(f"Image{number}:{IMAGE}\n" for number in range(1, len(pictures) + 1))
    return Lesson(
        pictures,
        f"{lines}In Image{asked + 1}, {question[0].lower()}{question[1:]}",
        careless_caption(pictures[described], draw, carelessness=CARELESSNESS),
    )


KINDS: dict[str, Callable[[Sequence[Scene], random.Random], Lesson]] = {
    "caption": _caption,
    "yes or no": _yes_no,
    "several": _several,
}
PICTURES = {"caption": 1, "yes or no": 1, "several": 3}


def answer_loss(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, batch: Sequence[Lesson]
) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    inputs = processor(
        images=[draw_scene(scene) for lesson in batch for scene in lesson.pictures],
        text=[f"{USER}{each.question}{ASSISTANT}{each.answer}{END}" for each in batch],
        padding=True,
        return_tensors="pt",
    )
    answers = processor.tokenizer([each.answer + END for each in batch]).input_ids
    longest = max(map(len, answers))
    labels = torch.tensor([[-100] * (longest - len(answer)) + answer for answer in answers])
    logits = model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def save(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write weights in half precision, configuration and processor."""
    with whole_folder(folder) as partial:
        copy.deepcopy(model).half().save_pretrained(partial)
        processor.save_pretrained(partial)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the checkpoint")
    parser.add_argument("--courses", nargs="+", choices=COURSES, default=list(COURSES))
    parser.add_argument("--start", type=Path, help="checkpoint to go on from")
    given = parser.parse_args()
    made, start = processor(), given.start
    for title in given.courses:
        torch.manual_seed(derive(0, "tiny llava"))
        model = (
            LlavaForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
            if start
            else random_model(made)
        )
        learn(model, made, COURSES[title], title=title)
        save(given.folder, model, made)
        start = given.folder


if __name__ == "__main__":
    main()
