"""Media from a pipeline, one generator per row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mmalign.adapters.diffusion.media import encoded
from mmalign.records import Media

Progress = Callable[[int, int], None]
"""Called with how many are done and how many there are."""


def sample_media(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    call: Mapping[str, Any],
    *,
    fps: float,
    batch_size: int,
    progress: Progress | None,
) -> list[Media]:
    """call: arguments of the pipeline."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds: one seed each")
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    training = [part.training for part in parts]
    done: list[Media] = []
    pipe.set_progress_bar_config(disable=True)
    try:
        for part in parts:
            part.eval()
        for start in range(0, len(prompts), batch_size):
            rows = slice(start, start + batch_size)
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds[rows]]
            with torch.no_grad():
                out = pipe(
                    prompt=list(prompts[rows]), generator=generators, output_type="np", **call
                )
            images = out["images"] if "images" in out else out["frames"]
            done += [_media(image, fps) for image in images]
            if progress is not None:
                progress(len(done), len(prompts))
    finally:
        for part, was in zip(parts, training, strict=True):
            part.train(was)
    return done


def _media(image: Any, fps: float) -> Media:
    """From (h w 3) or (f h w 3) in 0 .. 1."""
    frames = np.asarray(image, dtype=np.float32)
    frames = frames[None] if frames.ndim == 3 else frames
    bytes_ = torch.from_numpy((frames * 255).round().clip(0, 255).astype(np.uint8))
    return encoded(bytes_.permute(0, 3, 1, 2), fps=fps)
