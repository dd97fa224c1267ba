"""Critical tokens: which tokens made a rejected answer wrong, by contrast of two models.

One model is fine-tuned on the chosen answers and one on the rejected ones; a token that the second
readily and the first hardly writes is critical. Its weight in the data is what cDPO trains with:
`critical_token_dpo()`. arXiv:2411.19943.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmalign.data.errors import RecordError
from mmalign.data_builders.command import as_command
from mmalign.errors import BadSample, UserError
from mmalign.files import whole_folder
from mmalign.records import Preference, Sample, Span, Text, thumb

CHUNK = 64


@dataclass(frozen=True, kw_only=True)
class Estimation:
    """How the two models come about, unless they are given.

    Args:
        positive: Folder of a LoRA on the model that was fine-tuned on right answers.
        negative: Folder of one that was fine-tuned on wrong answers.
        tune_steps: Steps of fine-tuning where they are not given.
        tune_rate: Its learning rate.
        tune_batch: Answers a step.
        lora_rank: Rank of the LoRAs.
    """

    positive: Path | None = None
    negative: Path | None = None
    tune_steps: int = 200
    tune_rate: float = 1e-4
    tune_batch: int = 16
    lora_rank: int = 16


DEFAULTS = Estimation()


def build(
    preferences: Sequence[Preference],
    *,
    model: str,
    estimation: Estimation = DEFAULTS,
    strength: float = 1.0,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    seed: int = 0,
    cache: Path | None = None,
) -> Iterator[Preference | RecordError]:
    """Weigh the tokens of rejected answers by how critical they are.

    A token's weight is 1 - s, s its probability under P_p^(1+b) P_n^-b of the positive model P_p
    and the negative one P_n, b = strength. Train on the result with critical_token_dpo(). Pairs
    should be right and wrong answers to the same prompts.

    Args:
        model: Hub id or folder of the language model that both are fine-tuned from.
        estimation: See Estimation.
        strength: How much the negative model counts against the positive one.
        precision: Arithmetic of the models.
        seed: Of fine-tuning.
        cache: Folder for the fine-tuned LoRAs.

    Examples:
        mmalign build critical-tokens pairs.jsonl --model Qwen/Qwen2.5-0.5B-Instruct --out weighted
        mmalign build critical-tokens pairs --model ./base --positive right --negative wrong
          --out weighted
    """
    from mmalign.adapters.text import load_text
    from mmalign.evaluation.critical_tokens import critical_scores

    pairs = [one for one in preferences if len(one.candidates) > 1]
    if not pairs:
        raise UserError(
            "critical tokens are those of the rejected answers of pairs, and there are no pairs"
        )
    given = (estimation.positive, estimation.negative)
    if (given[0] is None) != (given[1] is None):
        raise UserError(
            "one of the two models is given and the other is not",
            hint="give both --positive and --negative, or neither",
        )
    if estimation.positive is None or estimation.negative is None:
        positive, negative = _fine_tuned(pairs, model, estimation, precision, seed, cache)
    else:
        positive, negative = estimation.positive, estimation.negative
    right, wrong = (load_text(model, adapter=one, precision=precision)
                    for one in (positive, negative))  # fmt: skip
    note = {"model": model, "strength": strength}
    for start in range(0, len(preferences), CHUNK):
        some = [preferences[i] for i in range(start, min(start + CHUNK, len(preferences)))]
        usable: dict[int, Preference] = {}
        for number, preference in enumerate(some, start):
            try:
                right.collator.places(preference.rejected)
                usable[number] = preference
            except BadSample as error:
                yield RecordError("preferences", number, "rejected", str(error))
        scores = critical_scores(
            right, wrong, [one.rejected for one in usable.values()], strength=strength
        )
        for preference, found in zip(usable.values(), scores, strict=True):
            rejected = weighed(
                preference.rejected, right.collator.places(preference.rejected), found.tolist()
            )
            candidates = (*preference.candidates[:-1], rejected)
            made = replace(preference, candidates=candidates)
            yield replace(made, source=preference.derived("critical_tokens", **note).source)


def weighed(
    answer: Sample, places: Sequence[tuple[int, int] | None], scores: Sequence[float]
) -> Sample:
    """The answer with the weight 1 - s on the characters of each token."""
    spans = [
        Span(*place, round(1 - score, 6))
        for place, score in zip(places, scores, strict=True)
        if place is not None
    ]
    parts: list[Any] = []
    at = 0
    for part in answer.response:
        if not isinstance(part, Text):
            parts.append(part)
            continue
        end = at + len(part.text)
        own = tuple(
            Span(max(span.start, at) - at, min(span.end, end) - at, span.weight)
            for span in spans
            if span.start < end and span.end > at
        )
        parts.append(Text(part.text, own))
        at = end
    return replace(answer, response=tuple(parts))


def _fine_tuned(
    pairs: Sequence[Preference],
    model: str,
    estimation: Estimation,
    precision: str,
    seed: int,
    cache: Path | None,
) -> tuple[Path, Path]:
    """Folders of the two LoRAs; what is there already is not trained again."""
    if cache is None:
        raise UserError("the two models need a folder", hint="say where with cache=")
    digest = hashlib.sha256(
        repr((model, estimation, precision, seed, [one.id for one in pairs])).encode()
    ).hexdigest()[:16]
    sides = {
        "positive": [thumb(one.chosen, up=True) for one in pairs],
        "negative": [thumb(one.rejected, up=True) for one in pairs],
    }
    found = []
    for name, shown in sides.items():
        folder = cache / f"{name}-{digest}"
        if not folder.exists():
            _tune(shown, folder, cache / f"run-{name}-{digest}", model, estimation, precision, seed)
        found.append(folder)
    return found[0], found[1]


def _tune(
    shown: Sequence[Preference],
    folder: Path,
    run: Path,
    model: str,
    estimation: Estimation,
    precision: str,
    seed: int,
) -> None:
    """Fine-tune a LoRA on answers as they stand; a stopped run goes on."""
    import torch

    from mmalign.adapters.text import load_text
    from mmalign.objectives import objective
    from mmalign.training.loop import train
    from mmalign.training.options import TrainingOptions
    from mmalign.training.seeds import derive

    torch.manual_seed(derive(seed, "lora"))
    policy = load_text(model, lora={"r": estimation.lora_rank}, precision=precision)
    options = TrainingOptions(
        steps=estimation.tune_steps,
        batch_size=estimation.tune_batch,
        learning_rate=estimation.tune_rate,
        save_every=100,
        seed=seed,
    )
    train(policy, shown, objective("nll()"), options, run)
    with whole_folder(folder) as partial:
        policy.save(partial)


command = as_command("critical-tokens", build)
