"""Align a text-to-video model to preferences: load, read, sample, train, measure, report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import UserError
from mmalign.pipelines.denoisers import DenoisingOptions, SampleOptions, align_denoiser
from mmalign.pipelines.options import DataOptions, LoraOptions, ModelOptions, OutputOptions
from mmalign.settings import save_settings
from mmalign.training.options import ReferenceKind, TrainingOptions


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """What the model is shown of a video.

    Args:
        frames: Frames of a video that the model is shown.
        height: Pixels; give width too. What the model was trained at by default.
        width: Pixels.
        frame_choice: Which frames of a longer video: consecutive ones of its middle, or uniform.
        frame_rate: Frames per second, for models that ask for it.
        experts: Which of Wan 2.2's two denoisers is trained.
    """

    frames: int
    height: int | None = None
    width: int | None = None
    frame_choice: Literal["consecutive", "uniform"] = "consecutive"
    frame_rate: float = 25.0
    experts: Literal["both", "high", "low"] = "both"

    def loading(self) -> dict[str, Any]:
        """As arguments of `load_diffusion`. Raises UserError for a height without a width."""
        if (self.height is None) != (self.width is None):
            raise UserError("height and width go together", hint="give both, or neither")
        found = {n: v for n, v in vars(self).items() if n not in ("height", "width")}
        return found | {"resolution": (self.height, self.width) if self.height else None}


LORA, DENOISING, SAMPLING = LoraOptions(), DenoisingOptions(), SampleOptions()
OUTPUT = OutputOptions(out=Path("runs/align-video"))
DEFAULTS = TrainingOptions(learning_rate=1e-5, batch_size=8, warmup=0.25)


def align_video(
    *,
    model: ModelOptions,
    video: VideoOptions,
    lora: LoraOptions = LORA,
    data: DataOptions,
    objective: str = "dpo(beta=5000.0)",
    reference: ReferenceKind = "auto",
    denoising: DenoisingOptions = DENOISING,
    sampling: SampleOptions = SAMPLING,
    output: OutputOptions = OUTPUT,
    training: TrainingOptions = DEFAULTS,
) -> None:
    """Align a text-to-video model of diffusers to preferences, with LoRA or in full.

    Leaves in the output folder: the model, its card, samples from before and after with equal
    seeds, metrics.json, metrics.jsonl, run.yaml and report.html. Stopped at any moment and started
    again in the same way, it goes on.

    Model:
        model: See ModelOptions.

    Video:
        video: See VideoOptions.

    Lora:
        lora: See LoraOptions.

    Data:
        data: See DataOptions.

    Objective:
        objective: What is minimised; `mmalign objectives` lists what there is. A log-probability
            is minus half the mean squared error, so published betas of 2000 to 5000 hold.
        reference: Where the reference's errors come from: adapter-off (LoRA only), copy (a second
            set of weights), cache (computed once, on disk); auto is the first that works.

    Denoising:
        denoising: See DenoisingOptions.

    Sampling:
        sampling: See SampleOptions.

    Output:
        output: See OutputOptions.

    Training:
        training: See TrainingOptions. micro_batch counts latent positions.

    Examples:
        mmalign align-video --model ./wan2.1 --data ./votes --frames 17
        mmalign align-video --config runs/align-video/run.yaml --out runs/again
    """
    save_settings(output.out / "run.yaml", "align-video", align_video, locals())
    align_denoiser(
        video=True,
        model=model,
        loading=video.loading(),
        lora=lora,
        data=data,
        objective=objective,
        reference=reference,
        denoising=denoising,
        sampling=sampling,
        output=output,
        training=training,
    )
