"""What a dataset of preferences is like: counts, lengths, and the faults that spoil training."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from mmalign.data.errors import RecordError
from mmalign.records import PLAIN, Media, Message, Preference, Sample, media_of, text_of


@dataclass
class Numbers:
    """A distribution, summarised at the end."""

    values: array[float] = field(default_factory=lambda: array("d"))

    def add(self, value: float) -> None:
        self.values.append(value)

    def summary(self) -> dict[str, float] | None:
        """count, mean, min, median, 95th percentile and max; None if nothing was added."""
        if not self.values:
            return None
        ordered = sorted(self.values)

        def quantile(share: float) -> float:
            return ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))]

        return {
            "count": len(ordered),
            "mean": math.fsum(ordered) / len(ordered),
            "min": ordered[0],
            "median": quantile(0.5),
            "p95": quantile(0.95),
            "max": ordered[-1],
        }


class Statistics:
    """Gathers figures from preferences, one at a time, in memory that hardly grows."""

    def __init__(self) -> None:
        self.records = 0
        self.faults: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.prompts: Counter[str] = Counter()
        self.images: Counter[int] = Counter()
        self.videos: Counter[int] = Counter()
        self.turns: Counter[int] = Counter()
        self.sources: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.numbers: dict[str, Numbers] = {}
        self.aux: dict[str, Numbers] = {}
        self.longer = self.shorter = self.pairs = 0
        self._ids: set[int] = set()
        self._prompt_ids: set[int] = set()
        self._image_ids: set[int] = set()
        self._verdicts: dict[int, list[int]] = {}

    def add_all(self, records: Iterable[tuple[int, Preference | RecordError]]) -> None:
        """Add records, and count those that could not be read."""
        for _, record in records:
            if isinstance(record, RecordError):
                self.refused[record.reason] += 1
            else:
                self.add(record)

    def add(self, preference: Preference) -> None:
        """Count one preference. A medium whose file cannot be read counts as refused."""
        try:
            ids = _short(preference.id), _short(preference.chosen.prompt_id)
        except OSError as error:
            self.refused[f"cannot read media: {error.strerror}"] += 1
            return
        self.records += 1
        self.faults["repeated preferences"] += ids[0] in self._ids
        self.faults["repeated prompts"] += ids[1] in self._prompt_ids
        self._ids.add(ids[0])
        self._prompt_ids.add(ids[1])
        self._count_images(preference)
        self._count_verdict(preference)
        for reward in _rewards(preference):
            self._measure("reward", reward)
        self._count_kind(preference)
        self._count_prompt(preference.chosen.prompt)
        self._count_responses(preference)
        for name, value in preference.aux.items():
            self.aux.setdefault(name, Numbers()).add(float(value))
        self.sources[preference.source.builder] += 1

    @property
    def distributions(self) -> dict[str, Numbers]:
        """Every distribution by its name."""
        return {**self.numbers, **self.aux}

    @property
    def agreement(self) -> dict[str, float] | None:
        """Pairs of candidates that were judged more than once, and the share of verdicts on them
        that are the majority's; None without any."""
        judged = [verdicts for verdicts in self._verdicts.values() if sum(verdicts) > 1]
        if not judged:
            return None
        agreeing = sum(map(max, judged)) / sum(map(sum, judged))
        return {"judged more than once": len(judged), "verdicts with the majority": agreeing}

    def summary(self) -> dict[str, Any]:
        """All figures, as JSON."""
        return {
            "records": self.records,
            "refused": dict(self.refused),
            "kinds": dict(self.kinds),
            "prompts": dict(self.prompts),
            "turns": _by_number(self.turns),
            "images_per_prompt": _by_number(self.images),
            "videos_per_prompt": _by_number(self.videos),
            "lengths": {name: numbers.summary() for name, numbers in self.numbers.items()},
            "chosen_longer": self.longer / self.pairs if self.pairs else None,
            "rejected_longer": self.shorter / self.pairs if self.pairs else None,
            "faults": dict(self.faults),
            "agreement": self.agreement,
            "aux": {name: numbers.summary() for name, numbers in self.aux.items()},
            "sources": dict(self.sources),
        }

    def _count_kind(self, preference: Preference) -> None:
        count, grades = len(preference.candidates), preference.grades
        if count == 1:
            self.kinds["thumbs up" if grades[0] > 0 else "thumbs down"] += 1
        else:
            self.kinds["pairs" if count == 2 else "lists"] += 1
            self._measure("margin of grades", grades[0] - grades[-1])
            self.faults["ties"] += grades[0] == grades[-1]
            first, *others = preference.candidates
            if any(sample.prompt != first.prompt for sample in others):
                self.kinds["of these, prompts differ"] += 1

    def _count_prompt(self, prompt: tuple[Message, ...]) -> None:
        kinds = Counter(media.kind for media in media_of(prompt))
        self.images[kinds["image"]] += 1
        self.videos[kinds["video"]] += 1
        self.turns[len(prompt)] += 1
        self.prompts["plain" if prompt and prompt[0].role == PLAIN else "conversations"] += 1
        self._measure_text("prompt", " ".join(text_of(message.parts) for message in prompt))

    def _count_images(self, preference: Preference) -> None:
        """Different preferences about the same image leak from one split into another."""
        digests = {_short(media.digest) for media in media_of(preference.chosen.prompt)}
        self.faults["images seen in an earlier preference"] += bool(digests & self._image_ids)
        self._image_ids |= digests

    def _count_verdict(self, preference: Preference) -> None:
        """Which of two candidates was preferred, whoever was asked; ties are no verdict."""
        if len(preference.candidates) != 2 or preference.grades[0] == preference.grades[1]:
            return
        first, second = (_short(sample.id) for sample in preference.candidates)
        self._verdicts.setdefault(first ^ second, [0, 0])[first > second] += 1

    def _count_responses(self, preference: Preference) -> None:
        samples = preference.candidates
        self.faults["empty responses"] += any(map(_is_empty, samples))
        if len(samples) == 1:
            self._measure_text("response", text_of(samples[0].response))
            return
        chosen, rejected = (text_of(s.response) for s in (samples[0], samples[-1]))
        self._measure_text("chosen", chosen)
        self._measure_text("rejected", rejected)
        self.pairs += 1
        self.longer += len(chosen) > len(rejected)
        self.shorter += len(chosen) < len(rejected)
        self.faults["identical chosen and rejected"] += samples[0] == samples[-1]

    def _measure_text(self, name: str, text: str) -> None:
        self._measure(f"{name}, words", len(text.split()))
        self._measure(f"{name}, characters", len(text))

    def _measure(self, name: str, value: float) -> None:
        self.numbers.setdefault(name, Numbers()).add(value)


def _rewards(preference: Preference) -> list[float]:
    """What a reward gave each response that there was to choose from, if a builder noted it."""
    noted = preference.source.details.get("rewards")
    if not isinstance(noted, list | tuple):
        return []
    return [float(reward) for reward in noted if isinstance(reward, int | float)]


def _is_empty(sample: Sample) -> bool:
    has_media = any(isinstance(part, Media) for part in sample.response)
    return not has_media and not text_of(sample.response).strip()


def _short(digest: str) -> int:
    return int(digest[:16], 16)


def _by_number(counts: Counter[int]) -> dict[str, int]:
    return {str(number): counts[number] for number in sorted(counts)}
