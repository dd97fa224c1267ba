"""VQAScore is the probability of Yes, whatever the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_vision_language import picture, save_family

from mmalign.adapters.vision_language import load_vision_language
from mmalign.errors import UserError
from mmalign.records import Message, Sample, Text
from mmalign.rewards.vqa import QUESTION, vqa

TEXTS = ["a fox", "two dogs on a lawn"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("vlm"), "llava")


def plain(folder: Path, place: int, answer: str) -> float:
    """Mean log-probability of the answer's tokens, one at a time from the library's logits."""
    adapter = load_vision_language(str(folder))
    asked = (Message("user", (picture(place), Text(QUESTION.replace("{text}", TEXTS[place])))),)
    tokens = adapter.collate.tokens(Sample(asked, (Text(answer),)))
    pixels = adapter.collate.images([asked])["batches"][0]
    words = list(tokens.completion)[:-1]  # the last ends the turn
    ids = torch.tensor([[*tokens.prompt, *words]])
    with torch.no_grad():
        logits = adapter.policy(input_ids=ids, **pixels).logits[0].double()
    logps = logits.log_softmax(-1)
    start = len(tokens.prompt) - 1
    return float(sum(logps[start + i, word] for i, word in enumerate(words)) / len(words))


def test_the_probability_of_yes(folder: Path) -> None:
    images = [picture(0), picture(1)]
    yes = [plain(folder, i, "Yes") for i in range(2)]
    no = [plain(folder, i, "No") for i in range(2)]
    found = vqa(model=str(folder)).score(images, TEXTS)
    assert found == pytest.approx(torch.tensor(yes).exp().tolist(), rel=1e-4)
    relative = vqa(model=str(folder), relative=True).score(images, TEXTS)
    expected = torch.sigmoid(torch.tensor(yes) - torch.tensor(no)).tolist()
    assert relative == pytest.approx(expected, rel=1e-4)


def test_a_question_without_a_place_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="no place"):
        vqa(model=str(folder), question="Is it?")
