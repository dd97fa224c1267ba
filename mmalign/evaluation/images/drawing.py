"""Images drawn for prompts, kept as they come: a stopped run goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import UserError
from mmalign.evaluation.answering import weights_mark
from mmalign.evaluation.images.prompts import ImagePrompt
from mmalign.files import whole_file
from mmalign.records import Media, Message, Sample, Text
from mmalign.training.log import console, progress
from mmalign.training.seeds import derive

Drawn = dict[str, list[Media]]
"""Images by the id of their prompt."""


@dataclass(frozen=True, kw_only=True)
class DrawnModel:
    """Which model draws.

    Args:
        model: Hub id or folder of a generator; or a folder of images to be scored as they are,
            named PROMPT-ID_NUMBER.png as this command names them.
        adapter: Folder of a LoRA on the model.
        baseline: Another model, or folder of images, that draws the same with the same seeds; the
            results show both. With an adapter it is the model without it, unless given.
        modality: How the model draws: by denoising (image) or token by token (image-tokens).
        precision: Arithmetic and weights.
    """

    model: str
    adapter: str | None = None
    baseline: str | None = None
    modality: Literal["image", "image-tokens"] = "image"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    def stages(self) -> dict[str, tuple[str, str | None]]:
        """Names of the stages in the results, each with its model and adapter."""
        baseline = self.baseline or (self.model if self.adapter else None)
        if baseline is None:
            return {"model": (self.model, self.adapter)}
        return {"before": (baseline, None), "after": (self.model, self.adapter)}


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """How it draws.

    Args:
        per_prompt: Images of each prompt.
        steps: Denoising steps; the model's own by default.
        guidance: Guidance scale; the model's own by default.
        resolution: Side in pixels; what the model was trained at by default.
        batch_size: Images that are drawn together.
        limit: Draw so many prompts only, the first ones.
        resume: Go on with the images in the output folder; otherwise draw anew.
        seed: Images of equal prompts have equal seeds in all stages.
    """

    per_prompt: int = 1
    steps: int | None = None
    guidance: float | None = None
    resolution: int | None = None
    batch_size: int = 8
    limit: int | None = None
    resume: bool = True
    seed: int = 0


def draw_all(
    prompts: Sequence[ImagePrompt], models: DrawnModel, options: DrawingOptions, out: Path
) -> dict[str, Drawn]:
    """Have every stage's model draw every prompt, into `out`/images-STAGE.

    Raises UserError where the images there are another model's.
    """
    return {
        stage: _given(Path(model), prompts, options)
        if is_folder_of_images(model)
        else _draw(prompts, models, model, adapter, options, out / f"images-{stage}", stage)
        for stage, (model, adapter) in models.stages().items()
    }


def is_folder_of_images(model: str) -> bool:
    """Whether this is a folder of images in place of a model."""
    folder = Path(model)
    return folder.is_dir() and next(folder.glob("*.png"), None) is not None


def _given(folder: Path, prompts: Sequence[ImagePrompt], options: DrawingOptions) -> Drawn:
    drawn: Drawn = {}
    for prompt in prompts:
        files = [_file(folder, prompt, number) for number in range(options.per_prompt)]
        if missing := [file.name for file in files if not file.exists()]:
            raise UserError(
                f"{folder} has no {missing[0]}, an image of {prompt.text!r}",
                hint="it must hold PROMPT-ID_NUMBER.png for every prompt: lower --per-prompt or "
                "--limit, or let a model draw",
            )
        drawn[prompt.id] = [Media("image", path=str(file)) for file in files]
    return drawn


def _draw(
    prompts: Sequence[ImagePrompt],
    models: DrawnModel,
    model: str,
    adapter: str | None,
    options: DrawingOptions,
    folder: Path,
    stage: str,
) -> Drawn:
    _claim(folder, _identity(models, model, adapter, options), options.resume)
    jobs = [(prompt, number) for prompt in prompts for number in range(options.per_prompt)]
    policy = None
    with progress(f"images {stage}", total=len(jobs)) as advance:
        for start in range(0, len(jobs), options.batch_size):
            # Batches lie at fixed places: a run that goes on draws the very same ones again.
            batch = jobs[start : start + options.batch_size]
            if not all(_file(folder, *job).exists() for job in batch):
                policy = policy or _load(models, model, adapter)
                samples = policy.sample(
                    [(Message("user", (Text(prompt.text),)),) for prompt, _ in batch],
                    [derive(options.seed, "image", prompt.id, number) for prompt, number in batch],
                    **_asked(options, models.modality),
                )
                for job, sample in zip(batch, samples, strict=True):
                    with whole_file(_file(folder, *job)) as partial:
                        partial.write_bytes(_image(sample).content)
            advance(to=start + len(batch))
    return _given(folder, prompts, options)


def _load(models: DrawnModel, model: str, adapter: str | None) -> Any:
    from mmalign.adapters.loading import load_adapter

    console.print(f"loading {model}{f' with {adapter}' if adapter else ''}")
    return load_adapter(models.modality, model, adapter=adapter, precision=models.precision)


def _asked(options: DrawingOptions, modality: str) -> dict[str, Any]:
    """The options that were given, as the adapter's `sample` takes them."""
    asked: dict[str, Any] = {"batch_size": options.batch_size}
    if options.guidance is not None:
        asked["guidance"] = options.guidance
    if options.resolution is not None:
        asked |= {"height": options.resolution, "width": options.resolution}
    if options.steps is not None and modality != "image":
        raise UserError("a model of image tokens takes no denoising --steps")
    if options.steps is not None:
        asked["steps"] = options.steps
    return asked


def _image(sample: Sample) -> Media:
    (media,) = [part for part in sample.response if isinstance(part, Media)]
    return media


def _file(folder: Path, prompt: ImagePrompt, number: int) -> Path:
    return folder / f"{prompt.id}_{number}.png"


def _identity(
    models: DrawnModel, model: str, adapter: str | None, options: DrawingOptions
) -> dict[str, Any]:
    """What an image depends on besides prompt and number."""
    return {
        "model": model,
        "weights": weights_mark(model),
        "adapter": adapter,
        "adapter_weights": weights_mark(adapter) if adapter else None,
        "modality": models.modality,
        "precision": models.precision,
        "steps": options.steps,
        "guidance": options.guidance,
        "resolution": options.resolution,
        "seed": options.seed,
    }


def _claim(folder: Path, asked: Mapping[str, Any], resume: bool) -> None:
    """Make the folder these images' own. Raises UserError where it is another one's."""
    note = folder / "asked.json"
    if note.exists() and resume:
        before = json.loads(note.read_text())
        for name, value in asked.items():
            if before.get(name) != value:
                raise UserError(
                    f"{folder} holds other images: {name} was {before.get(name)!r}, and is "
                    f"{value!r}",
                    hint="give another --out, or --no-resume to draw anew",
                )
        return
    for image in folder.glob("*.png"):
        image.unlink()
    with whole_file(note) as partial:
        partial.write_text(json.dumps(dict(asked), indent=1))
