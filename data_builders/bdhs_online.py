"""BDHS inside training: before each step the policy, as it is then, writes what is rejected.

arXiv:2407.02477, "online"; the method itself is in bdhs.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmalign.adapters.vision_language import VisionLanguageAdapter
from mmalign.data_builders.bdhs import (
    PUBLISHED_BLINDING,
    PUBLISHED_COMPLETING,
    Blinding,
    Completing,
    Rejected,
    rejected_answers,
)
from mmalign.data_builders.likeness import Embed
from mmalign.errors import BadSample
from mmalign.records import Media, Preference, Provenance, Sample, Text, media_of, pair, text_of


def online(
    adapter: VisionLanguageAdapter,
    embed: Embed,
    *,
    blinding: Blinding = PUBLISHED_BLINDING,
    completing: Completing = PUBLISHED_COMPLETING,
    batch_size: int = 16,
) -> Callable[[Sequence[Preference], Sequence[int]], list[Preference | ValueError]]:
    """Online BDHS, as `training.align` takes it for `remake`.

    Before each step the chosen answers of its records are set against what the policy, as it is
    then, writes unseeing. Where it writes the chosen answer again, or nothing, the record stays as
    it was given, if it has a rejected answer.
    """

    def remake(
        preferences: Sequence[Preference], seeds: Sequence[int]
    ) -> list[Preference | ValueError]:
        done: dict[int, Preference | ValueError] = {}
        for place, each in enumerate(preferences):
            if why := _unfit(adapter, each.chosen):
                done[place] = BadSample(why)
        fit = [place for place in range(len(preferences)) if place not in done]
        made = rejected_answers(
            adapter,
            [preferences[place].chosen for place in fit],
            [seeds[place] for place in fit],
            embed,
            blinding=blinding,
            completing=completing,
            batch_size=batch_size,
        )
        for place, rejected in zip(fit, made, strict=True):
            done[place] = _remade(preferences[place], rejected)
        return [done[place] for place in range(len(preferences))]

    return remake


def _unfit(adapter: VisionLanguageAdapter, sample: Sample) -> str:
    """Why no answer can be set against this one; "" where one can."""
    if not media_of(sample.prompt):
        return "its prompt shows no image that could be hidden"
    if any(isinstance(part, Media) for part in sample.response):
        return "its answer is not text"
    try:
        adapter.size([sample])
    except BadSample as error:
        return str(error)
    return ""


def _remade(given: Preference, rejected: Rejected) -> Preference | ValueError:
    chosen = given.chosen
    if rejected.text and rejected.text != text_of(chosen.response).strip():
        other = Sample(chosen.prompt, (Text(rejected.text),))
        source = Provenance("bdhs", parents=(given.id,), details={"online": True})
        return pair(chosen, other, aux=dict(given.aux), source=source)
    if len(given.candidates) > 1:
        return given
    return BadSample(f"in {rejected.attempts} attempts the model wrote nothing else")
