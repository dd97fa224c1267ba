"""Which preferences make up an optimiser step, and how they are cut into calls of the model.

A step is a pure function of its number: seed, epoch and order follow from it, so a resumed run
just starts at another number. Axes: b preferences, k candidates, n rows of the adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from mmalign.adapters.protocol import Inputs
from mmalign.data.views import view
from mmalign.objectives.scores import Needs
from mmalign.records import Preference, Sample
from mmalign.training.seeds import derive

T = TypeVar("T")
Remake = Callable[[Sequence[Preference], Sequence[int]], Sequence[Preference | ValueError]]
"""From some records of a step, and a seed for each, to those that are trained on in their place: so
the policy, as it is before the step, has a part in its own data. An error says why a record cannot
be used."""


@dataclass(frozen=True)
class Rows:
    """Samples that go through the model together.

    inputs: what the adapter made of them. keys: id of each sample; seeds: one per sample.
    slots: (b k) which row holds which candidate; -1 where there is none, or nobody reads it.
    """

    inputs: Inputs
    keys: list[str]
    seeds: list[int]
    slots: Tensor


@dataclass(frozen=True)
class MicroBatch:
    """b preferences, ready for one forward and backward pass.

    grades: (b k), nan where there is no candidate. aux: (b,) each, nan where a record has none.
    ids: of the preferences. elements: tokens or latent pixels, padding included.
    """

    candidates: Rows
    views: dict[str, Rows]
    grades: Tensor
    aux: dict[str, Tensor]
    ids: list[str]
    elements: int


@dataclass(frozen=True)
class Refused:
    """A record that cannot be used, and why."""

    row: int
    reason: str


@dataclass(frozen=True)
class Step:
    """One process's share of an optimiser step."""

    number: int
    epoch: float
    micro_batches: list[MicroBatch]
    refused: list[Refused] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """How records become steps. Travels to data workers, so it holds no model.

    collate, size: the adapter's. batch_size: preferences of a step over all processes.
    budget: elements of a micro-batch, padding included. strata: the adapter's.
    """

    collate: Callable[[Sequence[Sample], Sequence[int]], Inputs]
    size: Callable[[Sequence[Sample]], int]
    needs: Needs
    batch_size: int
    budget: int
    seed: int = 0
    rank: int = 0
    processes: int = 1
    noise_cycle: int = 0
    strata: int = 1

    def row_seed(self, pass_number: int, row: int, place: int = 0) -> int:
        """Of a record's timesteps and noises, which with a cycle repeat after so many passes.

        place: of the record within its step, which with strata decides the seed's residue.
        """
        turn = pass_number % self.noise_cycle if self.noise_cycle else pass_number
        seed = derive(self.seed, "row", turn, row)
        return seed - seed % self.strata + place % self.strata if self.strata > 1 else seed


@dataclass(frozen=True)
class _Unit:
    """One preference with its rows, before it is put into a micro-batch. views: the samples that
    are read, by the numbers of the candidates."""

    preference: Preference
    views: dict[str, dict[int, Sample]]
    seed: int
    size: int


class Steps(Dataset[Step]):
    """`Steps(...)[number]` is optimiser step `number` of training on a random-access dataset.

    With `remake` it depends on the policy as well, and has to be asked for in its turn.
    """

    def __init__(
        self, data: Sequence[Preference], plan: Plan, remake: Remake | None = None
    ) -> None:
        if len(data) < plan.processes:
            raise ValueError(
                f"{len(data)} preferences cannot be shared by {plan.processes} processes"
            )
        self.data, self.plan, self.remake = data, plan, remake

    @property
    def per_epoch(self) -> int:
        """Steps of one pass over the data. The last may be smaller; a rest too small to give every
        process a preference is left for the next pass."""
        whole, rest = divmod(len(self.data), self.plan.batch_size)
        return whole + (rest >= self.plan.processes)

    def __getitem__(self, number: int) -> Step:
        epoch, position = divmod(number, self.per_epoch)
        order = _order(len(self.data), self.plan.seed, epoch)
        start = position * self.plan.batch_size
        rows = [int(row) for row in order[start : start + self.plan.batch_size]]
        made = self._remade(rows, epoch)

        def read(row: int) -> Preference:
            return _readable(made, row) if row in made else self.data[row]

        return build_step(number, number / self.per_epoch, rows, read, epoch, self.plan)

    def _remade(self, rows: Sequence[int], epoch: int) -> dict[int, Preference | ValueError]:
        """This process's share of the rows, made anew; nothing where they stay as they are."""
        if self.remake is None:
            return {}
        given: dict[int, Preference] = {}
        unread: dict[int, Preference | ValueError] = {}
        for row in rows[self.plan.rank :: self.plan.processes]:
            try:
                given[row] = self.data[row]
            except ValueError as error:
                unread[row] = error
        seeds = [derive(self.plan.seed, "remade", epoch, row) for row in given]
        made = self.remake(list(given.values()), seeds)
        return {**unread, **dict(zip(given, made, strict=True))}


