"""How much an answer attends to each image, and answers that cannot see parts of one.

One attention function is registered with transformers and put in place of the decoder's while a
context is open. `probing` measures, for chosen layers and the rows of the answer only, how much
attention falls on groups of columns (images, cells of a collage): a softmax in float32 of a few
rows at a time, summed up at once. `hiding` takes columns (image tokens) out of all other tokens'
sight, in all layers, from the prompt on; positions stay as they are. Everything else is computed as
before, by torch's fused attention. The ways that come to mind first are worse: a zero in the
two-dimensional attention mask shifts positions in Qwen-VL models and in every model's `generate`;
output_attentions=True builds every layer's whole matrix.

Models whose decoder looks at images through cross-attention (Mllama) are probed and blinded there:
their columns are the vision tokens that the cross-attention sees. Rows must be plain (padded, one
sample each), not packed ones that share a prompt.

Axes: b samples (rows of the batch), s columns (tokens of a sample, cached ones included), q queries
and k keys of one call, h heads, g key heads, r probed queries, m groups of columns, d head size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from mmalign.adapters.autoregressive import causal_lm
from mmalign.adapters.packing import attention_of, segment_attention, set_attention
from mmalign.errors import UserError

IMPLEMENTATION = "mmalign_attention"

QUERIES_AT_ONCE = 32
"""Probed queries whose attention to all columns exists at the same time."""


class Probe:
    """What is to be measured, and what was.

    queries: (b r) the columns where the probed queries stand, in the padded row; -1 fills up.
    groups: (b s m) the weight of each column in each group: 1 for the tokens of an image, fractions
        where a token lies in two cells of a collage. Columns behind s belong to no group.

    mass: per layer (b h r m) float32, the attention that each probed query pays to each group; 0
        for fill-ups and for queries that no call has reached.
    columns: per layer (b s) float32, the attention on each column, mean over heads and queries.
    """

    def __init__(self, queries: Tensor, groups: Tensor) -> None:
        if len(queries) != len(groups):
            raise ValueError(f"{len(queries)} samples have queries, but {len(groups)} have groups")
        self.queries = queries
        self.groups = groups.float()
        self.mass: dict[int, Tensor] = {}
        self.columns: dict[int, Tensor] = {}

    @property
    def lengths(self) -> Tensor:
        """(b,) the number of queries of each sample."""
        return (self.queries >= 0).sum(-1)

    def mean_mass(self, layer: int) -> Tensor:
        """(b m) the mean over heads and queries; nan for a sample without queries."""
        mass = self.mass[layer]
        return mass.mean(1).sum(1) / self.lengths.to(mass.device)[:, None]


@dataclass(frozen=True)
class _Active:
    """What the attention function has to do meanwhile.

    crossing: layers that attend to images instead of tokens; where there are any, only they have
        the columns that are probed or hidden.
    seen: per layer, the queries of all calls since the prompt: where the next call's stand.
    latest: where the queries of the layer called last stand; cross-attention has no other clue.
    """

    crossing: frozenset[int]
    hidden: Tensor | None = None  # (b s)
    blinded: frozenset[int] = frozenset()
    probe: Probe | None = None
    probed: frozenset[int] = frozenset()
    seen: dict[int, int] = field(default_factory=dict)
    latest: list[int] = field(default_factory=lambda: [0])

    def first_query(self, layer: int | None, queries: int, keys: int) -> int:
        """The column of a call's first query; layer None for cross-attention.

        A call without more keys than queries begins a prompt.
        """
        if layer is not None:
            self.latest[0] = 0 if queries >= keys else self.seen.get(layer, keys - queries)
            self.seen[layer] = self.latest[0] + queries
        return self.latest[0]


_ACTIVE: ContextVar[_Active | None] = ContextVar("mmalign_attention", default=None)


@contextmanager
def probing(
    model: nn.Module, queries: Tensor, groups: Tensor, *, layers: Collection[int]
) -> Iterator[Probe]:
    """Measure the attention of `model` inside, in one call or in a prompt and its decoding.

    queries, groups: see `Probe`. layers: as `image_layer` gives them.
    Raises UserError for models whose attention cannot be replaced, and for layers that are not
    there, hold no images, or were not reached by any call.
    """
    probed = _checked_layers(model, layers)
    probe = Probe(queries, groups)
    with _installed(model) as active, _state(replace(active, probe=probe, probed=probed)):
        yield probe
    missed = sorted(probed - probe.mass.keys())
    if missed:
        raise UserError(
            f"no attention of layer {missed[0]} went through the probe",
            hint="it may be a layer without attention: probe another one",
        )


@contextmanager
def hiding(
    model: nn.Module, hidden: Tensor, *, layers: Collection[int] | None = None
) -> Iterator[None]:
    """Nothing but itself sees the columns that are true in `hidden` (b s), in all calls inside.

    Prompts must be read inside as well: what was cached outside has seen the hidden columns. Rows
    of the batch must stay those of `hidden`; a loop that selects among them says so by `keep_rows`.
    layers: all by default.
    Raises UserError for models whose attention cannot be replaced.
    """
    blinded = _checked_layers(model, image_layers(model) if layers is None else layers)
    with (
        _installed(model) as active,
        _state(replace(active, hidden=hidden.bool(), blinded=blinded)),
    ):
        yield


def keep_rows(index: Tensor) -> None:
    """From now on the batch consists of these of its rows; nothing happens unless some are hidden.

    Raises RuntimeError inside `probing`, whose rows must stay.
    """
    active = _ACTIVE.get()
    if active is None:
        return
    if active.probe is not None:
        raise RuntimeError("rows must not be dropped while their attention is probed")
    if active.hidden is not None:
        _ACTIVE.set(replace(active, hidden=active.hidden[index.to(active.hidden.device)]))


def image_layers(model: nn.Module) -> list[int]:
    """The layers in which image tokens are attended to: all, or those with cross-attention."""
    text = causal_lm(model).config.get_text_config()
    return sorted(_crossing(text)) or list(range(text.num_hidden_layers))


def image_layer(model: nn.Module, layer: int | Literal["middle"] = "middle") -> int:
    """The number of the layer to probe. "middle": the one with full attention nearest to n // 2.

    Layers with a sliding window may not see the image, so they are probed only if asked for.
    MIA-DPO takes layer 16 of 32, counted from 0.
    """
    text = causal_lm(model).config.get_text_config()
    count = text.num_hidden_layers
    if layer != "middle":
        (chosen,) = _checked_layers(model, [layer + count if layer < 0 else layer])
        return chosen
    kinds = getattr(text, "layer_types", None) or ["full_attention"] * count
    full = [each for each in image_layers(model) if kinds[each] == "full_attention"]
    if not full:
        raise UserError(
            f"{type(causal_lm(model)).__name__} has no layer with full attention",
            hint="name the layer to probe by its number",
        )
    return min(full, key=lambda each: (abs(each - count // 2), each))


def _checked_layers(model: nn.Module, layers: Collection[int]) -> frozenset[int]:
    known = image_layers(model)
    unknown = sorted(set(layers) - set(known))
    if unknown:
        raise UserError(
            f"{type(causal_lm(model)).__name__} attends to images in no layer {unknown[0]}",
            hint=f"its layers that do: {', '.join(map(str, known))}",
        )
    return frozenset(layers)


def _crossing(text_config: Any) -> frozenset[int]:
    return frozenset(getattr(text_config, "cross_attention_layers", None) or ())


@contextmanager
def _installed(model: nn.Module) -> Iterator[_Active]:
    """Our function in place of the decoder's, unless it is there; afterwards all is as before."""
    lm = causal_lm(model)
    before = attention_of(lm)
    active = _ACTIVE.get() or _Active(_crossing(lm.config.get_text_config()))
    if before == IMPLEMENTATION:
        yield active
        return
    try:
        set_attention(lm, IMPLEMENTATION)
        if attention_of(lm) != IMPLEMENTATION:
            raise UserError(
                f"the attention of {type(lm).__name__} cannot be probed or masked",
                hint="it does not go through transformers' attention interface; take another model",
            )
        yield active
    finally:
        set_attention(lm, before)


