"""Align a text-to-video model to preferences: load, read, sample, train, measure, report."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmalign.errors import UserError
from mmalign.pipelines.denoisers import DenoisingOptions, SampleOptions, align_denoiser
from mmalign.settings import save_settings
from mmalign.training.options import TrainingOptions

DENOISING, SAMPLING = DenoisingOptions(), SampleOptions()
DEFAULTS = TrainingOptions(learning_rate=1e-5, batch_size=8, warmup=0.25)


def align_video(
    *,
    model: str,
    data: str,
    frames: int,
    height: int | None = None,
    width: int | None = None,
    frame_choice: Literal["consecutive", "uniform"] = "consecutive",
    frame_rate: float = 25.0,
    experts: Literal["both", "high", "low"] = "both",
    objective: str = "dpo(beta=5000.0)",
    out: Path = Path("runs/align-video"),
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
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    gradient_checkpointing: bool = False,
    reference: Literal["auto", "adapter-off", "copy", "cache"] = "auto",
    denoising: DenoisingOptions = DENOISING,
    sampling: SampleOptions = SAMPLING,
    training: TrainingOptions = DEFAULTS,
) -> None:
    """Align a text-to-video model of diffusers to preferences, with LoRA or in full.

    Leaves in the output folder: the model, its card, samples from before and after with equal
    seeds, metrics.json, metrics.jsonl, run.yaml and report.html. Stopped at any moment and started
    again in the same way, it goes on.

    Model:
        model: Hub id or folder of a diffusers pipeline; safetensors only.
        frames: Frames of a video that the model is shown.
        height: Pixels; give width too. What the model was trained at by default.
        width: Pixels.
        frame_choice: Which frames of a longer video: consecutive ones of its middle, or uniform.
        frame_rate: Frames per second, for models that ask for it.
        experts: Which of Wan 2.2's two denoisers is trained.
        adapter: Folder of a LoRA to train further; the reference is the model with it.
        lora_rank: Rank of a fresh LoRA; 0 trains all weights of the denoiser.
        lora_alpha: The LoRA's update is scaled by alpha / rank; twice the rank by default.
        lora_targets: Modules that get a LoRA, separated by commas; the attention layers by default.
        precision: Arithmetic and frozen weights; what is trained is float32.
        gradient_checkpointing: Compute activations twice to hold fewer of them.

    Data:
        data: Folder, file or hub id of a dataset of preferences between videos.
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
        mmalign align-video --model ./wan2.1 --data ./votes --frames 17
        mmalign align-video --config runs/align-video/run.yaml --out runs/again
    """
    save_settings(out / "run.yaml", "align-video", align_video, locals())
    fresh = {
        "r": lora_rank,
        "alpha": lora_alpha,
        "targets": tuple(lora_targets.split(",")) if lora_targets else (),
    }
    align_denoiser(
        video=True,
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
            "resolution": _size(height, width),
            "frames": frames,
            "frame_choice": frame_choice,
            "frame_rate": frame_rate,
            "experts": experts,
        },
        cache=cache,
        reference=reference,
        denoising=denoising,
        sampling=sampling,
        training=training,
    )


def _size(height: int | None, width: int | None) -> tuple[int, int] | None:
    if height is None and width is None:
        return None
    if height is None or width is None:
        raise UserError("height and width go together", hint="give both, or neither")
    return height, width
