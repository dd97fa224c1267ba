"""The pages about denoisers are true: their commands run, on tiny models, as does their code."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from diffusers import DiffusionPipeline
from pages import blocks, commands
from tiny_clip import save_open_clip
from tiny_diffusion import SIDE, picture
from tiny_pipelines import tiny

from mmalign import cli

PAGES = ("diffusion", "flow-models", "video")
MODELS = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "stable_diffusion",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stabilityai/stable-diffusion-3.5-medium": "sd3",
    "black-forest-labs/FLUX.1-dev": "flux",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan",
}
REWARDS = {"pick": "clip(model='clip', pretrained=None)"}
QUICK = {
    "--steps": "1", "--batch-size": "2", "--samples": "1", "--sample-steps": "1",
    "--lora-rank": "2", "--precision": "float32",
}  # fmt: skip
SMALL = {"--resolution": str(SIDE), "--height": str(SIDE), "--width": str(SIDE), "--frames": "5"}


@pytest.mark.parametrize("line", commands(PAGES))
def test_options_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, command, *words = shlex.split(line)
    assert program == "mmalign"
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in (word for word in words if word.startswith("--")):
        assert flag in shown


def data_of_the_page() -> None:
    """Votes under the names that the pages use, with files that are there."""
    for name, header, frames in (("votes", "image", 1), ("clips", "video", 5)):
        files = []
        for number in range(8):
            media = picture(number, frames=frames)
            files.append(f"{name}{number}.{'png' if frames == 1 else 'webp'}")
            Path(files[-1]).write_bytes(media.content)
        with Path(f"{name}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["prompt", f"{header}_a", f"{header}_b", "winner"])
            for place in range(4):
                pair = files[2 * place : 2 * place + 2]
                table.writerow([f"cat {place}", *pair, "ab"[place % 2]])
    rows = [
        {
            "caption": f"dog {place}",
            "jpg_0": Path(f"votes{2 * place}.png").read_bytes(),
            "jpg_1": Path(f"votes{2 * place + 1}.png").read_bytes(),
            "label_0": 1.0,
            "label_1": 0.0,
            "has_label": True,
        }
        for place in range(4)
    ]
    Path("pickapic").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), "pickapic/train-00000.parquet")


def words_of(line: str) -> list[str]:
    """The command of a page with tiny models, small pictures and few steps."""
    given = shlex.split(line)[1:]
    words = [(MODELS | REWARDS).get(word, word) for word in given]
    words = [word.replace("yuvalkirstain/pickapic_v2", "pickapic") for word in words]
    if words[0] == "inspect":
        return words
    for flag, value in (QUICK | SMALL).items():
        if flag in words:
            words[words.index(flag) + 1] = value
        elif flag in QUICK or (flag == "--resolution" and words[0] == "align-diffusion"):
            words += [flag, value]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("line", commands(PAGES))
def test_commands_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.DEBUG, raising=False)
    data_of_the_page()
    words = words_of(line)
    for name in set(words) & set(MODELS.values()):
        tiny(name).save_pretrained(name)
    if set(words) & set(REWARDS.values()):
        save_open_clip(Path("clip"))
    assert cli.main(words) == 0
    out = Path(words[words.index("--out") + 1])
    assert (out / ("index.html" if words[0] == "inspect" else "model/README.md")).exists()


@pytest.mark.slow
def test_plain_diffusers_reads_the_result_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data_of_the_page()
    name = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    tiny("stable_diffusion").save_pretrained(name)
    (line,) = (each for each in commands(PAGES) if each.endswith("--out runs/sd15"))
    words = [name if word == MODELS[name] else word for word in words_of(line)]
    assert cli.main(words) == 0
    (code,) = blocks("diffusion", "python")
    monkeypatch.setattr(
        DiffusionPipeline,
        "from_pretrained",
        lambda name, read=DiffusionPipeline.from_pretrained: read(name).to("cpu"),
    )
    exec(compile(code, "diffusion.md", "exec"), {})
