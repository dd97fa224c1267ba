"""One call of an image generator in the common space of ids: embeddings in, hidden states out.

Axes: p scored positions, h hidden size, v text vocabulary, c codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmalign.adapters.autoregressive import hidden_states
from mmalign.adapters.image_tokens.family import Family
from mmalign.adapters.packing import segment_inputs
from mmalign.adapters.protocol import Inputs


def embedded(lm: Any, family: Family, first_code: int, ids: Tensor) -> Tensor:
    """(... h) embeddings of ids (...), text tokens and codes."""
    is_code = ids >= first_code
    words = lm.get_input_embeddings()(ids.where(~is_code, 0))
    codes = family.embed(lm, (ids - first_code).clamp(min=0))
    return torch.where(is_code[..., None], codes.to(words.dtype), words)


def predicting_states(
    model: nn.Module, lm: Any, family: Family, first_code: int, inputs: Inputs
) -> Tensor:
    """(p h) hidden states that predict the targets of `collate.laid_out`."""
    call = dict(inputs["call"])
    if inputs["groups"] is not None:
        call |= segment_inputs(**call, groups=inputs["groups"])
    embeddings = embedded(lm, family, first_code, call.pop("input_ids"))
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
    first_code: int
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

    def __call__(self, input_ids: Tensor, logits_to_keep: int = 1, **call: Any) -> Any:
        language_model = self.lm.get_submodule(self.family.language_model)
        embeddings = embedded(self.lm, self.family, self.first_code, input_ids)
        out = language_model(inputs_embeds=embeddings, **call)
        last = out.last_hidden_state[:, -logits_to_keep:].flatten(0, 1)
        tail = (
            code_tail(self.lm, self.family, 1)
            if self.says == "codes"
            else text_tail(self.lm, self.family)
        )
        return SimpleNamespace(logits=tail(last).view(len(input_ids), logits_to_keep, -1))
