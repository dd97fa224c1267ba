"""The candidates of a preference in another light: with altered images, without any, exchanged.

Objectives ask for views by name ("chosen@crop"). A view is drawn once from its seed, before policy
and reference look at it, and images that are equal are altered equally.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageFilter

from mmalign.media import open_image, png
from mmalign.records import Media, Message, Part, Preference, Sample, Text

Draws: TypeAlias = np.random.Generator
Alteration = Callable[[Image.Image, Draws], Image.Image]

CROPPED = (0.01, 0.2)
"""Share of the image that a crop keeps: mDPO's, arXiv:2406.11839."""
NOISE_STEP, NOISE_STEPS = 500, 1000
HIDDEN = 0.75
"""Share of an image's blocks that a block mask hides."""
BLOCKS = 14
SPECKLED = 0.3
"""Share of the pixels that OPA-DPO hides."""


@dataclass(frozen=True)
class Given:
    """What a view is made from. other: a preference nearby, read when it is asked for."""

    preference: Preference
    other: Callable[[], Preference]
    draws: Draws


def view(
    name: str, preference: Preference, seed: int, other: Callable[[], Preference]
) -> tuple[Sample, ...]:
    """One sample for each candidate of the preference, under the view `name` (see VIEWS).

    Equal seeds give equal views. Raises ValueError for an unknown view, and for a preference that
    has nothing to alter.
    """
    if name not in VIEWS:
        raise ValueError(f"there is no view {name!r}; there are: {', '.join(sorted(VIEWS))}")
    return VIEWS[name](Given(preference, other, np.random.default_rng(seed)))


def crop(image: Image.Image, draws: Draws) -> Image.Image:
    """A small part, a hundredth to a fifth of the area, enlarged to the size of the whole."""
    share = draws.uniform(*CROPPED)
    aspect = np.exp(draws.uniform(np.log(3 / 4), np.log(4 / 3)))
    area = share * image.width * image.height
    width = min(image.width, max(1, round(np.sqrt(area * aspect))))
    height = min(image.height, max(1, round(np.sqrt(area / aspect))))
    left = int(draws.integers(image.width - width + 1))
    top = int(draws.integers(image.height - height + 1))
    part = image.crop((left, top, left + width, top + height))
    return part.resize(image.size, Image.Resampling.BICUBIC)


def noise(image: Image.Image, draws: Draws, *, step: int = NOISE_STEP) -> Image.Image:
    """As after half of a diffusion process: sqrt(a) x + sqrt(1 - a) e on pixels in -1 to 1.

    POVID's schedule (arXiv:2402.11411): a is 0.7474 after 500 of 1000 steps.
    """
    kept = signal_kept(step)
    pixels = np.asarray(image, np.float32) / 127.5 - 1
    noisy = np.sqrt(kept) * pixels + np.sqrt(1 - kept) * draws.standard_normal(pixels.shape)
    return Image.fromarray(((noisy + 1) * 127.5).clip(0, 255).round().astype(np.uint8))


def signal_kept(step: int) -> float:
    """The cumulated product of 1 - beta_k over the first `step` of 1000 sigmoid-spaced steps."""
    k = np.arange(step)
    betas = (0.5e-2 - 1e-5) / (1 + np.exp(6 - 12 * k / NOISE_STEPS)) + 1e-5
    return float(np.prod(1 - betas))


def mask(image: Image.Image, draws: Draws) -> Image.Image:
    """Three quarters of the blocks of a 14 by 14 grid become grey."""
    hidden = draws.permutation(BLOCKS * BLOCKS) < round(HIDDEN * BLOCKS * BLOCKS)
    blocks = Image.fromarray(np.where(hidden.reshape(BLOCKS, BLOCKS), 255, 0).astype(np.uint8))
    stencil = blocks.resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(grey(image, draws), image, stencil)


def speckle(image: Image.Image, draws: Draws) -> Image.Image:
    """Three tenths of the pixels, drawn one by one, get the image's mean colour. OPA-DPO's
    corruption, arXiv:2501.09695."""
    pixels = np.asarray(image)
    hidden = draws.random(pixels.shape[:2]) < SPECKLED
    mean = pixels.reshape(-1, 3).mean(0).round().astype(np.uint8)
    return Image.fromarray(np.where(hidden[..., None], mean, pixels))


