"""Diffusion-DPO against fine-tuning on the winners alone, on the painter of the image quickstart.

Each seed is a whole quickstart: other pictures, pairs, order and LoRA. What counts is the share of
pictures that satisfy prompts whose combination of words no training saw, and no choice of recipe.
A seed that was measured before, under the same folder, is read.
"""

from __future__ import annotations

import json
from dataclasses import replace

from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above

from mmalign.pipelines.drawn import DIVERSITY, SATISFIED, align_on_own_drawings
from mmalign.pipelines.quickstart_image import PICTURES, RECIPE
from mmalign.playground.tiny_painter import TINY_PAINTER

CLAIM = Claim(
    "diffusion_dpo",
    "Diffusion-DPO on a model's own best and worst pictures satisfies more unseen prompts than "
    "fine-tuning on the best ones with as many steps.",
    "arXiv:2311.12908",
    "Fine-tuning on the chosen pictures, same data, steps and LoRA; the model before.",
)
STAGES = ("before", "after", "control")
METRICS = {SATISFIED: "pictures as asked", DIVERSITY: "diversity of good pictures"}


def measure(options: Options) -> Outcome:
    recipe = RECIPE
    if options.quick:
        few = replace(RECIPE.training, steps=2, batch_size=4)
        recipe = replace(RECIPE, rounds=1, measured=2, training=few)
    found: dict[tuple[str, str], list[float]] = {}
    seconds = []
    for seed in range(options.seeds):
        out = options.out / CLAIM.name / str(seed)
        if not (out / "metrics.json").exists():
            align_on_own_drawings(PICTURES, TINY_PAINTER, recipe, out, seed=seed)
        metrics = json.loads((out / "metrics.json").read_text())
        seconds.append(sum(metrics["seconds"].values()))
        for stage in STAGES:
            for metric in METRICS:
                value = metrics[stage][metric]["value"]
                if value is not None:
                    found.setdefault((stage, metric), []).append(value)
    share = {stage: found[stage, SATISFIED] for stage in STAGES}
    gain = over_seeds([a - b for a, b in zip(share["after"], share["control"], strict=True)])
    means = {stage: over_seeds(values).value for stage, values in share.items()}
    return Outcome(
        [figure(stage, METRICS[metric], values) for (stage, metric), values in found.items()],
        surely_above(share["after"], share["control"]),
        f"Pictures as asked: before {means['before']:.1%}, Diffusion-DPO {means['after']:.1%}, "
        f"fine-tuning on the winners {means['control']:.1%}; gain over it {100 * gain.value:+.1f} "
        f"points [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}].",
        f"The objective is {recipe.objective}, {recipe.training.steps} steps; "
        f"{sum(seconds) / len(seconds):.0f} s a seed.",
        details={"seconds by seed": seconds},
    )


if __name__ == "__main__":
    run(CLAIM, measure, seeds=3)
