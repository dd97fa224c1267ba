"""From text samples to token ids: the part of the text adapter that needs no model.

It holds a tokenizer and options only, so that data loader workers can have it. The boundary
between prompt and completion is a count of tokens: the prompt's ids are exactly those that
generation sees. Where prompt and completion tokenised together begin with these ids, the rest are
the completion's; where the tokenizer would have merged across the boundary, the completion is
tokenised apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from mmalign.adapters.autoregressive import Tokens, pack, row_tokens
from mmalign.adapters.protocol import BadSample, Inputs
from mmalign.adapters.text.template import (
    TEXT_ONLY,
    Contents,
    Rendered,
    end_of_turn,
    is_plain,
    render,
    render_prompt,
    spans_of,
)
from mmalign.records import Message, Sample, Text

_REMEMBERED = 4096


class TextCollator:
    """Tokenises samples and packs them.

    max_length: tokens of prompt and completion together that a sample may have. A longer one
        raises BadSample or, with truncate, loses the end of its completion; a prompt is never cut.
    packed: whether neighbours with equal prompts share them in one row.
    contents: how the parts of messages are written.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None = None,
        truncate: bool = False,
        packed: bool = True,
        contents: Contents = TEXT_ONLY,
    ) -> None:
        self.tokenizer = tokenizer
        self.contents = contents
        self.max_length = max_length
        self.truncate = truncate
        self.packed = packed
        self.end = end_of_turn(tokenizer, contents)
        self._seen: dict[str, Tokens] = {}  # by id: samples may hold large images

    def __call__(self, samples: Sequence[Sample], seeds: Sequence[int] = ()) -> Inputs:
        """One batch. A language model's log-probabilities need no randomness: seeds are unused."""
        tokens = [self.tokens(sample) for sample in samples]
        return pack(tokens, packed=self.packed, pad_id=self.pad_id)

    def size(self, samples: Sequence[Sample]) -> int:
        """Tokens that the model computes for these samples together."""
        return row_tokens([self.tokens(sample) for sample in samples], packed=self.packed)

    @property
    def pad_id(self) -> int:
        """Any token will do, since padding is never attended."""
        return int(self.tokenizer.pad_token_id or 0)

    def tokens(self, sample: Sample) -> Tokens:
        """Raises BadSample for media, weights that find no place, and samples too long."""
        known = self._seen.get(sample.id)
        if known is None:
            if len(self._seen) >= _REMEMBERED:
                self._seen.clear()
            known = self._seen[sample.id] = limited(
                self._tokenise(sample), max_length=self.max_length, truncate=self.truncate
            )
        return known

    def prompt_ids(self, prompt: tuple[Message, ...]) -> list[int]:
        """What generation sees.

        Raises BadSample when there is no token at all: the first one could not be predicted.
        """
        ids = self._ids(render_prompt(self.tokenizer, prompt, self.contents))
        if is_plain(prompt):
            ids = self._with_bos(ids)
        if not ids:
            raise BadSample("the prompt is empty and the tokenizer has no token to begin with")
        return ids

    def places(self, sample: Sample) -> list[tuple[int, int] | None]:
        """Which characters of the response's text each token of the completion stands for; None
        for tokens that the template adds, such as the one that ends the turn.

        Raises BadSample where the tokenizer or the template does not say.
        """
        rendered, _, completion, offsets = self._coded(sample)
        at = self._response_start(rendered)
        length = sum(len(part.text) for part in sample.response if isinstance(part, Text))
        found: list[tuple[int, int] | None] = []
        for start, end in offsets:
            first, last = max(start - at, 0), min(end - at, length)
            found.append((first, last) if first < last else None)
        kept = len(self.tokens(sample).completion)  # with the end of the text, truncated
        return (found + [None] * max(0, kept - len(completion)))[:kept]

    def _tokenise(self, sample: Sample) -> Tokens:
        rendered, prompt, completion, offsets = self._coded(sample)
        weights = self._weights(sample, rendered, offsets)
        if rendered.plain:
            completion, weights = self._with_eos(completion, weights)
        return Tokens(tuple(prompt), tuple(completion), tuple(weights))

    def _coded(
        self, sample: Sample
    ) -> tuple[Rendered, list[int], list[int], list[tuple[int, int]]]:
        """The text, the ids of prompt and completion, and the characters of the rendered
        completion that each of the latter stands for."""
        prompt = self.prompt_ids(sample.prompt)
        rendered = render(self.tokenizer, sample.prompt, sample.response, self.end, self.contents)
        together = self._encode(rendered.prompt + rendered.completion)
        bare = self._with_bos(together["input_ids"]) if rendered.plain else together["input_ids"]
        if bare[: len(prompt)] == prompt:
            # A beginning-of-sequence token that was put in front has no offset.
            skipped = len(prompt) - (len(bare) - len(together["input_ids"]))
            completion, shift = bare[len(prompt) :], len(rendered.prompt)
            offsets = together["offset_mapping"][skipped:]
        else:
            apart = self._encode(rendered.completion)
            completion, shift, offsets = apart["input_ids"], 0, apart["offset_mapping"]
        offsets = [(start - shift, end - shift) for start, end in offsets]
        return rendered, prompt, completion, offsets

    def _response_start(self, rendered: Rendered) -> int:
        """Where the response begins in the rendered completion. Raises BadSample."""
        if not self.tokenizer.is_fast:
            raise BadSample(
                "this tokenizer (a slow one) does not say which characters a token stands for, so "
                "weighted spans have no place; drop the weights"
            )
        if rendered.offset is None:
            raise BadSample(
                "the chat template rewrites the response, so its weighted spans have no place; "
                "drop the weights or use another template"
            )
        return rendered.offset

    def _weights(
        self, sample: Sample, rendered: Rendered, offsets: list[tuple[int, int]]
    ) -> list[float]:
        """A token has the largest-magnitude weight among the spans that it touches, else 1."""
        spans = spans_of(sample.response)
        if not spans:
            return [1.0] * len(offsets)
        at = self._response_start(rendered)
        weights = []
        for start, end in offsets:
            touching = [w for a, b, w in spans if a + at < end and start < b + at]
            weights.append(float(max(touching, key=abs, default=1.0)))
        return weights

    def _with_bos(self, ids: list[int]) -> list[int]:
        """What the tokenizer itself puts in front of a text, once."""
        bos = self.tokenizer.bos_token_id
        begins = self.tokenizer("")["input_ids"][:1] == [bos]
        return [bos, *ids] if begins and ids[:1] != [bos] else ids

    def _with_eos(self, ids: list[int], weights: list[float]) -> tuple[list[int], list[float]]:
        eos = self.tokenizer.eos_token_id
        if eos is not None:
            return [*ids, eos], [*weights, 1.0]
        if not ids:
            raise BadSample("the response is empty and the tokenizer has no end-of-sequence token")
        return ids, weights

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode(self, text: str) -> dict[str, Any]:
        fast = self.tokenizer.is_fast
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast)
        ids = list(coded["input_ids"])
        # Slow tokenizers know no offsets; `_weights` refuses spans there.
        offsets = coded["offset_mapping"] if fast else [(0, 0)] * len(ids)
        return {"input_ids": ids, "offset_mapping": list(offsets)}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": {}}


def limited(tokens: Tokens, *, max_length: int | None, truncate: bool) -> Tokens:
    """Tokens that fit. Raises BadSample; a prompt is never cut."""
    limit, prompt, length = max_length, len(tokens.prompt), len(tokens.completion)
    if limit is None or prompt + length <= limit:
        return tokens
    counts = f"prompt {prompt} + response {length} = {prompt + length} tokens"
    if not truncate:
        raise BadSample(
            f"{counts}, more than max_length={limit}: raise max_length, drop the sample, "
            "or pass truncate=True to keep the beginning of the response"
        )
    if prompt >= limit:
        raise BadSample(
            f"{counts}: the prompt alone fills max_length={limit} and is never cut: "
            "raise max_length or drop the sample"
        )
    kept = limit - prompt
    return replace(tokens, completion=tokens.completion[:kept], weights=tokens.weights[:kept])
