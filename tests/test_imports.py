"""Imports point one way, and the command line starts without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each layer may import from itself and from those above it in this list.
LAYERS = [
    {"__init__", "errors", "environment", "files"},
    {"records", "settings", "objectives"},
    {"media"},
    {"report"},
    {"adapters", "attention", "data", "reference", "rewards"},
    {"training", "evaluation", "labelling", "playground"},
    {"data_builders"},
    {"pipelines"},
    {"cli"},
    {"__main__"},
]

# What the layers alone would allow, but the design does not: (who, whom).
FORBIDDEN = {
    ("adapters", "objectives"),  # an adapter never hears of preferences
    ("adapters", "data"),
    ("records", "settings"),
    ("records", "objectives"),
    ("settings", "objectives"),
    ("report", "objectives"),
}

WITHOUT_TORCH = {
    "__init__",
    "errors",
    "environment",
    "files",
    "records",
    "settings",
    "report",
    "cli",
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every source file with the name it is imported by."""
    for folder, package in (("mmalign", ""), ("pipelines", "pipelines"), ("data_builders",) * 2):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inner = path.relative_to(ROOT / folder).with_suffix("")
            yield ".".join(part for part in ("mmalign", package, *inner.parts) if part), path


def imported(name: str, path: Path) -> Iterator[str]:
    """Names of the modules that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".")[: -node.level] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def part(name: str) -> str | None:
    """`mmalign.training.loop` belongs to `training`; None for a module that is not ours."""
    words = name.split(".")
    if words[0] != "mmalign":
        return None
    return words[1] if len(words) > 1 else "__init__"


def layer(name: str) -> int:
    found = [number for number, names in enumerate(LAYERS) if name in names]
    assert found, f"{name} has no layer: add it to LAYERS, where it belongs"
    return found[0]


def known(name: str) -> bool:
    return any(name in names for names in LAYERS)


MODULES = dict(modules())


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    here = part(name)
    assert here is not None
    for target in imported(name, MODULES[name]):
        there = part(target)
        if there is None or there == here or not known(there):  # a name in mmalign/__init__
            continue
        assert layer(there) <= layer(here), f"{name} imports {target}, which stands above it"
        assert (here, there) not in FORBIDDEN, f"{name} must not import {target}"
        if here == "objectives":
            assert there == "__init__", f"{name} imports {target}: objectives stand alone"


def test_every_part_has_a_layer() -> None:
    for name in MODULES:
        layer(part(name) or "")


@pytest.mark.parametrize("name", [name for name in MODULES if part(name) in WITHOUT_TORCH])
def test_light_parts_do_without_torch(name: str) -> None:
    heavy = {"torch", "transformers", "diffusers", "datasets", "accelerate", "peft"}
    assert not heavy & {target.split(".")[0] for target in imported(name, MODULES[name])}


@pytest.mark.parametrize(
    "statement",
    ["import mmalign", "import mmalign.report", "from mmalign.cli import main; main(['--help'])"],
)
def test_start_loads_no_torch(statement: str) -> None:
    check = "; import sys; sys.exit('torch' in sys.modules)"
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-c", statement + check], capture_output=True, cwd=ROOT
    )
    print(f"{statement}: {time.perf_counter() - start:.2f} s")
    assert result.returncode == 0, result.stderr.decode()
