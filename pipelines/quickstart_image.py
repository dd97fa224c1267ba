"""The image quickstart: a small PixArt learns to paint what it is asked for, which after a short
training on careless captions it often does not, colours above all.

The recipe was chosen among four by its results on other prompts than those that are measured.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmalign.media import open_image
from mmalign.pipelines.drawn import Recipe, World, align_on_own_drawings
from mmalign.pipelines.stages import hush
from mmalign.playground.pictures import foreground, prompts, score
from mmalign.playground.tiny_painter import LENGTH, TINY_PAINTER
from mmalign.training.options import TrainingOptions

PICTURES = World(
    name="image",
    things="pictures",
    modality="image",
    source=TINY_PAINTER,
    prompts=lambda split, seed: prompts(split, seed=seed),  # type: ignore[arg-type]  # a split
    read=lambda media: np.asarray(open_image(media)),
    score=score,
    painted=foreground,
    loading={"text": {"max_sequence_length": LENGTH, "clean_caption": False}},
    sampling={"steps": 12, "guidance": 1.0, "batch_size": 64},
    command="mmalign align-diffusion --model stable-diffusion-v1-5/stable-diffusion-v1-5 "
    "--data votes.csv\nmmalign align-diffusion --help",
    library="diffusers",
)
RECIPE = Recipe(
    samples=6,
    rounds=8,
    measured=24,
    objective="dpo(beta=200.0) + 100*nll()",
    control="nll()",
    training=TrainingOptions(
        steps=150, batch_size=32, micro_batch=32 * 2 * 64, learning_rate=2e-3, save_every=50
    ),
)


def quickstart_image(*, model: str = "auto", out: Path, seed: int = 0) -> None:
    """See `mmalign quickstart --help`."""
    hush()
    source = TINY_PAINTER if model == "auto" else Path(model)
    align_on_own_drawings(PICTURES, source, RECIPE, out, seed=seed)
