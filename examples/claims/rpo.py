"""RPO: the chosen responses stay likely where DPO lets them become less so.

Twice: a tiny Llama on pairs of its own answers, through the same training as any model; and exact,
log-linear worlds with ten responses to each prompt, of which only two are ever compared. The others
differ from those by features about which the data say nothing, and are worse for it. DPO fits the
comparisons and does not care where probability goes; RPO's share of the chosen's likelihood does.
"""

from __future__ import annotations

from itertools import islice

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _lists import aligned, recipe, rules_kept, splits
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
SEEDS = 3  # of the transformer


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


Found = dict[str, dict[str, list[float]]]
"""Method -> metric -> a value per seed."""


def in_exact_worlds(options: Options) -> Found:
    """Everything computed exactly, in float64."""
    steps = 20 if options.quick else 300
    found: Found = {name: {} for name in SPECS}
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
    return found


def on_a_transformer(options: Options) -> Found:
    """A tiny Llama through `align`, on pairs of its own answers."""
    made = recipe(quick=options.quick)
    data, held_out = splits(made, options.out / CLAIM.name)
    found: Found = {name: {} for name in SPECS}
    for seed in range(min(SEEDS, options.seeds)):
        for name, spec in SPECS.items():
            out = options.out / CLAIM.name / f"{spec}-{seed}"
            policy, done = aligned(made, data, held_out, spec, out, seed=seed, quick=options.quick)
            chosen, rejected = (
                done.after[f"{side}_logp"] - done.before[f"{side}_logp"]
                for side in ("chosen", "rejected")
            )
            for metric, value in (
                (CHOSEN, chosen.mean().item()),
                (REJECTED, rejected.mean().item()),
                (ACCURACY, (chosen > rejected).double().mean().item()),
                (REWARD, rules_kept(policy, made, seed=seed)),
            ):
                found[name].setdefault(metric, []).append(value)
            print(f"seed {seed}  {name}: {found[name][CHOSEN][-1]:+.2f} nats", flush=True)
    return found


def failures(found: Found) -> list[str]:
    """What of the claim does not hold in these runs."""
    dpo, rpo = found["dpo"], found["rpo"]
    reasons = {
        "DPO's chosen responses did not become less likely": over_seeds(dpo[CHOSEN]).high < 0,
        "RPO's chosen responses are not surely above DPO's": surely_above(rpo[CHOSEN], dpo[CHOSEN]),
        "RPO's chosen responses lost likelihood too": over_seeds(rpo[CHOSEN]).high >= 0,
        "RPO tells pairs apart less well": not surely_above(dpo[ACCURACY], rpo[ACCURACY]),
    }
    return [text for text, fine in reasons.items() if not fine]


def measure(options: Options) -> Outcome:
    places = {
        "exact worlds": in_exact_worlds(options),
        "transformer": on_a_transformer(options),
    }
    figures = [
        figure(f"{place}: {name}", metric, values)
        for place, found in places.items()
        for name, metrics in found.items()
        for metric, values in metrics.items()
    ]
    failed = [
        f"{place}: {'; '.join(why)}." for place, found in places.items() if (why := failures(found))
    ]
    return Outcome(
        figures,
        not failed,
        "Change of the chosen's log-probability on held-out pairs: "
        + "; ".join(f"{place}: {_words(found)}" for place, found in places.items())
        + ".",
        " ".join([*failed, LIMIT]),
    )


def _words(found: Found) -> str:
    means = {
        name: {metric: over_seeds(values).value for metric, values in metrics.items()}
        for name, metrics in found.items()
    }
    return ", ".join(
        f"{name} {mean[CHOSEN]:+.2f} nats (accuracy {mean[ACCURACY]:.1%}, reward "
        f"{mean[REWARD]:.2f})"
        for name, mean in means.items()
    )


LIMIT = (
    "eta 0.5 was chosen on the exact worlds and kept for the transformer. Fine-tuning on the "
    "chosen responses keeps them up as well, and on the transformer it scores no lower."
)

if __name__ == "__main__":
    run(CLAIM, measure, seeds=10)
