"""The vision-language adapter: log-probabilities, sampling and saving of a model that sees.

Policy and reference share the vision tower's work wherever it is frozen: `encode` does it once for
each image of a batch. Axes: n samples, r rows, s positions, v vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerBase

from mmalign.adapters import lora
from mmalign.adapters.autoregressive import (
    Abilities,
    causal_lm,
    evaluating,
    joined,
    moved,
    score,
    vocabulary,
)
from mmalign.adapters.decoding import Going, Started, decode, holding
from mmalign.adapters.fingerprint import fingerprint
from mmalign.adapters.protocol import Inputs, Scored
from mmalign.adapters.sampling import Progress, SeededDraws, check_request, in_batches
from mmalign.adapters.saving import write_folder, write_weights
from mmalign.adapters.vision_language.collate import Prompt, VisionLanguageCollator
from mmalign.adapters.vision_language.features import crossed, encode_images, given
from mmalign.adapters.vision_language.layouts import ImageSpan
from mmalign.records import Message, Sample, Text


@dataclass
class VisionLanguageAdapter:
    """An image-text-to-text model as mmalign sees it; `load_vision_language` makes one.

    policy: the model, under LoRA or not. frozen_vision: whether neither the vision tower nor the
    projector is trained, so that policy and reference share their features. precision: of the
    arithmetic; weights that are trained are float32. dropouts: as published, 0 meanwhile.
    """

    policy: nn.Module
    collator: VisionLanguageCollator
    abilities: Abilities
    frozen_vision: bool = True
    precision: torch.dtype = torch.float32
    dropouts: Mapping[str, float] = field(default_factory=dict)
    seeded = False
    strata = 1

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.collator.words.tokenizer

    @property
    def device(self) -> torch.device:
        return causal_lm(self.policy).device

    @property
    def fingerprint(self) -> str:
        """Hash of all but the weights that log-probabilities depend on."""
        return fingerprint(
            causal_lm(self.policy),
            self.tokenizer,
            processor=self.collator.processing.processor.to_dict(),
            max_length=self.collator.max_length,
            truncate=self.collator.truncate,
            abilities=[self.abilities.packed, self.abilities.tail],
            precision=str(self.precision),
        )

    @property
    def size(self) -> Callable[[Sequence[Sample]], int]:
        """Tokens, of images too, that the model computes for these samples."""
        return self.collator.size

    @property
    def collate(self) -> VisionLanguageCollator:
        """Called with samples and seeds. Not a method, so that what is sent to data workers holds
        no model."""
        return self.collator

    def encode(self, inputs: Inputs) -> Inputs:
        """Moves everything to the device; a frozen tower sees every image of the batch once."""
        inputs = moved(inputs, self.device)
        if not (self.frozen_vision and inputs["images"]["order"]):
            return inputs
        images, kept = inputs["images"], self.collator.features
        with torch.no_grad(), self.arithmetic():
            fresh = encode_images(causal_lm(self.policy), images)
        if kept is not None:
            for number, encoded in fresh.items():
                kept.store(images["names"][number], encoded)
        features = {**images["cached"], **fresh}

        def with_features(one: Inputs) -> Inputs:
            return {**one, "images": {"order": one["images"]["order"], "features": features}}

        if "parts" in inputs:
            return {**inputs, "parts": [with_features(part) for part in inputs["parts"]]}
        return with_features(inputs)

    def log_probs(self, model: nn.Module, inputs: Inputs, stats: Collection[str] = ()) -> Scored:
        """stats: names out of `token_log_probs.STATS`."""
        if "parts" in inputs:
            parts = [self.log_probs(model, part, stats) for part in inputs["parts"]]
            return joined(parts, inputs["rows"])
        with self.arithmetic(), self.seeing(model, inputs["images"]) as call:
            return score(
                model, {**inputs, "call": {**inputs["call"], **call}}, self.abilities, stats
            )

    def reference_mode(self) -> AbstractContextManager[None]:
        """Inside, `policy` is the model as it was loaded. Raises ValueError without LoRA."""
        return lora.reference_mode(self.policy)

    def spans(self, prompt: tuple[Message, ...]) -> list[ImageSpan]:
        """Which tokens of the prompt stand for which parts of its images, in the images' order.

        Raises BadSample where the processor's tokens are not laid out as its family's are.
        """
        return self.collator.spans(prompt)

    def sample(
        self,
        prompts: Sequence[tuple[Message, ...]],
        seeds: Sequence[int],
        *,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        stop: Sequence[str] = (),
        batch_size: int = 16,
        merge: bool = False,
        progress: Progress | None = None,
        **unknown: Any,
    ) -> list[Sample]:
        """One response to each prompt, in the order given, without the token that ends it.

        A row's draws depend on its own seed only; tokens that stand for images are never drawn.
        temperature 0 is greedy; top_p 1 and top_k 0 keep all tokens. stop: strings at which a
        response is cut, themselves left out.
        merge: fold the LoRA into the weights meanwhile (quicker, twice the memory).
        """
        check_request("vision-language", prompts, seeds, unknown)
        read = [self.collator.prompt(prompt) for prompt in prompts]

        def answers(rows: list[int]) -> list[str]:
            if apart := self._apart(read, rows):
                said = {
                    row: one for some in apart for row, one in zip(some, answers(some), strict=True)
                }
                return [said[row] for row in rows]
            draws = SeededDraws(
                [seeds[row] for row in rows],
                steps=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                allowed=self.speakable(),
            )
            found = decode(
                causal_lm(self.policy),
                [read[row].ids for row in rows],
                draws,
                steps=max_new_tokens,
                stop_ids=self.stop_ids,
                pad_id=self.collator.words.pad_id,
                start=self._read([prompts[row] for row in rows]),
            )
            return [self._text(answer, stop) for answer in found]

        folded = lora.merged(self.policy) if merge else nullcontext()
        with evaluating(self.policy), torch.no_grad(), self.arithmetic(), folded:
            texts = in_batches(
                [len(one.ids) for one in read], answers, batch_size=batch_size, progress=progress
            )
        return [Sample(prompt, (Text(text),)) for prompt, text in zip(prompts, texts, strict=True)]

    def save(self, folder: Path) -> None:
        """The LoRA as peft writes it, or all weights; the processor beside it."""

        def write(where: Path) -> None:
            if isinstance(self.policy, PeftModel):
                self.policy.save_pretrained(where, selected_adapters=[lora.TRAINED])
            else:
                write_weights(causal_lm(self.policy), where, self.dropouts)
            self.collator.processing.processor.save_pretrained(where)

        write_folder(Path(folder), write)

    def export_merged(self, folder: Path) -> None:
        """The whole model with the LoRA folded in, as plain transformers reads it."""
        model = self.policy
        if isinstance(model, PeftModel):
            model = copy.deepcopy(model).merge_and_unload(adapter_names=[lora.TRAINED])

        def write(where: Path) -> None:
            write_weights(causal_lm(model), where, self.dropouts)
            self.collator.processing.processor.save_pretrained(where)

        write_folder(Path(folder), write)

    @contextmanager
    def seeing(self, model: nn.Module, images: Inputs) -> Iterator[dict[str, Any]]:
        """Inside, a call of the model with these further arguments sees the images."""
        if not images["order"]:
            yield {}
            return
        lm = causal_lm(model)
        features = images.get("features") or encode_images(lm, images)
        if self.collator.processing.family.cross_attention:
            yield crossed(features, images["order"])
            return
        with given(lm, features, images["order"]) as call:
            yield call

    def _apart(self, read: Sequence[Prompt], rows: Sequence[int]) -> list[list[int]]:
        """The rows by their number of images, where they cannot be decoded together because of
        it: see `VisionLanguageCollator.batch`."""
        alike: dict[int, list[int]] = {}
        for row in rows:
            alike.setdefault(len(read[row].images), []).append(row)
        crossed = self.collator.processing.family.cross_attention
        return list(alike.values()) if crossed and len(alike) > 1 else []

    def _read(self, prompts: Sequence[tuple[Message, ...]]) -> Started:
        """One pass over the distinct prompts, padded on the left, images included."""
        read = [self.collator.prompt(prompt) for prompt in prompts]
        first = dict(zip(read, prompts, strict=True))
        call, after = self.collator.padded(list(first))
        lm = causal_lm(self.policy)
        inputs = self.encode({"images": self.collator.images(list(first.values()))})
        cache = DynamicCache(config=lm.config.get_text_config())
        with self.seeing(self.policy, inputs["images"]) as further:
            out = lm(
                **moved(call, self.device),
                **further,
                **holding(lm, cache),
                use_cache=True,
                logits_to_keep=1,
            )
        place = {prompt: number for number, prompt in enumerate(first)}
        index = torch.tensor([place[prompt] for prompt in read])
        seen, after = call["attention_mask"][index].to(self.device), after[index].to(self.device)
        index = index.to(self.device)
        cache.batch_select_indices(index)
        rows = torch.arange(len(prompts), device=self.device)
        each = {}
        if "cross_attention_mask" in call:  # as the prompt's last token looks at images
            each = {
                "cross_attention_mask": call["cross_attention_mask"][:, -1:].to(self.device)[index]
            }
        going = Going(rows, seen, after, torch.zeros_like(rows, dtype=torch.bool), each)
        return out.logits[index, -1], cache, going

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a response: the model's, the tokenizer's and the chat template's."""
        own = causal_lm(self.policy).generation_config.eos_token_id
        ids = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        end = self.collator.words.end
        if end is not None and end.text:
            ids.add(self.tokenizer(end.text, add_special_tokens=False).input_ids[-1])
        return sorted(i for i in ids if i is not None)

    def speakable(self) -> Tensor:
        """(v,) false for rows by which the vocabulary is padded and for what stands for images."""
        allowed = torch.arange(vocabulary(causal_lm(self.policy))) < len(self.tokenizer)
        silent = [i for i in self.collator.processing.image_ids if i < len(allowed)]
        allowed[silent] = False
        return allowed

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Inside, the model computes in the adapter's precision."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)

    def _text(self, ids: list[int], stop: Sequence[str]) -> str:
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return text[: min([text.find(s) for s in stop if s in text], default=len(text))]
