"""The video quickstart: a small text-to-video model learns to film what it is asked for, as it
often does not after a short training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmalign.media import frames
from mmalign.pipelines.drawn import Recipe, World, align_on_own_drawings
from mmalign.pipelines.stages import hush
from mmalign.playground.pictures import foreground
from mmalign.playground.tiny_filmer import LENGTH, TINY_FILMER
from mmalign.playground.videos import FRAMES, SIDE, motions, score
from mmalign.records import Media
from mmalign.settings import save_settings
from mmalign.training.options import TrainingOptions


def _read(media: Media) -> NDArray[np.uint8]:
    return np.stack([np.asarray(frame) for frame in frames(media, FRAMES)])


VIDEOS = World(
    name="video",
    things="videos",
    modality="video",
    source=TINY_FILMER,
    prompts=lambda split, seed: motions(split, seed=seed),  # type: ignore[arg-type]  # one of two
    read=_read,
    score=score,
    painted=lambda shown: np.stack([foreground(frame) for frame in shown]),
    loading={"frames": FRAMES, "resolution": SIDE, "text": {"max_sequence_length": LENGTH}},
    sampling={"steps": 12, "guidance": 1.0, "batch_size": 32},
    command="mmalign align-video --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --data ./votes "
    "--frames 17\nmmalign align-video --help",
    library="diffusers",
)
RECIPE = Recipe(
    samples=6,
    rounds=6,
    measured=24,
    objective="dpo(beta=200.0) + 100*nll()",
    control="nll()",
    training=TrainingOptions(
        steps=100, batch_size=32, micro_batch=32 * 2 * 192, learning_rate=1e-3, save_every=25
    ),
)


def quickstart_video(*, model: str = "auto", out: Path, seed: int = 0) -> None:
    """See `mmalign quickstart --help`."""
    save_settings(out / "run.yaml", "quickstart", quickstart_video, locals())
    hush()
    source = TINY_FILMER if model == "auto" else Path(model)
    align_on_own_drawings(VIDEOS, source, RECIPE, out, seed=seed)
