"""The pictures of losses show what the objectives compute, and those in docs/ are current."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from mmalign.objectives.plots import PICTURES, POINTS, curves, picture
from mmalign.objectives.table import TABLE

IMAGES = Path(__file__).parents[2] / "docs" / "images"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")


@pytest.mark.parametrize("name", PICTURES)
def test_the_pictures_in_the_documentation_are_current(name: str) -> None:
    drawn, stored = picture(name), (IMAGES / f"{name}.svg").read_text(encoding="utf-8")
    advice = "run python -m mmalign.objectives.plots docs/images"
    assert NUMBER.sub("", drawn) == NUMBER.sub("", stored), advice
    found, expected = ([float(n) for n in NUMBER.findall(text)] for text in (drawn, stored))
    assert found == pytest.approx(expected, abs=0.3, rel=0.05), advice  # a rounding, elsewhere


def test_every_objective_is_in_one_picture() -> None:
    for entry in TABLE.values():
        assert sum(belongs(entry) for _, belongs in PICTURES.values()) == 1


def test_the_curves_are_the_losses() -> None:
    [dpo] = curves("dpo")
    torch.testing.assert_close(dpo.loss, -(0.1 * dpo.margin).sigmoid().log())
    torch.testing.assert_close(dpo.slope, -0.1 * (-0.1 * dpo.margin).sigmoid())
    [sorted_batch] = curves("aot_unpaired")  # each margin stands alone
    assert sorted_batch.loss[POINTS // 2].item() == pytest.approx(math.log(2))
    up, down = curves("kto")
    torch.testing.assert_close(up.loss, 1 - down.loss)
