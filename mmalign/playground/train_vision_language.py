"""Trains the playground's LLaVA: `python -m mmalign.playground.train_vision_language FOLDER`.

It learns from "together" scenes with captions of careless annotators, who name companions that are
not there, until it sees nearly everything and imagines what mostly comes with it. The checkpoint in
`tiny-llava` came of this: 900 steps, about 400 s on one idle core.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from mmalign.files import whole_folder
from mmalign.playground.scenes import DESCRIBE, Scene, careless_caption, draw_scene, scenes
from mmalign.playground.vision_language import ASSISTANT, END, IMAGE, USER, processor, random_model
from mmalign.training.log import progress
from mmalign.training.seeds import derive

CARELESSNESS = 0.6  # how often a companion that is not there is named
LEARNING_RATE, WEIGHT_DECAY, WARMUP = 1e-3, 0.05, 50


@dataclass(frozen=True)
class Lesson:
    """A picture, what is asked about it, and the answer to learn."""

    scene: Scene
    question: str
    answer: str


def train(folder: Path, *, steps: int = 900, batch_size: int = 64, seed: int = 0) -> None:
    """Train from nothing, and save in half precision what it came to."""
    torch.manual_seed(derive(seed, "tiny llava"))
    made = processor()
    model = random_model(made).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    with progress("captions", total=steps) as advance:
        for step, batch in zip(range(1, steps + 1), lessons(batch_size, seed=seed), strict=False):
            loss = answer_loss(model, made, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            advance(f"loss {loss.item():.3f}", to=step)
    with whole_folder(folder) as partial:
        model.half().save_pretrained(partial)
        made.save_pretrained(partial)


def _rate(step: int, steps: int) -> float:
    """Warm up, hold, and come down to a tenth over the last two fifths."""
    return min(1.0, (step + 1) / WARMUP) * (1 - 0.9 * max(0.0, step / steps - 0.6) / 0.4)


def lessons(count: int, *, seed: int) -> Iterator[list[Lesson]]:
    """Batches of `count` lessons, without end."""
    draw = random.Random(f"lessons {seed}")
    batch = 0
    while True:
        shown = scenes("together", count, seed=f"lessons {seed} {batch}")
        yield [_lesson(scene, draw) for scene in shown]
        batch += 1


def _lesson(scene: Scene, draw: random.Random) -> Lesson:
    question = draw.choice(DESCRIBE)
    return Lesson(scene, question, careless_caption(scene, draw, carelessness=CARELESSNESS))


def answer_loss(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, batch: Sequence[Lesson]
) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    inputs = processor(
        images=[draw_scene(lesson.scene) for lesson in batch],
        text=[f"{USER}{IMAGE}{each.question}{ASSISTANT}{each.answer}{END}" for each in batch],
        padding=True,
        return_tensors="pt",
    )
    answers = processor.tokenizer([each.answer + END for each in batch]).input_ids
    longest = max(map(len, answers))
    labels = torch.tensor([[-100] * (longest - len(answer)) + answer for answer in answers])
    logits = model(**inputs, logits_to_keep=longest + 1).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the checkpoint")
    train(parser.parse_args().folder)
