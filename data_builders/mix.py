"""Mixing datasets: proportions, without duplicates, without evaluation data, and split by image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from mmalign.data.cache import Cache
from mmalign.data.dataset import Preferences
from mmalign.data.errors import DatasetError, RecordError
from mmalign.data.split import split_by_prompt
from mmalign.data_builders.command import as_command
from mmalign.data_builders.near_duplicates import (
    Nearby,
    fingerprint,
    near_pairs,
    perceptual_hash,
    runs,
)
from mmalign.data_builders.records import read_prompts
from mmalign.errors import BadSample, UserError
from mmalign.media import open_image
from mmalign.records import Media, Message, Preference, media_of, text_of

Place = tuple[int, int]
"""Number of the dataset, and of the record in it."""


@dataclass(frozen=True)
class Traits:
    """What a record is compared by.

    texts, prompt: fingerprints of all its texts and of its prompts'. runs: of words in its prompts.
    shown, drawn: perceptual hashes of the images in its prompts and responses.
    """

    texts: int
    prompt: int
    runs: frozenset[int]
    shown: tuple[int, ...]
    drawn: tuple[int, ...] = ()

    @property
    def images(self) -> tuple[int, ...]:
        return (*self.shown, *self.drawn)


def build(
    datasets: Sequence[Sequence[Preference]],
    *,
    weights: list[float] | None = None,
    size: int | None = None,
    duplicates: Literal["drop", "keep"] = "drop",
    against: list[str] | None = None,
    distance: int = 6,
    held_out: float = 0.0,
    part: Literal["train", "held-out"] = "train",
    shuffle: bool = True,
    cache: Path | None = None,
    seed: int = 0,
) -> Iterator[Preference | RecordError]:
    """Mix datasets of preferences: proportions, no duplicates, no evaluation data, a clean split.

    Two records are duplicates when they say the same words, prompt and responses, under images that
    look the same. A record is evaluation data when it shares an image with an evaluation set or,
    where one of them asks without an image, the prompt or 13 words of it in a row. Splits never
    part records that share an image or, without images in it, a prompt.

    Proportions:
        weights: One for each dataset: the share of it that is taken, 1 by default; 2 takes all of
            it twice. With a size, the datasets' proportions.
        size: Records of the mix, before the split.
        shuffle: Mix the records; otherwise one dataset comes after the other.

    Cleaning:
        duplicates: Whether only the first of several duplicates is kept.
        against: Evaluation sets whose records must not be in the mix: datasets, text files with a
            prompt in each line, or folders of images.
        distance: Bits of 64 by which perceptual hashes of images that look the same may differ.

    Split:
        held_out: Share of the prompts and images to hold out.
        part: Which side of the split to write; build the other one into another folder.

    Other:
        cache: Folder where the images' hashes are kept; by default .cache beside the dataset.
        seed: Of what is taken, of the order and of the split.

    Examples:
        mmalign build mix rlaif-v povid --weights 1 0.5 --against pope-images --out mixed
        mmalign build mix pairs --held-out 0.05 --part held-out --out pairs-test
    """
    shares = weights or [1.0] * len(datasets)
    if len(shares) != len(datasets) or min(shares) < 0:
        raise UserError(
            f"there are {len(datasets)} datasets and the weights {shares}",
            hint="give one weight for each dataset, 0 or more",
        )
    look = Looking(None if cache is None else Cache(cache / "cache.sqlite"))
    traits: dict[Place, Traits] = {}
    for place, preference in _all(datasets):
        try:
            traits[place] = look.at(preference)
        except BadSample as error:
            yield _refused(datasets[place[0]], place[1], str(error))
    if against:
        traits = _without_evaluation(traits, _evaluation(against, look), distance)
    if duplicates == "drop":
        traits = _without_duplicates(traits, distance)
    places = _taken(list(traits), shares, size, seed)
    if held_out:
        places = _one_side(places, traits, distance, held_out, part, seed)
    if shuffle:
        places = [places[i] for i in _order([(*p, n) for n, p in enumerate(places)], seed)]
    for number, row in places:
        yield datasets[number][row].derived("mix", dataset=_where(datasets[number]), part=part)


class Looking:
    """Traits of records; images are looked at once."""

    def __init__(self, cache: Cache | None) -> None:
        self.cache = cache
        self._known: dict[str, int] = {}

    def at(self, preference: Preference) -> Traits:
        """Raises BadSample for an image that cannot be opened."""
        prompts = list(dict.fromkeys(sample.prompt for sample in preference.candidates))
        responses = [sample.response for sample in preference.candidates]
        found = self.at_prompts(prompts)
        words = [*map(_words, prompts), *map(text_of, responses)]
        drawn = [part for body in responses for part in body if isinstance(part, Media)]
        return replace(found, texts=fingerprint("\n".join(words)), drawn=self._hashes(drawn))

    def at_prompts(self, prompts: Sequence[tuple[Message, ...]]) -> Traits:
        """Of prompts alone."""
        words = "\n".join(map(_words, prompts))
        shown = self._hashes(media for prompt in prompts for media in media_of(prompt))
        return Traits(0, fingerprint(words), frozenset(runs(words)), shown)

    def _hashes(self, media: Iterable[Media]) -> tuple[int, ...]:
        return tuple(self.hash(each) for each in media if each.kind == "image")

    def hash(self, image: Media) -> int:
        digest = image.digest
        if digest not in self._known:
            if self.cache is None:
                self._known[digest] = perceptual_hash(open_image(image))
            else:
                key = f"phash/{digest}"
                (self._known[digest],) = self.cache.through(
                    [key], lambda places: [perceptual_hash(open_image(image))]
                )
        return self._known[digest]


def _words(messages: tuple[Message, ...]) -> str:
    return "\n".join(text_of(message.parts) for message in messages)


def _evaluation(sources: Sequence[str], look: Looking) -> list[Traits]:
    """Of the records in evaluation sets. Raises RecordError for one that cannot be read."""
    found = []
    for source in sources:
        for _, asked in read_prompts(source):
            if isinstance(asked, RecordError):
                raise asked
            found.append(look.at_prompts([asked.messages]))
    return found


def _without_evaluation(
    traits: dict[Place, Traits], evaluation: Sequence[Traits], distance: int
) -> dict[Place, Traits]:
    seen = Nearby(distance)
    for hash_ in {hash_ for each in evaluation for hash_ in each.images}:
        seen.add(hash_)
    all_runs = {run for each in evaluation for run in each.runs}
    of_texts = {run for each in evaluation if not each.shown for run in each.runs}

    def clean(one: Traits) -> bool:
        if any(map(seen.near, one.images)):
            return False
        return one.runs.isdisjoint(of_texts if one.shown else all_runs)

    return {place: one for place, one in traits.items() if clean(one)}


def _without_duplicates(traits: dict[Place, Traits], distance: int) -> dict[Place, Traits]:
    """The first of each group with equal words and, one by one, images that look the same."""
    kept: dict[Place, Traits] = {}
    groups: dict[tuple[int, int], list[Traits]] = {}
    for place, one in traits.items():
        group = groups.setdefault((one.texts, len(one.images)), [])
        if not any(_alike(one, other, distance) for other in group):
            group.append(one)
            kept[place] = one
    return kept


def _alike(one: Traits, other: Traits, distance: int) -> bool:
    return all(
        (a ^ b).bit_count() <= distance for a, b in zip(one.images, other.images, strict=True)
    )


def _taken(
    places: Sequence[Place], weights: Sequence[float], size: int | None, seed: int
) -> list[Place]:
    """As many of each dataset's records as its weight says; all of them before any twice."""
    taken: list[Place] = []
    for number, weight in enumerate(weights):
        own = [place for place in places if place[0] == number]
        wanted = round(weight * (len(own) if size is None else size / (sum(weights) or 1.0)))
        if wanted and not own:
            raise DatasetError(f"nothing is left of dataset {number + 1} to take from")
        passes, rest = divmod(wanted, max(1, len(own)))
        chosen = set(_order(own, seed)[:rest])
        for turn in range(passes + 1):
            taken += [p for i, p in enumerate(own) if turn < passes or i in chosen]
    return taken


