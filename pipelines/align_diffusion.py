"""Align a text-to-image model to preferences: load, read, sample, train, measure, report."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmalign.pipelines.denoisers import DenoisingOptions, SampleOptions, align_denoiser
from mmalign.settings import save_settings
from mmalign.training.options import TrainingOptions

DENOISING, SAMPLING = DenoisingOptions(), SampleOptions()
DEFAULTS = TrainingOptions(learning_rate=1e-5, batch_size=16, warmup=0.25)


def align_diffusion(
    *,
    model: str,
    data: str,
    objective: str = "dpo(beta=5000.0)",
    out: Path = Path("runs/align-diffusion"),
    resume: bool = True,
    merged: bool = False,
    split: str | None = None,
    columns: list[str] | None = None,
    eval_data: str | None = None,
    held_out: float = 0.05,
    streaming: bool = False,
    cache: Path | None = None,
    adapter: str | None = None,
    lora_rank: int = 16,
    lora_alpha: float | None = None,
    lora_targets: str | None = None,
    resolution: int | None = None,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    gradient_checkpointing: bool = False,
    reference: Literal["auto", "adapter-off", "copy", "cache"] = "auto",
    denoising: DenoisingOptions = DENOISING,
    sampling: SampleOptions = SAMPLING,
    training: TrainingOptions = DEFAULTS,
) -> None:
    """Align a text-to-image model of diffusers to preferences, with LoRA or in full.

    Leaves in the output folder: the model, its card, samples from before and after with equal
    seeds, metrics.json, metrics.jsonl, run.yaml and report.html. Stopped at any moment and started
    again in the same way, it goes on.

    Model:
        model: Hub id or folder of a diffusers pipeline; safetensors only.
        resolution: Side of the pictures in pixels; what the model was trained at by default.
        adapter: Folder of a LoRA to train further; the reference is the model with it.
        lora_rank: Rank of a fresh LoRA; 0 trains all weights of the denoiser.
        lora_alpha: The LoRA's update is scaled by alpha / rank; twice the rank by default.
        lora_targets: Modules that get a LoRA, separated by commas; the attention layers by default.
        precision: Arithmetic and frozen weights; what is trained is float32.
        gradient_checkpointing: Compute activations twice to hold fewer of them.

    Data:
        data: Folder, file or hub id of a dataset of preferences between images.
        split: Split of a hub dataset.
        columns: Columns that go by other names, as in chosen=better rejected=worse.
        eval_data: Preferences for evaluation; otherwise some prompts of the data are held out.
        held_out: Share of the prompts that are held out; 0 holds out none.
        streaming: Read the data in order while training, without an index; needs --steps, and
            takes nothing from the data for evaluation.
        cache: Folder for VAE moments and text embeddings, each computed once for all runs.

    Objective:
        objective: What is minimised; `mmalign objectives` lists what there is. A log-probability
            is minus half the mean squared error, so published betas of 2000 to 5000 hold.
        reference: Where the reference's errors come from: adapter-off (LoRA only), copy (a second
            set of weights), cache (computed once, on disk); auto is the first that works.

    Output:
        out: Folder for everything that comes of it.
        resume: Go on with a stopped run in that folder; otherwise start anew there.
        merged: Write the whole pipeline too, with the LoRA folded in, as out/merged.

    Denoising:
        denoising: See DenoisingOptions.

    Samples:
        sampling: See SampleOptions.

    Training:
        training: See TrainingOptions. micro_batch counts latent positions.

    Examples:
        mmalign align-diffusion --model ./sd15 --data ./votes
        mmalign align-diffusion --model ./sd3 --data ./votes --objective 'dpo(beta=500.0) + nll()'
        mmalign align-diffusion --config runs/align-diffusion/run.yaml --out runs/again
    """
    save_settings(out / "run.yaml", "align-diffusion", align_diffusion, locals())
    fresh = {
        "r": lora_rank,
        "alpha": lora_alpha,
        "targets": tuple(lora_targets.split(",")) if lora_targets else (),
    }
    align_denoiser(
        video=False,
        model=model,
        data=data,
        objective=objective,
        out=out,
        resume=resume,
        merged=merged,
        split=split,
        columns=columns,
        eval_data=eval_data,
        held_out=held_out,
        streaming=streaming,
        adapter=adapter,
        lora=fresh if lora_rank and adapter is None else None,
        loading={
            "precision": precision,
            "gradient_checkpointing": gradient_checkpointing,
            "resolution": resolution,
        },
        cache=cache,
        reference=reference,
        denoising=denoising,
        sampling=sampling,
        training=training,
    )