class StreamedSteps(IterableDataset[Step]):
    """Steps of a stream, from step `start`. Records are shuffled within a buffer.

    To resume, the stream is read again from the beginning of its pass (records only: nothing is
    decoded, tokenised or sent to the model), so any number of resumes gives the same steps.
    """

    def __init__(
        self,
        data: Iterable[Preference | ValueError],
        plan: Plan,
        *,
        start: int,
        stop: int,
        buffer: int,
    ) -> None:
        """data: can be iterated over again and again; unreadable records are in it as errors."""
        self.data, self.plan, self.start, self.stop, self.buffer = data, plan, start, stop, buffer

    def __iter__(self) -> Iterator[Step]:
        if (worker := torch.utils.data.get_worker_info()) is not None and worker.num_workers > 1:
            raise ValueError("streamed data are read in order: use workers=0 or 1")
        for number, (epoch, records) in enumerate(self._batches()):
            if number >= self.stop:
                return
            if number >= self.start:
                rows = [row for row, _ in records]
                read = partial(_readable, dict(records))
                yield build_step(number, float(epoch), rows, read, epoch, self.plan)

    def _batches(self) -> Iterator[tuple[int, list[tuple[int, Preference | ValueError]]]]:
        epoch = 0
        while True:
            count, batch = 0, []
            for record in _shuffled(enumerate(self.data), self.buffer, self.plan.seed, epoch):
                count += 1
                batch.append(record)
                if len(batch) == self.plan.batch_size:
                    yield epoch, batch
                    batch = []
            if len(batch) >= self.plan.processes:
                yield epoch, batch
            if count == 0:
                raise ValueError("the stream holds no records")
            epoch += 1


def _readable(records: Mapping[int, Preference | ValueError], row: int) -> Preference:
    record = records[row]
    if isinstance(record, ValueError):
        raise record
    return record


def build_step(
    number: int,
    epoch: float,
    rows: Sequence[int],
    read: Callable[[int], Preference],
    pass_number: int,
    plan: Plan,
) -> Step:
    """This process's micro-batches of the step made of `rows`.

    Raises ValueError when not one of this process's records can be used.
    """
    units: list[_Unit] = []
    refused: list[Refused] = []
    for place in range(plan.rank, len(rows), plan.processes):
        try:
            units.append(_unit(rows, place, read, pass_number, plan))
        except ValueError as error:  # BadSample and unreadable records are ValueErrors
            refused.append(Refused(rows[place], str(error)))
    if not units:
        reasons = "; ".join(f"record {r.row}: {r.reason}" for r in refused[:3])
        raise ValueError(f"no record of step {number} can be used. {reasons}")
    micro_batches = [_micro_batch(group, plan) for group in _fill(units, plan.budget)]
    return Step(number, epoch, micro_batches, refused)


def unusable(data: Sequence[Preference], plan: Plan) -> list[Refused]:
    """The records that no step could use, found without the model."""
    rows = range(len(data))
    refused = []
    for row in rows:
        try:
            _unit(rows, row, data.__getitem__, 0, plan)
        except ValueError as error:
            refused.append(Refused(row, str(error)))
    return refused


def _unit(
    rows: Sequence[int],
    place: int,
    read: Callable[[int], Preference],
    pass_number: int,
    plan: Plan,
) -> _Unit:
    """The record at a place of a step made of `rows`. Raises ValueError when it cannot be used."""
    row = rows[place]
    preference = read(row)
    neighbour = partial(read, rows[(place + 1) % len(rows)])
    drawn = derive(plan.seed, "view", pass_number, row)  # all views: some belong together
    views = {}
    for name in sorted(plan.needs.views):
        seen = view(name, preference, drawn, neighbour)
        views[name] = {i: seen[i] for i in plan.needs.candidates(name, len(seen))}
    _check_aux(preference, plan.needs)
    samples = [
        *preference.candidates,
        *(sample for seen in views.values() for sample in seen.values()),
    ]
    seed = plan.row_seed(pass_number, row, place)
    return _Unit(preference, views, seed, plan.size(samples))


