"""Align a text-to-image model to preferences: load, read, sample, train, measure, report."""

from __future__ import annotations

from pathlib import Path

from mmalign.pipelines.denoisers import DenoisingOptions, SampleOptions, align_denoiser
from mmalign.pipelines.options import DataOptions, LoraOptions, ModelOptions, OutputOptions
from mmalign.settings import save_settings
from mmalign.training.options import ReferenceKind, TrainingOptions

LORA, DENOISING, SAMPLING = LoraOptions(), DenoisingOptions(), SampleOptions()
OUTPUT = OutputOptions(out=Path("runs/align-diffusion"))
DEFAULTS = TrainingOptions(learning_rate=1e-5, batch_size=16, warmup=0.25)


def align_diffusion(
    *,
    model: ModelOptions,
    resolution: int | None = None,
    lora: LoraOptions = LORA,
    data: DataOptions,
    objective: str = "dpo(beta=5000.0)",
    reference: ReferenceKind = "auto",
    denoising: DenoisingOptions = DENOISING,
    sampling: SampleOptions = SAMPLING,
    output: OutputOptions = OUTPUT,
    training: TrainingOptions = DEFAULTS,
) -> None:
    """Align a text-to-image model of diffusers to preferences, with LoRA or in full.

    Leaves in the output folder: the model, its card, samples from before and after with equal
    seeds, metrics.json, metrics.jsonl, run.yaml and report.html. Stopped at any moment and started
    again in the same way, it goes on.

    Model:
        model: See ModelOptions.
        resolution: Side of the pictures in pixels; what the model was trained at by default.

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
        mmalign align-diffusion --model ./sd15 --data ./votes
        mmalign align-diffusion --model ./sd3 --data ./votes --objective 'dpo(beta=500.0) + nll()'
        mmalign align-diffusion --config runs/align-diffusion/run.yaml --out runs/again
    """
    save_settings(output.out / "run.yaml", "align-diffusion", align_diffusion, locals())
    align_denoiser(
        video=False,
        model=model,
        loading={"resolution": resolution},
        lora=lora,
        data=data,
        objective=objective,
        reference=reference,
        denoising=denoising,
        sampling=sampling,
        output=output,
        training=training,
    )
