"""How far a policy's whole predictions are from its reference's, against plain computations."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_diffusion
import torch
from tiny_image_models import save_image_model
from tiny_models import save_model
from torch.nn.functional import kl_div

from mmalign.adapters.image_tokens import load_image_tokens
from mmalign.adapters.protocol import DIVERGENCE, PREDICTIONS, Adapter, Inputs, Scored
from mmalign.adapters.text import load_text
from mmalign.records import Message, Sample, Text

PROMPT = (Message("user", (Text("Name three colours."),)),)
ANSWERS = [Sample(PROMPT, (Text(words),)) for words in ("Red and blue", "over the lazy dog")]


def shaken(adapter: Adapter) -> Adapter:
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in adapter.policy.parameters():
            if weight.requires_grad:
                weight.copy_(0.2 * torch.randn(weight.shape))
    return adapter


def inputs_of(adapter: Adapter, samples: list[Sample]) -> Inputs:
    return adapter.encode(adapter.collate(samples, [0] * len(samples)))


def compared(adapter: Adapter, inputs: Inputs) -> Scored:
    """The policy, told what its reference predicts."""
    with torch.no_grad(), adapter.reference_mode():
        told = adapter.log_probs(adapter.policy, inputs, [PREDICTIONS])
        itself = {**inputs, PREDICTIONS: told.predictions}
        same = adapter.log_probs(adapter.policy, itself, [DIVERGENCE]).divergence
    assert same is not None
    assert same.abs().max() < 1e-5
    return adapter.log_probs(adapter.policy, itself, [DIVERGENCE])


def test_of_texts(tmp_path: Path) -> None:
    adapter = shaken(load_text(save_model(tmp_path), lora={"r": 4}))
    found = compared(adapter, inputs_of(adapter, ANSWERS))
    assert found.divergence is not None
    for i, answer in enumerate(ANSWERS):
        tokens = adapter.collator.tokens(answer)
        row = torch.tensor([[*tokens.prompt, *tokens.completion]])
        first = len(tokens.prompt) - 1
        ours = adapter.policy(row).logits[0, first:-1].log_softmax(-1)
        with torch.no_grad(), adapter.reference_mode():
            theirs = adapter.policy(row).logits[0, first:-1].log_softmax(-1)
        plain = kl_div(ours, theirs, reduction="sum", log_target=True)
        torch.testing.assert_close(found.divergence[i], plain, rtol=1e-4, atol=1e-5)
    trained = [p for p in adapter.policy.parameters() if p.requires_grad]
    assert any(g.abs().max() > 0 for g in torch.autograd.grad(found.divergence.sum(), trained))


def test_of_pictures_made_of_tokens(tmp_path: Path) -> None:
    folder = save_image_model(tmp_path, "janus")
    adapter = shaken(load_image_tokens(folder, resolution=8, lora={"r": 4}))
    drawn = [Sample(PROMPT, (tiny_diffusion.picture(i),)) for i in range(2)]
    mixed = [*drawn, Sample(PROMPT, (Text("Red"), tiny_diffusion.picture(2)))]
    found = compared(adapter, inputs_of(adapter, mixed))
    assert found.divergence is not None
    assert (found.divergence > 1e-4).all()


@pytest.mark.parametrize("draws", [1, 2])
def test_of_denoisers_it_is_half_the_mean_squared_difference(draws: int) -> None:
    adapter = tiny_diffusion.adapter("stable_diffusion", draws=draws)
    tiny_diffusion.shake(adapter)
    inputs = inputs_of(adapter, tiny_diffusion.samples("stable_diffusion"))
    found = compared(adapter, inputs)
    [problem] = inputs["problems"]
    ours = adapter.predict(adapter.policy, problem)
    with torch.no_grad(), adapter.reference_mode():
        theirs = adapter.predict(adapter.policy, problem)
    plain = 0.5 * (ours - theirs).square().flatten(1).mean(1).view(-1, draws).mean(1)
    assert found.divergence is not None
    torch.testing.assert_close(found.divergence, plain[inputs["order"]])
