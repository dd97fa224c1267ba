"""ImageReward on a tiny checkpoint with the published names, against BLIP written out plainly."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_clip import cropped, media, picture
from tiny_models import tokenizer
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from mmalign.errors import UserError
from mmalign.rewards.image_reward import DEVIATION, MEAN, image_reward

WIDE, HIDDEN, PATCH, SIZE, LAYERS, LONGEST = 128, 64, 16, 32, 2, 35
TEXTS = ["a red fox", "two dogs on a lawn"]
Weights = dict[str, Tensor]


def checkpoint() -> Weights:
    """Random weights under the names of the published file."""
    torch.manual_seed(0)
    made: Weights = {}

    def dense(name: str, wide: int, narrow: int) -> None:
        made[f"{name}.weight"] = torch.randn(narrow, wide) / wide**0.5
        made[f"{name}.bias"] = 0.1 * torch.randn(narrow)

    def norm(name: str, wide: int) -> None:
        made[f"{name}.weight"] = 1 + 0.2 * torch.randn(wide)
        made[f"{name}.bias"] = 0.2 * torch.randn(wide)

    seen, read = "blip.visual_encoder", "blip.text_encoder"
    made[f"{seen}.cls_token"] = torch.randn(1, 1, WIDE)
    made[f"{seen}.pos_embed"] = torch.randn(1, (SIZE // PATCH) ** 2 + 1, WIDE)
    made[f"{seen}.patch_embed.proj.weight"] = torch.randn(WIDE, 3, PATCH, PATCH) / PATCH
    made[f"{seen}.patch_embed.proj.bias"] = torch.randn(WIDE)
    norm(f"{seen}.norm", WIDE)
    for i in range(LAYERS):
        block = f"{seen}.blocks.{i}"
        norm(f"{block}.norm1", WIDE)
        norm(f"{block}.norm2", WIDE)
        dense(f"{block}.attn.qkv", WIDE, 3 * WIDE)
        dense(f"{block}.attn.proj", WIDE, WIDE)
        dense(f"{block}.mlp.fc1", WIDE, 96)
        dense(f"{block}.mlp.fc2", 96, WIDE)
    embeddings = f"{read}.embeddings"
    made[f"{embeddings}.word_embeddings.weight"] = torch.randn(432, HIDDEN)
    made[f"{embeddings}.position_embeddings.weight"] = torch.randn(48, HIDDEN)
    made[f"{embeddings}.position_ids"] = torch.arange(48)[None]
    norm(f"{embeddings}.LayerNorm", HIDDEN)
    for i in range(LAYERS):
        layer = f"{read}.encoder.layer.{i}"
        for attention, wide in (("attention", HIDDEN), ("crossattention", WIDE)):
            dense(f"{layer}.{attention}.self.query", HIDDEN, HIDDEN)
            dense(f"{layer}.{attention}.self.key", wide, HIDDEN)
            dense(f"{layer}.{attention}.self.value", wide, HIDDEN)
            dense(f"{layer}.{attention}.output.dense", HIDDEN, HIDDEN)
            norm(f"{layer}.{attention}.output.LayerNorm", HIDDEN)
        dense(f"{layer}.intermediate.dense", HIDDEN, 80)
        dense(f"{layer}.output.dense", 80, HIDDEN)
        norm(f"{layer}.output.LayerNorm", HIDDEN)
    for place, wide, narrow in ((0, HIDDEN, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16)):
        dense(f"mlp.layers.{place}", wide, narrow)
    dense("mlp.layers.7", 16, 1)
    return made


def plain(weights: Weights, pixels: Tensor, ids: Tensor) -> float:
    """The published formula in float64, for one image (1 3 h w) and one text (t,) unpadded."""
    w = {name: tensor.double() for name, tensor in weights.items() if tensor.is_floating_point()}

    def dense(name: str, x: Tensor) -> Tensor:
        return linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # heads of 64
        parts = []
        for at in range(0, q.shape[-1], 64):
            head = slice(at, at + 64)
            scores = (q[:, head] @ k[:, head].T / math.sqrt(64)).softmax(-1)
            parts.append(scores @ v[:, head])
        return torch.cat(parts, -1)

    seen, read = "blip.visual_encoder", "blip.text_encoder"
    patches = torch.nn.functional.conv2d(
        pixels.double(),
        w[f"{seen}.patch_embed.proj.weight"],
        w[f"{seen}.patch_embed.proj.bias"],
        stride=PATCH,
    )
    x = torch.cat([w[f"{seen}.cls_token"][0], patches[0].flatten(1).T]) + w[f"{seen}.pos_embed"][0]
    for i in range(LAYERS):
        block = f"{seen}.blocks.{i}"
        q, k, v = dense(f"{block}.attn.qkv", norm(f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + dense(f"{block}.attn.proj", attend(q, k, v))
        inner = gelu(dense(f"{block}.mlp.fc1", norm(f"{block}.norm2", x, 1e-6)))
        x = x + dense(f"{block}.mlp.fc2", inner)
    x = norm(f"{seen}.norm", x, 1e-6)

    embeddings = f"{read}.embeddings"
    y = w[f"{embeddings}.word_embeddings.weight"][ids]
    y = y + w[f"{embeddings}.position_embeddings.weight"][: len(ids)]
    y = norm(f"{embeddings}.LayerNorm", y, 1e-12)
    for i in range(LAYERS):
        layer = f"{read}.encoder.layer.{i}"
        for attention, other in (("attention", None), ("crossattention", x)):
            name = f"{layer}.{attention}"
            source = y if other is None else other
            mixed = attend(
                dense(f"{name}.self.query", y),
                dense(f"{name}.self.key", source),
                dense(f"{name}.self.value", source),
            )
            y = norm(f"{name}.output.LayerNorm", y + dense(f"{name}.output.dense", mixed), 1e-12)
        inner = gelu(dense(f"{layer}.intermediate.dense", y))
        y = norm(f"{layer}.output.LayerNorm", y + dense(f"{layer}.output.dense", inner), 1e-12)
    z = y[0]
    for place in (0, 2, 4, 6, 7):
        z = dense(f"mlp.layers.{place}", z)
    return (float(z) - 0.16717362830052426) / 1.0333394966054072


def test_the_published_names_and_formula(tmp_path: Path) -> None:
    weights = checkpoint()
    torch.save(weights, tmp_path / "ImageReward.pt")
    words = tokenizer(None)
    words.save_pretrained(tmp_path / "words")
    scorer = image_reward(weights=str(tmp_path), tokenizer=str(tmp_path / "words"))
    expected = [
        plain(weights, cropped(picture(i), SIZE), torch.tensor(words(text)["input_ids"]))
        for i, text in enumerate(TEXTS)
    ]
    assert scorer.score(media(0, 1), TEXTS) == pytest.approx(expected, abs=2e-4)
    assert abs(expected[0] - expected[1]) > 0.01


def test_scale_of_the_worked_example() -> None:
    scaled = [(raw - MEAN) / DEVIATION for raw in (0.5, -1.0)]
    assert scaled == pytest.approx([0.3220881160, -1.1295161291])


def test_another_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "ImageReward.pt")
    tokenizer(None).save_pretrained(tmp_path / "words")
    with pytest.raises(UserError, match="no checkpoint of ImageReward"):
        image_reward(weights=str(tmp_path), tokenizer=str(tmp_path / "words"))
