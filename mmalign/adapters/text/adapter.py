"""The text adapter: log-probabilities, sampling and saving of a causal language model."""

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
from transformers import GenerationConfig, PreTrainedTokenizerBase

from mmalign.adapters import lora
from mmalign.adapters.autoregressive import (
    Abilities,
    causal_lm,
    evaluating,
    moved,
    score,
    vocabulary,
)
from mmalign.adapters.beams import Voice, search
from mmalign.adapters.decoding import decode
from mmalign.adapters.fingerprint import fingerprint
from mmalign.adapters.protocol import Inputs, Scored
from mmalign.adapters.sampling import Progress, SeededDraws, check_request, in_batches
from mmalign.adapters.saving import write_folder, write_weights
from mmalign.adapters.text.collate import TextCollator
from mmalign.errors import UserError
from mmalign.records import Message, Sample, Text


@dataclass
class TextAdapter:
    """A causal language model as mmalign sees it; `load_text` makes one.

    policy: the model, under LoRA or not. precision: of the arithmetic; weights that are trained are
    float32. dropouts: the model's own dropout probabilities, which are 0 here and are put back into
    what is saved.
    """

    policy: nn.Module
    collator: TextCollator
    abilities: Abilities
    precision: torch.dtype = torch.float32
    dropouts: Mapping[str, float] = field(default_factory=dict)
    seeded = False
    strata = 1

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.collator.tokenizer

    @property
    def device(self) -> torch.device:
        return causal_lm(self.policy).device

    @property
    def fingerprint(self) -> str:
        """Hash of all but the weights that log-probabilities depend on."""
        return fingerprint(
            causal_lm(self.policy),
            self.tokenizer,
            max_length=self.collator.max_length,
            truncate=self.collator.truncate,
            abilities=[self.abilities.packed, self.abilities.tail],
            precision=str(self.precision),
        )

    @property
    def size(self) -> Callable[[Sequence[Sample]], int]:
        """Tokens that the model computes for these samples, which share a row where they can."""
        return self.collator.size

    @property
    def collate(self) -> TextCollator:
        """Called with samples and seeds. Not a method, so that what is sent to data workers holds
        no model."""
        return self.collator

    def encode(self, inputs: Inputs) -> Inputs:
        """Moves everything to the device; policy and reference share no further computation."""
        return moved(inputs, self.device)

    def log_probs(self, model: nn.Module, inputs: Inputs, stats: Collection[str] = ()) -> Scored:
        """stats: names out of `token_log_probs.STATS`."""
        with self.arithmetic():
            return score(model, inputs, self.abilities, stats)

    def reference_mode(self) -> AbstractContextManager[None]:
        """Inside, `policy` is the model as it was loaded. Raises ValueError without LoRA."""
        return lora.reference_mode(self.policy)

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

        A row's draws depend on its own seed only. temperature 0 is greedy; top_p 1 and top_k 0 keep
        all tokens. stop: strings at which a response ends, themselves left out.
        merge: fold the LoRA into the weights meanwhile (a sixth quicker, twice the memory).
        """
        check_request("text", prompts, seeds, unknown)
        ids = [self.collator.prompt_ids(prompt) for prompt in prompts]

        def answers(rows: list[int]) -> list[str]:
            draws = SeededDraws(
                [seeds[row] for row in rows],
                steps=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                allowed=self._speakable(),
            )
            found = self._continue([ids[row] for row in rows], draws, stop)
            return [self._text(answer, stop) for answer in found]

        folded = lora.merged(self.policy) if merge else nullcontext()
        with evaluating(self.policy), torch.no_grad(), self.arithmetic(), folded:
            texts = in_batches(
                [len(row) for row in ids], answers, batch_size=batch_size, progress=progress
            )
        return [Sample(prompt, (Text(text),)) for prompt, text in zip(prompts, texts, strict=True)]

    def beam_search(
        self,
        prompts: Sequence[tuple[Message, ...]],
        *,
        beams: int = 5,
        strength: float = 1.0,
        reference: TextAdapter | None = None,
        max_new_tokens: int = 256,
        batch_size: int = 8,
    ) -> list[Sample]:
        """The response to each prompt that maximises log ref + strength log pi/ref, found by beams.

        At strength 1 it is the policy's likeliest response; beyond, its implicit rewards count
        more against the reference's likelihood. A single beam is greedy. reference: the model that
        training started from; by default the policy without its LoRA. Above five beams answers
        of DPO policies were found to get longer and worse. arXiv:2404.12358.

        Raises UserError for a model whose memory is not keys and values, and BadSample as `sample`.
        """
        if not self.abilities.packed:
            raise UserError(
                f"{type(causal_lm(self.policy)).__name__} keeps another memory than keys and "
                "values, which beams cannot share",
                hint="use sample(..., temperature=0)",
            )
        voices = [Voice(causal_lm(self.policy), strength, nullcontext)]
        if strength != 1:
            other, mode = (
                (self.policy, self.reference_mode)
                if reference is None
                else (reference.policy, nullcontext)
            )
            voices.append(Voice(causal_lm(other), 1 - strength, mode))
        ids = [self.collator.prompt_ids(prompt) for prompt in prompts]
        answers: list[list[int]] = []
        with evaluating(self.policy), torch.no_grad(), self.arithmetic():
            for start in range(0, len(ids), batch_size):
                answers += search(
                    voices,
                    ids[start : start + batch_size],
                    beams=beams,
                    steps=max_new_tokens,
                    stop_ids=self.stop_ids,
                    pad_id=self.collator.pad_id,
                    allowed=self._speakable(),
                )
        texts = [self._text(answer, ()) for answer in answers]
        return [Sample(p, (Text(text),)) for p, text in zip(prompts, texts, strict=True)]

    def save(self, folder: Path) -> None:
        """The LoRA as peft writes it, or all weights; tokenizer and chat template beside it."""

        def write(where: Path) -> None:
            if isinstance(self.policy, PeftModel):
                self.policy.save_pretrained(where, selected_adapters=[lora.TRAINED])
            else:
                write_weights(causal_lm(self.policy), where, self.dropouts)
            self.tokenizer.save_pretrained(where)

        write_folder(Path(folder), write)

    def export_merged(self, folder: Path) -> None:
        """The whole model with the LoRA folded in, as plain transformers reads it."""
        model = self.policy
        if isinstance(model, PeftModel):
            model = copy.deepcopy(model).merge_and_unload(adapter_names=[lora.TRAINED])

        def write(where: Path) -> None:
            write_weights(causal_lm(model), where, self.dropouts)
            self.tokenizer.save_pretrained(where)

        write_folder(Path(folder), write)

    def _continue(
        self, prompts: list[list[int]], draws: SeededDraws, stop: Sequence[str]
    ) -> list[list[int]]:
        """Token ids that follow each prompt.

        By our own loop where the cache consists of keys and values; models with another state, and
        strings to stop at, are left to `generate`.
        """
        if not stop and self.abilities.packed:
            return decode(
                causal_lm(self.policy),
                prompts,
                draws,
                steps=draws.steps,
                stop_ids=self.stop_ids,
                pad_id=self.collator.pad_id,
            )
        longest = max(map(len, prompts))
        pad = self.collator.pad_id
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in prompts])
        seen = torch.arange(longest) >= torch.tensor([[longest - len(row)] for row in prompts])
        with self._generation(draws.steps, stop):
            out = causal_lm(self.policy).generate(
                input_ids=ids.to(self.device),
                attention_mask=seen.long().to(self.device),
                logits_processor=[draws.processor(longest)],
                **({"tokenizer": self.tokenizer} if stop else {}),
            )
        answers: list[list[int]] = out[:, longest:].tolist()
        return answers

    @contextmanager
    def _generation(self, steps: int, stop: Sequence[str]) -> Iterator[None]:
        """The model's own generation settings (penalties, temperatures ...) put aside."""
        lm = causal_lm(self.policy)
        before = lm.generation_config
        lm.generation_config = GenerationConfig(
            max_new_tokens=steps,
            do_sample=False,
            eos_token_id=self.stop_ids,
            pad_token_id=self.collator.pad_id,
            stop_strings=list(stop) or None,
        )
        try:
            yield
        finally:
            lm.generation_config = before

    @property
    def stop_ids(self) -> list[int]:
        """Tokens that end a response: the model's, the tokenizer's and the chat template's."""
        own = causal_lm(self.policy).generation_config.eos_token_id
        ids = {self.tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}
        if self.collator.end is not None and self.collator.end.text:
            ids.add(self.tokenizer(self.collator.end.text, add_special_tokens=False).input_ids[-1])
        return sorted(i for i in ids if i is not None)

    def _text(self, ids: list[int], stop: Sequence[str]) -> str:
        ends = set(self.stop_ids)
        length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
        text = str(self.tokenizer.decode(ids[:length], skip_special_tokens=True))
        return text[: min([text.find(s) for s in stop if s in text], default=len(text))]

    def _speakable(self) -> Tensor:
        """(v,) false for the rows by which some models pad their vocabulary."""
        known = len(self.tokenizer)
        return torch.arange(vocabulary(causal_lm(self.policy))) < known

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Inside, the model computes in the adapter's precision."""
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision)
