"""What is built from this repository can be installed and imported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
from pathlib import Path

import pytest

import mmalign

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
SOURCES = ("mmalign", "pipelines", "data_builders")
# Run in a scratch environment that has nothing but mmalign. Packages deeper than mmalign.x are
# looked for on disk: importing their parents would need torch.
CHECK = """
import sys, pathlib, importlib.util
import mmalign, mmalign.pipelines, mmalign.data_builders, mmalign.records
root, *packages = sys.argv[1:]
for name in packages:
    head, rest = name.split(".")[:2], name.split(".")[2:]
    found = importlib.util.find_spec(".".join(head))
    assert found and found.origin, f"{name} is missing"
    folder = pathlib.Path(found.origin).parent.joinpath(*rest)
    assert (folder / "__init__.py").is_file(), f"{name} is missing"
    assert folder.resolve().is_relative_to(pathlib.Path(root).resolve()), f"{name} is at {folder}"
home = pathlib.Path(mmalign.__file__).parent
for data in (
    "py.typed", "report/page.html", "report/style.css", "report/model_card.md",
    "playground/tiny-janus/model.safetensors",
    "playground/tiny-llava/model.safetensors",
    "playground/tiny-filmer/transformer/diffusion_pytorch_model.safetensors",
    "playground/tiny-llava-albums/model.safetensors",
    "playground/tiny-painter/model_index.json",
    "playground/tiny-painter/transformer/diffusion_pytorch_model.safetensors",
):
    assert (home / data).is_file(), f"{data} is missing"
print(mmalign.__version__)
"""


def folder_of(package: str) -> str:
    """The folder of a package, by setuptools' rule: the longest parent in package-dir decides."""
    words = package.split(".")
    for length in range(len(words), 0, -1):
        if (parent := ".".join(words[:length])) in SETUPTOOLS["package-dir"]:
            return "/".join([SETUPTOOLS["package-dir"][parent], *words[length:]])
    return "/".join(words)


def test_package_list_is_complete() -> None:
    with_code = {
        file.parent.relative_to(ROOT).as_posix()
        for source in SOURCES
        for file in (ROOT / source).rglob("*.py")
    }
    listed = {folder_of(package) for package in SETUPTOOLS["packages"]}
    assert listed == with_code, "bring [tool.setuptools] packages in pyproject.toml up to date"


def test_every_package_has_an_init() -> None:
    missing = [
        p for p in SETUPTOOLS["packages"] if not (ROOT / folder_of(p) / "__init__.py").exists()
    ]
    assert not missing, "each of these needs an __init__.py with a sentence on what it holds"


def test_every_data_file_is_packaged() -> None:
    packaged = {
        file
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for file in (ROOT / folder_of(package)).glob(pattern)
    }
    present = {
        file
        for source in SOURCES
        for file in (ROOT / source).rglob("*")
        if file.is_file() and file.suffix not in (".py", ".pyc") and "__pycache__" not in file.parts
    }
    assert present == packaged, "bring [tool.setuptools.package-data] up to date"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built from, so that building leaves nothing in the repository."""
    target = tmp_path_factory.mktemp("clone")
    for name in SOURCES:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    return target


def build(source: Path, kind: str) -> Path:
    """Build a "wheel", "sdist" or "editable" wheel with our setuptools, without a network."""
    code = f"from setuptools.build_meta import build_{kind} as build; print(build('dist'))"
    (source / "dist").mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True
    )
    return source / "dist" / result.stdout.splitlines()[-1]


def wheel_from_sdist(clone: Path, folder: Path) -> Path:
    """What `pip install mmalign-0.1.0.tar.gz` does."""
    with tarfile.open(build(clone, "sdist")) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return build(unpacked, "wheel")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["wheel", "sdist", "editable"])
def test_install_and_import(clone: Path, tmp_path: Path, way: str) -> None:
    wheel = wheel_from_sdist(clone, tmp_path / "sdist") if way == "sdist" else build(clone, way)
    venv.create(tmp_path / "venv", with_pip=False)
    python = str(tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    pip = [sys.executable, "-m", "pip", "--python", python]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    where = clone if way == "editable" else tmp_path / "venv"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(
        [python, "-c", CHECK, str(where), *SETUPTOOLS["packages"]],
        env=clean, cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == mmalign.__version__


def test_dependencies_have_lower_bounds() -> None:
    loose = [name for name in PROJECT["project"]["dependencies"] if ">=" not in name]
    assert not loose
