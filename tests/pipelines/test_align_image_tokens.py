"""`mmalign align-image-tokens` from pairs of pictures to a model that plain libraries read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file
from tiny_image_models import save_decoder, save_image_model
from transformers import AutoModelForImageTextToText

from mmalign import cli
from mmalign.data.store import write_store
from mmalign.media import png
from mmalign.records import Media, Message, Preference, Sample, Text, pair
from mmalign.training.log import JsonLines

pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values", "ignore:.*tie_word_embeddings")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_image_model(tmp_path_factory.mktemp("janus"), "janus")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs") / "store"
    write_store((preference(seed) for seed in range(12)), folder)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.DEBUG, raising=False)


def preference(seed: int) -> Preference:
    """Dark pictures are preferred; some are drawn after a plan in words."""
    prompt = (Message("user", (Text(f"the dog {seed}"),)),)
    plan = (Text("a red dog"),) if seed % 4 == 0 else ()
    dark, bright = noise(seed, 0, 20), noise(seed, 235, 255)
    return pair(Sample(prompt, (*plan, dark)), Sample(prompt, (*plan, bright)))


def noise(seed: int, low: int, high: int) -> Media:
    pixels = np.random.default_rng(seed).integers(low, high, (8, 8, 3), dtype=np.uint8)
    return png(Image.fromarray(pixels))


def align(model: Path, data: Path, *more: str) -> int:
    """Run the command with quick settings, of which `more` may replace any."""
    quick = {
        "--model": str(model), "--data": str(data), "--batch-size": "4", "--steps": "2",
        "--learning-rate": "0.01", "--lora-rank": "2", "--held-out": "0.3", "--samples": "2",
        "--out": "run",
    }  # fmt: skip
    kept = [word for flag, value in quick.items() if flag not in more for word in (flag, value)]
    return cli.main(["align-image-tokens", *kept, *more])


def test_leaves_all_that_it_promises(model: Path, data: Path) -> None:
    assert align(model, data, "--steps", "12", "--objective", "dpo(beta=0.1)", "--merged") == 0
    rows = JsonLines(Path("run/metrics.jsonl")).rows()
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["before"]["reward_accuracy"]["value"] == 0.5
    assert metrics["after"]["reward_accuracy"]["value"] == 1.0
    report = Path("run/report.html").read_text()
    assert report.count("data:image/png;base64,") == 4  # two prompts, before and after
    assert len(list(Path("run/samples").glob("*/*.png"))) == 4
    assert "library_name: peft" in Path("run/model/README.md").read_text()

    ids = torch.arange(8)[None]
    base = AutoModelForImageTextToText.from_pretrained(model).eval()
    merged = AutoModelForImageTextToText.from_pretrained("run/merged").eval()
    with torch.no_grad():
        before = base(input_ids=ids).logits
        tuned = PeftModel.from_pretrained(base, "run/model").eval()(input_ids=ids).logits
        folded = merged(input_ids=ids).logits
    assert (tuned - before).abs().max() > 0.01
    assert torch.allclose(tuned, folded, atol=1e-4)


def test_full_fine_tuning_trains_the_generator_and_not_the_image_tokenizer(
    model: Path, data: Path
) -> None:
    assert align(model, data, "--lora-rank", "0") == 0
    before, after = load_file(model / "model.safetensors"), load_file("run/model/model.safetensors")
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert before.keys() == after.keys()
    assert any("generation_head" in name for name in moved)
    assert any("language_model" in name for name in moved)
    assert not any("vqmodel" in name or "vision_model" in name for name in moved)


@pytest.mark.parametrize(
    "options",
    [
        ["--plan", "condition", "--guidance", "2.0", "--samples", "0"],
        ["--objective", "simpo(beta=2.0, gamma=0.5)", "--gradient-checkpointing", "--steps", "1"],
        ["--objective", "kto(beta=0.1)", "--reference", "cache", "--sample-plan", "4"],
        ["--streaming", "--sample-temperature", "0", "--sample-guidance", "1"],
    ],
    ids=lambda options: " ".join(options),
)
def test_ways_to_train(model: Path, data: Path, options: list[str]) -> None:
    assert align(model, data, *options) == 0
    assert Path("run/model/README.md").exists()


@pytest.mark.parametrize("family", ["emu3", "chameleon"])
def test_other_families(family: str, data: Path, tmp_path: Path) -> None:
    options = ["--resolution", "8"]
    if family == "chameleon":
        options += ["--decoder", str(save_decoder(tmp_path / "decoder"))]
    assert align(save_image_model(tmp_path / family, family), data, *options) == 0
    assert len(list(Path("run/samples").glob("*/*.png"))) == 4


def test_run_yaml_repeats_the_run(model: Path, data: Path) -> None:
    assert align(model, data, "--guidance", "1.5", "--plan", "condition") == 0
    assert cli.main(["align-image-tokens", "--config", "run/run.yaml", "--out", "again"]) == 0
    name = "model/adapter_model.safetensors"
    first, again = load_file(f"run/{name}"), load_file(f"again/{name}")
    assert all(torch.equal(first[weight], again[weight]) for weight in first)
