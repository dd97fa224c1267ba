"""The image quickstart from a painter to a report, and what it measures."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.adapters.diffusion import load_diffusion
from mmalign.errors import UserError
from mmalign.media import png
from mmalign.pipelines import quickstart_image as quickstart
from mmalign.playground.pictures import draw, prompts, seen
from mmalign.playground.tiny_painter import TINY_PAINTER, random_painter
from mmalign.training.options import TrainingOptions


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("painter")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random_painter().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few prompts, few steps, and a judge that likes some pictures of a painter who can nothing."""
    few = {split: prompts(split)[:4] for split in ("train", "held_out")}  # type: ignore[arg-type]
    monkeypatch.setattr(quickstart, "prompts", lambda split, seed: few[split])
    monkeypatch.setattr(quickstart, "score", lambda pixels, asked: float(pixels.sum() % 2))
    monkeypatch.setattr(quickstart, "SAMPLING", {"steps": 1, "guidance": 1.0, "batch_size": 8})
    options = TrainingOptions(steps=2, batch_size=2, learning_rate=1e-3)
    recipe = quickstart.Recipe(samples=4, rounds=1, measured=2, training=options)
    monkeypatch.setattr(quickstart, "RECIPE", recipe)


def test_leaves_all_that_it_promises_and_goes_on(painter: Path, tmp_path: Path) -> None:
    quickstart.quickstart_image(model=str(painter), out=tmp_path / "run")
    first = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(first) >= {"before", "after", "control", "seconds", "n", "seed", "preferences"}
    assert first["n"] == 8
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count("data:image/png;base64,") == 4 * 3
    for stage in ("aligned", "control"):
        assert (tmp_path / "run" / stage / "model" / "README.md").exists()
    quickstart.quickstart_image(model=str(painter), out=tmp_path / "run")
    again = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {name: again[name] for name in ("before", "after", "control")} == {
        name: first[name] for name in ("before", "after", "control")
    }


def test_figures_are_means_over_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    one, other = prompts("held_out")[:2]
    look = random.Random(0)
    same = draw(one, look)
    painted = {one: [same, same], other: [draw(other, look), draw(one, look)]}
    media = {
        shape: [png(Image.fromarray(np.asarray(each))) for each in drawn]
        for shape, drawn in painted.items()
    }
    found = quickstart._figures(media)
    assert found["satisfied"].value == pytest.approx(3 / 4)
    assert found["diversity"].value == 0.0, "of one prompt, with two equal pictures"


def test_nothing_to_prefer_is_an_error_that_says_so(
    painter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "score", lambda pixels, asked: 0.0)
    with pytest.raises(UserError, match="there is nothing to prefer"):
        quickstart.quickstart_image(model=str(painter), out=tmp_path / "run")


def test_diversity_is_one_for_pictures_that_share_nothing() -> None:
    empty = np.full((32, 32, 3), 245, np.uint8)
    left, right = empty.copy(), empty.copy()
    left[:16], right[16:] = 0, 0
    assert quickstart._diversity([left, right]) == 1.0
    assert quickstart._diversity([left, left]) == 0.0


@pytest.mark.skipif(not TINY_PAINTER.exists(), reason="no checkpoint in this checkout")
def test_the_painter_that_comes_along_paints_single_shapes() -> None:
    policy = load_diffusion(TINY_PAINTER, lora={"r": 2}, **quickstart.LOADING)
    asked = prompts("held_out")[:16]
    samples = policy.sample(
        [each.prompt for each in asked], range(16), steps=12, guidance=1.0, batch_size=16
    )
    shapes = [seen(quickstart._pixels(quickstart._media(sample))) for sample in samples]
    assert sum(shape is not None for shape in shapes) > 12
