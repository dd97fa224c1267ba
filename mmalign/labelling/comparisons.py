"""What annotators are asked: which candidates of a record are better, in an order that is blind."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mmalign.data.errors import RecordError
from mmalign.errors import UserError
from mmalign.records import Preference, Sample


@dataclass(frozen=True)
class Comparison:
    """Candidates to choose among; `row` is the record's place in the dataset.

    The id depends on the candidates alone: neither their order nor their grades change it, so that
    votes survive when a dataset is built again.
    """

    id: str
    row: int
    candidates: tuple[Sample, ...]

    def order(self, annotator: str) -> list[int]:
        """Which candidate stands in which place for this annotator: random, and always the same."""
        seed = hashlib.sha256(f"{self.id} {annotator}".encode()).digest()
        draws = np.random.default_rng(int.from_bytes(seed[:8], "big"))
        return [int(index) for index in draws.permutation(len(self.candidates))]


def comparisons_of(
    records: Iterable[tuple[int, Preference | RecordError]],
) -> tuple[list[Comparison], list[str]]:
    """The comparisons that a dataset holds, each once, and why the other records give none."""
    found: dict[str, Comparison] = {}
    refused: list[str] = []
    for row, record in records:
        try:
            found.setdefault(*_entry(row, record))
        except (UserError, OSError) as error:
            refused.append(f"record {row}: {error}")
    return list(found.values()), refused


def _entry(row: int, record: Preference | RecordError) -> tuple[str, Comparison]:
    if isinstance(record, RecordError):
        raise record
    distinct = {sample.id: sample for sample in record.candidates}
    if len(distinct) < 2:
        raise UserError("has one candidate only, so there is nothing to compare")
    name = comparison_id(record.candidates)
    # In the order of their ids, in which the grades of the dataset cannot be seen.
    return name, Comparison(name, row, tuple(distinct[key] for key in sorted(distinct)))


def comparison_id(candidates: Sequence[Sample]) -> str:
    """Equal for equal sets of candidates."""
    text = "\n".join(sorted({sample.id for sample in candidates}))
    return hashlib.sha256(text.encode()).hexdigest()[:32]