@contextmanager
def _state(active: _Active) -> Iterator[None]:
    token = _ACTIVE.set(active)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature: query (b h q d), key and value (b g k d) to (b q h d)."""
    active = _ACTIVE.get()
    if active is None:
        return segment_attention(module, query, key, value, attention_mask, **kwargs)
    if kwargs.get("segments") is not None:
        raise RuntimeError("attention is probed and masked on plain rows, not on packed ones")
    # silenced: nn.Module types attributes as tensors
    layer: int = module.layer_idx  # type: ignore[assignment]
    crosses = layer in active.crossing
    first = active.first_query(None if crosses else layer, query.shape[2], key.shape[2])
    # Column of the first key: caches of sliding windows have dropped the columns before it.
    offset = 0 if crosses else max(0, first + query.shape[2] - key.shape[2])
    mask, seeing = attention_mask, None
    if layer in active.blinded and active.hidden is not None:
        mask = _mask_of(module, query, key, attention_mask, kwargs)
        sight = _sight(active.hidden, query, key, offset, None if crosses else first)
        mask = _both(mask, sight)
        seeing = _sees_anything(mask) if crosses else None
    if layer in active.probed and active.probe is not None:
        where = _mask_of(module, query, key, mask, kwargs)
        _measure(active.probe, layer, query, key, where, first, offset, kwargs)
    output, _ = segment_attention(module, query, key, value, mask, **kwargs)
    if seeing is not None:  # (b 1 q 1): a query of cross-attention that sees nothing adds nothing
        output = output.masked_fill(~seeing.transpose(1, 2), 0.0)
    return output, None


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def _mask_of(
    module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> Tensor | None:
    """The mask, or the causal one that torch's attention would apply in its absence."""
    given = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if given is None else given
    queries, keys = query.shape[2], key.shape[2]
    if mask is not None or queries == 1 or not causal:
        return mask
    return torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril()[None, None]