def blur(image: Image.Image, draws: Draws) -> Image.Image:
    """Only what is larger than about a tenth of the image remains."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) / 20))


def black(image: Image.Image, draws: Draws) -> Image.Image:
    """No picture at all: black. To a model this is an image like any other."""
    return Image.new("RGB", image.size, (0, 0, 0))


def grey(image: Image.Image, draws: Draws) -> Image.Image:
    """No picture at all: the grey that most processors map to about zero."""
    return Image.new("RGB", image.size, (127, 127, 127))


def altered(change: Alteration) -> Callable[[Given], tuple[Sample, ...]]:
    """The view in which every image of the prompts is changed."""

    def all_altered(given: Given) -> tuple[Sample, ...]:
        done: dict[str, Media] = {}

        def one(media: Media) -> Media:
            if media.kind == "video":
                raise ValueError("this view alters images, and the prompt holds a video")
            if media.digest not in done:
                done[media.digest] = png(change(open_image(media), given.draws), level=1)
            return done[media.digest]

        return tuple(
            replace(sample, prompt=_with_media(sample.prompt, one))
            for sample in _with_images(given.preference)
        )

    return all_altered


def no_image(given: Given) -> tuple[Sample, ...]:
    """The prompts without their media; chat templates then have no place for them either."""
    return tuple(
        replace(
            sample,
            prompt=tuple(
                Message(m.role, tuple(p for p in m.parts if not isinstance(p, Media)))
                for m in sample.prompt
            ),
        )
        for sample in _with_images(given.preference)
    )


def with_crop(given: Given) -> tuple[Sample, ...]:
    """Behind every image of the prompts a part of it, enlarged: a closer look."""
    done: dict[str, Media] = {}

    def closer(part: Part) -> tuple[Part, ...]:
        if not isinstance(part, Media):
            return (part,)
        if part.digest not in done:
            done[part.digest] = png(crop(open_image(part), given.draws), level=1)
        return part, done[part.digest]

    return tuple(
        replace(
            sample,
            prompt=tuple(
                Message(m.role, tuple(shown for part in m.parts for shown in closer(part)))
                for m in sample.prompt
            ),
        )
        for sample in _with_images(given.preference)
    )


def other_image(given: Given) -> tuple[Sample, ...]:
    """The prompts with the images of another preference in place of their own."""
    theirs = _media(given.other().chosen.prompt)
    if not theirs:
        raise ValueError("this view takes images from another record, and that one has none")
    return tuple(_in_turn(sample, theirs) for sample in _with_images(given.preference))


def swapped(given: Given) -> tuple[Sample, ...]:
    """The first two candidates exchange their images; the others keep theirs."""
    first, second, *rest = _with_images(given.preference)
    exchanged = (
        _in_turn(first, _media(second.prompt)),
        _in_turn(second, _media(first.prompt)),
    )
    return (*exchanged, *rest)


def both(given: Given) -> tuple[Sample, ...]:
    """The first two candidates see the images of both, in an order drawn at random, and each is
    asked about its own; the others keep their prompts. IC-VCO's, arXiv:2605.31312."""
    return _in_both(given, about_own=True)


def both_swapped(given: Given) -> tuple[Sample, ...]:
    """As `both`, in the same order where the seed is the same, but asked about the other's."""
    return _in_both(given, about_own=False)


def _in_both(given: Given, *, about_own: bool) -> tuple[Sample, ...]:
    pair, rest = _with_images(given.preference)[:2], given.preference.candidates[2:]
    images = [image for sample in pair for image in _media(sample.prompt)]
    if len(pair) < 2 or len(images) != 2:
        raise ValueError(
            "the objective shows the images of two candidates together, and here are "
            f"{len(pair)} with {len(images)} images: two with one image each are needed"
        )
    order = given.draws.permutation(2)
    shown = [images[i] for i in order]
    places = [list(order).index(i) for i in ((0, 1) if about_own else (1, 0))]
    asked = [_asked(sample, shown, place) for sample, place in zip(pair, places, strict=True)]
    return (*asked, *rest)


def _asked(sample: Sample, shown: Sequence[Media], place: int) -> Sample:
    """The sample with all of `shown` in the place of its image, asked about one of them."""
    *before, last = [
        replace(
            message,
            parts=tuple(
                part
                for one in message.parts
                for part in (shown if isinstance(one, Media) else (one,))
            ),
        )
        for message in sample.prompt
    ]
    request = Text(f"\nAnswer about the {('first', 'second')[place]} image.")
    return replace(sample, prompt=(*before, replace(last, parts=(*last.parts, request))))


def mismatched(given: Given) -> tuple[Sample, ...]:
    """The prompts with the responses of another preference."""
    others = given.other().candidates
    return tuple(
        Sample(sample.prompt, others[min(i, len(others) - 1)].response)
        for i, sample in enumerate(given.preference.candidates)
    )


ALTERATIONS: dict[str, Alteration] = {
    "black": black,
    "blur": blur,
    "crop": crop,
    "grey": grey,
    "mask": mask,
    "noise": noise,
    "speckle": speckle,
}
"""What can be done to an image, by name."""

VIEWS: dict[str, Callable[[Given], tuple[Sample, ...]]] = {
    **{name: altered(change) for name, change in ALTERATIONS.items()},
    "both": both,
    "both_swapped": both_swapped,
    "mismatched": mismatched,
    "no_image": no_image,
    "other_image": other_image,
    "swapped": swapped,
    "with_crop": with_crop,
}


def _media(messages: Sequence[Message]) -> list[Media]:
    return [part for message in messages for part in message.parts if isinstance(part, Media)]


def _with_images(preference: Preference) -> tuple[Sample, ...]:
    if not all(_media(sample.prompt) for sample in preference.candidates):
        raise ValueError(
            "the objective looks at prompts with other images, and this record's prompt has none: "
            "leave it out, or choose an objective without image views"
        )
    return preference.candidates


def _in_turn(sample: Sample, images: Sequence[Media]) -> Sample:
    """The sample with `images` in the places of its own, again from the first where they end."""
    places = iter(range(len(_media(sample.prompt))))
    return replace(
        sample, prompt=_with_media(sample.prompt, lambda _: images[next(places) % len(images)])
    )


def _with_media(
    messages: tuple[Message, ...], change: Callable[[Media], Media]
) -> tuple[Message, ...]:
    def part(one: Part) -> Part:
        return change(one) if isinstance(one, Media) else one

    return tuple(Message(m.role, tuple(map(part, m.parts))) for m in messages)
