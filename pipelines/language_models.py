"""What aligning a language model, with eyes or without, consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from mmalign.adapters.lora import has_lora
from mmalign.adapters.text import TextAdapter
from mmalign.adapters.vision_language import VisionLanguageAdapter
from mmalign.errors import BadSample, UserError
from mmalign.evaluation.credit import credit_section
from mmalign.evaluation.diagnostics.images import (
    ImageAblation,
    image_ablation,
    without_images,
)
from mmalign.evaluation.outputs import WatchOutputs
from mmalign.evaluation.scoring import score_pairs
from mmalign.objectives import Objective
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
from mmalign.reference import AdapterOff, Reference
from mmalign.training.align import align
from mmalign.training.batches import Remake
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
    remake: Callable[[VisionLanguageAdapter], Remake] | None = None,
    making: Mapping[str, Any] | None = None,
) -> None:
    """Load, read, train, measure, report.

    load: makes the adapter from the model's name and options. loading: further options for it.
    media: whether the model takes images. remake: given the adapter, how records are made anew
    before each step, with these settings (making). The others are those of the commands.
    """
    loss = parse(objective)
    preferences, kept = read_preferences(data, output.out, loss, seed=training.seed, media=media)
    fresh = lora.fresh(model.adapter)
    torch.manual_seed(derive(training.seed, "lora"))
    policy = load(**vars(model), **vars(language), lora=fresh, **(loading or {}))
    evaluation = measurable(policy, kept, loss, training, output.out)
    blind = _blind(evaluation)
    done = align(
        policy,
        preferences,
        evaluation,
        loss,
        training,
        output.out,
        reference=reference,
        resume=output.resume,
        callbacks=_watching(policy, evaluation, watch, reference, loss, training.seed),
        compared=[one for data in blind[1:] for one in data],
        settings={
            "model": model.model, "data": data.data, "adapter": model.adapter, "lora": str(fresh),
            **(loading or {}),
            **(making or {}),
        },
        remake=remake(policy) if remake and isinstance(policy, VisionLanguageAdapter) else None,
    )  # fmt: skip
    before = _before(policy, done.reference)
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
        sections=_credit(policy, before, evaluation) if done.main_process else [],
        images=_ablation(policy, before, blind) if done.main_process else None,
    )
    if output.merged and done.main_process:
        policy.export_merged(output.out / "merged")


Policy = TextAdapter | VisionLanguageAdapter


def _before(policy: Policy, kept: Reference | None) -> Reference | None:
    """The model before training: with its LoRA off, or else as training compared with it."""
    return AdapterOff(policy) if has_lora(policy.policy) else kept


def _credit(
    policy: Policy, before: Reference | None, evaluation: Sequence[Preference]
) -> list[Markup]:
    """How the tokens of a few held-out responses were raised and lowered, where the model before
    training is at hand."""
    return [] if before is None else credit_section(policy, before, evaluation)


def _blind(evaluation: Sequence[Preference]) -> list[list[Preference]]:
    """The held-out pairs with images, as they are and without them; nothing without such pairs."""
    about = [one for one in evaluation if all(media_of(s.prompt) for s in one.candidates)]
    return [about, without_images(about)] if about else []


def _ablation(
    policy: Policy, before: Reference | None, blind: Sequence[Sequence[Preference]]
) -> ImageAblation | None:
    """How many held-out pairs are right with and without their images, where the model before
    training is at hand and can be asked about all of them."""
    if before is None or not blind or not all(_usable(policy, data) for data in blind):
        return None
    scored = [score_pairs(policy, before, data) for data in blind]
    return image_ablation(*(pair_batch(each.chosen, each.rejected).candidates for each in scored))


def _usable(policy: Policy, data: Sequence[Preference]) -> bool:
    """Whether every pair fits; some models take no prompt without an image."""
    try:
        for one in data:
            policy.size([one.chosen, one.rejected])
    except BadSample:
        return False
    return True


def _watching(
    policy: Policy,
    evaluation: Sequence[Preference],
    watch: WatchOptions,
    kind: ReferenceKind,
    loss: Objective,
    seed: int,
) -> Callable[[Reference | None], list[WatchOutputs]]:
    """The look at the model's own answers, if it is asked for."""
    if not watch.watch_every:
        return lambda _: []
    if not has_lora(policy.policy) and (kind == "cache" or not loss.needs.reference):
        raise UserError(
            "the model's answers are compared with those of the model before training, which needs "
            "a LoRA, or a copy of all weights",
            hint="leave --watch-every at 0, or train a LoRA; objectives with a reference keep a "
            "copy with --reference copy",
        )
    if not evaluation:
        raise UserError(
            "there are no held-out prompts to answer", hint="give --held-out or --eval-data"
        )
    count = min(watch.watch_prompts, len(evaluation))
    prompts = [evaluation[number].chosen.prompt for number in range(count)]

    def looks(kept: Reference | None) -> list[WatchOutputs]:
        before = _before(policy, kept)
        assert before is not None  # as checked above
        return [WatchOutputs(policy, before, prompts, watch.watch_every, seed, watch.watch_tokens)]

    return looks
