"""Objectives with views, the cached reference and whole runs on tiny vision-language models."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_vision_language import picture, save_family

from mmalign.adapters.vision_language import VisionLanguageAdapter, load_vision_language
from mmalign.objectives import objective
from mmalign.records import Message, Preference, Sample, Span, Text, pair
from mmalign.reference import AdapterOff, AsItIs, Cached
from mmalign.training.align import align
from mmalign.training.batches import Plan, Step, Steps
from mmalign.training.options import TrainingOptions
from mmalign.training.step import Scorer, preference_step

PAIRS = {
    "dpo()": 1,
    "mdpo()": 3,
    "ddpo()": 1,
    "guided(dpo())": None,
    "contrast(dpo(), worse='chosen@noise')": 1,
    "contrast(dpo(), worse='chosen@mask')": 1,
    "contrast(dpo(), worse='chosen@black')": 1,
    "contrast(dpo(), worse='chosen@other_image')": 1,
}
"""Specs, and how many times log 2 they cost where policy and reference agree; None where the
guidance makes it something else."""


def said(image: int, answer: str, *weights: Span) -> Sample:
    prompt = (Message("user", (picture(image), Text("What is it?"))),)
    return Sample(prompt, (Text(answer, weights),))


DATA = [
    pair(said(i, "A brown fox.", Span(2, 7, 5.0)), said(i, "A lazy dog.", Span(2, 6, 5.0)))
    for i in range(4)
]
TWO_IMAGES = [
    Preference((said(i, "A brown fox."), said(i + 4, "A lazy dog.")), (1.0, 1.0)) for i in range(2)
]
THREE = [
    Preference((*one.candidates, said(i, "Nothing.")), (1.0, 1.0, 0.0))
    for i, one in enumerate(TWO_IMAGES)
]


@pytest.fixture(scope="module", params=("llava", "qwen2_5_vl"))
def adapter(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> VisionLanguageAdapter:
    folder = save_family(tmp_path_factory.mktemp("model"), request.param)
    return load_vision_language(folder, lora={"r": 4})


def step_of(adapter: VisionLanguageAdapter, spec: str, data: list[Preference]) -> Step:
    needs = objective(spec).needs
    plan = Plan(adapter.collate, adapter.size, needs, batch_size=len(data), budget=10_000)
    return Steps(data, plan)[0]


def losses(adapter: VisionLanguageAdapter, spec: str, data: list[Preference]) -> torch.Tensor:
    wanted, step = objective(spec), step_of(adapter, spec, data)
    assert not step.refused
    reference = AdapterOff(adapter)
    found = [
        preference_step(adapter, Scorer(adapter), micro, wanted, reference, {})[0]
        for micro in step.micro_batches
    ]
    return torch.cat(found)


@pytest.mark.parametrize("spec", PAIRS)
def test_pairs_start_at_log_2_for_each_term(adapter: VisionLanguageAdapter, spec: str) -> None:
    found, terms = losses(adapter, spec, DATA), PAIRS[spec]
    found.sum().backward()
    assert all(p.grad is not None for p in adapter.policy.parameters() if p.requires_grad)
    if terms is None:
        assert (found - math.log(2)).abs().max() > 1e-3
    else:
        torch.testing.assert_close(found, torch.full_like(found, terms * math.log(2)))


@pytest.mark.parametrize(("spec", "data"), [("svco()", TWO_IMAGES), ("symmpo()", THREE)])
def test_two_images_start_at_four_times_log_2(
    adapter: VisionLanguageAdapter, spec: str, data: list[Preference]
) -> None:
    found = losses(adapter, spec, data)
    torch.testing.assert_close(found, torch.full_like(found, 4 * math.log(2)))


def test_mdpo_looks_at_a_crop_for_the_chosen_answer_only(adapter: VisionLanguageAdapter) -> None:
    for micro in step_of(adapter, "mdpo()", DATA).micro_batches:
        assert len(micro.candidates.keys) == 2 * len(micro.ids)
        assert len(micro.views["crop"].keys) == len(micro.ids)


@pytest.mark.parametrize("data", [THREE, TWO_IMAGES])
def test_icvco_costs_five_halves_of_log_2(
    adapter: VisionLanguageAdapter, data: list[Preference]
) -> None:
    """Two contrasts and two anchors under each of single and both images, weighted 1.75 and 0.75,
    halved; nothing to distil yet, since no probability exceeds a half."""
    found = losses(adapter, "icvco()", data)
    torch.testing.assert_close(found, torch.full_like(found, 2.5 * math.log(2)))


def test_a_cached_reference_knows_images(adapter: VisionLanguageAdapter, tmp_path: Path) -> None:
    [micro] = step_of(adapter, "dpo()", DATA).micro_batches
    rows = micro.candidates
    inputs = adapter.encode(rows.inputs)
    cached = Cached(tmp_path / "reference.sqlite", "tiny", AsItIs(adapter), seeded=False)
    fresh = cached.log_probs(inputs, rows.keys, rows.seeds)
    again = replace_inner(tmp_path).log_probs(inputs, rows.keys, rows.seeds)
    assert torch.equal(fresh.log_probs, again.log_probs)
    with torch.no_grad():
        real = adapter.log_probs(adapter.policy, inputs).log_probs
    assert torch.equal(real, again.log_probs)
    assert len(set(rows.keys)) == len(DATA) * 2  # equal words, other images: other keys


def replace_inner(folder: Path) -> Cached:
    """The same cache, with nobody to ask."""
    return Cached(folder / "reference.sqlite", "tiny", None, seeded=False)


@pytest.mark.parametrize("reference", ["auto", "cache"])
@pytest.mark.parametrize("lora", [{"r": 4}, None])
def test_a_whole_run_prefers_the_chosen(
    tmp_path: Path, reference: str, lora: dict[str, int] | None
) -> None:
    adapter = load_vision_language(save_family(tmp_path / "model", "llava"), lora=lora)
    options = replace(TrainingOptions(), steps=6, batch_size=4, learning_rate=5e-3)
    done = align(
        adapter, DATA, DATA, objective("dpo()"), options, tmp_path / "out", reference=reference
    )
    assert done.after["loss"].mean() < done.before["loss"].mean()
    torch.testing.assert_close(done.before["loss"].mean().item(), math.log(2))
