"""The README says what is there: its commands exist, its code runs, its paths lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from mmalign import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every `mmalign ...` in a shell block or in the text, as words."""
    shell = "\n".join(blocks("sh")).replace("\\\n", " ")
    lines = [part.strip() for line in shell.splitlines() for part in line.split("&&")]
    prose = re.sub(r"^```.*?^```", "", README, flags=re.MULTILINE | re.DOTALL)
    lines += re.findall(r"`(mmalign [^`]*)`", prose)
    return [shlex.split(line) for line in lines if line.startswith("mmalign ")]


def test_two_commands_set_everything_up() -> None:
    set_up = [block.strip() for block in blocks("sh") if "pip install" in block]
    assert set_up == [
        "pip install -e . && mmalign quickstart",
        "pip install -e '.[test]' && pytest",
    ]


def test_ci_finds_one_test_command() -> None:
    fenced = [line for language in ("sh", "python", "") for block in blocks(language)
              for line in block.splitlines() if "pytest" in line]  # fmt: skip
    assert fenced == ["pip install -e '.[test]' && pytest"]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    table = cli.GROUPS[words[1]][0] if words[1] in cli.GROUPS else cli.COMMANDS
    name = next((word for word in words[1:] if word in table), None)
    assert name or words[1:] == [words[1], "--help"]
    path = words[1 : words.index(name) + 1] if name else [words[1]]
    assert cli.main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in (word for word in words if word.startswith("--") and word != "--help"):
        assert flag in shown


@pytest.mark.parametrize("code", blocks("python"))
def test_code_runs(code: str) -> None:
    exec(compile(code, "README.md", "exec"), {})


def test_paths_exist() -> None:
    for path in re.findall(r"`((?:mmalign|pipelines|data_builders)/[\w/.]*)`", README):
        assert (ROOT / path).exists(), path
    for target in re.findall(r"\]\((?!\w+:)([^)#]+)", README):
        assert (ROOT / target).exists(), target
