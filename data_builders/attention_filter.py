"""Answers to questions about one image among several, rejected where they looked elsewhere.

The second step of MIA-DPO, arXiv:2410.17637, after collage.py: the model answers, and an answer
whose attention lies too little on the image that is meant is rejected before the known one. What is
measured stays with every pair, so that it can be chosen again with other limits and no model.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from mmalign.adapters.vision_language import VisionLanguageAdapter
from mmalign.data.cache import Cache, key_of
from mmalign.data_builders.attention_limits import INSIDE, PUBLISHED, Limits, why_not
from mmalign.data_builders.command import as_command
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.looking import GRAIN, Look, Rows, attention_on, looks
from mmalign.data_builders.sampling import SampledModel, Sampling, cache_in, draw, load
from mmalign.data_builders.weights import weights
from mmalign.errors import UserError
from mmalign.media import open_image, png
from mmalign.records import Media, Message, Part, Preference, Sample, Text, media_of, text_of
from mmalign.training.seeds import derive


@dataclass(frozen=True, kw_only=True)
class Looking:
    """How attention is measured.

    Args:
        layers: Layers of which the mean is taken, counted from 0; by default one in the middle
            that sees all tokens.
        rows: Whose attention counts: that of the answer's tokens, or that of the positions which
            predict them.
        reduce: What counts of an image: the mean over its tokens, or their sum. One image inside
            another always counts by sums, as published.
    """

    layers: tuple[int, ...] = ()
    rows: Rows = "answer"
    reduce: Literal["mean", "sum"] = "mean"

    def attention(self, look: Look, layout: str) -> list[float]:
        """What counts of each image."""
        return attention_on(look, reduce="sum" if layout == INSIDE else self.reduce)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What the model is shown while it answers; pairs have the clean image.

    Args:
        noise: Standard deviation of the noise by layout, in steps of 255. The published values for
            grids and pictures in pictures are the default; grid=0 is none.
        noise_on: What is noisy: the image that is meant, or all. By default as published: in
            grids that image, otherwise all.
    """

    noise: tuple[str, ...] = ("grid=225", "picture-in-picture=49")
    noise_on: Literal["target", "all"] | None = None

    def deviation(self, layout: str) -> float:
        return weights("noise", self.noise, tuple(PUBLISHED)).get(layout, 0.0)


PUBLISHED_LIMITS, IN_THE_MIDDLE, PUBLISHED_NOISE = Limits(), Looking(), Noise()


def build(
    preferences: Iterable[Preference],
    *,
    model: str | None = None,
    lora: str | None = None,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    looking: Looking = IN_THE_MIDDLE,
    limits: Limits = PUBLISHED_LIMITS,
    noise: Noise = PUBLISHED_NOISE,
    keep: Literal["selected", "all"] = "selected",
    max_new_tokens: int = 512,
    batch_size: int = 8,
    cache: Path | None = None,
    seed: int = 0,
) -> Iterator[Preference | Refused]:
    """Reject a model's answers that look too little at the image that is meant.

    Inputs are what collage makes. The model answers greedily; where its attention lies mostly on
    other images, its answer is rejected before the known one. Where no answer is known, the
    model's own answer to that image alone takes its place. Pairs that this builder made before are
    only chosen again, with new limits and without a model.

    Model:
        model: Hub id or folder of the vision-language model; not needed for measured pairs.
        lora: Folder of a LoRA for it.
        precision: Arithmetic and weights.
        max_new_tokens: Tokens of an answer.
        batch_size: Answers that are made and measured at once.
        cache: Folder where answers and attention are kept, for any build; by default .cache beside
            the dataset.

    Selection:
        keep: Write the pairs that the limits leave, or all that were measured, with the reason
            against the others in their provenance.
        seed: Of the noise.

    Examples:
        mmalign build attention-filter asked --model llava-hf/llava-1.5-7b-hf --out pairs
        mmalign build attention-filter asked --model llava-hf/llava-1.5-7b-hf --keep all --out all
        mmalign build attention-filter all --thresholds grid=0.4 sequence2=0.6 --out stricter
    """
    sound: list[Preference] = []
    for preference in preferences:
        details = preference.source.details
        if details.get("layout") not in PUBLISHED or not {"count", "target"} <= set(details):
            reason = "is not a question about one of several images, as collage makes them"
            yield Refused(preference.id, reason, "source")
        else:
            sound.append(preference)
    fresh = [each for each in sound if "look" not in each.source.details]
    if fresh and model is None:
        raise UserError(
            "these questions have no answers yet", hint="--model says who is to answer them"
        )
    measured: dict[str, Preference | Refused] = {}
    if fresh and model is not None:
        who = SampledModel(model=model, modality="vlm", lora=lora, precision=precision)
        asking = _Asking(who, looking, noise, max_new_tokens, batch_size, cache, seed)
        measured = {p.id: made for p, made in zip(fresh, asking(fresh), strict=True)}
    for preference in sound:
        pair = measured.get(preference.id, preference)
        yield (
            pair
            if isinstance(pair, Refused)
            else _judged(pair, preference.id, looking, limits, keep)
        )


