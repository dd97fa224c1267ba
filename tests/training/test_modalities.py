"""Every objective on every modality: a training step, or an error that says what is missing."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import tiny_diffusion
import torch
from tiny_image_models import save_image_model
from tiny_models import save_model
from tiny_vision_language import picture, save_family

from mmalign.adapters.image_tokens import load_image_tokens
from mmalign.adapters.text import load_text
from mmalign.adapters.vision_language import load_vision_language
from mmalign.objectives import objective
from mmalign.objectives.modalities import MODALITIES, markdown, obstacle
from mmalign.objectives.table import TABLE
from mmalign.records import PLAIN, Media, Message, Part, Preference, Sample, Text
from mmalign.reference import AdapterOff
from mmalign.training.batches import Plan, Steps
from mmalign.training.step import Scorer, preference_step, step_baselines

pytestmark = pytest.mark.filterwarnings("ignore:.*past_key_values", "ignore:.*tie_word_embeddings")

NUMBERS = {
    "confidence": 0.8,
    "safety": 0.3,
    "weight": 0.7,
    "factor": 0.5,
    "difficulty": 1.5,
    "crop_gain": 1.1,
}
WORDS = ("A brown fox.", "A lazy dog.", "Red and blue", "over")


@cache
def adapter_of(modality: str) -> Any:
    """A tiny model whose LoRA does something already."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        made = LOADERS[modality](Path(folder))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.policy.parameters():
            if weight.requires_grad:
                weight.copy_(0.03 * torch.randn(weight.shape))
    return made


LOADERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda folder: load_text(save_model(folder), lora={"r": 2}),
    "vision-language": lambda folder: load_vision_language(
        save_family(folder, "llava"), lora={"r": 2}
    ),
    "diffusion": lambda _: tiny_diffusion.adapter("stable_diffusion"),
    "video": lambda _: tiny_diffusion.adapter("wan"),
    "image tokens": lambda folder: load_image_tokens(
        save_image_model(folder, "janus"), resolution=8, lora={"r": 2}
    ),
}


def samples(modality: str, number: int, width: int) -> tuple[Sample, ...]:
    """Candidates; of a vision-language preference the second is about another image."""
    words = Text("two red dogs")
    if modality == "vision-language":
        return tuple(
            Sample((Message("user", (picture(number + (i == 1)), words)),), (Text(WORDS[i]),))
            for i in range(width)
        )
    role = PLAIN if modality in ("diffusion", "video") else "user"

    def response(i: int) -> Part:
        if modality == "text":
            return Text(WORDS[i])
        frames = tiny_diffusion.VIDEO["wan"] if modality == "video" else 1
        made: Media = tiny_diffusion.picture(10 * number + i, frames=frames)
        return made

    return tuple(Sample((Message(role, (words,)),), (response(i),)) for i in range(width))


# By default they stop pushing sooner than random models agree.
WIDE = {"clipped": "clipped(dpo(), epsilon=0.99)", "slic": "slic(delta=1000)"}


def take_step(name: str, modality: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Losses of two preferences, and the gradients of all that is trained."""
    adapter, entry = adapter_of(modality), TABLE[name]
    wanted = objective(WIDE.get(name) or entry.spec(name))
    grades = tuple(float(entry.width - i) for i in range(entry.width))
    data = [
        Preference(samples(modality, number, entry.width), grades, aux=NUMBERS)
        for number in range(2)
    ]
    plan = Plan(adapter.collate, adapter.size, wanted.needs, batch_size=2, budget=100_000)
    micro = Steps(data, plan)[0].micro_batches
    reference = AdapterOff(adapter) if wanted.needs.reference else None
    scorer = Scorer(adapter)
    baselines = step_baselines(adapter, scorer, micro, wanted, reference)
    found = [
        preference_step(adapter, scorer, part, wanted, reference, baselines)[0] for part in micro
    ]
    losses = torch.cat(found)
    trained = [p for p in adapter.policy.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(losses.mean(), trained, allow_unused=True)
    return losses, [g for g in gradients if g is not None]


# Where both images tell nothing apart that one alone does not, there is nothing to distil.
WITHOUT_GRADIENT = {"distilled_margins"}


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("modality", MODALITIES)
def test_an_objective_trains_or_says_what_is_missing(modality: str, name: str) -> None:
    if obstacle(name, modality):
        with pytest.raises(ValueError, match=r"no tokens|prompt has none"):
            take_step(name, modality)
        return
    losses, gradients = take_step(name, modality)
    assert losses.shape == (2,)
    assert losses.isfinite().all()
    size = sum(float(gradient.square().sum()) for gradient in gradients)
    assert size < float("inf")
    assert size > 0 or name in WITHOUT_GRADIENT


def test_the_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs" / "modalities.md"
    advice = "run python -m mmalign.objectives.modalities docs/modalities.md"
    assert page.read_text(encoding="utf-8") == markdown(), advice
