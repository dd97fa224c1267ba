"""What aligning an image model and aligning a video model have in common: all but a few options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError
from markupsafe import Markup

from mmalign.adapters.diffusion import DiffusionAdapter, load_diffusion
from mmalign.adapters.diffusion.families import FAMILIES
from mmalign.adapters.protocol import BadSample
from mmalign.errors import UserError
from mmalign.evaluation.images.timesteps import accuracy_by_time
from mmalign.objectives import objective as parse
from mmalign.pipelines.options import DataOptions, LoraOptions, ModelOptions, OutputOptions
from mmalign.pipelines.preferences import measurable, read_preferences
from mmalign.pipelines.results import save_alignment
from mmalign.pipelines.samples import (
    SampledDuring,
    prompts_to_sample,
    sampled,
    samples_section,
)
from mmalign.pipelines.win_rates import WinRates, win_rates_section
from mmalign.records import Preference
from mmalign.reference import AdapterOff
from mmalign.report.figures import figures
from mmalign.report.page import section
from mmalign.training.align import align
from mmalign.training.callbacks import ErrorGuard
from mmalign.training.log import console, progress
from mmalign.training.options import ReferenceKind, TrainingOptions
from mmalign.training.seeds import derive

JUDGED = 128  # held-out pairs whose accuracy is looked at by timestep


@dataclass(frozen=True, kw_only=True)
class DenoisingOptions:
    """How samples are noised, and what an error counts.

    Args:
        timestep_law: Law of the timestep, as uniform or logit_normal(mean=0.0, std=1.0, shift=3.0);
            by default uniform, and for rectified flow logit_normal.
        draws: Timesteps and noises per sample and step.
        weighting: What an error counts at a timestep, as constant, min_snr(5), epsilon, x0, cosmap.
        beta_schedule: How beta depends on the timestep, as constant, one_minus_t, one_minus_t_sq.
        prompt_dropout: Share of preferences whose prompt is left empty.
        latents: The mean of the VAE, or a sample.
        guidance: Value that guidance-distilled models are given.
        cache: Folder for VAE moments and text embeddings, each computed once for all runs.
        release_encoders: Once the cache is full, keep VAE and text encoders out of memory until
            samples are drawn.
        error_guard: Stop when the errors on chosen and rejected media have both grown by this
            share; 0 never stops.
    """

    timestep_law: str | None = None
    draws: int = 1
    weighting: str = "constant"
    beta_schedule: str = "constant"
    prompt_dropout: float = 0.0
    latents: Literal["mean", "sample"] = "mean"
    guidance: float = 3.5
    cache: Path | None = None
    release_encoders: bool = False
    error_guard: float = 0.1

    def noise(self) -> dict[str, Any]:
        """What log-probabilities depend on."""
        others = ("cache", "release_encoders", "error_guard")
        return {name: value for name, value in vars(self).items() if name not in others}


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Which prompts are sampled before and after training, for the report.

    Args:
        samples: How many prompts; 0 samples none.
        sample_prompts: File with one prompt a line; otherwise held-out prompts are taken.
        sample_steps: Steps of the sampler; those of the pipeline by default.
        sample_guidance: Guidance scale of the sampler; that of the pipeline by default.
        sample_every: Steps after which the same prompts are sampled again, for trackers and
            out/samples; 0 samples before and after training only.
        sample_rewards: Rewards that compare the samples with those from before training, prompt by
            prompt, as in pick, clip, "hps(version='v2.1')"; 64 samples and more make a win rate
            that says something. Of pictures only.
    """

    samples: int = 8
    sample_prompts: Path | None = None
    sample_steps: int | None = None
    sample_guidance: float | None = None
    sample_every: int = 0
    sample_rewards: tuple[str, ...] = ()


