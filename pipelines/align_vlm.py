"""Align a vision-language model to preferences: load, read, train, measure, report."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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

if TYPE_CHECKING:
    from mmalign.adapters.vision_language import VisionLanguageAdapter
    from mmalign.training.batches import Remake


@dataclass(frozen=True, kw_only=True)
class VisionOptions:
    """What is trained besides the language model.

    Args:
        train_projector: Train what carries image features into the language model.
        train_vision: Train the vision tower.
        feature_cache: Folder in which what the frozen tower makes of each image is kept, so that
            it looks at none of them twice.
        video_frames: Evenly spaced frames that a video counts as, each of them an image.
    """

    train_projector: bool = False
    train_vision: bool = False
    feature_cache: Path | None = None
    video_frames: int = 8


@dataclass(frozen=True, kw_only=True)
class OnlineOptions:
    """What the model contributes to its own data while it trains.

    Args:
        online: bdhs: before each step, the chosen answers are set against what the model, as it
            then is, writes when it hardly sees the image, in place of the given rejected answers
            (arXiv:2407.02477). These stay where it writes nothing new.
        mask_threshold: Share of the image tokens that are hidden from it.
        expected_visible: Instead, how many image tokens of a prompt are to be seen on average.
        embedder: What tells how alike answers are: hub id or folder of a sentence encoder, minilm,
            or words, which they share.
    """

    online: Literal["bdhs"] | None = None
    mask_threshold: float = 0.99
    expected_visible: float | None = None
    embedder: str = "sentence-transformers/all-mpnet-base-v2"


LANGUAGE, VISION, LORA = LanguageOptions(), VisionOptions(), LoraOptions()
ONLINE = OnlineOptions()
WATCH = WatchOptions()
OUTPUT = OutputOptions(out=Path("runs/align-vlm"))
DEFAULTS = TrainingOptions(learning_rate=1e-5)


def align_vlm(
    *,
    model: ModelOptions,
    language: LanguageOptions = LANGUAGE,
    vision: VisionOptions = VISION,
    lora: LoraOptions = LORA,
    data: DataOptions,
    objective: str = 'dpo(beta=0.1) + nll(reduction="mean")',
    reference: ReferenceKind = "auto",
    online: OnlineOptions = ONLINE,
    output: OutputOptions = OUTPUT,
    watch: WatchOptions = WATCH,
    training: TrainingOptions = DEFAULTS,
) -> None:
    """Align a vision-language model to preferences, for example against hallucination.

    Reads the public formats of multimodal preferences and mmalign's own, keeps some prompts for
    evaluation, trains a LoRA on the language model or all its weights, and leaves in the output
    folder: the model, its card, metrics.json, metrics.jsonl, run.yaml and report.html. Stopped at
    any moment and started again in the same way, it goes on.

    Model:
        model: See ModelOptions.

    Language:
        language: See LanguageOptions.

    Vision:
        vision: See VisionOptions.

    Lora:
        lora: See LoraOptions.

    Data:
        data: See DataOptions.

    Objective:
        objective: What is minimised; `mmalign objectives` lists what there is. The likelihood of
            the chosen answers holds up what DPO alone lets fall.
        reference: Where the reference's log-probabilities come from: adapter-off (LoRA only), copy
            (a second set of weights), cache (computed once, on disk); auto is the first that works.

    Online:
        online: See OnlineOptions.

    Output:
        output: See OutputOptions.

    Watch:
        watch: See WatchOptions.

    Training:
        training: See TrainingOptions.

    Examples:
        mmalign align-vlm --model llava-hf/llava-1.5-7b-hf --data openbmb/RLHF-V-Dataset
        mmalign align-vlm --model ./qwen2.5-vl --data ./pairs --objective 'mdpo(beta=0.1)'
        mmalign align-vlm --model ./llava --data captioned --online bdhs --expected-visible 6
        mmalign align-vlm --config runs/align-vlm/run.yaml --out runs/again
    """
    save_settings(output.out / "run.yaml", "align-vlm", align_vlm, locals())
    from mmalign.adapters.vision_language import load_vision_language
    from mmalign.pipelines.language_models import align_language_model

    align_language_model(
        load_vision_language,
        model=model,
        language=language,
        loading=vars(vision),
        lora=lora,
        data=data,
        media=True,
        objective=objective,
        reference=reference,
        output=output,
        watch=watch,
        training=training,
        remake=None if online.online is None else _bdhs(online),
        making=None if online.online is None else vars(online),
    )


def _bdhs(online: OnlineOptions) -> Callable[[VisionLanguageAdapter], Remake]:
    from mmalign.data_builders.bdhs import Blinding
    from mmalign.data_builders.bdhs_online import online as bdhs
    from mmalign.data_builders.likeness import load_embed

    blinding = Blinding(
        mask_threshold=online.mask_threshold, expected_visible=online.expected_visible
    )
    embed = load_embed(online.embedder)
    return lambda adapter: bdhs(adapter, embed, blinding=blinding)