def _judged(
    pair: Preference, parent: str, looking: Looking, limits: Limits, keep: str
) -> Preference | Refused:
    """The pair with its ratio, or why it is not kept."""
    details = {name: v for name, v in pair.source.details.items() if name != "dropped"}
    look = Look.of(details["look"])
    attention = looking.attention(look, details["layout"])
    total = sum(attention)
    share = attention[details["target"] - 1] / total if total > 0 else math.nan
    reason = why_not(pair, look, share, limits)
    if reason and (keep == "selected" or not math.isfinite(share)):
        return Refused(parent, reason)
    details |= {"attention": attention, "ratio": share} | ({"dropped": reason} if reason else {})
    source = replace(pair.source, builder="attention-filter", parents=(parent,), details=details)
    return replace(pair, aux={**pair.aux, "attention_ratio": share}, source=source)


@dataclass(frozen=True)
class _Asking:
    """Lets the model answer, and measures where its answers look."""

    who: SampledModel
    looking: Looking
    noise: Noise
    max_new_tokens: int
    batch_size: int
    cache: Path | None
    seed: int

    def __call__(self, preferences: Sequence[Preference]) -> list[Preference | Refused]:
        open_ended = [p for p in preferences if not text_of(p.chosen.response)]
        answers = self._answers([alone(p) for p in open_ended])
        known = {p.id: one.response for p, one in zip(open_ended, answers, strict=True)}
        shown = [noisy(p, self.noise, self.seed) for p in preferences]
        given = self._answers(shown)
        spoken = [place for place, one in enumerate(given) if text_of(one.response).strip()]
        found = self._looks([given[i] for i in spoken], [preferences[i] for i in spoken])
        look_at = dict(zip(spoken, found, strict=True))
        made: list[Preference | Refused] = []
        for place, preference in enumerate(preferences):
            if place not in look_at:
                made.append(Refused(preference.id, "the model's answer is empty"))
                continue
            chosen = known.get(preference.id, preference.chosen.response)
            made.append(self._pair(preference, chosen, given[place], look_at[place]))
        return made

    def _pair(
        self, asked: Preference, chosen: tuple[Part, ...], given: Sample, look: Look
    ) -> Preference:
        prompt = asked.chosen.prompt
        details: dict[str, Any] = {
            **asked.source.details,
            "look": {name: value for name, value in asdict(look).items() if name != "heat"},
            "heat": [
                {"image": image, "rows": GRAIN, "columns": GRAIN, "values": list(values)}
                for image, values in enumerate(look.heat)
            ],
            "layers": list(self.looking.layers) or "middle",
            "rows": self.looking.rows,
            "noise": self.noise.deviation(asked.source.details["layout"]),
            "answer_by_model": chosen is not asked.chosen.response,
        }
        source = replace(
            asked.source, models=(self.who.name,), seed=self.seed, details=details, version=""
        )
        samples = (Sample(prompt, chosen), Sample(prompt, given.response))
        return Preference(samples, (1.0, 0.0), asked.aux, source)

    def _answers(self, prompts: Sequence[tuple[Message, ...]]) -> list[Sample]:
        return draw(
            functools.partial(load, self.who),
            f"vlm/{self.who.precision}/{self.who.name}",
            prompts,
            [self.seed] * len(prompts),  # greedy: nothing is drawn
            Sampling(
                temperature=0.0, max_new_tokens=self.max_new_tokens, batch_size=self.batch_size
            ),
            self._cache,
        )

    def _looks(self, answers: Sequence[Sample], asked: Sequence[Preference]) -> list[Look]:
        boxes = [_boxes(p) for p in asked]

        def compute(places: list[int]) -> list[dict[str, Any]]:
            adapter = load(self.who)
            assert isinstance(adapter, VisionLanguageAdapter)  # by its modality
            found = looks(
                adapter,
                [answers[place] for place in places],
                [boxes[place] for place in places],
                layers=self.looking.layers,
                rows=self.looking.rows,
                batch_size=self.batch_size,
            )
            return [asdict(look) for look in found]

        settings = [self.who.precision, self.who.name, self.looking.layers, self.looking.rows]
        keys = [
            key_of("look", settings, answer.id, own)
            for answer, own in zip(answers, boxes, strict=True)
        ]
        places = list(range(len(answers)))
        values = self._cache.through(keys, compute) if self._cache else compute(places)
        return [Look.of(value) for value in values]

    @property
    def _cache(self) -> Cache | None:
        return cache_in(self.cache)


