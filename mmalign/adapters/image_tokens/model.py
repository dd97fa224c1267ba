"""One call of an image generator in the common space of ids: embeddings in, hidden states out.

Axes: p scored positions, h hidden size, v text vocabulary, c codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmalign.adapters.autoregressive import hidden_states
from mmalign.adapters.image_tokens.family import Family, Layout
from mmalign.adapters.packing import segment_inputs
from mmalign.adapters.protocol import Inputs


def embedded(lm: Any, family: Family, first_code: int, ids: Tensor) -> Tensor:
    """(... h) embeddings of ids (...), text tokens and codes."""
    is_code = ids >= first_code
    words = lm.get_input_embeddings()(ids.where(~is_code, 0))
    codes = family.embed(lm, (ids - first_code).clamp(min=0))
    return torch.where(is_code[..., None], codes.to(words.dtype), words)


def placed(
    on_grids: Tensor, ids: Tensor, positions: Tensor, first_code: int, begins: Tensor | None = None
) -> Tensor:
    """(3 r s) rotary positions of ids (r s): words are where `positions` (r s) says, on all axes.

    on_grids: (3 k) where an image's codes are, counted from the first one. begins: (r) the first
    one's position in each row; where it is not given, the image begins behind the last word.
    """
    is_code = ids >= first_code
    if begins is None:
        places = torch.arange(ids.shape[-1], device=ids.device)
        last_word = torch.where(is_code, 0, places).cummax(-1).values
        begin = positions.gather(-1, last_word) + 1
    else:
        begin = begins[:, None]
    number = (positions - begin).clamp(0, on_grids.shape[-1] - 1)
    return torch.where(is_code, begin + on_grids.to(ids.device)[:, number], positions)


def predicting_states(
    model: nn.Module, lm: Any, family: Family, layout: Layout, inputs: Inputs
) -> Tensor:
    """(p h) hidden states that predict the targets of `collate.laid_out`."""
    call = dict(inputs["call"])
    ids = call["input_ids"]
    if family.positions is not None:
        in_a_row = torch.arange(ids.shape[-1], device=ids.device).expand(ids.shape)
        positions = call.get("position_ids", in_a_row)
        call["position_ids"] = placed(family.positions(layout), ids, positions, layout.first_code)
    if inputs["groups"] is not None:
        call |= segment_inputs(**call, groups=inputs["groups"])
    embeddings = embedded(lm, family, layout.first_code, call.pop("input_ids"))
    states = hidden_states(model, inputs_embeds=embeddings, **call)
    return states.flatten(0, 1).index_select(0, inputs["predictors"])


def code_tail(lm: Any, family: Family, guidance: float) -> Callable[[Tensor], Tensor]:
    """From hidden states (p h) to the logits of all codes (p c).

    With guidance the states are (p 2h), those with the prompt and those without, and the logits
    u + guidance (c - u). arXiv:2207.12598 in the form that arXiv:2501.17811 samples with.
    """

    def plain(hidden: Tensor) -> Tensor:
        return family.logits(lm, hidden)

    def guided(both: Tensor) -> Tensor:
        told, untold = (family.logits(lm, half) for half in both.chunk(2, -1))
        return untold + guidance * (told - untold)

    return plain if guidance == 1 else guided


def text_tail(lm: Any, family: Family) -> Callable[[Tensor], Tensor]:
    """From hidden states (p h) to the logits of the text vocabulary (p v); codes are excluded."""
    excluded = family.not_text(lm)

    def tail(hidden: Tensor) -> Tensor:
        logits: Tensor = lm.get_output_embeddings()(hidden)
        return logits if excluded is None else logits.index_fill(-1, excluded, -torch.inf)

    return tail


@dataclass(frozen=True)
class Speaker:
    """A model as `decoding.decode` calls it: common ids in, logits of codes or of text out."""

    lm: Any
    family: Family
    layout: Layout
    says: Literal["codes", "text"]

    @property
    def device(self) -> torch.device:
        return self.lm.device

    @property
    def config(self) -> Any:
        return self.lm.config.get_text_config()

    @property
    def forward(self) -> Any:
        """The decoder's own, whose arguments are passed on to it."""
        return self.lm.get_submodule(self.family.language_model).forward

    @cached_property
    def on_grids(self) -> Tensor | None:
        positions = self.family.positions
        return None if positions is None else positions(self.layout).to(self.device)

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        begins: Tensor | None = None,
        logits_to_keep: int = 1,
        **call: Any,
    ) -> Any:
        """begins: (r) position of each row's first code, where the row shows codes only."""
        first = self.layout.first_code
        language_model = self.lm.get_submodule(self.family.language_model)
        embeddings = embedded(self.lm, self.family, first, input_ids)
        if self.on_grids is not None:
            position_ids = placed(self.on_grids, input_ids, position_ids, first, begins)
        out = language_model(inputs_embeds=embeddings, position_ids=position_ids, **call)
        last = out.last_hidden_state[:, -logits_to_keep:].flatten(0, 1)
        tail = (
            code_tail(self.lm, self.family, 1)
            if self.says == "codes"
            else text_tail(self.lm, self.family)
        )
        return SimpleNamespace(logits=tail(last).view(len(input_ids), logits_to_keep, -1))
