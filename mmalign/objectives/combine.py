"""What a spec means: terms applied to a batch by their kind, weighted and summed.

A pair term takes the two candidates of each preference, a list term all of them, a single term each
by itself, an anchor the chosen one. Every term gives one number per preference, and the mean over
preferences is the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmalign.objectives.options import Constant, SpecError, checked, nearest, options_of
from mmalign.objectives.parse import Call, Sum, parse
from mmalign.objectives.scores import Batch, LogProbs, MissingInputError, Needs, pair_batch
from mmalign.objectives.state import Stateful, Total
from mmalign.objectives.table import TABLE, Entry


def objective(spec: str) -> Objective:
    """The objective that a spec such as "dpo(beta=0.1) + 0.2*nll()" names.

    Raises SpecError (a ValueError) that says what is wrong and what exists.
    """
    return Objective(parse(spec))


class Objective:
    """A weighted sum of terms; what `objective(spec)` returns.

    Terms that remember something (em, bco) take notes while a loss is computed in training and move
    once per optimiser step, in `finish_step`. `a + b` and `0.2 * a` start with fresh state.
    """

    def __init__(self, tree: Sum) -> None:
        self._tree, terms = _compile(tree)
        self._terms = _told_apart(terms)
        self.needs: Needs = Needs()
        self._states: dict[str, Stateful] = {}
        for term in self._terms:
            self.needs |= term.piece.needs
            for name, state in term.piece.states:
                self._states[f"{len(self._states)}.{name}"] = state
        self._figures: dict[str, Tensor] = {}
        self._evaluating = False

    @property
    def spec(self) -> str:
        """The canonical text, all options written out; it makes the same objective again."""
        return str(self._tree)

    @property
    def takes_ties(self) -> bool:
        """Whether two responses that were liked alike count as half a preference each way. Single
        objectives ask of each response whether it was liked, which a tie does not say, and lists
        never contrast equal grades."""
        pieces = [term.piece for term in self._terms]
        return all(p.kind == "anchor" or (p.kind == "pair" and not _directed(p)) for p in pieces)

    def __call__(self, chosen: LogProbs, rejected: LogProbs) -> Tensor:
        """The loss (b,) of pairs from the log-probabilities (b,) of both sides."""
        if self.needs.reference:
            for side, name in ((chosen, "chosen"), (rejected, "rejected")):
                if bool(side.reference.isnan().any()):
                    raise MissingInputError(
                        f"{self.spec} compares with a reference, but {name}.reference has nan"
                    )
        return self.loss(pair_batch(chosen, rejected))

    def loss(self, batch: Batch) -> Tensor:
        """(b,) the sum of `terms`."""
        return torch.stack(list(self.terms(batch).values())).sum(0)

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms by name, (b,) each; the loss of a preference is their sum.

        Stateful terms take notes for `finish_step` where gradients are computed and it is not an
        evaluation (see `evaluating`). Raises ValueError where the preferences do not suit the
        objective.
        """
        recording = torch.is_grad_enabled() and not self._evaluating
        for state in self._states.values():
            state.recording = recording
        batch = _ready(batch)
        self._figures = {}
        return {term.name: term.weight * self._apply(term, batch) for term in self._terms}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, losses leave no trace in the state."""
        before, self._evaluating = self._evaluating, True
        try:
            yield
        finally:
            self._evaluating = before

    def finish_step(self, total: Total = lambda tensor: tensor) -> None:
        """Call once after each optimiser step, on every process; total sums over processes."""
        for state in self._states.values():
            state.finish_step(total)

    def figures(self) -> dict[str, Tensor]:
        """Numbers worth logging beside the loss: the last batch's baselines, the terms' state."""
        figures = dict(self._figures)
        for name, state in self._states.items():
            figures |= {f"{name}.{key}": value for key, value in state.figures().items()}
        return figures

    def state_dict(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": tensor
            for name, state in self._states.items()
            for key, tensor in state.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError when the state belongs to another objective."""
        if set(state) != set(self.state_dict()):
            have, want = sorted(state), sorted(self.state_dict())
            raise ValueError(f"this state is not of {self.spec}: it has {have}, expected {want}")
        for name, owner in self._states.items():
            prefix = f"{name}."
            owner.load_state_dict(
                {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            )

    def __add__(self, other: Objective) -> Objective:
        return Objective(self._tree + other._tree)

    def __mul__(self, factor: float) -> Objective:
        return Objective(self._tree.times(factor))

    __rmul__ = __mul__

    def __str__(self) -> str:
        return self.spec

    def __repr__(self) -> str:
        return f"objective({self.spec!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Objective) and self.spec == other.spec

    def __hash__(self) -> int:
        return hash(self.spec)

    def _apply(self, term: Term, batch: Batch) -> Tensor:
        piece = term.piece
        match piece.kind:
            case "pair":
                return _apply_pair(piece, batch)
            case "list":
                return piece.function(batch.candidates, batch.grades)
            case "anchor":
                return _apply_anchor(piece, batch)
            case "single":
                loss, figures = _apply_single(piece, batch)
                self._figures |= {f"{term.name}.{key}": value for key, value in figures.items()}
                return loss
        return piece.function(batch)


# ---- from a tree to functions


@dataclass(frozen=True)
class Piece:
    """A function of one kind with its options bound."""

    text: str
    kind: str
    function: Callable[..., Tensor]
    needs: Needs
    states: tuple[tuple[str, Stateful], ...] = ()
    baseline: Callable[[Batch], Tensor] | None = None
    sorts: bool = False
    one_way: bool = False


@dataclass(frozen=True)
class Term:
    name: str
    weight: float
    piece: Piece = field(repr=False)


def _compile(tree: Sum) -> tuple[Sum, list[Term]]:
    """The tree with all options written out, and its terms."""
    calls: list[tuple[float, Call]] = []
    terms: list[Term] = []
    for weight, call in tree.terms:
        call, inner = _compile_call(call)
        calls.append((weight, call))
        terms += [replace(term, weight=weight * term.weight) for term in inner]
    return Sum(tuple(calls)), terms


def _told_apart(terms: list[Term]) -> list[Term]:
    """contrast, contrast -> contrast, contrast_2."""
    names = [term.name for term in terms]
    numbers = [names[:i].count(name) + 1 for i, name in enumerate(names)]
    return [
        replace(term, name=f"{term.name}_{number}") if number > 1 else term
        for term, number in zip(terms, numbers, strict=True)
    ]


def _compile_call(call: Call) -> tuple[Call, list[Term]]:
    if call.name not in TABLE:
        names = ", ".join(TABLE)
        raise SpecError(
            f"no objective {call.name!r}{nearest(call.name, TABLE)}; there are: {names}"
        )
    entry = TABLE[call.name]
    given = entry.accept(call.options) if entry.accept else call.options
    options = checked(call.name, parameters(entry), given)
    if bool(entry.around) != (call.inner is not None):
        raise SpecError(
            f"{call.name} goes around an objective: {call.name}(dpo(beta=0.1), ...)"
            if entry.around
            else f"{call.name} takes options only, no other objective: {call.name}(...)"
        )
    if call.inner is None:
        call = Call(call.name, options)
        if entry.kind == "preset":
            return call, _compile(parse(entry.function(**options)))[1]
        return call, [Term(call.name, 1.0, _plain(entry, call))]
    inner, terms = _compile(call.inner)
    call = Call(call.name, options, inner)
    if entry.around == "any":
        return call, [replace(t, piece=_rescored(entry, call, t.piece)) for t in terms]
    return call, [Term(call.name, 1.0, _wrapped(entry, call, terms))]


def parameters(entry: Entry) -> dict[str, Any]:
    """The options of an objective, those of its baseline included."""
    prepared = options_of(entry.prepare) if entry.prepare else {}
    return {**options_of(entry.function), **prepared}


def _plain(entry: Entry, call: Call) -> Piece:
    options = dict(call.options)
    baseline = None
    if entry.prepare:
        own = {name: options.pop(name) for name in options_of(entry.prepare)}
        baseline = partial(entry.prepare, **own)
    function, states = _bound(entry, call.name, (), options)
    needs = _needs(entry, call.options)
    return Piece(str(call), entry.kind, function, needs, states, baseline, entry.sorts)


def _wrapped(entry: Entry, call: Call, terms: list[Term]) -> Piece:
    inner = _as_one(entry, call, terms)
    if entry.rows and inner.sorts:
        raise SpecError(
            f"{call.name} treats each preference for itself, which {inner.text} does not: it sorts "
            "the batch"
        )
    if entry.flips and inner.one_way:
        raise SpecError(
            f"{call.name} also asks for the loss of the flipped pair, but {inner.text} learns from "
            f"how pairs were labelled: put em outside, em({call.name}(...))"
        )
    function, states = _bound(entry, call.name, (inner.function,), dict(call.options))
    needs = inner.needs | _needs(entry, call.options)
    return Piece(
        str(call),
        entry.kind,
        function,
        needs,
        inner.states + states,
        sorts=inner.sorts,
        one_way=inner.one_way or entry.one_way,
    )


def _bound(
    entry: Entry, name: str, inner: tuple[Callable[..., Tensor], ...], options: dict[str, Constant]
) -> tuple[Callable[..., Tensor], tuple[tuple[str, Stateful], ...]]:
    """The function with its options (and the loss that it wraps), and the state that it owns."""
    if isinstance(entry.function, type) or inner:
        made = entry.function(*inner, **options)
        return made, (((name, made),) if isinstance(made, Stateful) else ())
    return partial(entry.function, **options), ()


def _as_one(entry: Entry, call: Call, terms: list[Term]) -> Piece:
    """What a wrapper goes around; a sum of pair and anchor terms counts as one pair."""
    kinds = {term.piece.kind for term in terms}
    if kinds == {entry.around} and len(terms) == 1 and terms[0].weight == 1:
        return terms[0].piece
    if entry.around == "anchor" or not (kinds <= {"pair", "anchor"} and "pair" in kinds):
        wanted = "one anchor" if entry.around == "anchor" else "a pairwise objective"
        texts = " + ".join(term.piece.text for term in terms)
        hint = "; contrast, guided and all_pairs go outermost" if entry.around == "pair" else ""
        raise SpecError(f"{call.name} goes around {wanted}, which {texts} is not{hint}")

    def summed(chosen: LogProbs, rejected: LogProbs) -> Tensor:
        both, one = (chosen, rejected), (chosen,)
        losses = [
            term.weight * term.piece.function(*(one if term.piece.kind == "anchor" else both))
            for term in terms
        ]
        return torch.stack(losses).sum(0)

    needs = Needs()
    states: tuple[tuple[str, Stateful], ...] = ()
    for term in terms:
        needs, states = needs | term.piece.needs, states + term.piece.states
    sorts = any(term.piece.sorts for term in terms)
    one_way = any(term.piece.one_way for term in terms)
    return Piece(str(call.inner), "pair", summed, needs, states, sorts=sorts, one_way=one_way)


def _rescored(entry: Entry, call: Call, inner: Piece) -> Piece:
    """The piece, given changed log-probabilities."""
    if inner.kind in ("single", "batch"):
        # A single objective's baseline is computed from the whole batch, a cell is read from it.
        raise SpecError(
            f"{call.name} changes the scores of pairs, lists and anchors, which {inner.text} is "
            f"not; around contrast write contrast({call.name}(...), ...)"
        )
    change = partial(entry.function, **call.options)

    def function(*arguments: Any) -> Tensor:
        return inner.function(*(change(a) if isinstance(a, LogProbs) else a for a in arguments))

    needs = inner.needs | _needs(entry, call.options)
    if entry.drops_reference:
        needs = replace(needs, reference=False)
    return replace(inner, text=str(call), function=function, needs=needs)


def _needs(entry: Entry, options: Mapping[str, Constant]) -> Needs:
    return entry.needs if isinstance(entry.needs, Needs) else entry.needs(**options)


# ---- from a batch to arguments


def _ready(batch: Batch) -> Batch:
    """The batch with grades among the numbers and without nan in the place of absent candidates."""
    present, candidates = batch.present, batch.candidates
    filled = replace(
        candidates,
        policy=torch.where(present, candidates.policy, 0.0),
        reference=torch.where(present, candidates.reference, 0.0),
        length=torch.where(present, candidates.length, 1),
        divergence=None
        if candidates.divergence is None
        else torch.where(present, candidates.divergence, 0.0),
    )
    return replace(batch, candidates=filled.with_aux(grade=batch.grades.to(filled.policy)))


def _apply_pair(piece: Piece, batch: Batch) -> Tensor:
    width = batch.grades.shape[1]
    if width == 1:
        raise ValueError(_ONE.format(piece.text))
    if width > 2:
        raise ValueError(_MANY.format(piece.text, width))
    if bool(batch.grades.isnan().any()):
        raise ValueError(_ONE.format(piece.text))
    one, other = batch.candidates[:, 0], batch.candidates[:, 1]
    tied = batch.grades[:, 0] == batch.grades[:, 1]
    if not bool(tied.any()):
        return piece.function(one, other)
    if _directed(piece):
        raise ValueError(
            f"{piece.text} needs a better and a worse candidate, but a preference of the batch "
            "grades both alike; leave ties out, or contrast named cells: contrast(..., worse=...)"
        )
    # half a preference each way
    straight, flipped = piece.function(one, other), piece.function(other, one)
    return torch.where(tied, (straight + flipped) / 2, straight)


def _directed(piece: Piece) -> bool:
    """Whether the piece must know which of the two is better."""
    return piece.one_way or piece.sorts or bool(piece.states)


_ONE = (
    "{} compares two candidates, but a preference of the batch has one (a thumb up or down); use "
    "kto(), bco() or apo_zero_unpaired() for such data"
)
_NEITHER = (
    "{} asks of each response whether it was liked, but a preference of the batch is a tie, which "
    "does not say; leave ties out"
)
_MANY = (
    "{0} compares two candidates, but preferences of the batch have up to {1}; wrap it as "
    "all_pairs({0}) or best_worst({0}), or use plackett_luce() or lambda_ranking()"
)


def _apply_single(piece: Piece, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean over each preference's candidates, and the baseline that was used."""
    present = batch.present
    if bool(((batch.grades == 0.5) | ~present).all(1).any()):
        raise ValueError(_NEITHER.format(piece.text))
    label = torch.where(batch.grades > 0.5, 1.0, -1.0) * present
    numbers = {"label": label.to(batch.candidates.policy)}
    figures = {}
    if piece.baseline is not None:
        figures["baseline"] = piece.baseline(batch)
        numbers["baseline"] = figures["baseline"].expand_as(label)
    sample = batch.candidates.with_aux(**numbers).map(lambda tensor: tensor.flatten(0, 1))
    losses = piece.function(sample).view_as(label)
    return torch.where(present, losses, 0.0).sum(1) / present.sum(1), figures


def _apply_anchor(piece: Piece, batch: Batch) -> Tensor:
    """Of the chosen response; of a pair that was liked alike, half of each."""
    loss = piece.function(batch.candidates[:, 0])
    if batch.grades.shape[1] == 2:
        tied = batch.grades[:, 0] == batch.grades[:, 1]
        if bool(tied.any()):
            other = piece.function(batch.candidates[:, 1])
            loss = torch.where(tied, (loss + other) / 2, loss)
    up = (batch.present.sum(1) > 1) | (batch.grades[:, 0] > 0.5)
    return torch.where(up, loss, 0.0)
