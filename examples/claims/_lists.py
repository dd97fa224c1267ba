"""The text playground's lists and its tiny transformer, for claims about the training path.

"Please name three fruits": a Llama of under a million weights names the right kind of thing, mostly
one too many or too few, and a program scores what it writes: half for the count, half for the kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from _smollm2 import answers, fresh, pairs, training

from mmalign.adapters.text import TextAdapter
from mmalign.objectives import objective
from mmalign.playground.language_models import Recipe, recipe_for
from mmalign.records import Preference
from mmalign.training.align import Alignment, align
from mmalign.training.callbacks import Callback


def recipe(*, quick: bool) -> Recipe:
    """The quickstart's recipe for the tiny model, which is trained once and kept."""
    found = recipe_for("tiny", seed=0)
    if quick:
        return replace(found, train=found.train[:40], held_out=found.held_out[:30])
    return found


def splits(made: Recipe, out: Path) -> tuple[Sequence[Preference], Sequence[Preference]]:
    """Best against worst of the model's own answers, to train on and to measure on."""
    unseen = replace(made, train=made.held_out)
    return pairs(made, out / "lists-train"), pairs(unseen, out / "lists-held-out")


def aligned(
    made: Recipe,
    data: Sequence[Preference],
    held_out: Sequence[Preference],
    spec: str,
    out: Path,
    *,
    seed: int,
    quick: bool,
    steps: int | None = None,
    eval_every: int = 0,
    looking: Callable[[TextAdapter], Callback] | None = None,
) -> tuple[TextAdapter, Alignment]:
    """The model with a fresh LoRA, trained with the recipe's settings; where held-out pairs are
    looked at on the way, the weights are those of the least held-out loss.

    looking: makes what looks on after every step.
    """
    policy = fresh(made, seed=seed)
    changes = {"eval_every": eval_every} | ({"steps": steps} if steps else {})
    settings = training(made, seed=seed, quick=quick, **changes)
    done = align(
        policy, data, held_out, objective(spec), settings, out,
        callbacks=lambda _: [looking(policy)] if looking else [],
    )  # fmt: skip
    return policy, done


def rules_kept(policy: TextAdapter, made: Recipe, *, seed: int) -> float:
    """Mean score of one answer to each held-out instruction."""
    said = answers(policy, made.held_out, made, seed=seed, tokens=made.sampling["max_new_tokens"])
    scores = [one.score(text) for one, text in zip(made.held_out, said, strict=True)]
    return sum(scores) / len(scores)
