"""mDPO: a term that contrasts images makes a model use its image more than DPO does.

Pairs of own captions can be told apart without looking: the worse one names a companion. Whether a
model looks is seen on twins: scenes that differ in nothing but the presence of such a companion.
The caption of each should be likelier with its own image than with its twin's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _vision import VisionLanguageAdapter, captioned, fresh, log_probs, own_pairs, trained

from mmalign.playground.captioning import describe, judge
from mmalign.playground.scenes import GRID, MOST, Scene, caption, mentioned, scenes

CLAIM = Claim(
    "vlm_mdpo",
    "mDPO's conditional term makes a vision-language model use its image more: swapping the image "
    "costs a caption more of its log-probability than after the same loss without the term.",
    "arXiv:2406.11839",
    "The same loss without the term (DPO with mDPO's anchor), DPO alone, and fine-tuning on the "
    "chosen captions; same pairs, steps and initial weights.",
)
BETA = 0.1
METHODS = {
    "nll": 'nll(reduction="mean")',
    "dpo": f"dpo(beta={BETA})",
    "dpo + anchor": f"dpo(beta={BETA}) + chosen_anchor(beta={BETA})",
    "mdpo": f"mdpo(beta={BETA})",
}


def measure(options: Options) -> Outcome:
    pictures, held_out, steps = (24, 12, 2) if options.quick else (800, 300, 40)
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(options.seeds):
        pairs = own_pairs(scenes("apart", pictures, seed=f"mdpo pairs {seed}"), seed)
        unseen = twins(held_out, seed=f"mdpo unseen {seed}")
        for method, spec in {"before": "", **METHODS}.items():
            policy = trained(spec, pairs, seed=seed, steps=steps) if spec else fresh(seed)
            for metric, value in image_use(policy, unseen).items():
                found.setdefault((method, metric), []).append(value)
    figures = [figure(method, metric, values) for (method, metric), values in found.items()]
    use = {method: found[method, TWIN] for method in ("before", *METHODS)}
    others = [method for method in METHODS if method != "mdpo"]
    not_above = [method for method in others if not surely_above(use["mdpo"], use[method])]
    drops = ", ".join(f"{method} {over_seeds(values).value:.1f}" for method, values in use.items())
    return Outcome(
        figures,
        not not_above,
        f"Nats that a caption loses with its twin's image: {drops}.",
        f"Not surely above {', '.join(not_above)}." if not_above else "",
    )


TWIN, OTHER = "nats lost with the twin's image", "nats lost with another scene's image"


def image_use(
    policy: VisionLanguageAdapter, unseen: Sequence[tuple[Scene, Scene]]
) -> dict[str, float]:
    """What swapping images costs true captions, and what the model says of the twins."""
    alone, accompanied = zip(*unseen, strict=True)
    others = [*alone[1:], alone[0]]

    def likelihood(shown: Sequence[Scene], told: Sequence[Scene]) -> torch.Tensor:
        """(n,) of the true captions of `told`, with the images of `shown`."""
        pairs = zip(shown, told, strict=True)
        return log_probs(policy, [captioned(scene, caption(t.present)) for scene, t in pairs])

    right_alone, right_accompanied = likelihood(alone, alone), likelihood(accompanied, accompanied)
    wrong_alone, wrong_accompanied = likelihood(accompanied, alone), likelihood(alone, accompanied)
    own_image_wins = [right_alone > wrong_accompanied, right_accompanied > wrong_alone]
    chair_i = judge(describe(policy, alone), alone).figures()["chair_i"]
    said = describe(policy, accompanied)
    company = [
        bool(set(both.present).difference(one.present).intersection(mentioned(text)))
        for one, both, text in zip(alone, accompanied, said, strict=True)
    ]
    return {
        TWIN: float((right_alone - wrong_alone + right_accompanied - wrong_accompanied).mean() / 2),
        OTHER: float((right_alone - likelihood(others, alone)).mean()),
        "true caption likelier than the twin's": float(torch.cat(own_image_wins).double().mean()),
        "CHAIR_i without companions": chair_i.value,
        "companions named that are there": sum(company) / len(company),
    }


def twins(count: int, *, seed: str) -> list[tuple[Scene, Scene]]:
    """Pairs of scenes: something without its companion, and the same with it."""
    draw = random.Random(f"twins {seed}")
    found: list[tuple[Scene, Scene]] = []
    for scene in scenes("apart", 10 * count, seed=seed):
        wanting = [
            companion
            for thing in scene.things
            if (companion := thing.companion()) and companion.name not in scene.present
        ]
        if not wanting or len(scene.things) == MOST or len(found) == count:
            continue
        taken = {thing.cell for thing in scene.things}
        free = [cell for cell in range(GRID * GRID) if cell not in taken]
        added = replace(draw.choice(wanting), cell=draw.choice(free))
        things = sorted((*scene.things, added), key=lambda thing: thing.cell)
        found.append((scene, replace(scene, things=tuple(things))))
    return found


if __name__ == "__main__":
    run(CLAIM, measure)