def _sight(hidden: Tensor, query: Tensor, key: Tensor, offset: int, first: int | None) -> Tensor:
    """(b 1 q k) or (b 1 1 k) false where a query must not see a key.

    first: the column of the first query, None for cross-attention. Every token sees itself, so that
    no row of self-attention is empty.
    """
    (rows, _, queries, _), keys = query.shape, key.shape[2]
    if len(hidden) != rows:
        raise RuntimeError(
            f"columns are hidden for {len(hidden)} rows, but the model was called with {rows}: "
            "a loop that selects rows must tell attention.keep_rows"
        )
    sight = torch.ones(rows, keys, dtype=torch.bool, device=query.device)
    known = hidden[:, offset : offset + keys].to(query.device)
    sight[:, : known.shape[1]] = ~known
    if first is None:
        return sight[:, None, None]
    column = torch.arange(keys, device=query.device) + offset
    itself = column == torch.arange(first, first + queries, device=query.device)[:, None]
    return (sight[:, None] | itself)[:, None]


def _both(mask: Tensor | None, sight: Tensor) -> Tensor:
    if mask is None:
        return sight
    return mask & sight if mask.dtype == torch.bool else mask.masked_fill(~sight, -torch.inf)


def _visible(mask: Tensor) -> Tensor:
    """Some families write the lowest number instead of minus infinity into float masks."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min


def _sees_anything(mask: Tensor) -> Tensor:
    return _visible(mask).any(-1, keepdim=True)


def _measure(
    probe: Probe,
    layer: int,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    first: int,
    offset: int,
    kwargs: dict[str, Any],
) -> None:
    """Adds the attention of those probed queries that stand in this call."""
    (rows, heads, count, _), keys = query.shape, key.shape[2]
    if len(probe.queries) != rows:
        raise RuntimeError(f"{len(probe.queries)} samples are probed, but a call had {rows}")
    groups = probe.groups.to(query.device)
    if layer not in probe.mass or first == 0:
        probe.mass[layer] = groups.new_zeros(rows, heads, probe.queries.shape[1], groups.shape[2])
        probe.columns[layer] = groups.new_zeros(groups.shape[:2])
    place = probe.queries.to(query.device) - first
    here = (place >= 0) & (place < count) & (probe.queries.to(query.device) >= 0)
    known = groups[:, offset : offset + keys]
    width = known.shape[1]
    totals = probe.lengths.to(query.device).clamp(min=1)[:, None]
    for start in range(0, place.shape[1], QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        if not here[:, part].any():
            continue
        inside = here[:, part]
        weights = _weights(query, key, mask, place[:, part].clamp(0, count - 1), kwargs)
        weights = weights[..., :width] * inside[:, None, :, None]
        probe.mass[layer][:, :, part] += weights @ known[:, None]
        probe.columns[layer][:, offset : offset + width] += weights.mean(1).sum(1) / totals


def _weights(
    query: Tensor, key: Tensor, mask: Tensor | None, place: Tensor, kwargs: dict[str, Any]
) -> Tensor:
    """(b h r k) float32 attention of the queries at `place` (b r)."""
    (rows, heads, _, size), key_heads = query.shape, key.shape[1]
    count, keys = place.shape[1], key.shape[2]
    picked = query.gather(2, place[:, None, :, None].expand(-1, heads, -1, size)).float()
    grouped = picked.reshape(rows, key_heads, heads // key_heads * count, size)
    scores = (grouped @ key.float().transpose(2, 3)).view(rows, heads, count, keys)
    scaling, softcap = kwargs.get("scaling"), kwargs.get("softcap")
    scores = scores * (size**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        own = mask.expand(rows, -1, -1, -1)[..., :keys]
        index = place[:, None, :, None].expand(-1, own.shape[1], -1, keys)
        own = own.gather(2, index)  # (b 1|h r k)
        if own.dtype == torch.bool:
            scores = scores.masked_fill(~own, -torch.inf)
        else:
            scores = scores + own.float()
        # A query that sees nothing at all, a filled-up place for example, attends to nothing.
        return torch.softmax(scores, -1).masked_fill(~_sees_anything(own), 0.0)
    return torch.softmax(scores, -1)
