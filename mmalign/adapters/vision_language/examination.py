"""Whether a model computes through mmalign what it computes through its own library.

Tried out whenever a model is loaded, on one prompt with an image: its log-probabilities must be
those of its own `generate`, which also admits families that nobody has listed; and where prompts
can be shared, the shared way must give the same. Axes: p scored positions, h hidden size, v
vocabulary.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmalign.adapters.autoregressive import (
    Abilities,
    Tokens,
    causal_lm,
    evaluating,
    own_tail,
    predicting_states,
)
from mmalign.adapters.vision_language.adapter import VisionLanguageAdapter
from mmalign.errors import UserError
from mmalign.media import open_image, png
from mmalign.records import PLAIN, Media, Message, Sample, Text

STEPS = 3
"""Tokens that are generated."""


def examine_with_images(adapter: VisionLanguageAdapter) -> Abilities:
    """What the model can do when there are images.

    Raises UserError where it would compute something else than it does through its own library.
    """
    collator, name = adapter.collator, type(adapter.policy).__name__
    limit, collator.max_length = collator.max_length, None
    packed, collator.packed = collator.packed, False
    with evaluating(adapter.policy), torch.no_grad(), adapter.arithmetic():
        difference = _difference(*_as_generated(adapter))
        if difference > _tolerance(adapter):
            raise UserError(
                f"{name} answers otherwise here than through its own library (relative difference "
                f"{difference:.1e}), so it needs more than the vision-language adapter passes on",
                hint="use a model of another family, or report this one with its config.json",
            )
        if packed:
            difference = _difference(*_both_ways(adapter))
            packed = difference <= _tolerance(adapter)
            if not packed:
                warnings.warn(
                    f"{name} cannot compute a prompt with images once for all its responses "
                    f"(relative difference {difference:.1e}); the slower plain way is used",
                    stacklevel=3,
                )
    collator.max_length, collator.packed = limit, packed
    return replace(adapter.abilities, packed=packed)


def _as_generated(adapter: VisionLanguageAdapter) -> tuple[Tensor, Tensor]:
    """(p v) logits here, and those with which the library generated the same tokens."""
    collator, lm = adapter.collator, causal_lm(adapter.policy)
    [sample] = _samples("")
    text = collator.processing.plain_parts(sample.prompt[0].parts)
    [image] = [part for part in sample.prompt[0].parts if isinstance(part, Media)]
    given = collator.processing.call(text, [open_image(image)]).to(lm.device)
    found = lm.generate(
        **given,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
        do_sample=False,
        num_beams=1,
        suppress_tokens=(~adapter.speakable()).nonzero()[:, 0].tolist(),
        return_dict_in_generate=True,
        output_logits=True,
        pad_token_id=collator.words.pad_id,
    )
    answer = found.sequences[0, -STEPS:].tolist()
    prompt = collator.prompt(sample.prompt)
    tokens = Tokens(prompt.ids, tuple(answer), (1.0,) * STEPS, prompt.images)
    states = _states(adapter, [tokens], [sample])
    logits = own_tail(lm)(states) if adapter.abilities.tail else states
    return logits, torch.cat(found.logits)


def _both_ways(adapter: VisionLanguageAdapter) -> tuple[Tensor, Tensor]:
    """(p h) states of two answers with a prompt of their own each, and with one for both."""
    found = []
    for adapter.collator.packed in (True, False):
        samples = _samples("A dog.", "It is a red cat.")
        tokens = [adapter.collator.tokens(sample) for sample in samples]
        found.append(_states(adapter, tokens, samples))
    return found[0], found[1]


def _states(adapter: VisionLanguageAdapter, tokens: list[Tokens], samples: list[Sample]) -> Tensor:
    inputs = adapter.encode(adapter.collator.batch(tokens, samples))
    with adapter.seeing(adapter.policy, inputs["images"]) as call:
        given = {**inputs, "call": {**inputs["call"], **call}}
        return predicting_states(adapter.policy, given, adapter.abilities)[0]


def _samples(*answers: str) -> list[Sample]:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    prompt = (Message(PLAIN, (png(Image.fromarray(noise)), Text(" What is it?"))),)
    return [Sample(prompt, (Text(answer),)) for answer in answers]


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative, and infinite where something is not a number."""
    found = ((ours.float() - theirs.float()).abs().mean() / theirs.float().abs().mean()).item()
    return found if found == found else float("inf")


def _tolerance(adapter: VisionLanguageAdapter) -> float:
    return 1e-4 if adapter.precision == torch.float32 else 0.05
