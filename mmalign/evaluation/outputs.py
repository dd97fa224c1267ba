"""What a model of tokens writes by itself, and what its distributions are like there.

For over-optimisation: entropy and mass of the ten likeliest tokens, divergence from a reference,
and length, over the model's own answers to given prompts. Axes: n answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.adapters.autoregressive import evaluating
from mmalign.evaluation.diagnostics.divergence import kl_tokens
from mmalign.records import Media, Message
from mmalign.reference import Reference
from mmalign.training.callbacks import AsLeft
from mmalign.training.seeds import derive

STATS = ("top10_entropy", "top10_mass")


@dataclass(frozen=True)
class Outputs:
    """Figures (n,) of answers.

    top10_entropy: bits, a mean over the answer's positions; top10_mass: likewise. kl_per_token: the
    k3 estimate in nats. tokens: of the answer. cut_short: 1 where it reached the limit.
    """

    top10_entropy: Tensor
    top10_mass: Tensor
    kl_per_token: Tensor
    tokens: Tensor
    cut_short: Tensor

    def figures(self) -> dict[str, list[float]]:
        return {name: values.tolist() for name, values in vars(self).items()}

    def means(self) -> dict[str, float]:
        return {name: values.mean().item() for name, values in vars(self).items()}


def look_at(
    policy: Any,
    reference: Reference,
    prompts: Sequence[tuple[Message, ...]],
    *,
    seed: int = 0,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    batch_size: int = 16,
) -> Outputs:
    """Let `policy` answer, and read its distributions and those of `reference` along its answers.

    policy: an adapter of a token model. reference: the model before training. Figures are at
    temperature 1, whatever answers were sampled at.
    """
    seeds = [derive(seed, "outputs", number) for number in range(len(prompts))]
    samples = policy.sample(
        prompts, seeds, max_new_tokens=max_new_tokens, temperature=temperature,
        batch_size=batch_size,
    )  # fmt: skip
    parts: list[dict[str, Tensor]] = []
    with torch.no_grad(), evaluating(policy.policy):
        for start in range(0, len(samples), batch_size):
            some = samples[start : start + batch_size]
            inputs = policy.encode(policy.collate(some, [0] * len(some)))
            ours = policy.log_probs(policy.policy, inputs, STATS).tokens
            ids = [sample.id for sample in some]
            theirs = reference.log_probs(inputs, ids, [0] * len(some)).tokens
            assert theirs is not None  # the same kind of model
            mask = ours.mask.double()
            figures = {name: ours.stats[name] for name in STATS}
            figures["kl_per_token"] = kl_tokens(ours.log_probs.double(), theirs.log_probs.double())[
                "k3"
            ]
            length = mask.sum(-1)
            part = {
                name: (values.double() * mask).sum(-1) / length.clamp(min=1)
                for name, values in figures.items()
            }
            # The token that ends an answer counts as one of its own.
            part["tokens"] = length
            part["cut_short"] = (length > max_new_tokens).double()
            parts.append({name: values.cpu() for name, values in part.items()})
    return Outputs(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


@dataclass
class WatchOutputs:
    """A callback that lets the policy answer every so many steps and logs what `look_at` finds, as
    outputs/top10_entropy and so on. The report's diagnosis reads them."""

    policy: Any
    reference: Reference
    prompts: Sequence[tuple[Message, ...]]
    every: int
    seed: int = 0
    max_new_tokens: int = 128

    def __call__(
        self, step: int, figures: Mapping[str, Any], as_left: AsLeft
    ) -> Mapping[str, float | Media]:
        if step % self.every or not self.prompts:
            return {}
        with as_left():
            found = look_at(
                self.policy, self.reference, self.prompts, seed=self.seed,
                max_new_tokens=self.max_new_tokens,
            )  # fmt: skip
        return {f"outputs/{name}": value for name, value in found.means().items()}
