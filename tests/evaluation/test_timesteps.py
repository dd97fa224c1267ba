"""Accuracy by timestep is that of errors at those timesteps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tiny_diffusion import adapter, picture, sample

from mmalign.adapters.diffusion.lora import lora_layers
from mmalign.evaluation.images.timesteps import accuracy_by_time
from mmalign.records import Preference, pair
from mmalign.reference import AdapterOff


def pairs(count: int) -> list[Preference]:
    return [
        pair(sample(f"cat {i}", picture(2 * i)), sample(f"cat {i}", picture(2 * i + 1)))
        for i in range(count)
    ]


def test_equal_models_are_at_chance_everywhere():
    policy = adapter("stable_diffusion")
    found = accuracy_by_time(policy, pairs(4), AdapterOff(policy), parts=2)
    assert list(found) == ["time 0 to 0.5", "time 0.5 to 1"]
    assert [each.value for each in found.values()] == [0.5, 0.5]


def test_a_turned_preference_turns_the_accuracy_and_the_law_bounds_the_times():
    policy = adapter("sd3", timestep_law="logit_normal(low=0.5, high=0.9)")
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for name, weight in policy.policy.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    assert lora_layers(policy.policy)
    given = pairs(5)
    turned = [replace(each, candidates=each.candidates[::-1]) for each in given]
    straight = accuracy_by_time(policy, given, AdapterOff(policy), parts=4)
    flipped = accuracy_by_time(policy, turned, AdapterOff(policy), parts=4)
    assert list(straight) == [
        "time 0.5 to 0.6", "time 0.6 to 0.7", "time 0.7 to 0.8", "time 0.8 to 0.9",
    ]  # fmt: skip
    for one, other in zip(straight.values(), flipped.values(), strict=True):
        assert one.value == pytest.approx(1 - other.value)
    assert any(each.value != 0.5 for each in straight.values())
