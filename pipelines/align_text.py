"""Align a language model to preferences: load, read, train, measure, report."""

from __future__ import annotations

from pathlib import Path

from mmalign.pipelines.options import (
    DataOptions,
    LanguageOptions,
    LoraOptions,
    ModelOptions,
    OutputOptions,
    WatchOptions,
)
from mmalign.settings import save_settings
from mmalign.training.options import ReferenceKind, TrainingOptions

LANGUAGE, LORA = LanguageOptions(), LoraOptions()
WATCH = WatchOptions()
OUTPUT = OutputOptions(out=Path("runs/align-text"))
DEFAULTS = TrainingOptions(learning_rate=5e-5)


def align_text(
    *,
    model: ModelOptions,
    language: LanguageOptions = LANGUAGE,
    lora: LoraOptions = LORA,
    data: DataOptions,
    objective: str = "dpo(beta=0.1)",
    reference: ReferenceKind = "auto",
    output: OutputOptions = OUTPUT,
    watch: WatchOptions = WATCH,
    training: TrainingOptions = DEFAULTS,
) -> None:
    """Align a language model to preferences, with LoRA or in full.

    Reads TRL's preference formats and mmalign's own, keeps some prompts for evaluation, trains, and
    leaves in the output folder: the model, its card, metrics.json, metrics.jsonl, run.yaml and
    report.html. Stopped at any moment and started again in the same way, it goes on.

    Model:
        model: See ModelOptions. A GGUF file is read as well.

    Language:
        language: See LanguageOptions.

    Lora:
        lora: See LoraOptions.

    Data:
        data: See DataOptions.

    Objective:
        objective: What is minimised; `mmalign objectives` lists what there is.
        reference: Where the reference's log-probabilities come from: adapter-off (LoRA only), copy
            (a second set of weights), cache (computed once, on disk); auto is the first that works.

    Output:
        output: See OutputOptions.

    Watch:
        watch: See WatchOptions.

    Training:
        training: See TrainingOptions.

    Examples:
        mmalign align-text --model HuggingFaceTB/SmolLM2-135M-Instruct --data preferences.jsonl
        mmalign align-text --model ./model --data ./pairs --objective 'simpo(beta=2.0, gamma=0.5)'
        mmalign align-text --config runs/align-text/run.yaml --out runs/again
    """
    save_settings(output.out / "run.yaml", "align-text", align_text, locals())
    from mmalign.adapters.text import load_text
    from mmalign.pipelines.language_models import align_language_model

    align_language_model(
        load_text,
        model=model,
        language=language,
        lora=lora,
        data=data,
        media=False,
        objective=objective,
        reference=reference,
        output=output,
        watch=watch,
        training=training,
    )
