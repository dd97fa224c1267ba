"""Which tokens of an answer went wrong, by contrast of two models. Axes: n answers, t tokens.

The positive model was fine-tuned on right answers, the negative one on wrong answers; a token that
the first hardly and the second readily writes is critical. Not needed: where answers are wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmalign.adapters.autoregressive import evaluating, predicting_states
from mmalign.adapters.protocol import Inputs
from mmalign.adapters.text import TextAdapter
from mmalign.errors import UserError
from mmalign.objectives.tokens import contrastive_scores
from mmalign.records import Sample

CHUNK = 512  # positions whose distributions over the vocabulary are held at a time


def critical_scores(
    positive: TextAdapter,
    negative: TextAdapter,
    answers: Sequence[Sample],
    *,
    strength: float = 1.0,
    batch: int = 16,
) -> list[Tensor]:
    """s_t (t,) of every token of each answer, the token that ends it last; low is critical.

    The probability of the token under P_p^(1+b) P_n^-b, b = `strength`; see
    `objectives.tokens.contrastive_scores`. arXiv:2411.19943. Raises UserError where the two models
    cut texts into different tokens.
    """
    if positive.tokenizer.get_vocab() != negative.tokenizer.get_vocab():
        raise UserError(
            "the positive and the negative model have different tokenizers, so their tokens cannot "
            "be contrasted",
            hint="fine-tune both from one model",
        )
    found: dict[int, Tensor] = {}
    order = sorted(range(len(answers)), key=lambda i: positive.size([answers[i]]))
    with evaluating(positive.policy), evaluating(negative.policy), torch.no_grad():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            some = [answers[row] for row in rows]
            both = [model.encode(model.collate(some, [0] * len(some)))
                    for model in (positive, negative)]  # fmt: skip
            lengths = both[0]["mask"].sum(1).tolist()
            flat = _flat_scores((positive, negative), both, strength)
            found |= dict(zip(rows, flat.split(lengths), strict=True))
    return [found[row] for row in range(len(answers))]


def _flat_scores(
    models: tuple[TextAdapter, TextAdapter], inputs: list[Inputs], strength: float
) -> Tensor:
    """(p,) at every predicted position, one answer after another."""
    targets = inputs[0]["targets"]
    columns, tails = [], []
    for model, given in zip(models, inputs, strict=True):
        with model.arithmetic():
            states, tail = predicting_states(model.policy, given, model.abilities)
        columns.append(states.split(CHUNK))
        tails.append(tail)
    found = []
    for right, wrong, tokens in zip(*columns, targets.split(CHUNK), strict=True):
        with models[0].arithmetic():
            likely, unlikely = tails[0](right).float(), tails[1](wrong).float()
        scores = contrastive_scores(likely[None], unlikely[None], tokens[None], strength=strength)
        found.append(scores[0].cpu())
    return torch.cat(found)
