"""Subnetworks: preference training moves a small share of the weights, and the same share.

All weights of SmolLM2 are trained. An entry counts as moved when it differs by more than 1e-5 after
both checkpoints were cast to bfloat16, as in the paper; beside it the share in float32, because
bfloat16 rounds small updates away. Overlap is compared with what independent sets of those sizes
would show.
"""

from __future__ import annotations

from statistics import fmean

import torch
from _claim import Claim, Figure, Options, Outcome, figure, run
from _smollm2 import fresh, pairs, recipe, training
from torch import Tensor

from mmalign.adapters.autoregressive import causal_lm
from mmalign.adapters.text import TextAdapter
from mmalign.evaluation.diagnostics.subnetworks import (
    rank_fractions,
    update_overlap,
    update_sparsity,
)
from mmalign.objectives import objective
from mmalign.records import thumb
from mmalign.training.align import align

CLAIM = Claim(
    "subnetworks",
    "Preference training moves a small, nearly full-rank part of the weights, and runs that differ "
    "in seed or objective move the same part more often than chance.",
    "arXiv:2505.11711",
    "The overlap of independent sets of the same sizes; the same updates shuffled within each "
    "tensor, which keep sizes and forget places; fine-tuning on the chosen answers; and float32, "
    "where no update is rounded away.",
)
RUNS = {
    "dpo, seed 0": ("dpo(beta=0.1)", 0),
    "dpo, seed 1": ("dpo(beta=0.1)", 1),
    "simpo, seed 0": ("simpo(beta=2.5, gamma=1.0)", 0),
    "nll, seed 0 (control)": ("nll()", 0),
}
LEARNING_RATE = 1e-6  # what full training with preferences uses
SHUFFLED = "dpo, seed 1, shuffled within tensors (control)"
MATRICES = 6  # whose rank is computed: the middle layer's, a decomposition takes seconds


def measure(options: Options) -> Outcome:
    made = recipe(quick=options.quick)
    folder = options.out / CLAIM.name
    data = pairs(made, options.out / "smollm2-preferences")
    before = weights(fresh(made, seed=0, lora={}))
    after: dict[str, dict[str, Tensor]] = {}
    figures: list[Figure] = []
    moved: dict[str, float] = {}
    for name, (spec, seed) in RUNS.items():
        policy = fresh(made, seed=seed, lora={})
        records = [thumb(p.chosen, up=True) for p in data] if "nll" in spec else data
        settings = training(
            made, seed=seed, quick=options.quick, steps=20, learning_rate=LEARNING_RATE
        )
        where = folder / name.replace(", ", "-").replace(" ", "-")
        align(policy, records, (), objective(spec), settings, where, reference="cache")
        after[name] = weights(policy)
        stored = update_sparsity(before, after[name])["all"].density
        exact = update_sparsity(before, after[name], atol=0.0, dtype=torch.float32)["all"].density
        moved[name] = stored
        figures += [
            figure(name, "share moved (bfloat16)", [stored]),
            figure(name, "share moved (float32)", [exact]),
        ]
        print(f"{name}: {stored:.1%} moved in bfloat16, {exact:.1%} in float32", flush=True)
    layer = [name for name in before if f".{made_middle(before)}." in name][:MATRICES]
    ranks = rank_fractions(
        {name: before[name] for name in layer},
        {name: after["dpo, seed 0"][name] for name in layer},
    )
    figures.append(figure("dpo, seed 0", "rank of the updates over full rank", [*ranks.values()]))
    after[SHUFFLED] = shuffled(before, after["dpo, seed 1"])
    beyond = {}
    for other in list(after)[1:]:
        shared = update_overlap(before, after["dpo, seed 0"], after[other])
        beyond[other] = (shared.of_second, shared.chance_of_second)
        setting = f"dpo, seed 0 and {other}"
        figures += [
            figure(setting, "share of the second's that the first moved", [shared.of_second]),
            figure(setting, "the same by chance", [shared.chance_of_second]),
        ]
    sparse = all(moved[name] < 0.5 for name in list(RUNS)[:3])
    overlap_of = {name: found for name, (found, _) in beyond.items()}
    same = all(overlap_of[name] > overlap_of[SHUFFLED] for name in list(RUNS)[1:3])
    full = fmean(ranks.values()) > 0.9
    words = ", ".join(f"{name} {share:.1%}" for name, share in moved.items())
    overlaps = ", ".join(f"{n} {f:.0%} (chance {c:.0%})" for n, (f, c) in beyond.items())
    return Outcome(
        figures,
        sparse and same and full,
        f"Moved in bfloat16: {words}; of what they moved, dpo seed 0 moved {overlaps}; the "
        f"updates have {fmean(ranks.values()):.0%} of full rank.",
        "Runs must share more than the shuffled updates do, which move the same small weights: "
        "bfloat16 rounds equal updates away where weights are large. In float32 nearly every entry "
        "moves, and fine-tuning is as sparse at this learning rate. One run each, so no interval.",
    )


def shuffled(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor's updates at other places of the same tensor."""
    draws = torch.Generator().manual_seed(0)
    found = {}
    for name, old in before.items():
        update = (after[name] - old).flatten()
        place = torch.randperm(update.numel(), generator=draws)
        found[name] = old + update[place].view_as(old)
    return found


def weights(policy: TextAdapter) -> dict[str, Tensor]:
    """A copy of all weights, tied ones once."""
    named = causal_lm(policy.policy).named_parameters()
    return {name: weight.detach().clone() for name, weight in named}


def made_middle(before: dict[str, Tensor]) -> int:
    """The number of the middle layer."""
    numbers = {int(part) for name in before for part in name.split(".") if part.isdigit()}
    return max(numbers) // 2


if __name__ == "__main__":
    run(CLAIM, measure, seeds=1)
