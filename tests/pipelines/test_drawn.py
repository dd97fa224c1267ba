"""The quickstarts of generators from a model to a report, and what they measure."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.errors import UserError
from mmalign.media import png
from mmalign.pipelines.drawn import (
    Recipe,
    World,
    align_on_own_drawings,
    by_prompt,
    diversity,
    gains,
    measure,
)
from mmalign.pipelines.quickstart import quickstart
from mmalign.pipelines.quickstart_image import PICTURES
from mmalign.pipelines.quickstart_image_tokens import RECIPE as IMAGE_TOKENS
from mmalign.pipelines.quickstart_image_tokens import TOKENS
from mmalign.pipelines.quickstart_video import VIDEOS
from mmalign.playground.pictures import Shape, draw, prompts
from mmalign.playground.tiny_filmer import random_filmer
from mmalign.playground.tiny_janus import random_janus
from mmalign.playground.tiny_painter import random_painter
from mmalign.records import Media
from mmalign.training.options import TrainingOptions

RECIPE = Recipe(
    samples=4,
    rounds=1,
    measured=2,
    objective="dpo(beta=200.0) + 100*nll()",
    control="nll()",
    training=TrainingOptions(steps=2, batch_size=2, learning_rate=1e-3),
)


def painter(folder: Path) -> None:
    random_painter().save_pretrained(folder)


def filmer(folder: Path) -> None:
    random_filmer().save_pretrained(folder)


def janus(folder: Path) -> None:
    for part in random_janus():
        part.save_pretrained(folder)


MODELS: dict[str, tuple[World, Callable[[Path], None], str]] = {
    "image": (PICTURES, painter, "image/png"),
    "image-tokens": (TOKENS, janus, "image/png"),
    "video": (VIDEOS, filmer, "image/webp"),
}


def quick(world: World) -> World:
    """Few prompts, few steps, and a judge that likes some drawings of a model that can nothing."""
    return replace(
        world,
        prompts=lambda split, seed: world.prompts(split, seed)[:4],
        score=lambda shown, asked: float(shown.sum() % 2),
        sampling={**world.sampling, **({"steps": 1} if "steps" in world.sampling else {})},
    )


@pytest.fixture(scope="module", params=MODELS)
def world_and_model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[World, Path, str]:
    world, make, kind = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make(folder)
    return quick(world), folder, kind


def test_leaves_all_that_it_promises_and_goes_on(
    world_and_model: tuple[World, Path, str], tmp_path: Path
) -> None:
    world, model, kind = world_and_model
    align_on_own_drawings(world, model, RECIPE, tmp_path / "run", seed=0)
    first = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(first) >= {"before", "after", "control", "seconds", "n", "seed", "preferences"}
    assert first["n"] == 8
    assert set(first["gain"]) == {"over before", "over control"}
    report = (tmp_path / "run" / "report.html").read_text()
    assert report.count(f"data:{kind};base64,") == 4 * 3
    for stage in ("aligned", "control"):
        assert (tmp_path / "run" / stage / "model" / "README.md").exists()
    align_on_own_drawings(world, model, RECIPE, tmp_path / "run", seed=0)
    again = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {name: again[name] for name in ("before", "after", "control")} == {
        name: first[name] for name in ("before", "after", "control")
    }


@pytest.mark.parametrize("name", ["image", "image-tokens", "video"])
def test_a_quickstart_that_was_stopped_is_known_again(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []
    module = f"mmalign.pipelines.quickstart_{name.replace('-', '_')}"
    monkeypatch.setattr(f"{module}.align_on_own_drawings", lambda *_, seed: seeds.append(seed))
    for _ in range(2):
        quickstart(modality=name, out=tmp_path, seed=3)
    assert seeds == [3, 3]
    with pytest.raises(UserError, match="holds a run with seed 3, not 4"):
        quickstart(modality=name, out=tmp_path, seed=4)


def test_nothing_to_prefer_is_an_error_that_says_so(
    world_and_model: tuple[World, Path, str], tmp_path: Path
) -> None:
    world, model, _ = world_and_model
    hopeless = replace(world, score=lambda shown, asked: 0.0)
    with pytest.raises(UserError, match="there is nothing to prefer"):
        align_on_own_drawings(hopeless, model, RECIPE, tmp_path / "run", seed=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_tiny_janus_draws_more_of_unseen_prompts_as_asked_for(tmp_path: Path) -> None:
    fewer = replace(
        IMAGE_TOKENS,
        rounds=6,
        measured=12,
        training=replace(IMAGE_TOKENS.training, steps=120, save_every=0),
    )
    align_on_own_drawings(TOKENS, TOKENS.source, fewer, tmp_path / "run", seed=0)
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert found["after"]["satisfied"]["low"] > found["before"]["satisfied"]["high"]
    low = found["gain"]["over before"]["satisfied"]["low"]
    assert low > 0.05, "prompt by prompt, in a third of the quickstart's steps"


def test_figures_are_means_over_prompts() -> None:
    one, other = prompts("held_out")[:2]
    look = random.Random(0)
    same = draw(one, look)
    painted = {one: [same, same], other: [draw(other, look), draw(one, look)]}
    media = {
        shape: [png(Image.fromarray(np.asarray(each))) for each in drawn]
        for shape, drawn in painted.items()
    }
    found = measure(by_prompt(PICTURES, media))
    assert found["satisfied"].value == pytest.approx(3 / 4)
    assert found["diversity"].value == 0.0, "of one prompt, with two equal pictures"


def test_gains_are_counted_prompt_by_prompt() -> None:
    first, second = prompts("held_out")[:2]
    look = random.Random(0)

    def of(*painted: Shape) -> list[Media]:
        return [png(Image.fromarray(np.asarray(draw(shape, look)))) for shape in painted]

    drawn = {
        "before": {first: of(first, second), second: of(first, first)},
        "after": {first: of(first, first), second: of(second, first)},
    }
    found = gains(*(by_prompt(PICTURES, drawn[stage]) for stage in ("after", "before")))
    assert found["satisfied"] == (0.5, 0.5, 0.5)


def test_diversity_is_one_for_drawings_that_share_nothing() -> None:
    left, right = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    left[:4], right[4:] = True, True
    assert diversity([left, right]) == 1.0
    assert diversity([left, left]) == 0.0
