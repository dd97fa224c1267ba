"""The page about pairs from images and the model itself is true: its commands run in their order,
on photographs and the playground's model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import made_benchmarks as made
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photographs import PHOTOGRAPHS

from mmalign import cli
from mmalign.data import open_dataset
from mmalign.playground.vision_language import TINY_LLAVA

PAGE = (Path(__file__).parents[1] / "docs" / "vlm-pairs.md").read_text(encoding="utf-8")
ANSWER = "There is a red star and a blue cross."
QUICK = {
    ("build", "attention-filter"): "--perplexity-min 1 --min-edits 0 --rule 9",
    ("build", "bdhs"): "--sentence-tokens 8 --answer-tokens 8",
    ("align-vlm",): "--steps 1 --batch-size 2 --lora-rank 2 --held-out 0.4",
    ("evaluate", "chair"): "--max-new-tokens 4 --limit 3",
}


def commands() -> list[list[str]]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
    shell = "\n".join(blocks).replace("\\\n", " ")
    return [shlex.split(line) for line in shell.splitlines() if line.strip()]


def quick(words: list[str]) -> list[str]:
    """The command with few steps and tokens, and an embedder that needs no network."""
    given = words[1:]
    for start, flags in QUICK.items():
        if tuple(given[: len(start)]) == start:
            given += [word for word in flags.split() if word not in given]
    if given[1] == "bdhs" and "--embedder" not in given:
        given += ["--embedder", "words"]
    if "--thresholds" in given:
        given[given.index("--thresholds") + 1] = "grid=0.99"
    return given


def put_everything() -> None:
    """Under the names that the page uses."""
    shutil.copytree(TINY_LLAVA, "llava-hf/llava-1.5-7b-hf")
    for folder in ("photographs", "captioned"):
        Path(folder).mkdir()
        for path in PHOTOGRAPHS:
            shutil.copy(path, Path(folder) / path.name)
            (Path(folder) / path.name).with_suffix(".txt").write_text(ANSWER)
    Path("photographs/china.txt").unlink()  # its answer is the model's own
    rows = []
    for number, path in enumerate(PHOTOGRAPHS[:3]):
        text = {"question": "What is there?", "chosen": ANSWER, "rejected": "Nothing."}
        image = {"bytes": path.read_bytes(), "path": None}
        rows.append({"ds_name": "", "image": image, "text": json.dumps(text), "idx": number})
    Path("openbmb/RLHF-V-Dataset").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), "openbmb/RLHF-V-Dataset/train-00000.parquet")
    made.coco(Path(), [["dog", "cat", "bus"], ["car", "person"], ["dog"]], {1: "A dog."})


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_options_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = words[1:3] if words[1] in cli.GROUPS else words[1:2]
    assert cli.main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in words if flag.startswith("--"))


@pytest.mark.slow
def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_everything()
    for words in commands():
        assert cli.main(quick(words)) == 0, " ".join(words)
    assert len(open_dataset("asked")) == len(open_dataset("blind")) == len(PHOTOGRAPHS)
    assert 0 < len(open_dataset("pairs")) <= len(open_dataset("measured"))
    assert len(open_dataset("both")) == 6
    for out in ("runs/mia", "runs/bdhs", "runs/online", "runs/chair"):
        assert json.loads(Path(out, "metrics.json").read_text())
        assert Path(out, "report.html").exists()
