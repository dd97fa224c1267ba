"""Log-linear policies over a few responses per prompt: everything about them is known exactly.

pi(y|x) is proportional to ref(y|x) exp(theta . phi(x, y)) with random features phi; the reference
is uniform unless a world has another. Rewards are linear in the same features, r = w . phi, so that
the optimum of the KL-regularised objective is theta = w / beta: what a method estimates can be
compared with it. Axes: p prompts, k responses, d features, n labelled pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.objectives import Batch, LogProbs, Objective


@dataclass(frozen=True)
class World:
    """features: (p k d). weights: (d,) of the reward. logits: (p k) of a reference that is not
    uniform."""

    features: Tensor
    weights: Tensor
    logits: Tensor | None = None

    @property
    def rewards(self) -> Tensor:
        """(p k)"""
        return self.features @ self.weights


@dataclass(frozen=True)
class Labels:
    """Pairs by prompt (n,) and response: the one labelled better (n,) and the other (n,)."""

    prompt: Tensor
    better: Tensor
    worse: Tensor

    def flipped(self, where: Tensor) -> Labels:
        """Better and worse exchanged where (n,) is true."""
        better = torch.where(where, self.worse, self.better)
        worse = torch.where(where, self.better, self.worse)
        return Labels(self.prompt, better, worse)


def world(seed: int, *, prompts: int, responses: int, features: int, scale: float) -> World:
    """Gaussian features; rewards with a standard deviation of `scale`."""
    draws = torch.Generator().manual_seed(seed)
    shape = (prompts, responses, features)
    phi = torch.randn(shape, generator=draws, dtype=torch.float64)
    weights = torch.randn(features, generator=draws, dtype=torch.float64)
    return World(phi, scale * weights / weights.norm())


def label(rewards: Tensor, count: int, draws: torch.Generator) -> Labels:
    """Pairs of different responses, labelled by Bradley-Terry with rewards (p k)."""
    prompts, responses = rewards.shape
    prompt = torch.randint(prompts, (count,), generator=draws)
    first = torch.randint(responses, (count,), generator=draws)
    second = (first + torch.randint(1, responses, (count,), generator=draws)) % responses
    chance = (rewards[prompt, first] - rewards[prompt, second]).sigmoid()
    won = torch.rand(count, generator=draws, dtype=torch.float64) < chance
    return Labels(prompt, torch.where(won, first, second), torch.where(won, second, first))


def log_policy(world: World, theta: Tensor) -> Tensor:
    """(p k) log-probabilities."""
    scores = world.features @ theta
    return (scores if world.logits is None else scores + world.logits).log_softmax(-1)


def sides(world: World, theta: Tensor, labels: Labels, **aux: Tensor) -> tuple[LogProbs, LogProbs]:
    """Log-probabilities (n,) of both sides of all pairs, with numbers of the preferences."""
    policy = log_policy(world, theta)
    reference = log_policy(world, torch.zeros_like(theta))

    def side(response: Tensor, grade: float) -> LogProbs:
        place = (labels.prompt, response)
        ones = torch.ones(len(response), dtype=torch.float64)
        numbers = {"grade": grade * ones, **aux}
        return LogProbs(policy[place], reference[place], ones, aux=numbers)

    return side(labels.better, 1.0), side(labels.worse, 0.0)


def fit(world: World, loss: Objective, labels: Labels, **aux: Tensor) -> Tensor:
    """theta (d,) at which the mean loss of all pairs is least, by L-BFGS."""

    def total(theta: Tensor) -> Tensor:
        return loss(*sides(world, theta, labels, **aux)).mean()

    return minimise(total, world.features.shape[-1])


def fit_lists(world: World, loss: Objective, prompts: Tensor, grades: Tensor) -> Tensor:
    """The same for lists: all k responses of each of `prompts` (n,) with `grades` (n k)."""
    order = grades.argsort(1, descending=True)
    ranked = grades.gather(1, order)
    reference = log_policy(world, torch.zeros_like(world.weights))[prompts].gather(1, order)

    def total(theta: Tensor) -> Tensor:
        policy = log_policy(world, theta)[prompts].gather(1, order)
        return loss.loss(Batch(LogProbs(policy, reference, torch.ones_like(policy)), ranked)).mean()

    return minimise(total, world.features.shape[-1])


def minimise(total: Callable[[Tensor], Tensor], size: int) -> Tensor:
    """Where a function of theta (d,) is least; raises RuntimeError where it does not settle."""
    theta = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-13,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = total(theta)
        loss.backward()
        return loss

    optimizer.step(closure)
    if not bool(theta.isfinite().all()):
        raise RuntimeError("the estimate is not finite: the loss has no minimum on these data")
    return theta.detach()


def descend(
    world: World, loss: Objective, labels: Labels, *, steps: int, rate: float
) -> Iterator[Tensor]:
    """theta (d,) at the start and after each step of Adam on all pairs."""
    theta = torch.zeros(world.features.shape[-1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=rate)
    yield theta.detach().clone()
    for _ in range(steps):
        optimizer.zero_grad()
        total: Tensor = loss(*sides(world, theta, labels)).mean()
        total.backward()
        optimizer.step()
        yield theta.detach().clone()


def accuracy(world: World, theta: Tensor, rewards: Tensor) -> float:
    """Share of all pairs of responses that the implicit reward orders as `rewards` (p k) do."""
    score = world.features @ theta
    ahead, truly = (x[:, :, None] - x[:, None, :] for x in (score, rewards))
    return float(((ahead > 0) == (truly > 0))[truly != 0].double().mean())


def value(world: World, theta: Tensor, rewards: Tensor, beta: float) -> float:
    """The policy's regularised value: mean reward - beta KL(policy || reference), nats."""
    log_pi, log_ref = log_policy(world, theta), log_policy(world, torch.zeros_like(theta))
    pi = log_pi.exp()
    return float((pi * (rewards - beta * (log_pi - log_ref))).sum(-1).mean())


def best_value(world: World, rewards: Tensor, beta: float) -> float:
    """That of the optimum: beta log sum ref exp(r / beta)."""
    log_ref = log_policy(world, torch.zeros_like(world.weights))
    return float(beta * (log_ref + rewards / beta).logsumexp(-1).mean())