def _one_side(
    places: Sequence[Place],
    traits: dict[Place, Traits],
    distance: int,
    fraction: float,
    part: str,
    seed: int,
) -> list[Place]:
    groups = _look_alikes({h for place in places for h in traits[place].images}, distance)
    ids = [
        (
            *(() if traits[place].shown else (f"prompt {traits[place].prompt}",)),
            *(f"image {groups[hash_]}" for hash_ in traits[place].images),
        )
        for place in places
    ]
    train, held = split_by_prompt(ids, fraction=fraction, seed=seed)
    return [places[i] for i in (train if part == "train" else held)]


def _look_alikes(hashes: Iterable[int], distance: int) -> dict[int, int]:
    """For each hash the smallest one that is linked to it by steps of at most `distance` bits."""
    known = sorted(hashes)
    leader = list(range(len(known)))

    def head(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    for pair in near_pairs(np.array(known, np.uint64), distance):
        one, two = sorted(map(head, pair))
        leader[two] = one
    return {hash_: known[head(place)] for place, hash_ in enumerate(known)}


def _order(items: Sequence[tuple[int, ...]], seed: int) -> list[int]:
    """Places of the items in an order that depends on them and the seed alone."""
    keys = [hashlib.sha256(f"{seed}:{item}".encode()).digest() for item in items]
    return sorted(range(len(items)), key=lambda place: keys[place])


def _all(datasets: Sequence[Sequence[Preference]]) -> Iterator[tuple[Place, Preference]]:
    for number, dataset in enumerate(datasets):
        for row, preference in enumerate(dataset):
            yield (number, row), preference


def _refused(dataset: Sequence[Preference], index: int, reason: str) -> RecordError:
    row = dataset.row_number(index) if isinstance(dataset, Preferences) else index
    return RecordError(_where(dataset), row, "images", f"{_where(dataset)}: {reason}")


def _where(dataset: Sequence[Preference]) -> str:
    return dataset.where if isinstance(dataset, Preferences) else "dataset"


command = as_command("mix", build)
