"""One row for a whole micro-batch: [prompt | response | response | prompt | response ...].

Each prompt is computed once for all its responses and nothing is padded: every layer but attention
sees one long row. Attention is computed by segments: prompts see themselves, a response sees its
prompt and itself, exactly as in separate rows and without ever building a mask of the whole row.
Positions restart after the prompt in every response; sliding windows count these positions.

`use_segments` registers the attention function with a transformers model; `segment_inputs` makes
the keyword arguments of one call; `check_segments` says whether a model follows. Axes: s tokens of
the row, d head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "mmalign_segments"

Groups = Sequence[Sequence[int]]
"""Tokens of each prompt followed by those of its responses: ((12, 3, 5), (7, 2, 2)) is a row of two
prompts with two responses each. A response may be empty."""


@dataclass(frozen=True)
class Blocks:
    """Tokens that see each other whatever their order, such as those of an image.

    numbers: (s) for each prompt; tokens of one number are a block, -1 stands for none.
    beyond_window: whether also where a sliding window would hide them.
    """

    numbers: Sequence[Tensor]
    beyond_window: bool = False
    _masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    def mask(self, prompt: int, window: int | None) -> Tensor | None:
        """(1 1 s s) true where a token of the prompt sees another; None where that is causal."""
        if (prompt, window) not in self._masks:
            self._masks[prompt, window] = self._mask(self.numbers[prompt], window)
        return self._masks[prompt, window]

    def _mask(self, numbers: Tensor, window: int | None) -> Tensor | None:
        if not (numbers >= 0).any():
            return None
        together = (numbers[:, None] == numbers) & (numbers >= 0)
        if not self.beyond_window:
            together = together.triu(1)  # what stands before is seen within the window
        return together | _causal(len(numbers), len(numbers), window, numbers.device)


class Segments(NamedTuple):
    """What the attention function is told beside the tensors.

    windows: where the check lets each layer write the sliding window it was called with.
    blocks: for each prompt the number of every token's block (see `Blocks`).
    """

    groups: Groups
    windows: list[int | None] | None = None
    blocks: Blocks | None = None


class PackingError(RuntimeError):
    """A model whose attention does not follow segments; the message says how that showed."""


def segment_positions(groups: Groups) -> Tensor:
    """(s,) positions: a response goes on where its prompt ended."""
    runs = [
        torch.arange(length) + (group[0] if part else 0)
        for group in groups
        for part, length in enumerate(group)
    ]
    return torch.cat(runs)


def segment_inputs(
    input_ids: Tensor,
    position_ids: Tensor,
    groups: Groups,
    blocks: Blocks | None = None,
    **rest: Any,
) -> dict[str, Any]:
    """Arguments for one call on a packed row. ids: (1 s); positions: (1 s), or (3 1 s) where they
    are multimodal. rest: further arguments, passed on."""
    return {
        **rest,
        "input_ids": input_ids,
        "position_ids": position_ids,
        # Any 4-D mask keeps the model from building one of s x s; ours does not look at it.
        "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device),
        "segments": Segments(groups, blocks=blocks),
    }


def use_segments(model: PreTrainedModel) -> None:
    """Let the model's attention follow segments. Calls without segments work as before.

    Raises PackingError for models outside transformers' attention interface.
    """
    before = attention_of(model)
    if before not in ("sdpa", "eager"):
        raise PackingError(f"its attention implementation is {before!r}, not 'sdpa'")
    set_attention(model, IMPLEMENTATION)
    if attention_of(model) != IMPLEMENTATION:
        raise PackingError("its attention cannot be replaced by a registered function")


def attention_of(model: PreTrainedModel) -> str:
    """The attention implementation of the language model; a vision tower has its own."""
    return str(model.config.get_text_config()._attn_implementation)


def set_attention(model: PreTrainedModel, name: str) -> None:
    """Of the language model only."""
    text = model.config.get_text_config()
    inner = [key for key in model.config.sub_configs if getattr(model.config, key, None) is text]
    model.set_attn_implementation({inner[0]: name} if inner else name)


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    segments: Segments | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query (1 heads s d) to output (1 s heads d)."""
    foreign = [name for name in ("s_aux", "position_bias") if kwargs.get(name) is not None]
    if foreign:
        raise PackingError(f"its attention uses {foreign[0]}")
    if segments is None and softcap is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    if segments is None:
        attended = _attend(query, key, value, scaling, softcap, None, attention_mask)
        return attended.transpose(1, 2).contiguous(), None
    if segments.windows is not None:
        segments.windows.append(sliding_window)
    lengths = [length for group in segments.groups for length in group]
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    out: list[Tensor] = []
    for number, group in enumerate(segments.groups):
        mask = None if segments.blocks is None else segments.blocks.mask(number, sliding_window)
        prompt_query, prompt_key, prompt_value = next(parts)
        out.append(
            _attend(prompt_query, prompt_key, prompt_value, scaling, softcap, sliding_window, mask)
        )
        for _ in group[1:]:
            own_query, own_key, own_value = next(parts)
            given = (own_query, prompt_key, own_key, prompt_value, own_value)
            out.append(_behind_prompt(*given, scaling, softcap, sliding_window))
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None


