"""What may look on while a model trains: add figures and pictures to a step, or stop the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from mmalign.errors import UserError
from mmalign.records import Media

AsLeft = Callable[[], AbstractContextManager[None]]


class Callback(Protocol):
    """Called after every optimiser step, in every process."""

    def __call__(
        self, step: int, figures: Mapping[str, Any], as_left: AsLeft
    ) -> Mapping[str, float | Media]:
        """step: optimiser steps done. figures: of this step, the same in all processes.
        as_left: inside `with as_left():` the policy has the weights that a run ending here would
            leave, which are others where a running mean is kept.

        Returns further figures, which are logged with them, and pictures, which go to trackers.
        Raises UserError to stop the run, which first writes a checkpoint.
        """
        ...


@dataclass
class ErrorGuard:
    """Stops a denoiser's run when its errors on chosen and rejected media both grow.

    A loss of differences falls as well when both get worse, the rejected faster, and then the model
    forgets how to denoise. arXiv:2311.12908 sees the chosen error grow a little in good runs.

    limit: share by which both errors may exceed the reference's, on average over `window` steps.
    """

    limit: float = 0.1
    window: int = 20
    _recent: deque[tuple[float, float]] = field(default_factory=deque)

    def __call__(
        self, step: int, figures: Mapping[str, Any], as_left: AsLeft
    ) -> Mapping[str, float | Media]:
        grown = error_growth(figures, "chosen"), error_growth(figures, "rejected")
        self._recent.append(grown)
        if len(self._recent) > self.window:
            self._recent.popleft()
        means = [sum(each) / len(self._recent) for each in zip(*self._recent, strict=True)]
        if len(self._recent) == self.window and all(mean > self.limit for mean in means):
            raise UserError(
                f"stopped after step {step}: the denoising errors grew by {means[0]:.0%} on chosen "
                f"and {means[1]:.0%} on rejected media over the last {self.window} steps, so the "
                "model is losing what it could do",
                hint="anchor the chosen error (objective + 0.5*nll()), lower beta or the learning "
                "rate, or start from an earlier checkpoint; --error-guard 0 goes on regardless",
            )
        return {"chosen_error_growth": grown[0], "rejected_error_growth": grown[1]}


def error_growth(figures: Mapping[str, Any], side: str) -> float:
    """By what share the error exceeds the reference's; log-probabilities are -0.5 x errors."""
    ratio, logp = float(figures[f"{side}_ratio"]), float(figures[f"{side}_logp"])
    return ratio / (logp - ratio)
