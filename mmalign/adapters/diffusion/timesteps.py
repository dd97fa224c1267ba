"""Timestep laws: how a uniform number becomes a diffusion time.

Time runs from 0 (clean) to 1 (noise). For rectified flow it is sigma, for variance-preserving
models the share of the training timesteps. A law is given by its quantile function, so that equal
strata of the uniform number are equal strata of the law.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from mmalign.errors import UserError

TINY = 1e-9
"""Uniform numbers are kept this far from 0 and 1, where the logit is infinite."""


@dataclass(frozen=True, kw_only=True)
class TimestepLaw:
    """A law of the time t.

    law: "uniform": t = u.
        "logit_normal": t = sigmoid(mean + std z), z standard normal. arXiv:2403.03206, section 3.1.
        "mode": t = 1 - u - scale (cos^2(pi u / 2) - 1 + u). Same section.
    shift: afterwards t becomes s t / (1 + (s - 1) t), which moves it towards noise for s > 1;
        "resolution" takes the s with which the pipeline samples at this resolution.
    low, high: the law is conditioned on low <= t <= high.
    strata: row seeds are spread over this many equal parts of the law, `seed % strata` choosing the
        part. The rows of a training step are given all residues in turn, so that each step sees
        all parts of the law: what it learns from varies less from step to step.
    """

    law: Literal["uniform", "logit_normal", "mode"] = "uniform"
    mean: float = 0.0
    std: float = 1.0
    scale: float = 1.29
    shift: float | Literal["resolution"] = 1.0
    low: float = 0.0
    high: float = 1.0
    strata: int = 1

    def __post_init__(self) -> None:
        if self.law not in _QUANTILES:
            raise UserError(
                f"there is no timestep law {self.law!r}", hint=f"there are {sorted(_QUANTILES)}"
            )
        if not 0 <= self.low < self.high <= 1:
            raise UserError(
                f"the timestep law covers {self.low} to {self.high}",
                hint="times lie between 0 (clean) and 1 (noise), low below high",
            )
        if self.std <= 0 or self.strata < 1:
            raise UserError("a timestep law needs std > 0 and strata >= 1")
        if isinstance(self.shift, str):
            if self.shift != "resolution":
                raise UserError(
                    f"shift is {self.shift!r}", hint="a positive number, or 'resolution'"
                )
        elif self.shift <= 0:
            raise UserError(f"shift is {self.shift}", hint="a positive number, or 'resolution'")
        if self.law == "mode" and not -1 <= self.scale <= 2 / (math.pi - 2):
            raise UserError(
                f"scale is {self.scale}",
                hint="the mode law is a law for -1 <= scale <= 1.75, see arXiv:2403.03206",
            )

    def times(self, uniform: Tensor, *, shift: float | None = None) -> Tensor:
        """Times for uniform numbers in [0, 1), float64.

        shift: what "resolution" stands for.
        """
        law = self if shift is None or self.shift != "resolution" else replace(self, shift=shift)
        first, last = law._share(law.low), law._share(law.high)
        share = first + (last - first) * uniform.double()
        return law._quantile(share).clamp(law.low, law.high)

    def _quantile(self, share: Tensor) -> Tensor:
        if isinstance(self.shift, str):
            raise UserError(
                "the shift of the timestep law is 'resolution', but this pipeline has none",
                hint="give a number; 3 is usual at 1024 x 1024",
            )
        time = _QUANTILES[self.law](self, share.clamp(TINY, 1 - TINY))
        return self.shift * time / (1 + (self.shift - 1) * time)

    def _share(self, time: float) -> float:
        """The probability of times up to `time`, by bisection of the quantile function."""
        if time <= 0 or time >= 1:
            return float(time >= 1)
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            below = self._quantile(torch.tensor(middle, dtype=torch.float64)).item() < time
            low, high = (middle, high) if below else (low, middle)
        return (low + high) / 2


def _uniform(law: TimestepLaw, share: Tensor) -> Tensor:
    return share


def _logit_normal(law: TimestepLaw, share: Tensor) -> Tensor:
    return torch.sigmoid(law.mean + law.std * torch.special.ndtri(share))


def _mode(law: TimestepLaw, share: Tensor) -> Tensor:
    u = 1 - share  # the paper's map falls with u
    return 1 - u - law.scale * (torch.cos(math.pi / 2 * u) ** 2 - 1 + u)


_QUANTILES: dict[str, Callable[[TimestepLaw, Tensor], Tensor]] = {
    "uniform": _uniform,
    "logit_normal": _logit_normal,
    "mode": _mode,
}


def law_of(spec: str | TimestepLaw) -> TimestepLaw:
    """A law from how users type it: `logit_normal(std=0.5, shift=3)`, `uniform`, or a law.

    `shifted(shift=3)` is short for `uniform(shift=3)`, `range(low=0.2, high=0.9)` for `uniform`.
    Raises UserError for what is not a law.
    """
    if isinstance(spec, TimestepLaw):
        return spec
    try:
        call = ast.parse(spec.strip(), mode="eval").body
        if isinstance(call, ast.Name):
            call = ast.Call(func=call, args=[], keywords=[])
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Name)
        assert not call.args
        options = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise UserError(
            f"the timestep law {spec!r} cannot be read",
            hint="write it like uniform or logit_normal(mean=0.0, std=1.0, shift=3.0)",
        ) from error
    name = {"shifted": "uniform", "range": "uniform"}.get(call.func.id, call.func.id)
    known = {field.name for field in fields(TimestepLaw)} - {"law"}
    if unknown := sorted(set(options) - known):
        raise UserError(
            f"timestep laws have no option {unknown[0]!r}", hint=f"there are {sorted(known)}"
        )
    return TimestepLaw(law=name, **options)  # type: ignore[arg-type]  # checked by __post_init__
