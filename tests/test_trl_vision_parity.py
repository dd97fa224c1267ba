"""One optimiser step on images costs and moves the same as one of TRL's `DPOTrainer`.

Ours encodes every image once and computes prompts once; TRL encodes an image four times in a step,
for chosen and rejected under policy and reference.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, Image, List, Value, disable_progress_bars
from test_trl_parity import LORA, TEXTS, Found, assert_equal, gradients_of, our_step, trl_trainer
from tiny_vision_language import FAMILIES, picture

from mmalign.adapters.vision_language import VisionLanguageAdapter, load_vision_language
from mmalign.media import open_image
from mmalign.records import Media, Message, Preference, Sample, Text, pair

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL's and transformers' own

# Nothing behind the end of a turn, so that both libraries score the same tokens.
NO_TAIL = (
    "{% for m in messages %}{% if not loop.first %}\n{% endif %}<|im_start|>{{ m.role }}\n"
    "{% for c in m.content %}{% if c.type == 'image' %}IMAGE{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}"
)
MARKS = {"llava": "<image>", "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>"}
LANGUAGE = r".*language_model.*_proj"
PICTURES = [picture(seed, 56, 56) for seed in (1, 2, 1, 3)]  # square: LLaVA's would be cropped


def save_without_tail(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    model, processor = FAMILIES[family]()
    model.config.get_text_config().attention_dropout = 0.0  # TRL leaves it on
    processor.chat_template = NO_TAIL.replace("IMAGE", MARKS[family])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def pairs() -> list[Preference]:
    def sample(image: Media, question: str, answer: str) -> Sample:
        return Sample((Message("user", (image, Text(question))),), (Text(answer),))

    return [
        pair(sample(image, question, chosen), sample(image, question, rejected))
        for image, (question, chosen, rejected) in zip(PICTURES, TEXTS, strict=True)
    ]


def rows() -> Dataset:
    def said(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    columns: dict[str, list[Any]] = {
        "images": [[open_image(image)] for image in PICTURES],
        "prompt": [said("user", question) for question, _, _ in TEXTS],
        "chosen": [said("assistant", chosen) for _, chosen, _ in TEXTS],
        "rejected": [said("assistant", rejected) for _, _, rejected in TEXTS],
    }
    turns = List({"role": Value("string"), "content": Value("string")})
    features = {"images": List(Image()), **dict.fromkeys(("prompt", "chosen", "rejected"), turns)}
    return Dataset.from_dict(columns, Features(features))


@pytest.mark.parametrize("family", MARKS)
def test_one_step_on_images_is_trls(family: str, tmp_path: Path) -> None:
    disable_progress_bars()
    adapter = with_some_training(save_without_tail(tmp_path / "model", family))
    trainer = trl_trainer(
        tmp_path / "model", rows(), adapter.policy, tmp_path / "trl", targets=LANGUAGE
    )
    with gradients_of(trainer.model) as gradients:
        loss = trainer.train().training_loss
    ours = our_step(adapter, pairs(), "dpo(beta=0.1)", tmp_path / "mmalign")
    assert_equal(ours, Found(loss, gradients), tolerance=1e-4)


def with_some_training(folder: Path) -> VisionLanguageAdapter:
    """The LoRA does something, so log-ratios and all gradients differ from zero."""
    adapter = load_vision_language(folder, lora=LORA)
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in adapter.policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(0.05 * torch.randn(weight.shape, generator=draws))
    return adapter
