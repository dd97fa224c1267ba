"""More computing for a prompt instead of for a model: the best of several pictures.

Best-of-n draws n pictures to each prompt and keeps the one that a reward likes best. Potential
assessment (arXiv:2501.13926, section 3.3) looks at the pictures while they are drawn, too, and goes
on with the promising ones only, so that as many codes begin more pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from mmalign.adapters.image_tokens.adapter import ImageTokenAdapter
from mmalign.adapters.image_tokens.drawing import Taste
from mmalign.media import open_image, png
from mmalign.records import Media, Message, Sample

Reward = Callable[[int, Sample], float]
"""Of a picture, told which prompt it answers."""
Potential = Callable[[int, Media], float]
"""Of the upper part of a picture, all that is drawn of it, told which prompt it answers."""


PLAIN = Taste()


@dataclass(frozen=True)
class Assessment:
    """When `rows` of a picture's rows of codes are drawn, the `keep` most promising pictures of
    each prompt go on."""

    rows: int
    keep: int


@dataclass(frozen=True)
class Chosen:
    """The best picture of each prompt with its reward. codes: drawn in all, which is the cost."""

    samples: list[Sample]
    rewards: list[float]
    codes: int


@dataclass
class _Begun:
    """A picture that is being drawn."""

    prompt: int
    seed: int
    codes: list[int]


def best_of(
    adapter: ImageTokenAdapter,
    prompts: Sequence[tuple[Message, ...]],
    seeds: Sequence[Sequence[int]],
    reward: Reward,
    *,
    assessments: Sequence[Assessment] = (),
    potential: Potential | None = None,
    taste: Taste = PLAIN,
    batch_size: int = 16,
    merge: bool = False,
) -> Chosen:
    """The best picture of each prompt, among one for each of its seeds.

    Without assessments this is best-of-n; with them, `potential` decides which pictures are drawn
    to their end. A seed's picture is the one that `adapter.sample` draws, however it was drawn.
    merge: fold the LoRA into the weights meanwhile.
    Raises ValueError for assessments out of order or without `potential`.
    """
    layout, grid = adapter.collator.layout, adapter.collator.layout.grid
    _check(assessments, potential, grid.rows)
    if len(seeds) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts but seeds for {len(seeds)}")
    going = [_Begun(i, seed, []) for i, own in enumerate(seeds) for seed in own]
    cost = 0

    def draw(upto: int) -> int:
        before = sum(len(one.codes) for one in going)
        for start in range(0, len(going), batch_size):
            some = going[start : start + batch_size]
            drawn = adapter.codes(
                [prompts[one.prompt] for one in some], [one.seed for one in some], taste,
                begun=[one.codes for one in some], upto=upto,
            )  # fmt: skip
            for one, codes in zip(some, drawn, strict=True):
                one.codes = codes
        return sum(len(one.codes) for one in going) - before

    with adapter.drawing(merge=merge):
        for each in assessments:
            assert potential is not None  # checked above
            cost += draw(layout.count - (grid.rows - each.rows) * grid.columns)
            parts = _upper_parts(adapter, prompts, going, each.rows)
            hopes = [potential(one.prompt, part) for one, part in zip(going, parts, strict=True)]
            going = _most(going, hopes, each.keep)
        cost += draw(layout.count)
        pictures = adapter.pictures(
            [one.codes for one in going], [prompts[one.prompt] for one in going]
        )
    samples = [
        Sample(prompts[one.prompt], (picture,))
        for one, picture in zip(going, pictures, strict=True)
    ]
    rewards = [reward(one.prompt, sample) for one, sample in zip(going, samples, strict=True)]
    place = {id(one): i for i, one in enumerate(going)}
    best = [place[id(one)] for one in _most(going, rewards, 1)]
    return Chosen([samples[i] for i in best], [rewards[i] for i in best], cost)


def _check(assessments: Sequence[Assessment], potential: Potential | None, rows: int) -> None:
    places = [0, *(each.rows for each in assessments), rows]
    if any(first >= second for first, second in pairwise(places)):
        raise ValueError(f"assessments after {places[1:-1]} of {rows} rows: these must rise")
    if any(each.keep < 1 for each in assessments):
        raise ValueError("an assessment must keep a picture of each prompt")
    if assessments and potential is None:
        raise ValueError("assessments need potential=, which judges what is drawn so far")


def _most(going: Sequence[_Begun], values: Sequence[float], keep: int) -> list[_Begun]:
    """The `keep` pictures of each prompt with the largest values, the first ones among equals, in
    the order of prompts."""
    order = sorted(range(len(going)), key=lambda i: (going[i].prompt, -values[i]))
    kept: list[_Begun] = []
    taken: dict[int, int] = {}
    for index in order:
        prompt = going[index].prompt
        taken[prompt] = taken.get(prompt, 0) + 1
        if taken[prompt] <= keep:
            kept.append(going[index])
    return kept


def _upper_parts(
    adapter: ImageTokenAdapter,
    prompts: Sequence[tuple[Message, ...]],
    going: Sequence[_Begun],
    rows: int,
) -> list[Media]:
    """What the first rows of codes show. The tokenizer decodes whole pictures: below, every column
    goes on as it stands, and that part is cut off."""
    grid = adapter.collator.layout.grid
    whole = [one.codes + one.codes[-grid.columns :] * (grid.rows - rows) for one in going]
    pictures = adapter.pictures(whole, [prompts[one.prompt] for one in going])
    return [_cut(media, rows * grid.stride) for media in pictures]


def _cut(media: Media, height: int) -> Media:
    image = open_image(media)
    return png(image.crop((0, 0, image.width, height)), level=1)
