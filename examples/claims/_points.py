"""A rectified flow of points in the plane: small enough that a whole alignment takes seconds.

Its data lie on a ring; a reward prefers one side of it. Axes: n points.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from mmalign.adapters.diffusion.targets import BETA_SCHEDULES, Process
from mmalign.objectives import LogProbs, objective

FLOW = Process("flow")
SPREAD = 0.1  # of the ring's radius, which is 1


class Velocity(nn.Module):
    """(n 2) points and (n,) times to (n 2) velocities."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(8, width), nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, points: Tensor, time: Tensor) -> Tensor:
        angle = math.pi * time[:, None]
        waves = [f(k * angle) for k in (1, 2, 4) for f in (torch.sin, torch.cos)]
        return self.layers(torch.cat([points, *waves], dim=1))


def ring(count: int, generator: torch.Generator) -> Tensor:
    """(n 2) points all around the ring."""
    angle = 2 * math.pi * torch.rand(count, generator=generator)
    radius = 1 + SPREAD * torch.randn(count, generator=generator)
    return radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)


def reward(points: Tensor) -> Tensor:
    """(n,) 1 where a point lies to the right, -1 to the left."""
    return points[:, 0] / points.norm(dim=1)


def on_the_ring(points: Tensor) -> Tensor:
    """(n,) whether a point could be one of the data: within three spreads of the ring."""
    return (points.norm(dim=1) - 1).abs() < 3 * SPREAD


def log_prob(model: nn.Module, clean: Tensor, noise: Tensor, time: Tensor, schedule: str) -> Tensor:
    """(n,) -0.5 x mean squared error, weighted as the beta schedule says."""
    found = model(FLOW.add_noise(clean, noise, time), time)
    error = (found - FLOW.target(clean, noise, time)).square().mean(1)
    return -0.5 * BETA_SCHEDULES[schedule](FLOW, time).float() * error


def base_model(*, steps: int, seed: int) -> Velocity:
    """A flow that has learned the ring."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Velocity()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        clean = ring(256, generator)
        noise = torch.randn(clean.shape, generator=generator)
        time = torch.rand(len(clean), generator=generator)
        optimizer.zero_grad()
        (-log_prob(model, clean, noise, time, "constant")).mean().backward()
        optimizer.step()
    return model


@torch.no_grad()
def sample(model: nn.Module, count: int, *, seed: int, steps: int = 20) -> Tensor:
    """(n 2) by Euler's method from noise at time 1 to data at time 0."""
    points = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    for step in range(steps, 0, -1):
        points = points - model(points, torch.full((count,), step / steps)) / steps
    return points


def pairs(model: nn.Module, count: int, *, seed: int, certainty: float = 4.0) -> tuple[Tensor, ...]:
    """(n 2) chosen and (n 2) rejected samples of the model, by noisy judges."""
    one, other = sample(model, 2 * count, seed=seed).chunk(2)
    generator = torch.Generator().manual_seed(seed + 1)
    odds = torch.sigmoid(certainty * (reward(one) - reward(other)))
    first = torch.rand(count, generator=generator) < odds
    return (
        torch.where(first[:, None], one, other),
        torch.where(first[:, None], other, one),
    )


def align(
    base: nn.Module, chosen: Tensor, rejected: Tensor, spec: str, *, schedule: str = "constant",
    steps: int, seed: int, rate: float = 5e-4, batch: int = 128,
) -> nn.Module:  # fmt: skip
    """A copy of the base trained on pairs; chosen and rejected share timestep and noise."""
    loss = objective(spec)
    policy = copy.deepcopy(base)
    optimizer = torch.optim.Adam(policy.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(chosen), (batch,), generator=generator)
        noise = torch.randn(batch, 2, generator=generator)
        time = torch.rand(batch, generator=generator)
        sides = []
        for clean in (chosen[rows], rejected[rows]):
            with torch.no_grad():
                told = log_prob(base, clean, noise, time, schedule)
            own = log_prob(policy, clean, noise, time, schedule)
            sides.append(LogProbs(own, told, torch.ones(batch)))
        optimizer.zero_grad()
        loss(*sides).mean().backward()
        optimizer.step()
    return policy