def _boxes(preference: Preference) -> list[Sequence[int]] | None:
    """Where the images lie on the canvas; None where each is shown by itself."""
    drawn = preference.source.details.get("boxes")
    return None if drawn is None else [each["box"] for each in drawn]


def alone(preference: Preference) -> tuple[Message, ...]:
    """The question about the image that is meant, and no other image."""
    details = preference.source.details
    shown = media_of(preference.chosen.prompt)
    boxes = _boxes(preference)
    if boxes is not None:
        x0, y0, x1, y1 = boxes[details["target"] - 1]
        image = png(open_image(shown[0]).crop((x0, y0, x1, y1)))
    else:
        image = shown[details["target"] - 1]
    return (Message("user", (image, Text(details["question"]))),)


def noisy(preference: Preference, noise: Noise, seed: int) -> tuple[Message, ...]:
    """The prompt with noise over the image that is meant, or over all."""
    details, prompt = preference.source.details, preference.chosen.prompt
    layout, target = details["layout"], details["target"]
    deviation = noise.deviation(layout)
    if not deviation:
        return prompt
    boxes = _boxes(preference)
    on = noise.noise_on or ("target" if layout == "grid" else "all")
    place = 0

    def shown(media: Media) -> Media:
        nonlocal place
        place += 1
        if boxes is None:
            return _noisy(media, None, deviation, seed) if on == "all" or place == target else media
        return _noisy(media, boxes[target - 1] if on == "target" else None, deviation, seed)

    return tuple(
        replace(m, parts=tuple(shown(p) if isinstance(p, Media) else p for p in m.parts))
        for m in prompt
    )


def _noisy(media: Media, box: Sequence[int] | None, deviation: float, seed: int) -> Media:
    image = open_image(media)
    x0, y0, x1, y1 = box if box is not None else (0, 0, *image.size)
    pixels = np.asarray(image.crop((x0, y0, x1, y1)), dtype=np.float32)
    draws = np.random.default_rng(derive(seed, "noise", media.digest))
    changed = pixels + deviation * draws.standard_normal(pixels.shape, dtype=np.float32)
    image.paste(Image.fromarray(changed.clip(0, 255).astype(np.uint8)), (x0, y0))
    return png(image, level=1)


command = as_command("attention-filter", build, chunk=16)
