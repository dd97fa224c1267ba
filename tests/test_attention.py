"""Probing equals eager attention, hidden columns have no effect, the model stays as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_models import family_config
from tiny_vision_calls import Call, call_of
from tiny_vision_language import FAMILIES
from torch import Tensor
from transformers import AutoModelForCausalLM

from mmalign.adapters.packing import IMPLEMENTATION as SEGMENTS
from mmalign.adapters.packing import attention_of, segment_inputs, set_attention, use_segments
from mmalign.attention import hiding, image_layer, image_layers, keep_rows, probing
from mmalign.errors import UserError

NEAR = 2e-6


def image_columns(call: Call) -> Tensor:
    """(2 s) true for the image."""
    columns = torch.zeros(2, call.columns, dtype=torch.bool)
    columns[:, call.image] = True
    return columns


def run(call: Call, **changes: Any) -> Tensor:
    with torch.no_grad():
        return call.model(**{**call.inputs, **changes}).logits


def eager_attention(call: Call) -> tuple[Tensor, ...]:
    """Per layer (2 h s k), as transformers' plain attention returns it."""
    before = attention_of(call.model)
    set_attention(call.model, "eager")
    with torch.no_grad():
        out = call.model(**call.inputs, output_attentions=True)
    set_attention(call.model, before)
    attention: tuple[Tensor, ...] = out.attentions
    return attention


def same(implementation: str) -> float:
    """How far logits may be apart: models made with plain attention are computed by torch's."""
    return 0 if implementation == "sdpa" else 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_probing_equals_eager_attention(family: str) -> None:
    call = call_of(family)
    before, implementation = run(call), attention_of(call.model)
    queries, layers = call.answer.repeat(2, 1), image_layers(call.model)
    groups = torch.stack([image_columns(call), ~image_columns(call)], dim=2)
    with probing(call.model, queries, groups, layers=layers) as probe:
        torch.testing.assert_close(run(call), before, rtol=0, atol=same(implementation))
    assert attention_of(call.model) == implementation
    attention = eager_attention(call)
    for layer in layers:
        rows = attention[layer][:, :, call.answer]  # (2 h r k)
        expected = rows[..., call.image].sum(-1)
        torch.testing.assert_close(probe.mass[layer][..., 0], expected, rtol=0, atol=NEAR)
        torch.testing.assert_close(probe.columns[layer], rows.mean((1, 2)), rtol=0, atol=NEAR)
        torch.testing.assert_close(probe.mean_mass(layer).sum(-1), torch.ones(2))


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_images_have_no_effect(family: str) -> None:
    call = call_of(family)
    layers, hidden = image_layers(call.model), image_columns(call)
    implementation = attention_of(call.model)
    if call.crossing:
        hidden = torch.ones_like(hidden)
    other = {"pixel_values": torch.randn_like(call.inputs["pixel_values"])}
    assert (run(call) - run(call, **other))[:, call.answer].abs().max() > 1e-3
    queries, groups = call.answer.repeat(2, 1), hidden[..., None].float()
    with (
        hiding(call.model, hidden),
        probing(call.model, queries, groups, layers=layers) as probe,
    ):
        blind, blind_too = run(call), run(call, **other)
    assert blind.isfinite().all()
    torch.testing.assert_close(blind[:, call.answer], blind_too[:, call.answer], rtol=0, atol=0)
    for layer in layers:
        assert (probe.mass[layer] == 0).all()
    assert attention_of(call.model) == implementation


def test_hiding_some_tokens_equals_a_four_dimensional_mask() -> None:
    call = call_of("llava")
    hidden = torch.zeros(2, call.columns, dtype=torch.bool)
    hidden[0, call.image[::2]] = True
    hidden[1, call.image[1:4]] = True
    with hiding(call.model, hidden):
        ours = run(call)
    seen = call.inputs["attention_mask"].bool()
    length = seen.shape[1]
    mask = torch.ones(length, length).tril().bool() & (seen & ~hidden)[:, None]
    mask |= torch.eye(length, dtype=torch.bool)
    positions = torch.arange(length).repeat(2, 1)  # as the model counts them without our help
    theirs = run(call, attention_mask=mask[:, None], position_ids=positions)
    torch.testing.assert_close(ours[:, call.answer], theirs[:, call.answer], rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "mllama"])
