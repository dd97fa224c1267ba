"""Reports of whole runs: planted faults are named with their remedy, clean data raise nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_diffusion import SIDE
from tiny_models import save_model
from tiny_pipelines import tiny
from tiny_vision_language import save_family

from mmalign import cli
from mmalign.adapters.text import loading
from mmalign.data.store import write_store
from mmalign.media import png
from mmalign.records import PLAIN, Media, Message, Part, Preference, Sample, Text, pair

COLOURS = {
    "red": (220, 30, 30),
    "blue": (30, 30, 220),
    "green": (30, 200, 30),
    "gold": (230, 200, 40),
}
QUESTIONS = (
    "what colour is it?",
    "name the colour",
    "which colour do you see?",
    "tell me its colour",
)
Make = Callable[[int], Preference]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(cli.DEBUG, raising=False)


def two(number: int) -> tuple[str, str]:
    """Different colours; each is first and second equally often."""
    names, count = list(COLOURS), len(COLOURS)
    return names[number % count], names[(number + 1 + number // count % (count - 1)) % count]


def seen(colour: str, seed: int) -> Media:
    """Patches that are all nearly of one colour."""
    draws = np.random.default_rng(seed)
    pixels = np.array(COLOURS[colour]) + draws.integers(-25, 25, (4, 4, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    return png(image.resize((SIDE, SIDE), Image.Resampling.NEAREST))


def answered(prompt: tuple[Part, ...], good: Part, bad: Part, role: str = "user") -> Preference:
    asked = (Message(role, prompt),)
    return pair(Sample(asked, (good,)), Sample(asked, (bad,)))


def turned(make: Make) -> Make:
    def other_way(number: int) -> Preference:
        one = make(number)
        return pair(one.rejected, one.chosen)

    return other_way


def findings(
    command: str, model: Path, make: Make, *options: str, numbers: Iterable[int] = range(64)
) -> list[str]:
    """Train on the preferences of these numbers and read what the report says went wrong."""
    write_store(map(make, numbers), Path("data"), overwrite=True)
    quick = {
        "--lora-rank": "8", "--learning-rate": "0.01", "--batch-size": "16", "--epochs": "2"
    }  # fmt: skip
    kept = [word for flag, value in quick.items() if flag not in options for word in (flag, value)]
    words = [command, "--model", str(model), "--data", "data", "--out", "run", *kept, *options]
    assert cli.main(words) == 0
    page = Path("run/report.html").read_text()
    cards = re.findall(r'<p class="prompt">([\w -]+) <span class="verdict (?:bad)?">', page)
    assert bool(cards) != ("No fault was found" in page)
    return [unescape(card) for card in cards]


def accuracy(stage: str = "after", name: str = "reward_accuracy") -> float:
    value: float = json.loads(Path("run/metrics.json").read_text())[stage][name]["value"]
    return value


# ---- a language model


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"))  # its configuration asks for dropout


def named(number: int) -> Preference:
    """The colour of the question is the right answer."""
    good, bad = two(number)
    return answered((Text(f"{number} is {good}. {QUESTIONS[number % 3]}"),), Text(good), Text(bad))


def wordy(number: int) -> Preference:
    good, _ = two(number)
    return answered((Text(f"{number} is {good}"),), Text(f"{good} {good} {good}"), Text(good))


def same(number: int) -> Preference:
    good, _ = two(number)
    return answered((Text(f"{number} is {good}"),), Text(good), Text(good))


def align_text(model: Path, make: Make, *options: str) -> list[str]:
    return findings("align-text", model, make, "--held-out", "0.3", *options)


def test_a_clean_text_run_raises_nothing(text_model: Path) -> None:
    assert align_text(text_model, named, "--epochs", "6") == []
    assert accuracy() > 0.8


def test_held_out_labels_the_other_way(text_model: Path) -> None:
    write_store(map(turned(named), range(100, 140)), Path("other"))
    assert "Flipped labels" in align_text(
        text_model, named, "--epochs", "4", "--eval-data", "other"
    )


@pytest.mark.parametrize(
    ("make", "options", "fault"),
    [
        (same, (), "Identical pairs"),
        (wordy, (), "Length-biased data"),
        (named, ("--objective", "dpo(beta=100)"), "Beta too large"),
        (named, ("--objective", "dpo(beta=0.0001)", "--epochs", "6"), "Beta too small"),
        (named, ("--learning-rate", "1e-9"), "Nothing moves"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_faults_of_a_text_run(
    text_model: Path, make: Make, options: tuple[str, ...], fault: str
) -> None:
    assert fault in align_text(text_model, make, *options)


def test_dropout_in_the_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that asks for it is overruled; where it is not, the report says so."""
    model, dry = save_model(tmp_path / "gpt2", "gpt2"), loading.without_dropout

    def wet(*model: Any, **options: Any) -> Any:
        lm, dropouts = dry(*model, **options)
        for module in lm.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.1
        return lm, dropouts

    assert align_text(model, named, "--steps", "2") == []
    monkeypatch.setattr(loading, "without_dropout", wet)
    assert "Reference mismatch" in align_text(model, named, "--steps", "2", "--no-resume")


