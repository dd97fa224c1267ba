"""The page on families knows all of them, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_vision_language import picture, save_family

from mmalign.adapters.vision_language.families import FAMILIES

PAGE = (Path(__file__).parents[1] / "docs" / "vision-language-models.md").read_text()


def test_the_table_has_every_family() -> None:
    rows = [line.split("|") for line in PAGE.splitlines() if line.startswith("| ")][1:]
    told = {row[2].strip(): row for row in rows}
    assert told.keys() == FAMILIES.keys()
    for name, family in FAMILIES.items():
        assert told[name][5].strip().startswith("frames") == (family.video == "images")
        assert (told[name][4].strip() == "yes") != family.cross_attention


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kitchen.png").write_bytes(picture(1).content)
    folder = save_family(tmp_path / "model", "llava")
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code.replace("llava-hf/llava-1.5-7b-hf", str(folder)), found)
    span = found["span"]
    assert span.rectangles.shape == (len(span.positions), 4)
    assert torch.equal(span.rectangles.amax(0)[2:], torch.tensor(span.size, dtype=torch.float32))
