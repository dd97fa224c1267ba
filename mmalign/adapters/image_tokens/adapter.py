"""The image-token adapter: log-probabilities, sampling and saving of autoregressive image models.

The log-probability of an image is the sum over its codes, each among all codes and nothing else, at
temperature 1 and, unless asked otherwise, without guidance. Images are drawn with guidance, so what
is trained is not exactly what draws; that is what published training does (arXiv:2505.00703).
Axes: n samples, t scored tokens.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from torch import Tensor, nn

from mmalign.adapters import lora
from mmalign.adapters.autoregressive import (
    causal_lm,
    evaluating,
    head_trained,
    moved,
    tabulated,
    vocabulary,
)
from mmalign.adapters.image_tokens.collate import Drawn, ImageTokenCollator, laid_out
from mmalign.adapters.image_tokens.drawing import Taste, draw_codes, draw_plans
from mmalign.adapters.image_tokens.family import Family
from mmalign.adapters.image_tokens.model import code_tail, predicting_states, text_tail
from mmalign.adapters.image_tokens.pictures import Pixels, picture
from mmalign.adapters.protocol import DIVERGENCE, PREDICTIONS, Inputs, Scored
from mmalign.adapters.sampling import Progress, check_request, in_batches
from mmalign.adapters.saving import write_folder
from mmalign.adapters.token_log_probs import log_distributions, token_log_probs
from mmalign.errors import UserError
from mmalign.records import Media, Message, Part, Sample, Text, text_of

Item = TypeVar("Item")

_VERSIONS = ("torch", "transformers", "tokenizers", "peft")
_REMEMBERED = 20_000  # pictures whose codes are kept in memory
_AT_ONCE = 16  # pictures that go through the image tokenizer together


@dataclass
class ImageTokenAdapter:
    """An autoregressive image generator as mmalign sees it; `load_image_tokens` makes one.

    policy: the model, under LoRA or not. precision: of the arithmetic; the image tokenizer computes
    in float32. dropouts: the model's own dropout probabilities by configuration and name, which are
    0 here and are put back into what is saved.
    """

    policy: nn.Module
    family: Family
    collator: ImageTokenCollator
    pixels: Pixels
    packed: bool
    precision: torch.dtype = torch.float32
    dropouts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seeded = False
    strata = 1
    _codes: OrderedDict[str, Tensor] = field(default_factory=OrderedDict, repr=False)

    @property
    def device(self) -> torch.device:
        return causal_lm(self.policy).device

    @property
    def processor(self) -> Any:
        return self.collator.processor

    @property
    def fingerprint(self) -> str:
        """Hash of all but the weights that log-probabilities depend on, the image tokenizer's
        weights included."""
        tokenizer, config = self.collator.tokenizer, causal_lm(self.policy).config.to_dict()
        parts = {
            "tokenizer": tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else "",
            "vocabulary": sorted(tokenizer.get_vocab().items()),
            "template": self.processor.chat_template,
            "layout": repr(self.collator.layout),
            "opening": self.collator.opening,
            "options": [self.collator.max_length, self.collator.plan, self.collator.guidance],
            "pixels": repr(self.pixels),
            "precision": str(self.precision),
            "packed": self.packed,
            "config": _without_origin(config),
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def size(self) -> Callable[[Sequence[Sample]], int]:
        """Tokens that the model computes for these samples, which share a row where they can."""
        return self.collator.size

    @property
    def collate(self) -> ImageTokenCollator:
        """Called with samples and seeds. Not a method, so that what is sent to data workers holds
        no model."""
        return self.collator

    def encode(self, inputs: Inputs) -> Inputs:
        """Finds the codes of pictures that do not remember theirs, and lays the batch out."""
        drawn = self._with_codes(inputs["drawn"])
        rows = self.collator.rows(drawn)
        batch = laid_out(rows, packed=self.packed, pad_id=self.collator.pad_id)
        if len(rows) > len(drawn):  # guidance: places are for the rows with prompts only
            own = laid_out(drawn, packed=self.packed, pad_id=self.collator.pad_id)
            batch |= {name: own[name] for name in ("targets", "places", "mask", "weights")}
        laid: Inputs = moved(batch, self.device)
        return laid

    def log_probs(self, model: nn.Module, inputs: Inputs, stats: Collection[str] = ()) -> Scored:
        """stats: names out of `token_log_probs.STATS`."""
        lm, layout = causal_lm(model), self.collator.layout
        targets, names = inputs["targets"], sorted(set(stats) - {PREDICTIONS, DIVERGENCE})
        compared = inputs[PREDICTIONS] if DIVERGENCE in stats else (None, None)
        names += [DIVERGENCE] if DIVERGENCE in stats else []
        predictions: list[Tensor | None] = []
        with self.arithmetic():
            states = predicting_states(model, lm, self.family, layout, inputs)
            if self.collator.guidance != 1:
                states = torch.cat(states.chunk(2), -1)
            is_code = targets >= layout.first_code
            columns = states.new_zeros(1 + len(names), len(targets), dtype=torch.float32)
            for part, tail, size, first, other in (
                (is_code, code_tail(lm, self.family, self.collator.guidance), layout.codes,
                 layout.first_code, compared[0]),
                (~is_code, text_tail(lm, self.family), vocabulary(lm), 0, compared[1]),
            ):  # fmt: skip
                some = bool(part.any())
                if PREDICTIONS in stats:
                    predictions.append(
                        log_distributions(states[part], tail, vocabulary=size) if some else None
                    )
                if not some:
                    continue
                flat, figures = token_log_probs(
                    states[part], targets[part] - first, tail, vocabulary=size,
                    head_trained=self._heads_trained(lm), stats=set(names) - {DIVERGENCE},
                    reference=other,
                )  # fmt: skip
                found = torch.stack([flat, *(figures[name] for name in names)])
                columns = columns.index_copy(1, part.nonzero()[:, 0], found)
        scored = tabulated(columns[0], dict(zip(names, columns[1:], strict=True)), inputs)
        return replace(scored, predictions=tuple(predictions) or None)

    def reference_mode(self) -> AbstractContextManager[None]:
        """Inside, `policy` is the model as it was loaded. Raises ValueError without LoRA."""
        return lora.reference_mode(self.policy)

    def sample(
        self,
        prompts: Sequence[tuple[Message, ...]],
        seeds: Sequence[int],
        *,
        guidance: float | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        plan_tokens: int = 0,
        batch_size: int = 16,
        merge: bool = False,
        progress: Progress | None = None,
        **unknown: Any,
    ) -> list[Sample]:
        """One image to each prompt, after a plan in words of up to `plan_tokens` tokens.

        A row's draws depend on its own seed only. guidance: 1 is none; as published by default (5,
        GLM-Image 1), or that of the log-probabilities where they have one. temperature 0 is greedy;
        top_k 0 and top_p 1 keep all codes. height, width: pixels, where the model has a choice.
        merge: fold the LoRA into the weights meanwhile.
        The pictures remember their codes, so that their log-probabilities are exact.
        """
        check_request("image-token", prompts, seeds, unknown)
        size = [side for side in (height, width) if side is not None]
        drawer = self.at(size[0], size[-1]) if size else self
        if guidance is None:
            guidance = self.collator.guidance
            guidance = self.family.guidance if guidance == 1 else guidance
        self.family.check_guidance(guidance)
        taste = Taste(guidance, temperature, top_k, top_p)

        def draw(rows: list[int]) -> list[Sample]:
            asked, own = [prompts[row] for row in rows], [seeds[row] for row in rows]
            plans = drawer._plans(asked, own, taste, plan_tokens)
            images = drawer.pictures(drawer.codes(asked, own, taste, plans=plans), asked)
            return [
                Sample(prompt, _response(plan, image))
                for prompt, plan, image in zip(asked, plans, images, strict=True)
            ]

        lengths = [len(self.collator.prompt_ids(prompt)) for prompt in prompts]
        with self.drawing(merge=merge):
            return in_batches(lengths, draw, batch_size=batch_size, progress=progress)

    def at(self, height: int, width: int) -> ImageTokenAdapter:
        """The same model for images of another size. Raises UserError where it has no choice."""
        family, lm = self.family, causal_lm(self.policy)
        grid = family.grid(lm, self.processor, (height, width))
        preview = family.preview(grid) if family.preview else None
        layout = replace(self.collator.layout, grid=grid, preview=preview)
        collator = self.collator.at(layout, family.opening(self.processor, grid))
        return replace(self, collator=collator, _codes=OrderedDict())

    @contextmanager
    def drawing(self, *, merge: bool = False) -> Iterator[None]:
        """What must be active while `codes` is called."""
        folded = lora.merged(self.policy) if merge else nullcontext()
        with evaluating(self.policy), torch.no_grad(), self.arithmetic(), folded:
            yield

    def codes(
        self,
        prompts: Sequence[tuple[Message, ...]],
        seeds: Sequence[int],
        taste: Taste,
        *,
        plans: Sequence[str] | None = None,
        begun: Sequence[Sequence[int]] | None = None,
        upto: int | None = None,
    ) -> list[list[int]]:
        """Codes drawn to prompts, or the first `upto` of them; see `drawing.draw_codes`."""
        told = [
            [*self.collator.prompt_ids(prompt), *self._plan_ids(plan), *self.collator.opening]
            for prompt, plan in zip(prompts, plans or [""] * len(prompts), strict=True)
        ]
        return draw_codes(
            causal_lm(self.policy), self.family, self.collator, told, seeds, taste,
            begun=begun, upto=upto,
        )  # fmt: skip

    def pictures(
        self, codes: Sequence[Sequence[int]], prompts: Sequence[tuple[Message, ...]]
    ) -> list[Media]:
        """Images of all their codes, which they remember, drawn to prompts."""
        lm, layout = causal_lm(self.policy), self.collator.layout
        rows, columns = layout.grid.rows, layout.grid.columns
        words = ["\n".join(text_of(message.parts) for message in prompt) for prompt in prompts]
        made: list[Media] = []
        with self._tokenizing():
            for some, told in zip(_batches(codes), _batches(words), strict=True):
                drawn = torch.tensor(some, device=self.device)[:, -rows * columns :]
                pixels = self.family.to_pixels(lm, drawn.unflatten(1, (rows, columns)), told)
                if pixels.dtype != torch.uint8:
                    pixels = self.pixels.bytes(pixels)
                made += [
                    picture(image, layout.rows(own), layout.codec)
                    for image, own in zip(pixels, some, strict=True)
                ]
        return made

    def save(self, folder: Path) -> None:
        """The LoRA as peft writes it, or all weights; the processor beside it."""

        def write(where: Path) -> None:
            if isinstance(self.policy, PeftModel):
                self.policy.save_pretrained(where, selected_adapters=[lora.TRAINED])
            else:
                self._write_weights(self.policy, where)
            self.processor.save_pretrained(where)

        write_folder(Path(folder), write)

    def export_merged(self, folder: Path) -> None:
        """The whole model with the LoRA folded in, as plain transformers reads it."""

        def write(where: Path) -> None:
            with lora.merged(self.policy):
                state = {
                    name.replace(".base_layer.", "."): tensor
                    for name, tensor in causal_lm(self.policy).state_dict().items()
                    if ".lora_" not in name
                }
                self._write_weights(causal_lm(self.policy), where, state)
            self.processor.save_pretrained(where)

        write_folder(Path(folder), write)

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Inside, the model computes in the adapter's precision."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def _write_weights(self, lm: Any, folder: Path, state: Any = None) -> None:
        silenced = [
            (_config_at(lm.config, where), name, value)
            for where, values in self.dropouts.items()
            for name, value in values.items()
        ]
        try:
            for config, name, value in silenced:
                setattr(config, name, value)
            lm.save_pretrained(folder, state_dict=state)
        finally:
            for config, name, _ in silenced:
                setattr(config, name, 0.0)

    def _heads_trained(self, lm: Any) -> bool:
        """Whether anything behind the decoder gets gradients."""
        return any(
            weight.requires_grad
            for name, weight in lm.named_parameters()
            if "generation_head" in name
        ) or head_trained(lm)

    def _plans(
        self, prompts: list[tuple[Message, ...]], seeds: list[int], taste: Taste, most: int
    ) -> list[str]:
        if most <= 0:
            return [""] * len(prompts)
        if not self.family.writes:
            raise UserError(
                "this model has no head for words, so it cannot write a plan before it draws",
                hint="leave the plan's tokens out",
            )
        told = [self.collator.prompt_ids(prompt) for prompt in prompts]
        lm = causal_lm(self.policy)
        return draw_plans(lm, self.family, self.collator, told, seeds, taste, most=most)

    def _plan_ids(self, plan: str) -> list[int]:
        return list(self.collator.tokenizer(plan, add_special_tokens=False)["input_ids"])

    @contextmanager
    def _tokenizing(self) -> Iterator[None]:
        """Inside, the image tokenizer computes in float32 and as it was published: Emu3's has batch
        norms, which in training mode would change with every picture."""
        with ExitStack() as inside:
            for part in self.family.tokenizer:
                inside.enter_context(evaluating(causal_lm(self.policy).get_submodule(part)))
            inside.enter_context(torch.no_grad())
            inside.enter_context(torch.autocast(self.device.type, enabled=False))
            yield

    def _with_codes(self, drawn: Sequence[Drawn]) -> list[Drawn]:
        """The samples with the codes of their pictures, each picture encoded once."""
        unknown = {
            one.picture[0]: one.picture[1]
            for one in drawn
            if one.picture is not None and one.picture[0] not in self._codes
        }
        lm = causal_lm(self.policy)
        with self._tokenizing():
            for digests in _batches(list(unknown)):
                pixels = torch.stack([unknown[digest] for digest in digests]).to(self.device)
                codes = self.family.to_codes(lm, self.pixels.normalised(pixels))
                codes = codes.view(len(digests), -1).cpu()
                self._codes.update(zip(digests, codes, strict=True))
        found = [self._filled(one) for one in drawn]
        while len(self._codes) > _REMEMBERED:
            self._codes.popitem(last=False)
        return found

    def _filled(self, one: Drawn) -> Drawn:
        if one.picture is None:
            return one
        codes = self.collator.layout.rows(self._codes[one.picture[0]].tolist())
        ids, _ = self.collator.image_ids(codes)
        completion = (*one.tokens.completion[: -len(ids)], *ids)
        return Drawn(replace(one.tokens, completion=completion), one.scored)


def _response(plan: str, image: Media) -> tuple[Part, ...]:
    return (Text(plan), image) if plan else (image,)


def _batches(items: Sequence[Item]) -> list[Sequence[Item]]:
    return [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]


def _config_at(config: Any, where: str) -> Any:
    return getattr(config, where) if where else config


def _without_origin(config: Any) -> Any:
    """Where a model lies and what wrote it does not change what it computes."""
    if not isinstance(config, dict):
        return config
    origin = ("_name_or_path", "transformers_version", "dtype")
    return {name: _without_origin(value) for name, value in config.items() if name not in origin}
