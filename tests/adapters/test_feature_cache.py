"""What a frozen tower makes of an image is kept on disk and serves every later run."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vision_language import picture, save_family

from mmalign.adapters.autoregressive import causal_lm
from mmalign.adapters.vision_language import VisionLanguageAdapter, load_vision_language
from mmalign.adapters.vision_language.features import backbone
from mmalign.errors import UserError
from mmalign.records import Media, Message, Sample, Text


def about(*images: Media) -> Sample:
    return Sample((Message("user", (*images, Text("What is it?"))),), (Text("A dog."),))


SAMPLES = [about(picture(1)), about(picture(2)), about(picture(1), picture(2, 90, 50)), about()]


@pytest.fixture(params=("llava_next", "qwen3_vl", "llava_onevision"))
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_family(tmp_path / "model", request.param)


@contextmanager
def encodings(adapter: VisionLanguageAdapter) -> Iterator[list[int]]:
    """Counts the calls of the vision tower."""
    calls: list[int] = []
    inner = backbone(causal_lm(adapter.policy))
    tower = next(m for n, m in inner.named_children() if n in ("vision_tower", "visual"))
    handle = tower.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    handle.remove()


def log_probs(adapter: VisionLanguageAdapter, collate: Any = None) -> torch.Tensor:
    inputs = adapter.encode((collate or adapter.collate)(SAMPLES, [0] * len(SAMPLES)))
    with torch.no_grad():
        return adapter.log_probs(adapter.policy, inputs).log_probs


def test_a_second_run_encodes_nothing_and_computes_the_same(folder: Path, tmp_path: Path) -> None:
    plain = log_probs(load_vision_language(folder))
    first = load_vision_language(folder, feature_cache=tmp_path / "kept")
    with encodings(first) as calls:
        assert torch.equal(log_probs(first), plain)
        assert calls
    again = load_vision_language(folder, lora={"r": 4}, feature_cache=tmp_path / "kept")
    worker = pickle.loads(pickle.dumps(again.collate))
    with encodings(again) as calls:
        assert torch.equal(log_probs(again, worker), plain)
        assert not calls


def test_other_weights_and_other_settings_find_nothing(folder: Path, tmp_path: Path) -> None:
    adapter = load_vision_language(folder, feature_cache=tmp_path / "kept")
    log_probs(adapter)
    other = load_vision_language(folder, feature_cache=tmp_path / "kept", precision="bfloat16")
    with encodings(other) as calls:
        log_probs(other)
    assert calls
    with torch.no_grad():
        next(p for n, p in adapter.policy.named_parameters() if "vis" in n).add_(1)
    adapter.policy.save_pretrained(folder)
    moved = load_vision_language(folder, feature_cache=tmp_path / "kept")
    assert moved.collate.features.scope != adapter.collate.features.scope


@pytest.mark.parametrize("trained", ["train_vision", "train_projector"])
def test_a_trained_tower_has_no_cache(tmp_path: Path, trained: str) -> None:
    folder = save_family(tmp_path / "model", "llava")
    with pytest.raises(UserError, match="leave out feature_cache="):
        load_vision_language(folder, feature_cache=tmp_path / "kept", **{trained: True})
