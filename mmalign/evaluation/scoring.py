"""Pairs scored by a model and by the one it is compared with. Axes: b preferences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from markupsafe import Markup
from torch import Tensor

from mmalign.adapters.autoregressive import evaluating
from mmalign.adapters.loading import Modality, load_adapter
from mmalign.errors import BadSample, UserError
from mmalign.evaluation.credit import credit_section
from mmalign.evaluation.pairs import PairOptions, ScoredModel
from mmalign.objectives import LogProbs
from mmalign.records import Media, Preference, Sample
from mmalign.reference import FrozenCopy, Reference
from mmalign.training.log import console, progress
from mmalign.training.seeds import derive


@dataclass(frozen=True)
class Pairs:
    """The best against the worst candidate of each preference, scored.

    chosen, rejected: (b,) log-probabilities; reference is nan where there is none.
    refused: reasons by record number.
    """

    preferences: Sequence[Preference]
    chosen: LogProbs
    rejected: LogProbs
    refused: dict[str, str]

    def notes(self) -> list[str]:
        """What to say about pairs that could not be used."""
        if not self.refused:
            return []
        number, reason = next(iter(self.refused.items()))
        return [f"{len(self.refused)} pairs cannot be used; number {number}: {reason}"]

    @property
    def compared(self) -> bool:
        """Whether there is a reference."""
        return not bool(self.chosen.reference.isnan().any())


def load(models: ScoredModel, name: str, adapter: str | None, *, kind: Modality) -> Any:
    """The adapter of one of the models that are compared, perhaps with a LoRA in it."""
    console.print(f"loading {name}{f' with {adapter}' if adapter else ''}")
    options = {"draws": models.draws} if kind in ("image", "video") else {}
    return load_adapter(kind, name, adapter=adapter, precision=models.precision, **options)


def kind_of(models: ScoredModel, data: Sequence[Preference]) -> Modality:
    """The modality asked for, or the data's. Raises UserError where they do not tell."""
    if models.modality != "auto":
        return models.modality
    sample = data[0].chosen
    if any(isinstance(part, Media) for part in sample.response):
        raise UserError(
            "the responses are images or videos, which models of several kinds make",
            hint="say --modality image or video (denoisers), or image-tokens",
        )
    seen = any(isinstance(part, Media) for message in sample.prompt for part in message.parts)
    return "vlm" if seen else "text"


class Judges:
    """The model and its reference, loaded once for all pairs that they shall score."""

    def __init__(self, models: ScoredModel, data: Sequence[Preference]) -> None:
        self.kind = kind_of(models, data)
        self.policy = load(models, models.model, models.adapter, kind=self.kind)
        before = models.reference or (models.model if models.adapter else None)
        self.reference = None if before is None else load(models, before, None, kind=self.kind)
        if self.reference is None:
            return
        self.reference.policy.eval()
        if self.reference.fingerprint != self.policy.fingerprint:
            raise UserError(
                f"{models.model} and {before} read samples differently (tokenizer, template or "
                "settings), so that their likelihoods cannot be compared",
                hint="give the model that alignment started from as --reference",
            )

    def credit(self, data: Sequence[Preference]) -> list[Markup]:
        """A report's section of per-token rewards, where responses are words and there is a
        reference."""
        reference = self.reference
        if reference is None or self.kind not in ("text", "vlm"):
            return []
        return credit_section(self.policy, FrozenCopy(reference, reference.policy), data)

    def score(self, data: Sequence[Preference], options: PairOptions) -> Pairs:
        """Raises UserError when no pair can be used."""
        judge = self.reference
        return score_pairs(
            self.policy,
            None if judge is None else FrozenCopy(judge, judge.policy),
            data,
            micro_batch=options.micro_batch,
            seed=options.seed,
        )


def score_pairs(
    policy: Any,
    reference: Reference | None,
    data: Sequence[Preference],
    *,
    micro_batch: int = 8192,
    seed: int = 0,
) -> Pairs:
    """Best against worst of each preference, in the order of the data.

    policy: an adapter. reference: another model that scores the same rows, if there is one.
    Raises UserError when no pair can be used.
    """
    usable: list[Preference] = []
    refused: dict[str, str] = {}
    for number, record in enumerate(data):
        try:
            policy.size([record.chosen, record.rejected])
            usable.append(record)
        except BadSample as error:
            refused[str(number)] = str(error)
    if not usable:
        first, reason = next(iter(refused.items()))
        raise UserError(f"none of {len(data)} pairs can be used; number {first}: {reason}")
    rows = torch.zeros(len(usable), 2, 3, dtype=torch.float64)
    with progress("pairs", total=len(usable)) as advance:
        for group in _groups(usable, policy, micro_batch):
            samples = [s for i in group for s in (usable[i].chosen, usable[i].rejected)]
            seeds = [derive(seed, "pair", number) for number in group for _ in range(2)]
            rows[group] = _rows(policy, reference, samples, seeds).view(-1, 2, 3)
            for _ in group:
                advance()
    chosen, rejected = (
        LogProbs(policy=side[:, 0], reference=side[:, 1], length=side[:, 2])
        for side in rows.unbind(1)
    )
    return Pairs(usable, chosen, rejected, refused)


def _rows(
    policy: Any,
    reference: Reference | None,
    samples: Sequence[Sample],
    seeds: Sequence[int],
) -> Tensor:
    """(n 3) log-probabilities under policy and reference, and lengths; float64 on the CPU."""
    with torch.no_grad(), evaluating(policy.policy):
        inputs = policy.encode(policy.collate(samples, seeds))
        ours = policy.log_probs(policy.policy, inputs)
        theirs = torch.full_like(ours.log_probs, torch.nan)
        if reference is not None:
            ids = [sample.id for sample in samples]
            theirs = reference.log_probs(inputs, ids, seeds).log_probs
    columns = (ours.log_probs, theirs, ours.lengths)
    return torch.stack([column.cpu().double() for column in columns], -1)


def _groups(data: Sequence[Preference], adapter: Any, budget: int) -> Iterator[list[int]]:
    """Numbers of pairs that go through the model together, padding within the budget."""
    sizes = [adapter.size([record.chosen, record.rejected]) for record in data]
    group: list[int] = []
    for number in sorted(range(len(data)), key=lambda i: -sizes[i]):
        if group and sizes[group[0]] * (len(group) + 1) > budget:
            yield group
            group = []
        group.append(number)
    yield group
