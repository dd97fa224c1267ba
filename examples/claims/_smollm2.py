"""The text quickstart's task on SmolLM2-135M, for claims about a real language model.

The model answers short instructions that a program checks; its best and worst answers become
preferences. All methods of a claim train on the same pairs, with as many steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmalign.adapters.text import TextAdapter, load_text
from mmalign.data.opening import open_dataset
from mmalign.data.store import write_store
from mmalign.data_builders.reward_pairs import build
from mmalign.errors import UserError
from mmalign.playground.instructions import Instruction
from mmalign.playground.language_models import GET_SMOLLM2, SMOLLM2, Recipe, recipe_for
from mmalign.records import Message, Preference, Text, text_of
from mmalign.training.options import TrainingOptions
from mmalign.training.seeds import derive


def recipe(*, quick: bool, seed: int = 0) -> Recipe:
    """The quickstart's recipe for SmolLM2; with `quick` the tiny model stands in for it.

    Raises UserError where SmolLM2 is not installed.
    """
    if quick:
        found = recipe_for("tiny", seed=seed)
        return replace(found, train=found.train[:24], held_out=found.held_out[:12])
    found = recipe_for("auto", seed=seed)
    if found.name != SMOLLM2:
        raise UserError("this claim is about SmolLM2, which is not installed", hint=GET_SMOLLM2)
    return found


def pairs(made: Recipe, folder: Path, *, seed: int = 0) -> Sequence[Preference]:
    """Best against worst of the model's own answers to the training prompts; built once."""
    if not (folder / "manifest.json").exists():
        policy = fresh(made, seed=seed)
        records = build(
            [prompt(one) for one in made.train],
            policy,
            lambda index, answer: made.train[index].score(text_of(answer.response)),
            samples=made.samples,
            least_margin=made.least_margin,
            least_best=made.least_best,
            model=made.name,
            seed=seed,
            merge=True,
            **made.sampling,
        )
        write_store(records, folder)
    return open_dataset(folder)


def fresh(made: Recipe, *, seed: int, lora: dict[str, Any] | None = None) -> TextAdapter:
    """The model with a fresh LoRA, or with all weights trained where `lora` is {}."""
    torch.manual_seed(derive(seed, "lora"))
    chosen = dict(made.lora) if lora is None else lora
    return load_text(made.path, lora=chosen or None, precision=made.precision)


def training(made: Recipe, *, seed: int, quick: bool, **changes: Any) -> TrainingOptions:
    """The recipe's options with changes; few steps where it shall be quick."""
    if quick:
        changes["steps"] = 4
    return replace(made.training, seed=seed, save_every=0, **changes)


def answers(
    policy: TextAdapter, asked: Sequence[Instruction], made: Recipe, *, seed: int, tokens: int
) -> list[str]:
    """One answer to each instruction, of at most so many tokens."""
    sampling = {**made.sampling, "max_new_tokens": tokens}
    seeds = [derive(seed, "held out", index) for index in range(len(asked))]
    responses = policy.sample([prompt(one) for one in asked], seeds, merge=True, **sampling)
    return [text_of(response.response) for response in responses]


def prompt(instruction: Instruction) -> tuple[Message, ...]:
    return (Message("user", (Text(instruction.text),)),)
