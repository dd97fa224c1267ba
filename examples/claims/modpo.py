"""MODPO: a front of two conflicting rewards from preferences of one and margins of the other.

Log-linear worlds with two rewards that oppose one another. For each weight w MODPO is fitted to
preferences of the first reward with the second's margins; the baseline minimises the weighted sum
of two DPO losses, one per reward's preferences, on as many labels of each. The front is known: the
optimum of w r1 + (1-w) r2 - beta KL in closed form; regret is what a policy lacks to it.
"""

from __future__ import annotations

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _loglinear import Labels, World, best_value, fit, label, log_policy, minimise, sides, world

from mmalign.objectives import objective

CLAIM = Claim(
    "modpo",
    "Sweeping the weight gives a front of two conflicting rewards that lies above the front of a "
    "weighted sum of DPO losses.",
    "arXiv:2310.03708",
    "The weighted sum of two DPO losses, fitted to as many labels of either reward.",
)
WEIGHTS = (0.1, 0.3, 0.5, 0.7, 0.9)
BETA = 0.5
SCALES = (3.0, 1.0)
CONFLICT = -0.5  # correlation of the two rewards

KNOWN = "MODPO is told the second reward's margins exactly; the baseline sees labels of both."


def measure(options: Options) -> Outcome:
    pairs = 1_000 if options.quick else 20_000
    names = ("modpo", "weighted sum")
    regret: dict[tuple[str, float], list[float]] = {}
    point: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for seed in range(options.seeds):
        here, first, second = two_rewards(seed)
        draws = torch.Generator().manual_seed(seed)
        labels = [label(rewards, pairs, draws) for rewards in (first, second)]
        for weight in WEIGHTS:
            mixed = weight * first + (1 - weight) * second
            best = best_value(here, mixed, BETA)
            policies = (
                modpo(here, labels[0], second, weight),
                weighted_sum(here, labels, weight),
            )
            for name, theta in zip(names, policies, strict=True):
                pi = log_policy(here, theta)
                kl = pi.exp() * (pi - log_policy(here, torch.zeros_like(theta)))
                rewards = [float((pi.exp() * r).sum(-1).mean()) for r in (first, second)]
                value = (
                    weight * rewards[0]
                    + (1 - weight) * rewards[1]
                    - BETA * float(kl.sum(-1).mean())
                )
                regret.setdefault((name, weight), []).append(best - value)
                point.setdefault((name, weight), []).append((rewards[0], rewards[1]))
    figures = []
    for (name, weight), values in regret.items():
        setting = f"{name}, w = {weight}"
        figures.append(figure(setting, "regret", values))
        for i, which in enumerate(("first", "second")):
            rewards = [pair[i] for pair in point[name, weight]]
            figures.append(figure(setting, f"mean {which} reward", rewards))
    wins = [surely_above(regret[names[1], w], regret[names[0], w]) for w in WEIGHTS]
    along = [[over_seeds([p[0] for p in point["modpo", w]]).value] for w in WEIGHTS]
    words = "; ".join(
        f"w {w}: {over_seeds(regret['modpo', w]).value:.3f} against "
        f"{over_seeds(regret['weighted sum', w]).value:.3f}"
        for w in WEIGHTS
    )
    lost = [str(w) for w, won in zip(WEIGHTS, wins, strict=True) if not won]
    return Outcome(
        figures,
        all(wins) and along == sorted(along),
        f"Regret of MODPO against that of the weighted sum: {words}.",
        f"Not surely better at w = {', '.join(lost)}." if lost else KNOWN,
    )


def two_rewards(seed: int) -> tuple[World, torch.Tensor, torch.Tensor]:
    """A world, and rewards (p k) whose weights have the correlation CONFLICT."""
    here = world(seed, prompts=300, responses=4, features=6, scale=1.0)
    draws = torch.Generator().manual_seed(seed + 1_000)
    other = torch.randn(len(here.weights), generator=draws, dtype=torch.float64)
    first = here.weights / here.weights.norm()
    across = other - (other @ first) * first
    second = CONFLICT * first + (1 - CONFLICT**2) ** 0.5 * across / across.norm()
    return here, SCALES[0] * here.features @ first, SCALES[1] * here.features @ second


def modpo(here: World, labels: Labels, margins: torch.Tensor, weight: float) -> torch.Tensor:
    """Fitted to preferences of one reward with the other's margins."""
    ahead = margins[labels.prompt, labels.better] - margins[labels.prompt, labels.worse]
    spec = f"modpo(beta={BETA}, weight={weight}, margins='other')"
    return fit(here, objective(spec), labels, other=ahead)


def weighted_sum(here: World, labels: list[Labels], weight: float) -> torch.Tensor:
    loss = objective(f"dpo(beta={BETA})")

    def total(theta: torch.Tensor) -> torch.Tensor:
        both = [loss(*sides(here, theta, some)).mean() for some in labels]
        return weight * both[0] + (1 - weight) * both[1]

    return minimise(total, len(here.weights))


if __name__ == "__main__":
    run(CLAIM, measure, seeds=5)
