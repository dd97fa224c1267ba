"""The page about image tokens is true: its commands run, on tiny models, and so does its code."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
from pages import blocks, commands
from PIL import Image
from tiny_image_models import save_image_model, save_pipeline

from mmalign import cli
from mmalign.adapters.image_tokens import glm_image, load_image_tokens
from mmalign.data.store import write_store
from mmalign.media import png
from mmalign.records import Message, Sample, Text, pair

pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values", "ignore:.*tie_word_embeddings")

LINES = commands(["image-tokens"])
MODELS = {
    "deepseek-community/Janus-Pro-1B": "janus",
    "BAAI/Emu3-Gen-hf": "emu3",
    "zai-org/GLM-Image": "glm_image",
}
QUICK = {
    "--steps": "1", "--batch-size": "2", "--samples": "1", "--resolution": "8",
    "--precision": "float32", "--sample-plan": "3",
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_options_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(line)
    assert program == "mmalign"
    command = words[: 2 if words[0] == "build" else 1]
    assert cli.main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in (word for word in words if word.startswith("--")):
        assert flag in shown


@pytest.mark.parametrize("line", [line for line in LINES if "align-" in line])
def test_commands_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [MODELS.get(word, word) for word in shlex.split(line)[1:]]
    model, quick = words[words.index("--model") + 1], QUICK
    if model == "glm_image":
        monkeypatch.setattr(glm_image, "PREVIEW", 2)
        quick = QUICK | {"--resolution": "64", "--sample-plan": "0", "--decoder-steps": "2"}
        save_pipeline(Path(model))
    else:
        save_image_model(Path(model), model)
    for flag, value in quick.items():
        if flag in words:
            words[words.index(flag) + 1] = value
        else:
            words += [flag, value]
    noise = np.random.default_rng(0).integers(0, 255, (8, 8, 8, 3), dtype=np.uint8)
    prompts = [(Message("user", (Text(f"the dog {number}"),)),) for number in range(4)]
    write_store(
        (
            pair(
                Sample(prompt, (png(Image.fromarray(a)),)),
                Sample(prompt, (png(Image.fromarray(b)),)),
            )
            for prompt, a, b in zip(prompts, noise[::2], noise[1::2], strict=True)
        ),
        Path("pairs"),
    )
    assert cli.main(words) == 0
    assert (Path(words[words.index("--out") + 1]) / "model" / "README.md").exists()


def test_code_runs(tmp_path: Path) -> None:
    (code,) = blocks("image-tokens", "python")
    adapter = load_image_tokens(save_image_model(tmp_path, "emu3"), resolution=8)
    names = {
        "adapter": adapter,
        "prompts": [(Message("user", (Text("the dog"),)),)],
        "seeds": [[1, 2, 3]],
        "reward": lambda prompt, sample: 1.0,
        "potential": lambda prompt, part: 1.0,
    }
    exec(code.replace("rows=12", "rows=2"), names)  # the tiny model has four rows
    assert names["chosen"].codes == 3 * 8 + 2 * 8  # type: ignore[attr-defined]  # made by the code
