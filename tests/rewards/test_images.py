"""Rewards of images, on tiny models, against plain computations of the published formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from tiny_clip import (
    cropped,
    media,
    padded,
    picture,
    save_open_clip,
    save_transformers,
)

from mmalign.data.cache import Cache
from mmalign.errors import BadSample, UserError
from mmalign.records import Media, Message, Sample, Text
from mmalign.rewards.aesthetic import aesthetic
from mmalign.rewards.clip import clip
from mmalign.rewards.hps import hps
from mmalign.rewards.pick import pick
from mmalign.rewards.scorer import Scorer
from mmalign.rewards.table import reward

TEXTS = ["a red fox", "two dogs on a lawn", "a red fox"]
IMAGES = media(0, 1, 2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("clip")
    return {
        "open_clip": save_open_clip(base / "open_clip"),
        "whole": save_open_clip(base / "whole", image_size=224, patch=56),
        "transformers": save_transformers(base / "transformers"),
    }


def cosine(image: torch.Tensor, text: torch.Tensor) -> float:
    one, other = image.double().numpy().ravel(), text.double().numpy().ravel()
    return float(one @ other / np.sqrt((one @ one) * (other @ other)))


def plain_open_clip(folder: Path, pixels: Callable[..., torch.Tensor], size: int) -> list[float]:
    net = open_clip.create_model(f"local-dir:{folder}").eval()
    words = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.no_grad():
        return [
            cosine(net.encode_image(pixels(picture(i), size)), net.encode_text(words([text])))
            for i, text in enumerate(TEXTS)
        ]


def test_clip_score_of_open_clip(folders: dict[str, Path]) -> None:
    expected = plain_open_clip(folders["open_clip"], cropped, 32)
    scorer = clip(model=str(folders["open_clip"]), pretrained=None)
    assert scorer.score(IMAGES, TEXTS) == pytest.approx(expected, abs=2e-5)
    rescaled = clip(model=str(folders["open_clip"]), pretrained=None, rescaled=True)
    positive = [2.5 * max(value, 0) for value in expected]
    assert rescaled.score(IMAGES, TEXTS) == pytest.approx(positive, abs=5e-5)


def test_hps_shows_the_whole_image(folders: dict[str, Path], tmp_path: Path) -> None:
    net = open_clip.create_model(f"local-dir:{folders['whole']}")
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, tmp_path / "HPS_v2.1_compressed.pt")
    scorer = hps(weights=str(tmp_path), model=str(folders["whole"]))
    expected = plain_open_clip(folders["whole"], padded, 224)
    assert scorer.score(IMAGES, TEXTS) == pytest.approx(expected, abs=2e-5)
    with pytest.raises(UserError, match=r"HPS_v2_compressed\.pt"):
        hps(version="v2", weights=str(tmp_path), model=str(folders["whole"]))


def plain_transformers(folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor], float]:
    net = transformers.CLIPModel.from_pretrained(folder).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        images = [
            net.visual_projection(net.vision_model(cropped(picture(i), 32)).pooler_output)
            for i in range(3)
        ]
        texts = [
            net.text_projection(
                net.text_model(torch.tensor([words(text)["input_ids"]])).pooler_output
            )
            for text in TEXTS
        ]
    return images, texts, float(net.logit_scale.detach().exp())


def test_pick_score_is_the_scaled_cosine(folders: dict[str, Path]) -> None:
    images, texts, scale = plain_transformers(folders["transformers"])
    expected = [scale * cosine(i, t) for i, t in zip(images, texts, strict=True)]
    scorer = pick(model=str(folders["transformers"]), processor=None)
    assert scorer.score(IMAGES, TEXTS) == pytest.approx(expected, rel=1e-4)
    assert scale == pytest.approx(np.exp(4), rel=1e-5)


def test_aesthetic_is_linear_in_the_image_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(1)
    sizes = [(0, 16, 1024), (2, 1024, 128), (4, 128, 64), (6, 64, 16), (7, 16, 1)]
    head = {}
    for place, wide, narrow in sizes:
        head[f"layers.{place}.weight"] = torch.randn(narrow, wide) / wide**0.5
        head[f"layers.{place}.bias"] = torch.randn(narrow)
    torch.save(head, tmp_path / "head.pth")
    scorer = aesthetic(weights=str(tmp_path / "head.pth"), model=str(folders["transformers"]))
    images, _, _ = plain_transformers(folders["transformers"])
    expected = []
    for image in images:
        x = image[0].double() / image.double().norm()
        for place, _, _ in sizes:
            x = head[f"layers.{place}.weight"].double() @ x + head[f"layers.{place}.bias"].double()
        expected.append(float(x))
    assert scorer.score(IMAGES, TEXTS) == pytest.approx(expected, abs=1e-4)
    assert scorer.score(IMAGES, TEXTS[::-1]) == pytest.approx(expected, abs=1e-4)


def test_batches_of_one_and_of_many_agree(folders: dict[str, Path]) -> None:
    model = {"model": str(folders["open_clip"]), "pretrained": None}
    one, many = (clip(**model, batch_size=n).score(IMAGES, TEXTS) for n in (1, 3))
    assert one == pytest.approx(many, abs=1e-6)


def test_a_sample_is_scored_by_what_was_made(folders: dict[str, Path]) -> None:
    scorer = clip(model=str(folders["open_clip"]), pretrained=None)
    drawn = Sample((Message("user", (Text(TEXTS[1]),)),), (IMAGES[1],))
    said = Sample((Message("user", (IMAGES[1], Text("What is it?"))),), (Text(TEXTS[1]),))
    expected = scorer.score([IMAGES[1]], [TEXTS[1]])
    assert scorer([drawn, said]) == pytest.approx([expected[0]] * 2, abs=1e-6)
    with pytest.raises(BadSample, match="one image"):
        scorer([Sample(said.prompt[:0], (Text("nothing to see"),))])


def test_the_cache_computes_a_score_once(tmp_path: Path) -> None:
    calls: list[int] = []

    def model(images: list[object], texts: list[str]) -> torch.Tensor:
        calls.append(len(images))
        return torch.tensor([float(len(text)) / 3 for text in texts])

    images, texts = [*IMAGES, IMAGES[0]], ["a", "bb", "ccc", "a"]
    cached = Scorer("length", model, 16, Cache(tmp_path / "cache.sqlite"))
    first = cached.score(images, texts)
    assert calls == [3]
    again = Scorer("length", model, 16, Cache(tmp_path / "cache.sqlite")).score(images, texts)
    assert (again == first).all()
    assert calls == [3]
    Scorer("other", model, 16, Cache(tmp_path / "cache.sqlite")).score(images, texts)
    assert calls == [3, 3]


def test_texts_that_are_cut_are_said_to_be(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    clip(model=str(folders["open_clip"]), pretrained=None).score(IMAGES[:1], ["fox " * 100])
    assert "1 of 1 texts have more than the 77 tokens" in caplog.text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("prick", "no reward 'prick'"),
        ("pick(modle='x')", "no option modle"),
        ("pick('x')", "is not a reward"),
        ("__import__('os').system('true')", "is not a reward"),
        ("clip(model='ViT-B-32', pretrained=None)", "needs pretrained"),
        ("pick(model='./nowhere')", "cannot load"),
        ("hps(weights='./nowhere.pt')", "no file or folder"),
    ],
)
def test_what_is_no_reward_is_the_users_to_mend(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        reward(spec)


def test_a_broken_image_is_named() -> None:
    scorer = Scorer("none", lambda images, texts: torch.zeros(1))
    with pytest.raises(BadSample, match="cannot be read"):
        scorer.score([Media("image", data=b"no image")], ["x"])
