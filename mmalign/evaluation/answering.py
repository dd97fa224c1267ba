"""Who answers the questions of a suite: a model that is loaded here, or one that is served."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import BadSample, UserError
from mmalign.records import Message, Sample, Text
from mmalign.rewards.endpoint import Endpoint
from mmalign.rewards.judge import Judge
from mmalign.training.log import console

Prompt = tuple[Message, ...]
Sampler = Callable[[Sequence[Prompt], Sequence[int]], Sequence[Sample]]
"""Prompts and a seed each to samples, as an adapter's `sample` does it."""


@dataclass(frozen=True, kw_only=True)
class AskedModel:
    """Which model answers.

    Args:
        model: Hub id or folder of an image-text-to-text model; or a .jsonl file of answers, one
            {"id", "answer"} a line, to be scored as they are.
        adapter: Folder of a LoRA on the model.
        baseline: Another model, or file of answers, that is asked the same; the results show both
            and their difference. For the model without its adapter, give its name again.
        url: OpenAI-compatible endpoint that serves model and baseline under these names, such as
            vLLM's http://localhost:8000/v1; they are then asked there, not loaded.
        key: Name of the environment variable that holds the endpoint's key.
        precision: Arithmetic and weights of the model.
        chat_template: Jinja template, or a file with one, in place of the model's own.
        trust_remote_code: Run code that comes with the model.
    """

    model: str
    adapter: str | None = None
    baseline: str | None = None
    url: str | None = None
    key: str = "OPENAI_API_KEY"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    chat_template: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.url is not None and self.adapter is not None:
            raise UserError(
                "an endpoint serves models by name, and takes no --adapter",
                hint="let it serve the adapter, and give the name under which it does as --model",
            )

    def stages(self) -> dict[str, tuple[str, str | None]]:
        """Names of the stages in the results, each with its model and adapter."""
        if self.baseline is None:
            return {"model": (self.model, self.adapter)}
        return {"before": (self.baseline, None), "after": (self.model, self.adapter)}


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How it answers.

    Args:
        max_new_tokens: Tokens of an answer at most. Longer answers hallucinate more: compare
            figures at one length only.
        temperature: 0 takes the likeliest token each time.
        batch_size: Questions that are answered together.
        limit: Ask so many questions only, taken from all over the suite.
        resume: Go on with the answers in the output folder; otherwise ask anew.
        seed: Of what is drawn at random.
    """

    max_new_tokens: int = 512
    temperature: float = 0.0
    batch_size: int = 16
    limit: int | None = None
    resume: bool = True
    seed: int = 0


def is_file(model: str) -> bool:
    """Whether this is a file of answers in place of a model."""
    return model.endswith(".jsonl")


class ModelSampler:
    """Answers of a model that is loaded at the first question: scoring alone needs none."""

    def __init__(
        self, models: AskedModel, model: str, adapter: str | None, options: AnswerOptions
    ) -> None:
        self.models, self.model, self.adapter, self.options = models, model, adapter, options
        self.policy: Any = None

    def identity(self) -> dict[str, Any]:
        """What the answers depend on."""
        return {
            "model": self.model,
            "weights": weights_mark(self.model),
            "adapter": self.adapter,
            "adapter_weights": self._adapter_mark(),
            "precision": self.models.precision,
            "chat_template": self.models.chat_template,
            "max_new_tokens": self.options.max_new_tokens,
            "temperature": self.options.temperature,
            "seed": self.options.seed,
        }

    def _adapter_mark(self) -> str | None:
        if self.adapter is None:
            return None
        if not (Path(self.adapter) / "adapter_config.json").is_file():
            raise UserError(
                f"{self.adapter} holds no peft adapter",
                hint="--adapter is a folder with adapter_config.json, such as runs/align-vlm/model",
            )
        return weights_mark(self.adapter)

    def __call__(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Sequence[Sample]:
        if self.policy is None:
            self.policy = self._load()
        samples: list[Sample] = self.policy.sample(
            prompts,
            seeds,
            max_new_tokens=self.options.max_new_tokens,
            temperature=self.options.temperature,
            batch_size=len(prompts),
        )
        return samples

    def _load(self) -> Any:
        from mmalign.adapters.vision_language import load_vision_language

        console.print(f"loading {self.model}{f' with {self.adapter}' if self.adapter else ''}")
        return load_vision_language(
            self.model,
            adapter=self.adapter,
            precision=self.models.precision,
            chat_template=self.models.chat_template,
            trust_remote_code=self.models.trust_remote_code,
            trained=False,
        )


class ServedSampler:
    """Answers of a model that an OpenAI-compatible endpoint serves."""

    def __init__(self, models: AskedModel, model: str, options: AnswerOptions) -> None:
        assert models.url is not None  # or the model is loaded
        self.models, self.options = models, options
        endpoint = Endpoint(models.url, key=os.environ.get(models.key))
        drawn = {"seed": options.seed} if options.temperature else {}
        self.served = Judge(
            model,
            endpoint,
            temperature=options.temperature,
            max_tokens=options.max_new_tokens,
            at_once=options.batch_size,
            cut=True,
            extra=drawn,
        )

    def identity(self) -> dict[str, Any]:
        """What the answers depend on, as far as it can be known."""
        return {"model": self.served.model, "url": self.models.url, **self.served.settings}

    def __call__(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> Sequence[Sample]:
        samples = []
        for prompt, answer in zip(prompts, self.served.ask_all(prompts, str), strict=True):
            if isinstance(answer, BadSample):
                raise answer
            samples.append(Sample(prompt, (Text(answer),)))
        return samples


def weights_mark(model: str) -> str | None:
    """What tells a model's weights from others under its name: of a folder, a hash over names,
    sizes and three pieces of its files; of a hub model, the commit that is in the cache."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(model, "config.json")
        except HFValidationError:
            return None  # it cannot be a model at all, which loading will say
        return Path(found).parent.name if isinstance(found, str) else None
    mark = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.suffix in _TELLING):
        size = file.stat().st_size
        mark.update(f"{file.relative_to(folder)} {size}".encode())
        with file.open("rb") as content:
            for start in sorted({0, size // 2, max(0, size - _PIECE)}):
                content.seek(start)
                mark.update(content.read(_PIECE))
    return mark.hexdigest()[:16]


_PIECE = 1 << 16
_TELLING = {".safetensors", ".json", ".jinja", ".txt", ".model"}