def _behind_prompt(
    query: Tensor,
    prompt_key: Tensor,
    own_key: Tensor,
    prompt_value: Tensor,
    own_value: Tensor,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """A response's attention. It is computed again for the gradient, at little cost, rather than
    kept with a copy of the prompt's keys and values for every response."""

    def attend(query: Tensor, *parts: Tensor) -> Tensor:
        keys, values = (torch.cat(both, dim=2) for both in (parts[:2], parts[2:]))
        return _attend(query, keys, values, scaling, softcap, window)

    given = (query, prompt_key, own_key, prompt_value, own_value)
    if not torch.is_grad_enabled():
        return attend(*given)
    again: Tensor = checkpoint(attend, *given, use_reentrant=False, preserve_rng_state=False)
    return again


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    softcap: float | None,
    window: int | None,
    mask: Tensor | None = None,
) -> Tensor:
    """Causal attention in which the last query sees the last key, unless a mask says otherwise."""
    queries, keys = query.shape[2], key.shape[2]
    windowed = window is not None and keys > window
    if mask is None and (queries != keys or windowed or softcap is not None):
        mask = _causal(queries, keys, window if windowed else None, query.device)
    grouped = query.shape[1] != key.shape[1]
    # Grouped keys without repeating them: the CUDA kernels can do it only where there is no mask.
    native = grouped and softcap is None and (mask is None or query.device.type == "cpu")
    if grouped and not native:
        repeats = query.shape[1] // key.shape[1]
        key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
    if softcap is not None:
        return _capped(query, key, value, scaling, softcap, mask)
    return F.scaled_dot_product_attention(
        query, key, value, mask, scale=scaling, is_causal=mask is None, enable_gqa=native
    )


def _capped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    softcap: float,
    mask: Tensor | None,
) -> Tensor:
    """Attention with soft-capped scores (Gemma 2), which no fused kernel of torch offers."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.tanh(query @ key.transpose(2, 3) * scale / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ value


def _causal(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """(1 1 queries keys) true where a query may look."""
    key = torch.arange(keys, device=device)
    distance = key[keys - queries :, None] - key
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return seen[None, None]


AttentionInterface.register(IMPLEMENTATION, segment_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def expected_windows(config: Any) -> list[int | None]:
    """The sliding window of every attention layer, as the model's configuration has it.

    Raises PackingError for layers that are neither full nor sliding attention.
    """
    if getattr(config, "cross_attention_layers", None):
        raise PackingError("its decoder looks at images through cross-attention")
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        return [window] * config.num_hidden_layers
    other = sorted(set(types) - {"full_attention", "sliding_attention"})
    if other:
        raise PackingError(f"it has layers of type {other[0]}")
    return [window if kind == "sliding_attention" else None for kind in types]
