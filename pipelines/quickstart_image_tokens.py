"""The image-token quickstart: a small Janus learns to draw two things beside one another as they
are asked for, which in combinations that it was not trained on it often does not, shapes above all.

The recipe was chosen by its result on prompts of "tuning", which are not those of the report.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mmalign.media import open_image
from mmalign.pipelines.drawn import Recipe, World, align_on_own_drawings
from mmalign.pipelines.stages import hush
from mmalign.playground.relations import foreground, prompts, score
from mmalign.playground.tiny_janus import TINY_JANUS
from mmalign.training.options import TrainingOptions

TOKENS = World(
    name="image tokens",
    things="pictures",
    modality="image-tokens",
    source=TINY_JANUS,
    prompts=lambda split, seed: prompts(split, seed=seed),  # type: ignore[arg-type]  # one of three
    read=lambda media: np.asarray(open_image(media)),
    score=score,
    painted=foreground,
    loading={},
    sampling={"guidance": 1.0, "batch_size": 128, "merge": True},
    command="mmalign build reward-pairs prompts.txt --modality image-tokens --reward hps "
    "--out pairs \\\n    --model deepseek-community/Janus-Pro-1B\n"
    "mmalign align-image-tokens --model deepseek-community/Janus-Pro-1B --data pairs",
)
RECIPE = Recipe(
    samples=2,
    rounds=12,
    measured=24,
    objective='dpo(beta=0.5) + 0.5*nll(reduction="sum")',
    control="nll()",
    training=TrainingOptions(
        steps=400, batch_size=32, micro_batch=32 * 2 * 64, learning_rate=2e-3, save_every=100
    ),
    lora_rank=64,
)


def quickstart_image_tokens(*, model: str = "auto", out: Path, seed: int = 0) -> None:
    """See `mmalign quickstart --help`."""
    hush()
    source = TINY_JANUS if model == "auto" else Path(model)
    align_on_own_drawings(TOKENS, source, RECIPE, out, seed=seed)
