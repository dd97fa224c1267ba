"""From samples to ids: prompt, plan, opening, codes. The part of the adapter that needs no model.

A response is an image, or a plan in words and then an image. The sequence is

    prompt, opening | codes                 without a plan
    prompt, plan, opening | codes           with a plan that is only a condition
    prompt | plan, opening, codes           with a plan that is scored

in which codes and the plan's tokens are scored; the opening and the ends of rows follow from the
rest and are not. Pictures that remember their codes are ready
here; others keep their pixels until `encode` has the tokenizer at hand.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.adapters.autoregressive import Tokens, pack, row_tokens
from mmalign.adapters.image_tokens.family import Family, Layout
from mmalign.adapters.image_tokens.pictures import codes_in, fitted
from mmalign.adapters.protocol import BadSample, Inputs
from mmalign.adapters.text.template import spans_of
from mmalign.media import digest
from mmalign.records import PLAIN, Media, Message, Sample, Text, text_of

PlanRole = Literal["score", "condition"]
_REMEMBERED = 4096


@dataclass(frozen=True)
class Drawn:
    """One sample in ids. scored: one per token of the completion. picture: digest and pixels
    (3 height width) uint8 of an image whose codes are still to be found; they are 0 until then."""

    tokens: Tokens
    scored: tuple[bool, ...]
    picture: tuple[str, Tensor] | None = None


class ImageTokenCollator:
    """Reads samples for one model.

    max_length: tokens that prompt and response may have together. packed: whether neighbours with
    equal prompts share them in one row. plan: whether words before an image are scored, or are only
    what it was drawn from. guidance: other than 1, every sample goes along without its prompt, too.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        layout: Layout,
        opening: str,
        *,
        max_length: int | None,
        packed: bool,
        plan: PlanRole,
        guidance: float,
    ) -> None:
        self.processor = processor
        self.layout = layout
        self.max_length = max_length
        self.packed = packed
        self.plan = plan
        self.guidance = guidance
        self.chat = family.chat
        self.writes = family.writes
        self.opening = self._ids(opening)
        self._unconditional = family.unconditional
        self._seen: dict[Sample, Drawn] = {}

    def __call__(self, samples: Sequence[Sample], seeds: Sequence[int] = ()) -> Inputs:
        """Tokenised samples. Log-probabilities need no randomness: seeds are unused."""
        return {"drawn": [self.drawn(sample) for sample in samples]}

    def size(self, samples: Sequence[Sample]) -> int:
        """Tokens that the model computes for these samples together."""
        drawn = [self.drawn(sample) for sample in samples]
        return row_tokens([one.tokens for one in self.rows(drawn)], packed=self.packed)

    def rows(self, drawn: Sequence[Drawn]) -> list[Drawn]:
        """What goes through the model: the samples and, with guidance, again without prompts."""
        if self.guidance == 1:
            return list(drawn)
        bare = [
            replace(one, tokens=replace(one.tokens, prompt=self.unconditional(one.tokens.prompt)))
            for one in drawn
        ]
        return [*drawn, *bare]

    def drawn(self, sample: Sample) -> Drawn:
        """Raises BadSample for what is no picture, with or without a plan, and for what is too
        long."""
        known = self._seen.get(sample)
        if known is None:
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            known = self._seen[sample] = self._drawn(sample)
        return known

    def prompt_ids(self, prompt: tuple[Message, ...]) -> list[int]:
        """The prompt, without the opening of the image."""
        return self._ids(self._prompt_text(prompt), begin=True)

    def unconditional(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """What guidance takes for a prompt without content, of one that ends with the opening."""
        assert self._unconditional is not None  # `Family.check_guidance`
        return tuple(self._unconditional(self.tokenizer, prompt, self.opening))

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def pad_id(self) -> int:
        """Any token will do, since padding is never attended."""
        return int(self.tokenizer.pad_token_id or 0)

    def image_ids(self, rows: Sequence[Sequence[int]]) -> tuple[list[int], list[bool]]:
        """Ids from the first code to the last one, and which of them are codes."""
        first, end = self.layout.first_code, self.layout.row_end
        ids: list[int] = []
        for row in rows:
            if ids and end is not None:
                ids.append(end)
            ids += [first + code for code in row]
        return ids, [token >= first for token in ids]

    def _drawn(self, sample: Sample) -> Drawn:
        *words, media = sample.response or (None,)
        if not isinstance(media, Media) or media.kind != "image":
            raise BadSample("the response must end with an image (words before it are a plan)")
        if any(isinstance(part, Media) for part in words):
            raise BadSample("the response holds more than one image: split it into samples")
        layout, picture = self.layout, None
        codes = codes_in(media, layout.codec)
        if codes is None or list(map(len, codes)) != layout.widths:
            picture = (digest(media), fitted(media, *layout.grid.pixels))
            codes = layout.rows([0] * layout.count)
        image, is_code = self.image_ids(codes)
        prompt = self.prompt_ids(sample.prompt)
        plan, weights = self._plan([part for part in words if isinstance(part, Text)])
        if not plan or self.plan == "condition":
            prompt, plan, weights, opening = [*prompt, *plan, *self.opening], [], [], []
        elif not self.writes:
            raise BadSample(
                "the response has a plan in words, and this model has no head that could score "
                "them: use plan='condition'"
            )
        elif self.guidance != 1:
            raise BadSample(
                "log-probabilities with guidance are of images, and this response has a plan, too: "
                "use plan='condition', or guidance 1"
            )
        else:
            opening = self.opening
        self._check_length(len(prompt), len(plan) + len(opening) + len(image))
        completion = (*plan, *opening, *image)
        scored = (*[True] * len(plan), *[False] * len(opening), *is_code)
        weights += [1.0] * (len(completion) - len(weights))
        return Drawn(Tokens(tuple(prompt), completion, tuple(weights)), scored, picture)

    def _plan(self, parts: list[Text]) -> tuple[list[int], list[float]]:
        """Ids and weights; a token has the largest weight among the spans that it touches."""
        text = text_of(tuple(parts))
        if not text:
            return [], []
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        spans = spans_of(parts)
        weights = [
            float(max((w for a, b, w in spans if a < end and start < b), key=abs, default=1.0))
            for start, end in coded["offset_mapping"]
        ]
        return list(coded["input_ids"]), weights

    def _prompt_text(self, prompt: tuple[Message, ...]) -> str:
        if not prompt:
            raise BadSample("the prompt has no message")
        if any(isinstance(part, Media) for message in prompt for part in message.parts):
            raise BadSample("the prompt holds media; this model draws from words alone")
        roles = {message.role for message in prompt}
        if PLAIN in roles and len(roles) > 1:
            raise BadSample(f"the prompt mixes role {PLAIN!r} with {sorted(roles - {PLAIN})}")
        if PLAIN in roles or not self.chat or self.processor.chat_template is None:
            return "\n".join(text_of(message.parts) for message in prompt)
        turns = [
            {"role": m.role, "content": [{"type": "text", "text": text_of(m.parts)}]}
            for m in prompt
        ]
        text: str = self.processor.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=self.writes
        )
        return text

    def _ids(self, text: str, *, begin: bool = False) -> list[int]:
        """Token ids; `begin` puts the tokenizer's beginning of sequence in front, once, unless it
        is what opens an image."""
        ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        bos = self.tokenizer.bos_token_id
        if begin and bos is not None and bos not in self.opening and ids[:1] != [bos]:
            return [bos, *ids]
        return ids

    def _check_length(self, prompt: int, completion: int) -> None:
        if self.max_length is not None and prompt + completion > self.max_length:
            raise BadSample(
                f"prompt {prompt} + response {completion} = {prompt + completion} tokens, more "
                f"than max_length={self.max_length}: shorten the prompt or the plan, or draw "
                "smaller images"
            )

    def at(self, layout: Layout, opening: str) -> ImageTokenCollator:
        """The same for images of another size."""
        other = copy.copy(self)
        other.layout, other.opening, other._seen = layout, self._ids(opening), {}
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": {}}


def laid_out(drawn: Sequence[Drawn], *, packed: bool, pad_id: int) -> Inputs:
    """`autoregressive.pack`, with places for what is scored only. All pictures have their codes."""
    batch = pack([one.tokens for one in drawn], packed=packed, pad_id=pad_id)
    keep = torch.tensor([scored for one in drawn for scored in one.scored])
    lengths = torch.tensor([sum(one.scored) for one in drawn])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    weights = torch.ones(mask.shape)
    weights[mask] = torch.tensor(
        [
            weight
            for one in drawn
            for weight, scored in zip(one.tokens.weights, one.scored, strict=True)
            if scored
        ]
    )
    return {
        "call": batch["call"],
        "groups": batch["groups"],
        "predictors": batch["predictors"][keep],
        "targets": batch["targets"][keep],
        "places": mask.flatten().nonzero()[:, 0],
        "mask": mask,
        "weights": weights,
    }
