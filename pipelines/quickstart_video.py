"""The video quickstart: a small text-to-video model learns to film what it is asked for, as it
often does not after a short training.

The recipe was set after short runs that were measured on prompts of "tuning", which now give
preferences too; those of the report served for nothing else. Its anchor is weak, as fine-tuning on
own videos alone makes the filmer worse.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mmalign.media import frames
from mmalign.pipelines.drawn import Recipe, World, align_on_own_drawings
from mmalign.pipelines.stages import hush
from mmalign.playground.pictures import foreground
from mmalign.playground.tiny_filmer import LENGTH, TINY_FILMER
from mmalign.playground.videos import FRAMES, SIDE, Frames, Motion, motions, score, seen
from mmalign.records import Media
from mmalign.training.options import TrainingOptions


def _prompts(split: str, seed: int) -> list[Motion]:
    """Preferences also come from combinations that the filmer has not learnt from, as users' do.
    None of those that are measured is among them."""
    if split == "train":
        return motions("train", seed=seed) + motions("tuning", seed=seed)
    return motions("held_out", seed=seed)


def _direction(shown: Frames, asked: Motion) -> float:
    found = seen(shown)
    return float(found is not None and found.direction == asked.direction)


def _object(shown: Frames, asked: Motion) -> float:
    found = seen(shown)
    return float(found is not None and (found.colour, found.kind) == (asked.colour, asked.kind))


def _read(media: Media) -> NDArray[np.uint8]:
    return np.stack([np.asarray(frame) for frame in frames(media, FRAMES)])


VIDEOS = World(
    name="video",
    things="videos",
    modality="video",
    source=TINY_FILMER,
    prompts=_prompts,
    read=_read,
    score=score,
    painted=lambda shown: np.stack([foreground(frame) for frame in shown]),
    loading={"frames": FRAMES, "resolution": SIDE, "text": {"max_sequence_length": LENGTH}},
    sampling={"steps": 12, "guidance": 1.0, "batch_size": 32},
    command="mmalign align-video --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --data ./votes "
    "--frames 17\nmmalign align-video --help",
    library="diffusers",
    aspects={"direction": _direction, "object": _object},
)
RECIPE = Recipe(
    samples=6,
    rounds=12,
    measured=24,
    objective="dpo(beta=500.0) + 20*nll()",
    control="nll()",
    training=TrainingOptions(
        steps=120, batch_size=32, micro_batch=32 * 2 * 192, learning_rate=3e-4, save_every=40
    ),
)


def quickstart_video(*, model: str = "auto", out: Path, seed: int = 0) -> None:
    """See `mmalign quickstart --help`."""
    hush()
    source = TINY_FILMER if model == "auto" else Path(model)
    align_on_own_drawings(VIDEOS, source, RECIPE, out, seed=seed)
