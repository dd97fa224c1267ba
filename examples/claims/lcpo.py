"""LCPO: how far each annotator is to be trusted is found by EM, and preferences are learned better.

Annotators whose labels are right with different, unknown probabilities label pairs of a log-linear
world. Around every objective, em(...) is trained by full-batch Adam on the same labels as the
objective alone. Clean ranking is over all 12,000 pairs of responses, of which 1,500 were labelled.
"""

from __future__ import annotations

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _loglinear import Labels, World, accuracy, label, sides, world

from mmalign.objectives import Objective, objective

CLAIM = Claim(
    "lcpo",
    "Annotators' reliabilities are found to within 0.02 at 5,000 pairs, and em(dpo / ipo / simpo / "
    "cpo) ranks clean held-out pairs better than the plain objective.",
    "arXiv:2509.24159",
    "The plain objective on the same labels, steps and learning rate.",
)
TRUE = (0.95, 0.8, 0.55)
"""Probabilities that a label is right: a careful annotator, an average one, one near chance."""

SPECS = {
    "dpo": "dpo(beta=0.1)",
    "ipo": "ipo(tau=2.0, average=True)",
    "simpo": "simpo(beta=0.5, gamma=0.2)",
    "cpo": "contrastive(beta=0.1)",
}


def measure(options: Options) -> Outcome:
    steps, pairs = (40, 500) if options.quick else (400, 5_000)
    found: dict[str, list[float]] = {}
    errors: list[float] = []
    for seed in range(options.seeds):
        here = world(seed, prompts=2_000, responses=4, features=8, scale=4.0)
        draws = torch.Generator().manual_seed(seed)
        noisy, who = annotated(here, pairs, draws)
        eta = train(here, f"em(dpo(beta=0.1), annotators={len(TRUE)}, ema=0.1)", noisy, who, steps)[
            1
        ]
        error = (eta - torch.tensor(TRUE, dtype=torch.float64)).abs()
        errors.append(float(error.mean()))
        found.setdefault("largest error of a reliability", []).append(float(error.max()))
        for k, true in enumerate(TRUE):
            found.setdefault(f"reliability of annotator {true}", []).append(float(eta[k]))
    figures = [figure("em(dpo), 5,000 pairs", name, values) for name, values in found.items()]
    figures.append(figure("em(dpo), 5,000 pairs", "mean error of a reliability", errors))
    ranked: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        here = world(seed, prompts=2_000, responses=4, features=40, scale=4.0)
        draws = torch.Generator().manual_seed(seed)
        noisy, who = annotated(here, min(pairs, 1_500), draws)
        for name, spec in SPECS.items():
            for kind in (spec, f"em({spec}, annotators={len(TRUE)})"):
                theta = train(here, kind, noisy, who, steps)[0]
                key = f"em({name})" if kind != spec else name
                ranked.setdefault(key, []).append(accuracy(here, theta, here.rewards))
    figures += [figure(name, "clean ranking accuracy", values) for name, values in ranked.items()]
    close = over_seeds(errors).high <= 0.02
    better = {name: surely_above(ranked[f"em({name})"], ranked[name]) for name in SPECS}
    gains = ", ".join(
        f"{name} {over_seeds(ranked[name]).value:.3f} -> "
        f"{over_seeds(ranked[f'em({name})']).value:.3f}"
        for name in SPECS
    )
    worst = over_seeds(errors)
    failed = [name for name, sure in better.items() if not sure]
    return Outcome(
        figures,
        close and not failed,
        f"Mean error of a reliability {worst.value:.3f} [{worst.low:.3f}, {worst.high:.3f}]; "
        f"clean ranking accuracy: {gains}.",
        f"Not surely better: {', '.join(failed)}." if failed else "",
    )


def annotated(here: World, count: int, draws: torch.Generator) -> tuple[Labels, torch.Tensor]:
    """Labels and their annotators (n,); each annotator errs at a rate of their own."""
    true = label(here.rewards, count, draws)
    who = torch.randint(len(TRUE), (count,), generator=draws)
    right = torch.tensor(TRUE, dtype=torch.float64)[who]
    wrong = torch.rand(count, generator=draws, dtype=torch.float64) > right
    return true.flipped(wrong), who.double()


def train(
    here: World, spec: str, labels: Labels, who: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """theta (d,), and the reliabilities where the objective finds some."""
    loss: Objective = objective(spec)
    theta = torch.zeros_like(here.weights).requires_grad_()
    optimizer = torch.optim.Adam([theta], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(*sides(here, theta, labels, annotator=who)).mean().backward()
        optimizer.step()
        loss.finish_step()
    return theta.detach(), loss.state_dict().get("0.em.reliability", torch.zeros(0))


if __name__ == "__main__":
    run(CLAIM, measure, seeds=5)
