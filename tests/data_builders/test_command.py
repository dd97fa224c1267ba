"""`mmalign build NAME`: the builder's own options, the shared ones, and what is left behind."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import pytest

from mmalign import cli
from mmalign.data import open_dataset
from mmalign.data_builders.command import as_command
from mmalign.data_builders.engine import Built
from mmalign.data_builders.records import Record
from mmalign.errors import UserError
from mmalign.records import Message, Preference, Provenance, Sample, Text, pair, text_of


def shout(records: Iterable[Record], *, mark: str = "!", seed: int = 0) -> Iterator[Preference]:
    """Prefer a caption to its shout.

    Args:
        mark: What a shout ends with.
        seed: Changes nothing.
    """
    prompt = (Message("user", (Text("Say it."),)),)
    for record in records:
        said = record.caption or ""
        loud = Sample(prompt, (Text(said.upper() + mark),))
        source = Provenance("shout", parents=(record.id,))
        yield pair(Sample(prompt, (Text(said),)), loud, source=source)


def half(preferences: Sequence[Preference], *, of: int = 2) -> Iterator[Preference]:
    """Keep one of so many.

    Args:
        of: How many.
    """
    for preference in preferences[::of]:
        yield preference.derived("half")


shout_command = as_command("shout", shout)
half_command = as_command("half", half)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(cli.BUILDERS, "shout", (f"{__name__}:shout_command", "Shout."))
    monkeypatch.setitem(cli.BUILDERS, "half", (f"{__name__}:half_command", "Halve."))
    lines = (json.dumps({"alt": f"caption {i}"}) + "\n" for i in range(10))
    Path("captions.jsonl").write_text("".join(lines))


def test_a_builder_is_a_command_with_its_options_and_the_shared_ones() -> None:
    words = ["build", "shout", "captions.jsonl", "--columns", "caption=alt", "--mark", "?"]
    assert cli.main([*words, "--out", "loud", "--limit", "7"]) == 0
    made = list(open_dataset("loud"))
    assert [text_of(p.rejected.response) for p in made[:2]] == ["CAPTION 0?", "CAPTION 1?"]
    assert len(made) == 7
    assert cli.main(["build", "half", "--preferences", "loud", "--of", "3", "--out", "half"]) == 0
    assert [text_of(p.chosen.response) for p in open_dataset("half")] == [
        "caption 0",
        "caption 3",
        "caption 6",
    ]


def test_the_settings_that_are_left_behind_build_the_same_again() -> None:
    words = ["build", "shout", "captions.jsonl", "--columns", "caption=alt", "--mark", "?"]
    assert cli.main([*words, "--out", "one"]) == 0
    assert cli.main(["build", "shout", "--config", "one/run.yaml", "--out", "two"]) == 0
    first, second = (
        {p.name: p.read_bytes() for p in Path(out).iterdir() if p.name != "run.yaml"}
        for out in ("one", "two")
    )
    assert first == second


def test_workers_are_no_reason_to_build_again_but_other_settings_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["build", "shout", "captions.jsonl", "--columns", "caption=alt", "--out", "out"]
    assert cli.main(words) == 0
    assert cli.main([*words, "--workers", "1"]) == 0  # it is finished: no worker starts
    assert cli.main([*words, "--mark", "?"]) == cli.USER
    assert "overwrite" in capsys.readouterr().err
    assert cli.main([*words, "--mark", "?", "--overwrite"]) == 0


def test_python_calls_the_same_function() -> None:
    from mmalign.data_builders.command import Output, Reading

    done = shout_command(
        "captions.jsonl", output=Output(out=Path("out")), reading=Reading(columns=["caption=alt"])
    )
    assert done == Built(read=10, refused=0, preferences=10)


def test_a_builder_says_what_it_reads() -> None:
    def unclear(things: Iterable[str]) -> Iterator[Preference]:
        yield from ()

    with pytest.raises(TypeError, match="Records, Preferences or Asked"):
        as_command("unclear", unclear)
    assert list(inspect.signature(half_command).parameters) == [
        "preferences",
        "of",
        "output",
        "reading",
    ]


def test_a_column_that_is_not_there_is_named() -> None:
    from mmalign.data_builders.command import Output, Reading

    with pytest.raises(UserError, match="wrong"):
        shout_command(
            "captions.jsonl",
            output=Output(out=Path("out")),
            reading=Reading(columns=["caption=wrong"]),
        )
