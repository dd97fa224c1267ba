"""docs/builders.md tells the truth: its builder runs, and its commands and names exist."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from mmalign import cli
from mmalign.data import open_dataset
from mmalign.records import text_of
from mmalign.rewards.table import REWARDS

PAGE = (Path(__file__).parents[2] / "docs/builders.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def test_the_builder_of_the_page_runs_as_a_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, line, *_ = blocks("python")
    assert len(source.strip().splitlines()) < 30
    path = tmp_path / "shorter.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("mmalign.data_builders.shorter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    ((name, entry),) = eval(f"{{{line}}}").items()
    monkeypatch.setitem(cli.BUILDERS, name, entry)

    rows = [
        {"question": "Well?", "answers": ["Yes.", "Yes, certainly, without any doubt."]},
        {"question": "Well?", "answers": ["No."]},
    ]
    monkeypatch.chdir(tmp_path)
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (command,) = [text for text in blocks("sh") if "shorter" in text]
    words = shlex.split(command.replace("--workers 4", ""))
    assert words[0] == "mmalign"
    assert cli.main(words[1:]) == 0
    (made,) = open_dataset("pairs")
    assert text_of(made.chosen.response) == "Yes."
    assert len(Path("pairs/quarantine.jsonl").read_text().splitlines()) == 1


def test_the_tables_name_what_there_is() -> None:
    named = set(re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE))
    assert named <= set(cli.BUILDERS) | set(REWARDS)
    assert len(named) > 12


@pytest.mark.parametrize(
    "line",
    [
        line
        for block in blocks("sh")
        for line in block.replace("\\\n", " ").splitlines()
        if "shorter" not in line
    ],
)
def test_the_options_of_the_commands_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line)[1:]
    path = words[:2] if words[0] in cli.GROUPS else words[:1]
    assert cli.main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    for word in words:
        if word.startswith("--"):
            assert f"{word} " in shown or f"{word}\n" in shown, word
