"""Over-optimisation: a policy's distribution turns before the quality of what it writes does.

Log-linear worlds with 50 responses to each prompt and a reference that prefers a few of them. DPO
is trained for far too long, on few pairs with noisy labels and more features than they can tell
apart. At each look the true mean reward is the quality; entropy of the ten likeliest responses and
their mass are the two indicators, all of them exact.

The third setting: with larger rewards (labels that err less) quality hardly fell at all.

And a tiny Llama through the same training as any model, on few pairs of its own answers for as
many steps as 64 passes over them; what it writes is scored and looked at on the way. Its first and
only setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run
from _lists import aligned, recipe, rules_kept, splits
from _loglinear import World, descend, label, log_policy, world
from _smollm2 import prompt
from torch import Tensor

from mmalign.adapters.text import TextAdapter
from mmalign.evaluation.outputs import look_at
from mmalign.objectives import objective
from mmalign.playground.language_models import Recipe
from mmalign.reference import AdapterOff
from mmalign.training.callbacks import AsLeft

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
LLAMA = {"dpo": "dpo(beta=0.05)", "nll (control)": "nll(reduction='sum')"}
STEPS, EVERY, SEEDS, LOOKED_AT = 120, 8, 3, 48  # of the Llama


def look(here: World, theta: Tensor) -> dict[str, float]:
    """Quality and indicators, over all prompts."""
    policy = log_policy(here, theta).exp()
    top = policy.topk(10, -1).values
    return {
        "quality": float((policy * here.rewards).sum(-1).mean()),
        "entropy": float(torch.special.entr(top).sum(-1).mean()) / math.log(2),
        "mass": float(top.sum(-1).mean()),
    }


Found = dict[str, dict[str, list[float]]]
"""Method -> metric -> a value per seed."""


def in_exact_worlds(options: Options) -> tuple[Found, dict[str, list[dict[str, float]]]]:
    """And the curves of the first seed."""
    steps, every = (20, 5) if options.quick else (300, 5)
    found: Found = {name: {} for name in SPECS}
    curves: dict[str, list[dict[str, float]]] = {}
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
                curves[name] = seen
            note(found[name], seen)
    return found, curves


@dataclass
class Looks:
    """A callback that scores what the Llama writes, and looks at its distributions there."""

    policy: TextAdapter
    made: Recipe
    every: int
    seed: int
    seen: list[dict[str, float]] = field(default_factory=list)

    def look(self, step: int) -> None:
        asked = [prompt(one) for one in self.made.held_out]
        found = look_at(self.policy, AdapterOff(self.policy), asked, seed=self.seed,
                        max_new_tokens=8, batch_size=64).means()  # fmt: skip
        self.seen.append(
            {
                "step": float(step),
                "quality": rules_kept(self.policy, self.made, seed=self.seed),
                "entropy": found["top10_entropy"],
                "mass": found["top10_mass"],
            }
        )

    def __call__(self, step: int, figures: Mapping[str, Any], as_left: AsLeft) -> dict[str, float]:
        if step % self.every == 0:
            self.look(step)
        return {}


def on_a_transformer(options: Options) -> tuple[Found, dict[str, list[dict[str, float]]]]:
    """And the curves of the first seed."""
    made = recipe(quick=options.quick)
    data, _ = splits(made, options.out / CLAIM.name)
    made = replace(made, held_out=made.held_out[:LOOKED_AT])
    few = [data[number] for number in range(min(PAIRS, len(data)))]
    found: Found = {name: {} for name in LLAMA}
    curves: dict[str, list[dict[str, float]]] = {}
    for seed in range(min(SEEDS, options.seeds)):
        for name, spec in LLAMA.items():
            seen = watched(made, few, spec, options.out / CLAIM.name / f"{name[:3]}-{seed}",
                           seed=seed, quick=options.quick)  # fmt: skip
            if seed == 0:
                curves[name] = seen
            note(found[name], seen)
            print(f"seed {seed}  {name}: {found[name][BEST][-1]:.2f} at best, "
                  f"{found[name][END][-1]:.2f} at the end", flush=True)  # fmt: skip
    return found, curves


def watched(
    made: Recipe, data: list[Any], spec: str, out: Path, *, seed: int, quick: bool
) -> list[dict[str, float]]:
    """Train for far too long, and look on."""
    looks: list[Looks] = []

    def looking(policy: TextAdapter) -> Looks:
        looks.append(Looks(policy, made, 2 if quick else EVERY, seed))
        looks[0].look(0)
        return looks[0]

    aligned(made, data, (), spec, out, seed=seed, quick=quick, steps=STEPS, looking=looking)
    return looks[0].seen


def failures(found: Found) -> list[str]:
    """What of the claim does not hold in these runs."""
    dpo = found["dpo"]
    lost = over_seeds([a - b for a, b in zip(dpo[BEST], dpo[END], strict=True)])
    ahead = over_seeds([a - b for a, b in zip(dpo[QUALITY], dpo[ENTROPY], strict=True)])
    reasons = {
        "quality did not surely fall": lost.low > 0,
        "entropy did not surely rise first: it fell from the start": (
            over_seeds(dpo[ENTROPY]).low > 0
        ),
        "entropy did not surely turn before quality": ahead.low > 0,
    }
    return [text for text, fine in reasons.items() if not fine]


def measure(options: Options) -> Outcome:
    runs = {"exact worlds": in_exact_worlds(options), "transformer": on_a_transformer(options)}
    figures = [
        figure(f"{place}: {name}", metric, values)
        for place, (found, _) in runs.items()
        for name, metrics in found.items()
        for metric, values in metrics.items()
    ]
    failed = [
        f"{place}: {'; '.join(why)}."
        for place, (found, _) in runs.items()
        if (why := failures(found))
    ]
    return Outcome(
        figures,
        not failed,
        "; ".join(f"{place}: {_words(found)}" for place, (found, _) in runs.items()) + ".",
        " ".join([*failed, LIMIT] if failed else failed),
        details={place: curves for place, (_, curves) in runs.items()},
    )


def _words(found: Found) -> str:
    dpo, control = found["dpo"], found[CONTROL]
    lost = {
        name: over_seeds([a - b for a, b in zip(each[BEST], each[END], strict=True)])
        for name, each in (("dpo", dpo), ("nll", control))
    }
    at = {name: over_seeds(dpo[name]).value for name in (QUALITY, ENTROPY, MASS)}
    return (
        f"DPO's quality is best at step {at[QUALITY]:.0f} ({over_seeds(dpo[BEST]).value:.2f}) and "
        f"{over_seeds(dpo[END]).value:.2f} at the end, entropy is highest at step "
        f"{at[ENTROPY]:.0f}, mass at {at[MASS]:.0f}; DPO loses {lost['dpo'].value:.2f} "
        f"[{lost['dpo'].low:.2f}, {lost['dpo'].high:.2f}] of its best quality, fine-tuning "
        f"{lost['nll'].value:.2f} [{lost['nll'].low:.2f}, {lost['nll'].high:.2f}]"
    )


LIMIT = (
    "A log-linear policy narrows with every step away from its reference; and the transformer's "
    "quality falls from the first steps of DPO without an anchor, as its chosen answers lose "
    "likelihood, so that nothing can turn before it."
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
