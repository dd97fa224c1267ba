"""Which tokens a model's training raised and lowered: its per-token rewards. arXiv:2404.12358.

beta log pi/ref of a token is an advantage: what it added to the response's implicit reward, which
may show at an earlier token than the one that people would blame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from markupsafe import Markup

from mmalign.adapters.autoregressive import evaluating
from mmalign.errors import BadSample
from mmalign.records import Preference, Sample, text_of
from mmalign.reference import Reference
from mmalign.report.credit import Credited, credit
from mmalign.report.page import section


def credit_section(
    policy: Any,
    reference: Reference,
    data: Sequence[Preference],
    *,
    beta: float = 1.0,
    show: int = 4,
) -> list[Markup]:
    """The report's section with the first few preferences; none where no sample can be shown.

    policy: an adapter of a language model, with eyes or without. reference: the model before
    training. beta: 1 for nats.
    """
    cards = []
    for preference in list(data)[:show]:
        try:
            sides = {"chosen": preference.chosen, "rejected": preference.rejected}
            found = {
                name: credited(policy, reference, sample, beta=beta)
                for name, sample in sides.items()
            }
        except BadSample:
            continue
        last = preference.chosen.prompt[-1]
        cards.append(credit(text_of(last.parts), found))
    if not cards:
        return []
    unit = "nats" if beta == 1 else f"beta = {beta:g} times nats"
    note = (
        f"log pi/ref of every token, in {unit}, and its sum beside the response's name: blue was "
        "raised, orange lowered."
    )
    return [section("Credit by token", Markup().join(cards), note=note)]


def credited(policy: Any, reference: Reference, sample: Sample, *, beta: float = 1.0) -> Credited:
    """A response's tokens with their rewards. Raises BadSample for what the model cannot take."""
    with torch.no_grad(), evaluating(policy.policy):
        inputs = policy.encode(policy.collate([sample], [0]))
        ours = policy.log_probs(policy.policy, inputs)
        theirs = reference.log_probs(inputs, [sample.id], [0])
    assert ours.tokens is not None  # a language model has tokens
    assert theirs.tokens is not None
    rewards = beta * (ours.tokens.log_probs - theirs.tokens.log_probs)[0].cpu()
    ids = policy.collator.tokens(sample).completion
    pieces = [str(policy.tokenizer.decode([token])) for token in ids]
    return Credited(pieces, rewards[: len(ids)].tolist())
