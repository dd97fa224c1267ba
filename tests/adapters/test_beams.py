"""Beam search finds the answer with the highest sum, by the policy or by its implicit rewards."""

from __future__ import annotations

import pytest
import torch
from tiny_models import save_model

from mmalign.adapters.beams import Voice, search
from mmalign.adapters.text import load_text
from mmalign.records import PLAIN, Message, Text

PROMPTS = [(Message(PLAIN, (Text("ab"),)),), (Message(PLAIN, (Text("hello there"),)),)]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    found = load_text(save_model(tmp_path_factory.mktemp("llama")), lora={"r": 2})
    torch.manual_seed(0)
    for name, weight in found.policy.named_parameters():
        if weight.requires_grad and "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return found


def exhaustive(adapter, prompt, allowed, stop, strength):
    """The best of all continuations of at most two tokens, by whole forward passes."""
    ids = adapter.collator.prompt_ids(prompt)
    lm = adapter.policy

    def log_probs(tokens):
        with torch.no_grad():
            policy = lm(torch.tensor([tokens])).logits[0].log_softmax(-1)
            with adapter.reference_mode():
                reference = lm(torch.tensor([tokens])).logits[0].log_softmax(-1)
        return strength * policy + (1 - strength) * reference

    after, best = log_probs(ids)[-1], {}
    for first in allowed:
        if first == stop:
            best[()] = after[first].item()
            continue
        then = log_probs([*ids, first])[-1]
        for second in allowed:
            best[(first,) if second == stop else (first, second)] = (
                after[first] + then[second]
            ).item()
    return list(max(best, key=best.__getitem__))


@pytest.mark.parametrize("strength", [1.0, 2.5])
def test_a_beam_for_every_continuation_is_exact(adapter, strength):
    stop, allowed = 3, [3, 7, 11, 15, 20]
    mask = torch.zeros(adapter.policy.get_base_model().config.vocab_size, dtype=torch.bool)
    mask[allowed] = True
    voices = [
        Voice(adapter.policy.get_base_model(), strength, torch.no_grad),
        Voice(adapter.policy.get_base_model(), 1 - strength, adapter.reference_mode),
    ]
    ids = [adapter.collator.prompt_ids(prompt) for prompt in PROMPTS]
    with torch.no_grad():
        found = search(
            voices, ids, beams=25, steps=2, stop_ids=[stop], pad_id=0, allowed=mask
        )  # fmt: skip
    assert found == [exhaustive(adapter, p, allowed, stop, strength) for p in PROMPTS]


def test_one_beam_is_greedy(adapter):
    greedy = adapter.sample(PROMPTS, [0, 0], temperature=0, max_new_tokens=6)
    assert adapter.beam_search(PROMPTS, beams=1, max_new_tokens=6) == greedy