def align_denoiser(
    *,
    video: bool,
    model: ModelOptions,
    lora: LoraOptions,
    data: DataOptions,
    objective: str,
    reference: ReferenceKind,
    output: OutputOptions,
    denoising: DenoisingOptions,
    sampling: SampleOptions,
    training: TrainingOptions,
    loading: Mapping[str, Any],
) -> None:
    """Load, read, sample, train, measure, sample again, report.

    loading: further arguments of `load_diffusion`. The others are those of the commands.
    """
    _check_kind(model.model, video)
    if video and sampling.sample_rewards:
        raise UserError("rewards judge pictures, not videos", hint="leave out --sample-rewards")
    adds_lora = bool(lora.lora_rank) or model.adapter is not None
    loss = parse(objective)
    out = output.out
    preferences, kept = read_preferences(data, out, loss, seed=training.seed, media=True)
    fresh = lora.fresh(model.adapter)
    torch.manual_seed(derive(training.seed, "lora"))
    noise = denoising.noise()
    if denoising.release_encoders and (denoising.cache is None or data.streaming):
        raise UserError(
            "encoders can be released when a cache holds all they are needed for",
            hint="give --cache FOLDER, and leave out --streaming",
        )
    policy = load_diffusion(**vars(model), **noise, **loading, cache=denoising.cache, lora=fresh)
    evaluation = measurable(policy, kept, loss, training, out)
    prompts = prompts_to_sample(
        sampling.samples, sampling.sample_prompts, evaluation or preferences
    )
    draws = {"steps": sampling.sample_steps, "guidance": sampling.sample_guidance}
    guarded = denoising.error_guard > 0 and loss.needs.reference
    known = preferences if isinstance(preferences, Sequence) else None
    if denoising.cache is not None and known is not None:
        _fill_cache(policy, [*known, *evaluation])
    pictures = {
        "before": sampled(policy, prompts, seed=training.seed, out=out, stage="before", **draws)
    }
    judges = WinRates(
        sampling.sample_rewards if prompts else (), prompts, pictures["before"],
        out / "scores.sqlite",
    )  # fmt: skip
    during = SampledDuring(
        policy, prompts, sampling.sample_every, training.seed, out, draws, judges.intervals
    )
    if denoising.release_encoders:
        policy.release_encoders()
    done = align(
        policy,
        preferences,
        evaluation,
        loss,
        training,
        out,
        reference=reference,
        resume=output.resume,
        settings={
            "model": model.model, "data": data.data, "adapter": model.adapter, "lora": str(fresh),
            "denoising": str(noise), "loading": str(loading),
        },
        callbacks=lambda _: [
            *([ErrorGuard(denoising.error_guard)] if guarded else []),
            *([during] if sampling.sample_every else []),
        ],
    )  # fmt: skip
    if not done.main_process:
        return
    pictures["after"] = sampled(
        policy, prompts, seed=training.seed, out=out, stage="after", **draws
    )
    won = judges.intervals(pictures["after"])
    save_alignment(
        out,
        done,
        policy,
        title=f"{Path(model.model).name} aligned with {loss.spec}",
        base_model=model.model,
        data=preferences.describe(),
        trained_on=known,
        objective=loss.spec,
        seed=training.seed,
        library="diffusers",
        loading=_loading(policy, model.model, adds_lora),
        others=won,
        sections=[
            *([samples_section(prompts, pictures)] if prompts else []),
            *([win_rates_section(won, out, len(prompts))] if won else []),
            *([_by_time(policy, evaluation[:JUDGED])] if adds_lora and len(evaluation) else []),
        ],
    )
    if output.merged:
        policy.export_pipeline(out / "merged")


def _check_kind(model: str, video: bool) -> None:
    """Before anything is loaded. What cannot be found is left to `load_diffusion` to explain."""
    try:
        name = DiffusionPipeline.load_config(model)["_class_name"]
    except (OSError, ValueError, HfHubHTTPError):
        return
    made_for = [family.video for family in FAMILIES.values() if name in family.pipelines]
    if made_for and made_for[0] != video:
        kind, command = ("images", "align-diffusion") if video else ("videos", "align-video")
        raise UserError(f"{name} is a model of {kind}", hint=f"use mmalign {command}")


def _fill_cache(policy: DiffusionAdapter, data: Sequence[Preference]) -> None:
    """Unusable records are passed over here: training meets and reports them."""
    with progress("cache", total=len(data)) as advance:
        for preference in data:
            try:
                policy.fill_cache(preference.candidates)
            except BadSample as error:
                console.print(f"not in the cache: {error}")
            advance()


def _by_time(policy: DiffusionAdapter, held_out: Sequence[Preference]) -> Markup:
    found = accuracy_by_time(policy, held_out, AdapterOff(policy))
    return section(
        "At which timesteps",
        figures({"after": found}),
        note=f"Share of {len(held_out)} held-out pairs that are ordered as preferred, by how much "
        "noise there is, from 0 (clean) to 1: much decides on layout, little on detail.",
    )


def _loading(policy: DiffusionAdapter, model: str, lora: bool) -> str:
    """How plain diffusers reads what was trained."""
    lines = [
        "from diffusers import DiffusionPipeline",
        "",
        f'pipe = DiffusionPipeline.from_pretrained("{model}")',
    ]
    if lora:
        return "\n".join([*lines, 'pipe.load_lora_weights("path/to/this/folder")'])
    name = policy.denoisers[0]
    kind = type(getattr(policy.pipe, name)).__name__
    read = f'{kind}.from_pretrained("path/to/this/folder", subfolder="{name}")'
    return "\n".join([f"from diffusers import {kind}", *lines, f"pipe.{name} = {read}"])
