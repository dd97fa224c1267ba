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
    """Pictures, what is asked about them with IMAGE in the place of each, and the answer to
    learn."""

    shown: tuple[Scene, ...]
    question: str
    answer: str


def train(folder: Path, *, steps: int = 900, batch_size: int = 64, seed: int = 0) -> None:
    """Train from nothing, and save in half precision what it came to."""
    torch.manual_seed(derive(seed, "tiny llava"))
    made = processor()
    model = random_model(made)
    batches = lessons(batch_size, seed=seed)
    learn(model, made, batches, steps=steps, learning_rate=LEARNING_RATE, title="captions")
    save(folder, model, made)


def learn(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    batches: Iterator[list[Lesson]],
    *,
    steps: int,
    learning_rate: float,
    title: str,
    precision: torch.dtype = torch.float32,
) -> None:
    """Train whatever of the model's weights is not frozen, in place. precision: of the
    arithmetic."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        weights, learning_rate, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    model.train()
    with progress(title, total=steps) as advance:
        for step, batch in zip(range(1, steps + 1), batches, strict=False):
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                loss = answer_loss(model, processor, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            advance(f"loss {loss.item():.3f}", to=step)


def save(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """In half precision, whole or not at all."""
    with whole_folder(folder) as partial:
        model.half().save_pretrained(partial)
        processor.save_pretrained(partial)


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
    question = IMAGE + draw.choice(DESCRIBE)
    return Lesson((scene,), question, careless_caption(scene, draw, carelessness=CARELESSNESS))


def answer_loss(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, batch: Sequence[Lesson]
) -> Tensor:
    """Mean cross-entropy of the answers' tokens."""
    inputs = processor(
        images=[draw_scene(scene) for lesson in batch for scene in lesson.shown],
        text=[f"{USER}{each.question}{ASSISTANT}{each.answer}{END}" for each in batch],
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
