"""The pages about vision-language models are true: their commands run, as does their code, in the
order in which they stand, on tiny models and files of the published formats."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import made_benchmarks as made
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted_endpoint import Script, endpoint
from tiny_vision_language import picture, save_family

from mmalign import cli
from mmalign.adapters.vision_language import load_vision_language
from mmalign.data.listing import with_table
from mmalign.playground.rehearsal import write_rehearsal

ROOT = Path(__file__).parents[1]
PAGES = ("align-a-vlm", "datasets", "evaluate")
QUICK = {
    "evaluate": {"--max-new-tokens": "2", "--limit": "3"},
    "align-vlm": {"--steps": "1", "--batch-size": "2", "--lora-rank": "2", "--held-out": "0.3"},
}
COCO = [["dog", "cat", "bus"], ["car", "person", "pizza"], ["dog", "cat", "person"]]


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page(name), flags=re.MULTILINE | re.DOTALL)


def commands(name: str) -> list[list[str]]:
    shell = "\n".join(blocks(name, "sh")).replace("\\\n", " ")
    return [shlex.split(line) for line in shell.splitlines() if line.strip()]


ALL = [words for name in PAGES for words in commands(name)]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_options_exist(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert words[0] == "mmalign"
    path = words[1:3] if words[1] in cli.GROUPS else words[1:2]
    assert cli.main([*path, "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in (word for word in words if word.startswith("--")):
        assert flag in shown


def test_the_table_of_formats_is_todays() -> None:
    assert with_table(page("datasets")) == page("datasets")


def test_every_suite_about_hallucination_is_on_its_page() -> None:
    suites = ("chair", "object-hal", "pope", "amber", "mmhal", "hallusion-bench")
    assert set(suites) <= set(cli.SUITES)
    used = {words[2] for words in commands("evaluate")}
    for suite in suites:
        assert f"| `{suite}` |" in page("evaluate")
        assert suite in used


def test_scorers_are_plain_functions() -> None:
    (code,) = blocks("evaluate", "python")
    exec(compile(code, "evaluate.md", "exec"), {})


def put_models() -> None:
    save_family(Path("llava-hf/llava-1.5-7b-hf"), "llava")
    save_family(Path("Qwen/Qwen2.5-VL-7B-Instruct"), "qwen2_5_vl")


def put_adapter() -> None:
    made = load_vision_language("llava-hf/llava-1.5-7b-hf", lora={"r": 2})
    made.save(Path("runs/align-vlm/model"))


def put_benchmarks() -> None:
    made.coco(Path(), COCO, {1: "A dog."})
    made.pope(Path(), ["random", "popular", "adversarial"])
    made.amber(Path())
    made.mmhal(Path(), 2)
    made.object_hal(Path(), [1, 2, 3])
    made.hallusion_bench(Path())


def put_data() -> None:
    """Under the names that the pages use."""
    rows = []
    for number in range(12):
        sides = {"chosen": f"A dog and {number}.", "rejected": f"A cat and {number}."}
        image = {"bytes": picture(number).content, "path": None}
        text = json.dumps({"question": f"What is {number}?", **sides})
        rows.append({"ds_name": "RLHF-V", "image": image, "text": text, "idx": number})
    put_table("openbmb/RLHF-V-Dataset", rows)
    put_table(
        "openbmb/RLAIF-V-Dataset",
        [{"image": row["image"], **json.loads(row["text"])} for row in rows],
    )
    votes = [{"prompt": f"{i}?", "better": "yes", "worse": "no"} for i in range(3)]
    made.write_lines(Path("votes.jsonl"), votes)
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    wrong = [talk[0], {"from": "gpt", "value": "A cat."}]
    povid = {"id": "1", "image": "a.png", "conversations": talk, "rejected_conversations": wrong}
    made.write_json(Path("annotations/povid.json"), [povid])
    made.write_images(Path("pictures"), ["a.png"])
    (example,) = blocks("align-a-vlm", "json")
    own = [{**json.loads(example), "prompt": f"What is on table {i}?"} for i in range(12)]
    made.write_lines(Path("pairs.jsonl"), own)
    made.write_images(Path("mine/photos"), ["kitchen.png"])


def put_table(folder: str, rows: list[dict[str, Any]]) -> None:
    Path(folder).mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), Path(folder) / "train-00000.parquet")


@pytest.fixture
def judge() -> Iterator[Script]:
    def reply(body: dict[str, Any], number: int) -> str:
        asked = str(body["messages"][-1]["content"])
        if "JSON list" in asked:
            return '["dog"]'
        return "Rating: 3" if "Rating: N" in asked else "correct"

    with endpoint(reply) as script:
        yield script


def quick(words: list[str], judge: Script) -> list[str]:
    """The command of a page, with few steps and tokens, and our judge in place of a public one."""
    given = words[1:]
    for flag, value in QUICK.get(given[0], {}).items():
        given += [flag, value]
    for flag in {"--url", "--judge-url"} & set(given):
        given[given.index(flag) + 1] = judge.url
    if "--judge" in given and "--judge-url" not in given:
        given += ["--judge-url", judge.url]
    return given


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_commands_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judge: Script
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.DEBUG, raising=False)
    put_models()
    put_adapter()
    write_rehearsal(Path("scenes"), pairs=8, images=4)
    put_benchmarks()
    put_data()
    for words in commands(name):
        assert cli.main(quick(words, judge)) == 0, " ".join(words)
        if "--out" in words:
            out = Path(words[words.index("--out") + 1])
            assert (out / ("index.html" if words[1] == "inspect" else "report.html")).exists()
    for code in blocks(name, "python"):
        exec(compile(code, f"{name}.md", "exec"), {})
