"""What an objective is given: log-probabilities of candidates under the policy and the reference.

Axes: b preferences, k candidates, t response elements (tokens). `...` is b, or b k.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


class MissingInputError(ValueError):
    """The data or the run do not supply something that an objective needs."""


@dataclass(frozen=True)
class TokenLogProbs:
    """Log-probabilities of single response elements, padded at the end.

    policy, reference: (... t) nats; reference is nan where there is none.
    mask: (... t) true where there is an element.
    weights: (... t) what each element counts in token-weighted objectives; 1 unless the data say
        otherwise.
    stats: (... t) further figures per element that an objective asked the adapter for by name, e.g.
        "collision", the log of the sum of squared next-token probabilities.
    """

    policy: Tensor
    reference: Tensor
    mask: Tensor
    weights: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def ratio(self) -> Tensor:
        """(... t) log pi - log ref of each element; 0 where there is none."""
        return torch.where(self.mask.bool(), self.policy - self.reference, 0.0)

    def stat(self, name: str) -> Tensor:
        """A figure per element, by name. Raises MissingInputError where there is none."""
        if name not in self.stats:
            have = ", ".join(sorted(self.stats)) or "none"
            raise MissingInputError(
                f"this objective reads the token figure {name!r}; there are: {have}"
            )
        return self.stats[name]


@dataclass(frozen=True)
class LogProbs:
    """What policy and reference think of candidates.

    policy, reference: (...) sums over the response's elements in nats; reference is nan if there is
        none. For denoisers, -0.5 times the mean squared error at one timestep and noise.
    length: (...) number of elements; 1 for denoisers.
    tokens: the same per element, where the adapter has it.
    aux: (...) numbers that come with the data, by name: "grade", "margin", "annotator" ... A number
        of a preference as a whole is repeated for each of its candidates (see `gap`).
    divergence: (...) KL(reference || policy) in nats, summed over elements, where an objective
        asked for it; for denoisers half the mean squared difference of the two predictions.
    """

    policy: Tensor
    reference: Tensor
    length: Tensor
    tokens: TokenLogProbs | None = None
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    divergence: Tensor | None = None

    @property
    def ratio(self) -> Tensor:
        """log pi(y|x) - log ref(y|x), summed over elements: the implicit reward divided by beta."""
        return self.policy - self.reference

    @property
    def mean_ratio(self) -> Tensor:
        return self.ratio / self.length.clamp(min=1)

    @property
    def mean_policy(self) -> Tensor:
        return self.policy / self.length.clamp(min=1)

    @property
    def log_odds(self) -> Tensor:
        """log P/(1-P) where P is the geometric mean of the elements' probabilities."""
        return self.mean_policy - log1mexp(self.mean_policy)

    @property
    def elements(self) -> TokenLogProbs:
        """Log-probabilities per element. Raises MissingInputError when the adapter gave none."""
        if self.tokens is None:
            raise MissingInputError(
                "this objective reads log-probabilities per token (LogProbs.tokens) and there are "
                "none: denoisers have no tokens; other adapters give them when the objective's "
                "`needs.tokens` is passed on"
            )
        return self.tokens

    @property
    def kl(self) -> Tensor:
        """The divergence. Raises MissingInputError where none was computed."""
        if self.divergence is None:
            raise MissingInputError(
                "this objective reads KL(reference || policy) of whole predictions "
                "(LogProbs.divergence) and there is none: adapters give it when the objective's "
                "`needs.divergence` is passed on"
            )
        return self.divergence

    def number(self, name: str) -> Tensor:
        """A number that comes with the data, by name. Raises MissingInputError when it does not."""
        if name not in self.aux:
            have = ", ".join(sorted(self.aux)) or "none"
            raise MissingInputError(
                f"this objective reads the number {name!r} of each preference's aux; "
                f"the data have: {have}"
            )
        return self.aux[name]

    def with_aux(self, **numbers: Tensor) -> LogProbs:
        """The same log-probabilities with some numbers added or replaced."""
        return replace(self, aux={**self.aux, **numbers})

    def __getitem__(self, index: Any) -> LogProbs:
        """Index the leading axes: `candidates[:, 0]` is the first candidate of each preference."""
        return self.map(lambda tensor: tensor[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> LogProbs:
        """Change every tensor in the same way."""
        changed: LogProbs = _map(self, change)
        return changed

    def detach(self) -> LogProbs:
        return self.map(torch.Tensor.detach)


Pair = Callable[[LogProbs, LogProbs], Tensor]
"""A loss of chosen and rejected: (b,), (b,) -> (b,)."""

List = Callable[[LogProbs, Tensor], Tensor]
"""A loss of graded candidates: (b k), grades (b k) with nan for absent -> (b,)."""


BASELINES = frozenset({"mismatched"})
"""Views that set a baseline for a whole step: computed before it, without gradient."""


@dataclass(frozen=True)
class Batch:
    """b preferences with up to k candidates each, best first: all that an objective may look at.

    candidates: (b k).
    grades: (b k) larger is better, nan where a preference has fewer than k candidates.
    views: (b k) the same candidates in another light, by the name under which the objective asked
        for them (see `Needs.views`). Only "mismatched", responses under another's prompt, is of
        the whole step and all processes, in any shape: it sets a baseline, see `BASELINES`.
    """

    candidates: LogProbs
    grades: Tensor
    views: Mapping[str, LogProbs] = field(default_factory=dict)

    @property
    def present(self) -> Tensor:
        """(b k) true where there is a candidate."""
        return ~self.grades.isnan()


@dataclass(frozen=True)
class Needs:
    """What an objective needs beyond the policy's log-probabilities of the candidates.

    reference: log-probabilities under the reference.
    tokens: log-probabilities per element. stats: figures per element (`TokenLogProbs.stats`).
    divergence: of the policy's whole predictions from the reference's.
    views: other views of the candidates. cells: which candidates of a view are read, such as
        "chosen@crop"; of a view without any, all are. aux: numbers that must come with the data.
    """

    reference: bool = False
    tokens: bool = False
    divergence: bool = False
    stats: frozenset[str] = frozenset()
    views: frozenset[str] = frozenset()
    cells: frozenset[str] = frozenset()
    aux: frozenset[str] = frozenset()

    def candidates(self, view: str, count: int) -> list[int]:
        """Which of a preference's `count` candidates are read under a view, from 0."""
        names = [cell.partition("@")[0] for cell in self.cells if cell.endswith(f"@{view}")]
        if not names:
            return list(range(count))
        known = {"chosen": 0, "rejected": count - 1}
        found = {known[n] if n in known else int(n.removeprefix("candidate")) for n in names}
        return sorted(index for index in found if index < count)

    @property
    def _whole(self) -> frozenset[str]:
        """Views of which all candidates are read."""
        return self.views - {cell.partition("@")[2] for cell in self.cells}

    def __or__(self, other: Needs) -> Needs:
        whole = self._whole | other._whole
        cells = {c for c in self.cells | other.cells if c.partition("@")[2] not in whole}
        return Needs(
            self.reference or other.reference,
            self.tokens or other.tokens,
            self.divergence or other.divergence,
            self.stats | other.stats,
            self.views | other.views,
            frozenset(cells),
            self.aux | other.aux,
        )


def gap(better: LogProbs, worse: LogProbs, name: str) -> Tensor:
    """How far `better` is ahead of `worse` by the number `name` of the data; (...).

    "grade" is a number of each candidate. Every other number belongs to the preference and says how
    far its better candidate is ahead; it changes its sign where the two arguments are swapped.
    """
    ahead = better.number("grade") - worse.number("grade")
    return ahead if name == "grade" else better.number(name) * ahead.sign()


def log1mexp(value: Tensor) -> Tensor:
    """log(1 - exp(value)) for value < 0, accurate at both ends; value is clamped at -1e-7."""
    value = value.clamp(max=-1e-7)
    near_zero = value > -math.log(2)
    # Each branch sees only arguments that suit it, so that no inf * 0 enters the gradient.
    small = torch.where(near_zero, value, -1.0)
    large = torch.where(near_zero, -1.0, value)
    return torch.where(near_zero, (-torch.expm1(small)).log(), torch.log1p(-large.exp()))


def pair_batch(chosen: LogProbs, rejected: LogProbs) -> Batch:
    """A batch of pairs from the log-probabilities (b,) of chosen and rejected responses."""
    shapes = tuple(chosen.policy.shape), tuple(rejected.policy.shape)
    if shapes[0] != shapes[1] or len(shapes[0]) != 1:
        raise ValueError(f"chosen and rejected need one shape (b,), not {shapes[0]}, {shapes[1]}")
    grades = chosen.policy.new_tensor([1.0, 0.0]).expand(*shapes[0], 2)
    return Batch(_stack(chosen, rejected), grades)


def _stack(first: Any, second: Any) -> Any:
    """Two records, mappings or tensors as one, along a new axis 1; the shorter is padded."""
    match first, second:
        case (Tensor(), Tensor()):
            width = max(first.shape[-1], second.shape[-1]) if first.ndim > 1 else 0
            return torch.stack([_padded(tensor, width) for tensor in (first, second)], dim=1)
        case (LogProbs() | TokenLogProbs(), LogProbs() | TokenLogProbs()):
            names = [f.name for f in fields(first)]
            stacked = {name: _stack(getattr(first, name), getattr(second, name)) for name in names}
            return replace(first, **stacked)
        case (Mapping(), Mapping()):
            return {name: _stack(first[name], second[name]) for name in first if name in second}
    return None  # tokens that one of the two does not have


def _padded(tensor: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1])) if width else tensor


def _map(record: Any, change: Callable[[Tensor], Tensor]) -> Any:
    def changed(value: Any) -> Any:
        match value:
            case Tensor():
                return change(value)
            case TokenLogProbs():
                return _map(value, change)
            case None:
                return None
            case _:
                return {name: change(tensor) for name, tensor in value.items()}

    return replace(record, **{f.name: changed(getattr(record, f.name)) for f in fields(record)})