def test_decoding_with_a_cache_is_probed_and_hidden_like_one_pass(family: str) -> None:
    call = call_of(family)
    hidden = image_columns(call)
    hidden[:, call.image[0]] = False
    settings = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    start = call.inputs["input_ids"].shape[1]
    queries = torch.arange(start, start + 4).repeat(2, 1)
    groups = (image_columns(call) & ~hidden)[..., None].float()
    layers = image_layers(call.model)
    with torch.no_grad(), hiding(call.model, hidden):
        with probing(call.model, queries, groups, layers=layers) as cached:
            ids = call.model.generate(**call.inputs, **settings)
        with probing(call.model, queries, groups, layers=layers) as whole:
            uncached = call.model.generate(**call.inputs, **settings, use_cache=False)
    assert torch.equal(ids, uncached)
    assert (cached.mass[image_layer(call.model)] > 0).any()
    for layer in layers:
        assert whole.mass[layer].shape == cached.mass[layer].shape
        # Without a cache the last call holds all queries at once: teacher forcing.
        torch.testing.assert_close(cached.mass[layer], whole.mass[layer], rtol=0, atol=NEAR)


def test_soft_capped_scores_are_probed_as_they_are_attended_to() -> None:
    torch.manual_seed(0)
    config = family_config("gemma2", attn_logit_softcapping=2.0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = torch.randint(3, 400, (2, 9))
    queries, groups = torch.tensor([[7, 8], [5, -1]]), torch.zeros(2, 9, 1)
    groups[:, 2:4] = 1
    with torch.no_grad():
        out = model(input_ids=ids, output_attentions=True)
        with probing(model, queries, groups, layers=[1]) as probe:
            logits = model(input_ids=ids).logits
    torch.testing.assert_close(logits, out.logits, rtol=0, atol=1e-5)
    expected = out.attentions[1][..., 2:4].sum(-1)
    mass = probe.mass[1][..., 0]
    torch.testing.assert_close(mass[0], expected[0][:, [7, 8]], rtol=0, atol=NEAR)
    torch.testing.assert_close(mass[1, :, 0], expected[1][:, 5], rtol=0, atol=NEAR)
    assert (mass[1, :, 1] == 0).all()
    torch.testing.assert_close(probe.mean_mass(1)[1], expected[1][:, 5].mean(0, keepdim=True))
    assert model.config._attn_implementation == "eager"


def test_models_with_packed_attention_are_probed_on_plain_rows() -> None:
    model = AutoModelForCausalLM.from_config(family_config("llama")).eval()
    use_segments(model)
    ids = torch.randint(3, 400, (1, 6))
    with torch.no_grad(), probing(model, torch.tensor([[5]]), torch.ones(1, 6, 1), layers=[0]) as p:
        model(input_ids=ids)
        packed = segment_inputs(ids, torch.tensor([[0, 1, 2, 3, 2, 3]]), [[2, 2, 2]])
        with pytest.raises(RuntimeError, match="plain rows"):
            model(**packed)
    torch.testing.assert_close(p.mean_mass(0), torch.ones(1, 1))
    assert model.config._attn_implementation == SEGMENTS


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    call = call_of("llava")
    before = run(call)
    with pytest.raises(ZeroDivisionError), hiding(call.model, image_columns(call)):
        raise ZeroDivisionError
    assert attention_of(call.model) == "sdpa"
    torch.testing.assert_close(run(call), before, rtol=0, atol=0)


def test_rows_may_be_selected_while_columns_are_hidden() -> None:
    call = call_of("llava")
    hidden = image_columns(call)
    hidden[0] = False
    order = torch.tensor([1, 1, 0])
    picked = {name: tensor[order] for name, tensor in call.inputs.items()}
    with hiding(call.model, hidden):
        both = run(call)
        with pytest.raises(RuntimeError, match="keep_rows"):
            run(call, **picked)
        keep_rows(order)
        selected = run(call, **picked)
    torch.testing.assert_close(selected, both[order], rtol=0, atol=1e-5)
    keep_rows(order)  # nothing is hidden any more: nothing happens


def test_layers_are_checked_and_the_middle_one_has_full_attention() -> None:
    gemma, mllama = call_of("gemma3").model, call_of("mllama").model
    assert image_layer(gemma) == image_layer(gemma, -1) == 1
    gemma.config.text_config.layer_types.reverse()
    assert image_layer(gemma) == 0
    assert image_layers(mllama) == [1] == [image_layer(mllama)]
    with pytest.raises(UserError, match="in no layer 0"):
        image_layer(mllama, 0)


def test_hidden_columns_can_be_hidden_in_some_layers_only() -> None:
    call = call_of("qwen3_vl")
    hidden, queries = image_columns(call), call.answer.repeat(2, 1)
    groups = hidden[..., None].float()
    with (
        hiding(call.model, hidden, layers=[0]),
        probing(call.model, queries, groups, layers=[0, 1]) as probe,
    ):
        run(copy.copy(call))
    assert [bool((probe.mass[layer] > 0).any()) for layer in (0, 1)] == [False, True]