# ---- a model that sees


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("llava"), "llava")


def looked(number: int) -> Preference:
    """Only the image tells which answer is right."""
    good, bad = two(number)
    question = Text(QUESTIONS[number // 12 % 4])
    return answered((seen(good, number), question), Text(good), Text(bad))


def blank(number: int) -> Preference:
    """White images, and one answer is always right."""
    white = png(Image.new("RGB", (SIDE, SIDE), "white"))
    question = Text(f"{number}: {QUESTIONS[number % 4]}")
    return answered((white, question), Text("red"), Text("sky"))


def align_vlm(model: Path, make: Make, *options: str) -> list[str]:
    more = ("--train-projector", "--objective", "dpo(beta=0.1)", "--held-out", "0.6")
    return findings("align-vlm", model, make, *more, *options, numbers=range(96))


def test_a_clean_run_of_a_model_that_sees_raises_nothing(vision_model: Path) -> None:
    assert align_vlm(vision_model, looked, "--steps", "24") == []
    assert accuracy() > 0.9
    assert accuracy(name="reward_accuracy_without_image") < 0.8


def test_blank_images(vision_model: Path) -> None:
    found = align_vlm(vision_model, blank, "--steps", "8")
    assert found == ["Blank images", "Images do not matter"]
    page = Path("run/report.html").read_text()
    assert "fetch them again, or take the records out" in page


# ---- a denoiser


@pytest.fixture(scope="module")
def image_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    tiny("stable_diffusion").save_pretrained(folder)
    return folder


def painted(number: int) -> Preference:
    good, bad = seen("gold", number), seen("blue", number)
    return answered((Text(f"cat {number}"),), good, bad, PLAIN)


def painted_twice(number: int) -> Preference:
    good = seen("gold", number)
    return answered((Text(f"cat {number}"),), good, good, PLAIN)


def align_diffusion(model: Path, make: Make, *options: str) -> list[str]:
    more = ("--resolution", str(SIDE), "--samples", "0", "--held-out", "0.3")
    return findings("align-diffusion", model, make, *more, *options, numbers=range(48))


def test_a_clean_run_of_a_denoiser_raises_nothing(image_model: Path) -> None:
    full = ("--lora-rank", "0", "--reference", "copy", "--learning-rate", "1e-3")
    anchored = ("--objective", "dpo(beta=2000) + 50*nll()", "--steps", "20")
    assert align_diffusion(image_model, painted, *full, *anchored) == []
    assert accuracy() > 0.7


@pytest.mark.parametrize(
    ("make", "spec", "fault"),
    [
        (painted, "dpo(beta=2000000)", "Beta too large"),
        (painted, "dpo(beta=2)", "Beta too small"),
        (painted_twice, "dpo(beta=2000)", "Identical pairs"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_faults_of_a_denoisers_run(image_model: Path, make: Make, spec: str, fault: str) -> None:
    assert fault in align_diffusion(image_model, make, "--objective", spec, "--steps", "4")
