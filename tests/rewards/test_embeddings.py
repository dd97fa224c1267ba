"""Sentences as points: the mean of their tokens, of length 1, whatever the batch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tiny_text_encoder import save_text_encoder

from mmalign.data.cache import Cache
from mmalign.errors import BadSample, UserError
from mmalign.records import Message, Sample, Text
from mmalign.rewards.embeddings import load_embedder
from mmalign.rewards.table import reward

TEXTS = ["a fox", "two dogs on a wide green lawn", "a fox", "red"]


@pytest.mark.parametrize("first", [False, True])
def test_points_are_the_pooled_tokens(tmp_path: Path, first: bool) -> None:
    folder = save_text_encoder(tmp_path / "model", first=first)
    net = transformers.AutoModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            states = net(torch.tensor([words(text)["input_ids"]])).last_hidden_state[0].double()
        pooled = (states[0] if first else states.mean(0)).numpy()
        expected.append(pooled / np.sqrt((pooled**2).sum()))
    found = load_embedder(str(folder), batch_size=2)(TEXTS)
    assert found == pytest.approx(np.stack(expected), abs=1e-5)
    assert (found[0] == found[2]).all()


def test_the_cache_gives_the_same_points(tmp_path: Path) -> None:
    folder = save_text_encoder(tmp_path / "model")
    cache = Cache(tmp_path / "cache.sqlite")
    first = load_embedder(str(folder), cache=cache)(TEXTS)
    kept = load_embedder(str(folder), cache=cache)
    assert (kept(TEXTS[:2]) == first[:2]).all()


def test_other_kinds_of_pooling_are_refused(tmp_path: Path) -> None:
    folder = save_text_encoder(tmp_path / "model")
    pooling = {"pooling_mode_max_tokens": True}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    with pytest.raises(UserError, match="pooling_mode_max_tokens"):
        load_embedder(str(folder))


def test_likeness_to_the_prompt_or_to_a_text_is_a_reward(tmp_path: Path) -> None:
    folder = save_text_encoder(tmp_path / "model")
    points = load_embedder(str(folder))(TEXTS).astype(np.float64)
    asked = (Message("user", (Text(TEXTS[0]),)),)
    samples = [Sample(asked, (Text(text),)) for text in TEXTS]
    by_prompt = reward(f"embeddings(model={str(folder)!r})")
    assert by_prompt(samples) == pytest.approx(points @ points[0], abs=1e-6)
    to_red = reward(f"embeddings(model={str(folder)!r}, to='red')")
    assert to_red(samples) == pytest.approx(points @ points[3], abs=1e-6)
    assert by_prompt.name != to_red.name
    with pytest.raises(BadSample, match="response is empty"):
        to_red([Sample(asked, ())])