def candidate_rows(
    data: Sequence[Preference],
    rows: Iterable[int],
    plan: Plan,
    wanted: Callable[[Sequence[str], Sequence[int]], bool],
    pass_number: int = 0,
) -> Iterator[Rows]:
    """The candidates of some records, in batches within the budget.

    wanted: told the ids and seeds of a record's candidates. pass_number: over the data, on which
        seeds depend. Unusable records are left out.
    """
    units = []
    for row in rows:
        seed = plan.row_seed(pass_number, row)
        try:
            preference = data[row]
            size = plan.size(preference.candidates)
        except ValueError:
            continue
        if wanted([s.id for s in preference.candidates], [seed] * len(preference.candidates)):
            units.append(_Unit(preference, {}, seed, size))
    for group in _fill(units, plan.budget):
        most = max(len(unit.preference.candidates) for unit in group)
        candidates = [dict(enumerate(unit.preference.candidates)) for unit in group]
        yield _rows(candidates, [unit.seed for unit in group], most, plan)


def _fill(units: list[_Unit], budget: int) -> list[list[_Unit]]:
    """Cut into micro-batches, longest first, so that padding stays within `budget` and is small."""
    groups: list[list[_Unit]] = []
    for unit in sorted(units, key=lambda unit: -unit.size):
        if groups and groups[-1][0].size * (len(groups[-1]) + 1) <= budget:
            groups[-1].append(unit)
        else:
            groups.append([unit])
    return groups


def _micro_batch(units: list[_Unit], plan: Plan) -> MicroBatch:
    most = max(len(unit.preference.candidates) for unit in units)
    grades = torch.full((len(units), most), math.nan)
    for i, unit in enumerate(units):
        grades[i, : len(unit.preference.grades)] = torch.tensor(unit.preference.grades)
    names = sorted({name for unit in units for name in unit.preference.aux})
    aux = {
        name: torch.tensor([unit.preference.aux.get(name, math.nan) for unit in units])
        for name in names
    }
    seeds = [unit.seed for unit in units]
    candidates = [dict(enumerate(unit.preference.candidates)) for unit in units]
    return MicroBatch(
        candidates=_rows(candidates, seeds, most, plan),
        views={
            name: _rows([unit.views[name] for unit in units], seeds, most, plan)
            for name in sorted(plan.needs.views)
        },
        grades=grades,
        aux=aux,
        ids=[unit.preference.id for unit in units],
        elements=max(unit.size for unit in units) * len(units),
    )


def _rows(groups: list[dict[int, Sample]], seeds: list[int], most: int, plan: Plan) -> Rows:
    slots = torch.full((len(groups), most), -1)
    samples: list[Sample] = []
    row_seeds: list[int] = []
    for i, group in enumerate(groups):
        slots[i, list(group)] = torch.arange(len(samples), len(samples) + len(group))
        samples += group.values()
        row_seeds += [seeds[i]] * len(group)
    return Rows(plan.collate(samples, row_seeds), [s.id for s in samples], row_seeds, slots)


def _check_aux(preference: Preference, needs: Needs) -> None:
    if missing := sorted(needs.aux - preference.aux.keys()):
        raise ValueError(
            f"the objective reads {', '.join(missing)} from the record's aux, "
            f"which has {', '.join(sorted(preference.aux)) or 'nothing'}"
        )


@lru_cache(maxsize=4)
def _order(rows: int, seed: int, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(derive(seed, "order", epoch)).permutation(rows)


def _shuffled(items: Iterator[T], size: int, seed: int, epoch: int) -> Iterator[T]:
    """Draw at random from a buffer of `size` items that is refilled from `items`."""
    random = np.random.default_rng(derive(seed, "order", epoch))
    buffer: list[T] = []
    for item in items:
        if len(buffer) < max(1, size):
            buffer.append(item)
            continue
        place = int(random.integers(len(buffer)))
        yield buffer[place]
        buffer[place] = item
    yield from (buffer[place] for place in random.permutation(len(buffer)))
