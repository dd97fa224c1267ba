"""RPO: the chosen responses stay likely where DPO lets them become less so.

Log-linear worlds with ten responses to each prompt, of which only two are ever compared. The others
differ from those by features about which the data say nothing, and are worse for it. DPO fits the
comparisons and does not care where probability goes; RPO's share of the chosen's likelihood does.
"""

from __future__ import annotations

from itertools import islice

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _loglinear import Labels, World, descend, log_policy, sides
from torch import Tensor

from mmalign.objectives import objective

CLAIM = Claim(
    "rpo",
    "With RPO the chosen responses stay at least as likely as under the reference where DPO lets "
    "them become less likely, and held-out pairs are told apart no worse.",
    "arXiv:2405.16436",
    "DPO and fine-tuning on the chosen responses, on the same pairs, steps and learning rate.",
)
SPECS = {
    "dpo": "dpo(beta=0.1)",
    "rpo": "rpo(beta=0.1, eta=0.5)",
    "rpo, the paper's eta": "rpo(beta=0.1, eta=0.005)",
    "nll (control)": "nll(reduction='sum')",
}
RESPONSES, COMPARED, PRICE = 10, 2, 4.0
CHOSEN, REJECTED = "change of the chosen, nats", "change of the rejected, nats"
ACCURACY, REWARD = "reward accuracy", "mean reward"


def partly_compared(seed: int, prompts: int) -> World:
    """20 features that matter for all responses, and 5 that only uncompared responses have, which
    cost reward."""
    draws = torch.Generator().manual_seed(seed)
    phi = torch.randn(prompts, RESPONSES, 25, generator=draws, dtype=torch.float64)
    phi[:, :COMPARED, 20:] = 0
    phi[:, COMPARED:, 20:] = phi[:, COMPARED:, 20:].abs()
    weights = torch.randn(25, generator=draws, dtype=torch.float64)
    weights = 1.5 * weights / weights[:20].norm()
    weights[20:] = -PRICE / 5
    return World(phi, weights)


def labelled(world: World, prompts: Tensor, draws: torch.Generator) -> Labels:
    """The two compared responses of each prompt, labelled by Bradley-Terry."""
    ahead = world.rewards[prompts, 0] - world.rewards[prompts, 1]
    won = torch.rand(len(prompts), generator=draws, dtype=torch.float64) < ahead.sigmoid()
    first, second = torch.zeros_like(prompts), torch.ones_like(prompts)
    return Labels(prompts, torch.where(won, first, second), torch.where(won, second, first))


def measure(options: Options) -> Outcome:
    steps = 20 if options.quick else 300
    found: dict[str, dict[str, list[float]]] = {name: {} for name in SPECS}
    for seed in range(options.seeds):
        world = partly_compared(seed, prompts=1_200)
        draws = torch.Generator().manual_seed(seed)
        train, held_out = (
            labelled(world, prompts, draws)
            for prompts in (torch.arange(200), torch.arange(200, 1_200))
        )
        for name, spec in SPECS.items():
            course = descend(world, objective(spec), train, steps=steps, rate=0.05)
            theta = next(islice(course, steps, None))
            chosen, rejected = sides(world, theta, held_out)
            policy = log_policy(world, theta).exp()
            for metric, value in (
                (CHOSEN, chosen.ratio.mean()),
                (REJECTED, rejected.ratio.mean()),
                (ACCURACY, (chosen.ratio > rejected.ratio).double().mean()),
                (REWARD, (policy * world.rewards).sum(-1)[200:].mean()),
            ):
                found[name].setdefault(metric, []).append(value.item())
    figures = [
        figure(name, metric, values)
        for name, metrics in found.items()
        for metric, values in metrics.items()
    ]
    means = {
        name: {metric: over_seeds(values).value for metric, values in metrics.items()}
        for name, metrics in found.items()
    }
    words = ", ".join(
        f"{name} {mean[CHOSEN]:+.2f} nats, accuracy {mean[ACCURACY]:.1%}, "
        f"reward {mean[REWARD]:+.2f}"
        for name, mean in means.items()
    )
    reasons = {
        "DPO's chosen responses did not become less likely here.": (
            over_seeds(found["dpo"][CHOSEN]).high < 0
        ),
        "RPO's chosen responses lost likelihood too.": (
            over_seeds(found["rpo"][CHOSEN]).high >= 0
            and surely_above(found["rpo"][CHOSEN], found["dpo"][CHOSEN])
        ),
        "RPO tells pairs apart less well.": (
            not surely_above(found["dpo"][ACCURACY], found["rpo"][ACCURACY])
        ),
    }
    small, fell = means["rpo, the paper's eta"][CHOSEN], means["dpo"][CHOSEN]
    return Outcome(
        figures,
        all(reasons.values()),
        f"Change of the chosen's log-probability on held-out pairs: {words}.",
        " ".join(text for text, fine in reasons.items() if not fine)
        or f"At the paper's eta, 0.005, they lose {-small:.1f} nats instead of DPO's {-fell:.1f}; "
        "eta 0.5 was chosen on these worlds.",
    )


if __name__ == "__main__":
    run(CLAIM, measure, seeds=10)
