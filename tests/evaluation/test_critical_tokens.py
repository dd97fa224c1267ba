"""Contrastive estimation of critical tokens equals its formula, by whole forward passes."""

from __future__ import annotations

import pytest
import torch
from tiny_models import save_model

from mmalign.adapters.text import load_text
from mmalign.errors import UserError
from mmalign.evaluation.critical_tokens import critical_scores
from mmalign.records import PLAIN, Message, Sample, Text, text_of


def answer(prompt: str, response: str) -> Sample:
    return Sample((Message(PLAIN, (Text(prompt),)),), (Text(response),))


ANSWERS = [answer("ab", "one two three"), answer("hello there", "four"), answer("ab", "five six")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("llama"))
    positive, negative = load_text(folder), load_text(folder)
    torch.manual_seed(1)
    for weight in negative.policy.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    return positive, negative


def test_scores_are_those_of_the_contrasted_distribution(models):
    found = critical_scores(*models, ANSWERS, strength=0.7, batch=2)
    for sample, scores in zip(ANSWERS, found, strict=True):
        tokens = models[0].collator.tokens(sample)
        ids = torch.tensor([[*tokens.prompt, *tokens.completion]])
        with torch.no_grad():
            p, n = (m.policy(ids).logits[0, len(tokens.prompt) - 1 : -1] for m in models)
        wanted = (1.7 * p.log_softmax(-1) - 0.7 * n.log_softmax(-1)).softmax(-1)
        completion = torch.tensor(tokens.completion)[:, None]
        torch.testing.assert_close(scores, wanted.gather(1, completion)[:, 0], rtol=1e-4, atol=1e-6)


def test_other_tokenizers_cannot_be_contrasted(models):
    negative = models[1]
    negative.tokenizer.add_tokens(["<odd>"])
    with pytest.raises(UserError, match="tokenizers"):
        critical_scores(*models, ANSWERS)


def test_tokens_know_their_characters(models):
    collator = models[0].collator
    for sample in ANSWERS:
        text, places = text_of(sample.response), collator.places(sample)
        assert len(places) == len(collator.tokens(sample).completion)
        assert "".join(text[a:b] for a, b in places[:-1]).replace(" ", "") == text.replace(" ", "")
        assert places[-1] is None  # the end of the text
