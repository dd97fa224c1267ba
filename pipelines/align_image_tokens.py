"""Align an autoregressive image generator: load, read, sample, train, measure, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmalign.pipelines.options import DataOptions, LoraOptions, ModelOptions, OutputOptions
from mmalign.settings import save_settings
from mmalign.training.options import ReferenceKind, TrainingOptions


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """How pictures become tokens, and what of them counts.

    Args:
        resolution: Side of the pictures in pixels; what the model was trained at by default.
        plan: Whether words before a picture are scored with it, or are only what it was drawn from.
        guidance: Of the log-probabilities; 1 is none. Any other value doubles the cost.
        decoder: What draws tokens where the model's folder has nothing that does: a JanusVQVAE for
            a Chameleon, a pipeline of diffusers for a GLM-Image without its own.
        decoder_steps: Denoising steps of a GLM-Image's decoder.
        max_length: Tokens that prompt, plan and picture may have together.
    """

    resolution: int | None = None
    plan: Literal["score", "condition"] = "score"
    guidance: float = 1.0
    decoder: str | None = None
    decoder_steps: int = 50
    max_length: int | None = None


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """Which prompts are sampled before and after training, for the report, and how.

    Args:
        samples: How many prompts; 0 samples none.
        sample_prompts: File with one prompt a line; otherwise held-out prompts are taken.
        sample_guidance: Guidance scale; by default as published (5; GLM-Image 1, which is
            none), or that of the log-probabilities.
        sample_temperature: Temperature of the tokens; 0 takes the likeliest ones.
        sample_top_k: Tokens to choose from, the likeliest ones; 0 is all.
        sample_top_p: Share of the probability that tokens are drawn from; 1 is all.
        sample_plan: Tokens of the words that the model may write before it draws; 0 is none.
    """

    samples: int = 8
    sample_prompts: Path | None = None
    sample_guidance: float | None = None
    sample_temperature: float = 1.0
    sample_top_k: int = 0
    sample_top_p: float = 1.0
    sample_plan: int = 0


TOKENS, LORA, SAMPLING = TokenOptions(), LoraOptions(), DrawOptions()
OUTPUT = OutputOptions(out=Path("runs/align-image-tokens"))
DEFAULTS = TrainingOptions(learning_rate=1e-5)


def align_image_tokens(
    *,
    model: ModelOptions,
    tokens: TokenOptions = TOKENS,
    lora: LoraOptions = LORA,
    data: DataOptions,
    objective: str = 'dpo(beta=0.1) + nll(reduction="mean")',
    reference: ReferenceKind = "auto",
    sampling: DrawOptions = SAMPLING,
    output: OutputOptions = OUTPUT,
    training: TrainingOptions = DEFAULTS,
) -> None:
    """Align a model that draws token by token to preferences: Janus, Janus-Pro, Emu3, Chameleon.

    Trains a LoRA on the decoder or all its weights; the image tokenizer stays as it is. Leaves in
    the output folder: the model, its card, samples from before and after with equal seeds,
    metrics.json, metrics.jsonl, run.yaml and report.html. Stopped at any moment and started again
    in the same way, it goes on.

    Model:
        model: See ModelOptions.

    Tokens:
        tokens: See TokenOptions.

    Lora:
        lora: See LoraOptions.

    Data:
        data: See DataOptions.

    Objective:
        objective: What is minimised; `mmalign objectives` lists what there is. An image counts with
            the sum over its tokens, so published betas of 0.1 hold. The likelihood of the chosen
            images holds up what DPO alone lets fall.
        reference: Where the reference's log-probabilities come from: adapter-off (LoRA only), copy
            (a second set of weights), cache (computed once, on disk); auto is the first that works.

    Sampling:
        sampling: See DrawOptions.

    Output:
        output: See OutputOptions.

    Training:
        training: See TrainingOptions.

    Examples:
        mmalign align-image-tokens --model deepseek-community/Janus-Pro-1B --data ./pairs
        mmalign align-image-tokens --model BAAI/Emu3-Gen-hf --data ./pairs --resolution 512
        mmalign align-image-tokens --config runs/align-image-tokens/run.yaml --out runs/again
    """
    save_settings(output.out / "run.yaml", "align-image-tokens", align_image_tokens, locals())
    import torch

    from mmalign.adapters.image_tokens import load_image_tokens
    from mmalign.objectives import objective as parse
    from mmalign.pipelines.preferences import measurable, read_preferences
    from mmalign.pipelines.results import save_alignment
    from mmalign.pipelines.samples import prompts_to_sample, sampled, samples_section
    from mmalign.training.align import align
    from mmalign.training.seeds import derive

    loss, out = parse(objective), output.out
    preferences, kept = read_preferences(data, out, loss, seed=training.seed, media=True)
    fresh = lora.fresh(model.adapter)
    torch.manual_seed(derive(training.seed, "lora"))
    policy = load_image_tokens(**vars(model), **vars(tokens), lora=fresh)
    evaluation = measurable(policy, kept, loss, training, out)
    prompts = prompts_to_sample(
        sampling.samples, sampling.sample_prompts, evaluation or preferences
    )
    draws = {
        "guidance": sampling.sample_guidance, "temperature": sampling.sample_temperature,
        "top_k": sampling.sample_top_k, "top_p": sampling.sample_top_p,
        "plan_tokens": sampling.sample_plan,
    }  # fmt: skip
    pictures = {
        "before": sampled(policy, prompts, seed=training.seed, out=out, stage="before", **draws)
    }
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
            "tokens": str(vars(tokens)),
        },
    )  # fmt: skip
    if not done.main_process:
        return
    pictures["after"] = sampled(
        policy, prompts, seed=training.seed, out=out, stage="after", **draws
    )
    save_alignment(
        out,
        done,
        policy,
        title=f"{Path(model.model).name} aligned with {loss.spec}",
        base_model=model.model,
        data=preferences.describe(),
        trained_on=preferences if isinstance(preferences, Sequence) else None,
        objective=loss.spec,
        seed=training.seed,
        sections=[samples_section(prompts, pictures)] if prompts else [],
    )
    if output.merged:
        policy.export_merged(out / "merged")
