"""Over-optimisation: a policy's distribution turns before the quality of what it writes does.

Log-linear worlds with 50 responses to each prompt and a reference that prefers a few of them. DPO
is trained for far too long, on few pairs with noisy labels and more features than they can tell
apart. At each look the true mean reward is the quality; entropy of the ten likeliest responses and
their mass are the two indicators, all of them exact.

The third setting: with larger rewards (labels that err less) quality hardly fell at all.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run
from _loglinear import World, descend, label, log_policy, world
from torch import Tensor

from mmalign.objectives import objective

CLAIM = Claim(
    "overoptimisation",
    "In DPO that goes on for too long, the entropy of the ten likeliest responses falls after a "
    "rise, or their mass leaks, before the quality of what the policy writes falls.",
    "arXiv:2410.11677",
    "Fine-tuning on the chosen responses, with the same steps and learning rate.",
)
SPECS = {
    "dpo": "dpo(beta=0.05)",
    "hinge": "hinge(beta=0.05)",
    "nll (control)": "nll(reduction='sum')",
}
PAIRS, FEATURES, PROMPTS = 60, 60, 200


def look(here: World, theta: Tensor) -> dict[str, float]:
    """Quality and indicators, over all prompts."""
    policy = log_policy(here, theta).exp()
    top = policy.topk(10, -1).values
    return {
        "quality": float((policy * here.rewards).sum(-1).mean()),
        "entropy": float(torch.special.entr(top).sum(-1).mean()) / math.log(2),
        "mass": float(top.sum(-1).mean()),
    }


def measure(options: Options) -> Outcome:
    steps, every = (20, 5) if options.quick else (300, 5)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in SPECS}
    details: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        here = world(seed, prompts=PROMPTS, responses=50, features=FEATURES, scale=0.5)
        draws = torch.Generator().manual_seed(seed)
        preferred = torch.randn(PROMPTS, 50, generator=draws, dtype=torch.float64)
        here = replace(here, logits=4.0 * preferred)
        labels = label(here.rewards, PAIRS, draws)
        for name, spec in SPECS.items():
            course = descend(here, objective(spec), labels, steps=steps, rate=0.02)
            seen = [
                {"step": float(step), **look(here, theta)}
                for step, theta in enumerate(course)
                if step % every == 0
            ]
            if seed == 0:
                details[name] = seen
            note(found[name], seen)
    figures = [
        figure(name, metric, values)
        for name, metrics in found.items()
        for metric, values in metrics.items()
    ]
    dpo = found["dpo"]
    lost = over_seeds([a - b for a, b in zip(dpo[BEST], dpo[END], strict=True)])
    ahead = over_seeds([a - b for a, b in zip(dpo[QUALITY], dpo[ENTROPY], strict=True)])
    kept = over_seeds(
        [a - b for a, b in zip(found[CONTROL][BEST], found[CONTROL][END], strict=True)]
    )
    reasons = {
        "Quality did not surely fall.": lost.low > 0,
        "Entropy did not rise first: it fell from the start, as a log-linear policy narrows with "
        "every step away from its reference.": over_seeds(dpo[ENTROPY]).low > 0,
        "Entropy did not turn before quality.": ahead.low > 0,
    }
    return Outcome(
        figures,
        all(reasons.values()),
        f"DPO's mean reward is best at step {over_seeds(dpo[QUALITY]).value:.0f} "
        f"({over_seeds(dpo[BEST]).value:.2f}) and {over_seeds(dpo[END]).value:.2f} at the end; "
        f"entropy is highest at step {over_seeds(dpo[ENTROPY]).value:.0f}, {ahead.value:.0f} steps "
        f"[{ahead.low:.0f}, {ahead.high:.0f}] before. Fine-tuning loses {kept.value:.2f} "
        f"[{kept.low:.2f}, {kept.high:.2f}] of its best reward, DPO {lost.value:.2f}.",
        " ".join(text for text, fine in reasons.items() if not fine),
        details={"seed 0": details},
    )


CONTROL = "nll (control)"
BEST, END = "best mean reward", "mean reward at the end"
QUALITY, ENTROPY, MASS = (
    f"step at which {name} is highest" for name in ("mean reward", "entropy", "mass")
)


def note(found: dict[str, list[float]], seen: list[dict[str, float]]) -> None:
    """When each curve was at its highest, and what the quality was then and at the end."""
    for name, key in ((QUALITY, "quality"), (ENTROPY, "entropy"), (MASS, "mass")):
        best = max(seen, key=lambda row: row[key])
        found.setdefault(name, []).append(best["step"])
    quality = [row["quality"] for row in seen]
    found.setdefault(BEST, []).append(max(quality))
    found.setdefault(END, []).append(quality[-1])


if __name__ == "__main__":
    run(CLAIM, measure, seeds=10)
