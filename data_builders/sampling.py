"""Samples of a model for builders: loaded once in each process, and kept once they are drawn."""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from mmalign.adapters.loading import Modality, load_adapter
from mmalign.data.cache import Cache, key_of
from mmalign.errors import UserError
from mmalign.records import Media, Message, Part, Sample, Text
from mmalign.rewards.loading import identity

Prompt = tuple[Message, ...]


class Sampler(Protocol):
    """An adapter, as far as it is needed here."""

    def sample(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], **options: Any
    ) -> list[Sample]: ...


@dataclass(frozen=True, kw_only=True)
class SampledModel:
    """The model that is sampled from.

    Args:
        model: Hub id or folder.
        modality: What it makes: text, vlm (text about images), image or video (denoisers), or
            image-tokens.
        lora: Folder of a LoRA to sample with.
        precision: Arithmetic and weights.
    """

    model: str
    modality: Modality = "text"
    lora: str | None = None
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    @property
    def name(self) -> str:
        """Which weights these are, for provenance and caches."""
        parts = [identity(self.model), *([identity(self.lora)] if self.lora else [])]
        return "+".join(parts)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How it is sampled; what is not given is as the model has it.

    Args:
        temperature: Of the draws of tokens; 0 takes the likeliest.
        top_p: Share of the probability that tokens are drawn from.
        top_k: Tokens that are drawn from; 0 is all.
        max_new_tokens: Tokens of a text.
        plan_tokens: Tokens of the words that a model of image tokens may write before it draws.
        guidance: Classifier-free guidance of images and videos.
        steps: Denoising steps.
        height: Pixels of images and videos.
        width: Pixels of images and videos.
        frames: Of a video.
        batch_size: Samples that are drawn at once.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    plan_tokens: int | None = None
    guidance: float | None = None
    steps: int | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    batch_size: int | None = None

    def given(self) -> dict[str, Any]:
        """The options that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def draw(
    sampler: Callable[[], Sampler],
    name: str,
    prompts: Sequence[Prompt],
    seeds: Sequence[int],
    options: Sampling,
    cache: Cache | None,
) -> list[Sample]:
    """A response to each prompt, from the cache where it was drawn before.

    sampler: gives the sampler when one is needed. name: of its weights and modality.
    Raises UserError for options that this kind of model does not have.
    """

    def compute(places: list[int]) -> list[Any]:
        asked = [prompts[place] for place in places]
        try:
            made = sampler().sample(asked, [seeds[place] for place in places], **options.given())
        except TypeError as error:
            raise UserError(f"the model is not sampled like this: {error}") from error
        return [_written(sample.response) for sample in made]

    keys = [
        key_of("sample", name, options.given(), Sample(prompt, ()).prompt_id, seed)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    values = cache.through(keys, compute) if cache else compute(list(range(len(prompts))))
    return [Sample(prompt, _read(value)) for prompt, value in zip(prompts, values, strict=True)]


@functools.lru_cache(maxsize=1)
def load(model: SampledModel) -> Sampler:
    """The model, loaded once in this process."""
    return load_adapter(model.modality, model.model, adapter=model.lora, precision=model.precision)


def _written(parts: tuple[Part, ...]) -> list[list[str]]:
    """A response as JSON."""
    return [
        ["text", part.text]
        if isinstance(part, Text)
        else [part.kind, base64.b64encode(part.content).decode()]
        for part in parts
    ]


def _read(value: list[list[str]]) -> tuple[Part, ...]:
    return tuple(
        Text(body) if kind == "text" else Media(_kind(kind), data=base64.b64decode(body))
        for kind, body in value
    )


def _kind(name: str) -> Literal["image", "video"]:
    return "video" if name == "video" else "image"


def cache_in(folder: Path | None) -> Cache | None:
    """The cache in a folder, one for each process that asks."""
    return None if folder is None else _opened(folder)


@functools.lru_cache(maxsize=4)
def _opened(folder: Path) -> Cache:
    return Cache(folder / "cache.sqlite")
