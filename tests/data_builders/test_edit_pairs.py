"""Few words changed for the worse or for the better, and marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import endpoint

from mmalign import cli
from mmalign.data import open_dataset
from mmalign.data_builders.edit_pairs import Limits, edit_in
from mmalign.records import text_of

TEXT = "Take one tablet each morning with water."


def edit(text: str) -> str:
    return json.dumps({"edits": [{"operation": "add", "words": "x"}], "text": text})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (edit(TEXT), "the same as before"),
        (edit(f"  {TEXT} "), "the same as before"),
        (edit(f"{TEXT} {'very ' * 6}good."), "7 words more"),
        (edit("Quite another thing is said here."), "100% of the words differ"),
        ('{"text": 3, "edits": []}', "list of edits"),
        ("Sure.", "JSON"),
    ],
)
def test_edits_beyond_the_limits_say_what_was_wanted(answer: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        edit_in(answer, TEXT, Limits())


def worse(body: dict[str, Any], number: int) -> str:
    """Goes too far at first."""
    if len(body["messages"]) == 1:
        return edit("Nothing of the kind was ever written anywhere.")
    return edit(TEXT.replace("one tablet", "three tablets"))


@pytest.mark.parametrize("direction", ["worsen", "improve"])
def test_the_edited_text_is_worse_or_better(tmp_path: Path, direction: str) -> None:
    source = tmp_path / "notes.jsonl"
    rows = [{"question": "What to do?", "answer": TEXT}, {"question": "And then?"}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["build", "edit-pairs", str(source), "--out", str(tmp_path / "out"), "--judge", "m"]
    words += ["--direction", direction, "--span-weight", "3.0"]
    with endpoint(worse) as script:
        assert cli.main([*words, "--judge-url", script.url]) == 0
        requests = [body["messages"][0]["content"][0]["text"] for body in script.bodies]
    assert len(requests) == 2
    assert "differ" in script.bodies[1]["messages"][-1]["content"]
    assert ("still reads" in requests[0]) == (direction == "worsen")
    assert "add words, leave words out" in requests[0]
    (made,) = open_dataset(tmp_path / "out")
    original, edited = (
        (made.chosen, made.rejected) if direction == "worsen" else (made.rejected, made.chosen)
    )
    assert text_of(original.response) == TEXT
    assert text_of(edited.response) == TEXT.replace("one tablet", "three tablets")
    (span,) = edited.response[0].weights  # type: ignore[union-attr]  # a text
    assert text_of(edited.response)[span.start : span.end] == "three tablets"
    assert span.weight == 3.0
    (line,) = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 1


def test_unknown_operations_are_the_users_to_mend(tmp_path: Path) -> None:
    source = tmp_path / "notes.jsonl"
    source.write_text(json.dumps({"answer": TEXT}) + "\n")
    words = ["build", "edit-pairs", str(source), "--out", str(tmp_path / "out"), "--judge", "m"]
    assert cli.main([*words, "--operations", "invent"]) == cli.USER
