"""TPO: ranked lists teach more than their best and worst responses.

Log-linear worlds in which each prompt of a training set has five responses with grades that a noisy
judge gave. List objectives see all five; DPO sees the best against the worst of the same lists.
"""

from __future__ import annotations

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _loglinear import accuracy, best_value, fit_lists, value, world

from mmalign.objectives import objective

CLAIM = Claim(
    "tpo",
    "At equal data, a list objective ranks held-out responses better than DPO on the best against "
    "the worst of each list.",
    "arXiv:2410.12854",
    "best_worst(dpo) on the same lists and grades.",
)
SPECS = {
    "best_worst(dpo)": "best_worst(dpo(beta=0.1))",
    "all_pairs(dpo)": "all_pairs(dpo(beta=0.1))",
    "plackett_luce": "plackett_luce(beta=0.1)",
    "lambda_ranking": "lambda_ranking(beta=0.1, gain='linear', discount='none')",
    "lambda_ranking (TPO's weights)": "lambda_ranking(beta=0.1)",
}
LISTS, RESPONSES = 150, 5
DECISIVE = "plackett_luce"
BETA = 0.1


def measure(options: Options) -> Outcome:
    ranked: dict[str, list[float]] = {}
    regret: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        here = world(seed, prompts=1_000, responses=RESPONSES, features=20, scale=1.5)
        draws = torch.Generator().manual_seed(seed)
        # Grades of a Plackett-Luce judge: the order of the rewards plus Gumbel noise.
        uniform = torch.rand(LISTS, RESPONSES, generator=draws, dtype=torch.float64)
        order = (here.rewards[:LISTS] - (-uniform.log()).log()).argsort(1).argsort(1)
        grades = order.double() / (RESPONSES - 1)
        prompts = torch.arange(LISTS)
        for name, spec in SPECS.items():
            theta = fit_lists(here, objective(spec), prompts, grades)
            ranked.setdefault(name, []).append(accuracy(here, theta, here.rewards))
            best = best_value(here, here.rewards, BETA)
            lost = best - value(here, theta, here.rewards, BETA)
            regret.setdefault(name, []).append(lost)
    figures = [figure(name, "clean ranking accuracy", values) for name, values in ranked.items()]
    figures += [figure(name, "regret", values) for name, values in regret.items()]
    control = ranked["best_worst(dpo)"]
    wins = {name: surely_above(ranked[name], control) for name in list(SPECS)[1:]}
    words = ", ".join(f"{name} {over_seeds(values).value:.3f}" for name, values in ranked.items())
    lost = [name for name, won in wins.items() if not won]
    return Outcome(
        figures,
        wins[DECISIVE],
        f"Ranking accuracy from {LISTS} lists of {RESPONSES}: {words}.",
        f"Not surely better: {', '.join(lost)}." if lost else "All list objectives are better.",
    )


if __name__ == "__main__":
    run(CLAIM, measure, seeds=10)
