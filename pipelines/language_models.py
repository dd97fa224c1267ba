"""What aligning a language model, with eyes or without, consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from mmalign.adapters.lora import has_lora
from mmalign.adapters.protocol import Inputs, Scored
from mmalign.adapters.text import TextAdapter
from mmalign.adapters.vision_language import VisionLanguageAdapter
from mmalign.errors import UserError
from mmalign.evaluation.credit import credit_section
from mmalign.evaluation.diagnostics.images import (
    ImageAblation,
    image_ablation,
    without_images,
)
from mmalign.evaluation.outputs import WatchOutputs
from mmalign.evaluation.scoring import score_pairs
from mmalign.objectives import objective as parse
from mmalign.objectives.scores import pair_batch
from mmalign.pipelines.options import (
    DataOptions,
    LanguageOptions,
    LoraOptions,
    ModelOptions,
    OutputOptions,
    WatchOptions,
)
from mmalign.pipelines.preferences import measurable, read_preferences
from mmalign.pipelines.results import save_alignment
from mmalign.records import Preference, media_of
from mmalign.training.align import align
from mmalign.training.options import ReferenceKind, TrainingOptions
from mmalign.training.seeds import derive


def align_language_model(
    load: Callable[..., TextAdapter | VisionLanguageAdapter],
    *,
    model: ModelOptions,
    language: LanguageOptions,
    lora: LoraOptions,
    data: DataOptions,
    media: bool,
    objective: str,
    reference: ReferenceKind,
    output: OutputOptions,
    watch: WatchOptions,
    training: TrainingOptions,
    loading: Mapping[str, Any] | None = None,
) -> None:
    """Load, read, train, measure, report.

    load: makes the adapter from the model's name and options. loading: further options for it.
    media: whether the model takes images. The others are those of the commands.
    """
    loss = parse(objective)
    preferences, kept = read_preferences(data, output.out, loss, seed=training.seed, media=media)
    fresh = lora.fresh(model.adapter)
    torch.manual_seed(derive(training.seed, "lora"))
    policy = load(**vars(model), **vars(language), lora=fresh, **(loading or {}))
    evaluation = measurable(policy, kept, loss, training, output.out)
    done = align(
        policy,
        preferences,
        evaluation,
        loss,
        training,
        output.out,
        reference=reference,
        resume=output.resume,
        callbacks=_watching(policy, evaluation, watch, training.seed),
        settings={
            "model": model.model, "data": data.data, "adapter": model.adapter, "lora": str(fresh),
            **(loading or {}),
        },
    )  # fmt: skip
    save_alignment(
        output.out,
        done,
        policy,
        title=f"{Path(model.model).name} aligned with {loss.spec}",
        base_model=model.model,
        data=preferences.describe(),
        trained_on=preferences if isinstance(preferences, Sequence) else None,
        objective=loss.spec,
        seed=training.seed,
        sections=_credit(policy, evaluation) if done.main_process else [],
        images=_blind(policy, evaluation) if done.main_process else None,
    )
    if output.merged and done.main_process:
        policy.export_merged(output.out / "merged")


Policy = TextAdapter | VisionLanguageAdapter


def _credit(policy: Policy, evaluation: Sequence[Preference]) -> list[Markup]:
    """How the tokens of a few held-out responses were raised and lowered, where the model before
    training is at hand."""
    if not has_lora(policy.policy):
        return []
    return credit_section(policy, partial(_before, policy), evaluation)


def _blind(policy: Policy, evaluation: Sequence[Preference]) -> ImageAblation | None:
    """How many held-out pairs are right with and without their images, where the model before
    training is at hand and all of them have images."""
    about = [one for one in evaluation if all(media_of(s.prompt) for s in one.candidates)]
    if not has_lora(policy.policy) or not about:
        return None
    scored = [
        score_pairs(policy, partial(_before, policy), data)
        for data in (about, without_images(about))
    ]
    if len(scored[0].preferences) != len(scored[1].preferences):
        return None  # some fit with their images only or without them only
    return image_ablation(*(pair_batch(each.chosen, each.rejected).candidates for each in scored))


def _watching(
    policy: Policy, evaluation: Sequence[Preference], watch: WatchOptions, seed: int
) -> list[WatchOutputs]:
    """The look at the model's own answers, if it is asked for."""
    if not watch.watch_every:
        return []
    if not has_lora(policy.policy):
        raise UserError(
            "the model's answers are compared with those before training, which needs a LoRA",
            hint="leave --watch-every at 0 where all weights are trained",
        )
    if not evaluation:
        raise UserError(
            "there are no held-out prompts to answer", hint="give --held-out or --eval-data"
        )
    count = min(watch.watch_prompts, len(evaluation))
    prompts = [evaluation[number].chosen.prompt for number in range(count)]
    return [
        WatchOutputs(
            policy, partial(_before, policy), prompts, watch.watch_every, seed, watch.watch_tokens
        )
    ]


def _before(policy: Policy, inputs: Inputs) -> Scored:
    """What the model before training makes of encoded rows."""
    with policy.reference_mode():
        return policy.log_probs(policy.policy, inputs)
