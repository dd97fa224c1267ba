"""Answers under noise are what the plain model says there, and POVID trains on them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from tiny_vision_language import picture, save_family
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign import cli
from mmalign.adapters.vision_language import VisionLanguageAdapter, load_vision_language
from mmalign.data import open_dataset
from mmalign.data_builders.bdhs import under_noise
from mmalign.data_builders.noisy_answers import noisy_answers
from mmalign.errors import BadSample
from mmalign.media import open_image
from mmalign.records import Message, Sample, Text, media_of, text_of
from mmalign.training.log import JsonLines
from mmalign.training.seeds import derive

ANSWER = "the quick brown fox jumps over the lazy dog"


def about(seed: int, answer: str = ANSWER) -> Sample:
    square = picture(seed, width=60, height=60)  # which no processor pads or crops
    prompt = (Message("user", (square, Text("What is there?"))),)
    return Sample(prompt, (Text(answer),))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_family(tmp_path_factory.mktemp("llava"), "llava")


@pytest.fixture(scope="module")
def adapter(model: Path) -> VisionLanguageAdapter:
    return load_vision_language(model)


def test_forced_answers_are_the_plain_models_likeliest_words(
    model: Path, adapter: VisionLanguageAdapter
) -> None:
    """Place by place, after the true beginning, as the library's own forward has them."""
    plain = AutoModelForImageTextToText.from_pretrained(model).eval()
    processor = AutoProcessor.from_pretrained(model)
    sample = about(1)
    (ours,) = noisy_answers(adapter, [sample], [7])
    noisy = under_noise(sample.prompt, derive(7, "noise"))
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is there?"}]}
    ]
    begin = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(
        text=begin + ANSWER, images=open_image(media_of(noisy)[0]), return_tensors="pt"
    )
    prompt = processor(
        text=begin, images=open_image(media_of(noisy)[0]), return_tensors="pt"
    ).input_ids.shape[1]
    with torch.no_grad():
        logits = plain(**inputs).logits[0, prompt - 1 : -1]
    logits[:, ~adapter.speakable()] = -torch.inf
    expected = processor.tokenizer.decode(logits.argmax(-1), skip_special_tokens=True).strip()
    assert ours == expected
    assert ours != ANSWER


def test_a_row_does_not_depend_on_its_batch_mates(adapter: VisionLanguageAdapter) -> None:
    samples = [about(1), about(2, "red and green"), about(1)]
    together = noisy_answers(adapter, samples, [7, 8, 9])
    assert together == [noisy_answers(adapter, [s], [7 + i])[0] for i, s in enumerate(samples)]
    assert noisy_answers(adapter, [about(1)], [7], step=1) != together[:1], "noise matters"


def test_models_with_cross_attention_are_led_through_answers_too(tmp_path: Path) -> None:
    adapter = load_vision_language(save_family(tmp_path, "mllama"))
    both = (Message("user", (picture(1), picture(2), Text("What is there?"))),)
    samples = [about(1), Sample(both, (Text(ANSWER),))]
    together = noisy_answers(adapter, samples, [7, 8])
    assert together == [noisy_answers(adapter, [s], [7 + i])[0] for i, s in enumerate(samples)]


def test_written_answers_are_those_to_the_noisy_prompt(adapter: VisionLanguageAdapter) -> None:
    sample = about(1)
    options = {"how": "written", "max_new_tokens": 6, "temperature": 0.0}
    (ours,) = noisy_answers(adapter, [sample], [7], **options)  # type: ignore[arg-type]
    noisy = under_noise(sample.prompt, derive(7, "noise"))
    (plain,) = adapter.sample([noisy], [0], max_new_tokens=6, temperature=0)
    assert ours == text_of(plain.response).strip()


def test_what_cannot_be_shown_under_noise_is_refused(adapter: VisionLanguageAdapter) -> None:
    blind = Sample((Message("user", (Text("What?"),)),), (Text(ANSWER),))
    with pytest.raises(BadSample, match="no image"):
        noisy_answers(adapter, [blind], [0])


def test_povid_runs_from_images_and_answers_alone(model: Path, tmp_path: Path) -> None:
    rows = []
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(picture(number).content)
        rows.append({"image": f"{number}.png", "caption": f"a red cat and {number} dogs"})
    rows.append({"image": "0.png"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build = ["build", "noisy-answers", str(tmp_path / "rows.jsonl"), "--model", str(model)]
    assert cli.main([*build, "--out", str(tmp_path / "three")]) == 0
    made = list(open_dataset(tmp_path / "three"))
    assert len(made) == 4
    for one in made:
        good, noisy, faulty = (text_of(each.response) for each in one.candidates)
        assert good.startswith("a red cat")
        assert len({good, noisy, faulty}) == 3
        assert one.grades == (1, 0, 0)
        assert len({each.prompt_id for each in one.candidates}) == 1, "the clear image"
        assert one.source.details["how"] == "forced"
    (refused,) = (tmp_path / "three" / "quarantine.jsonl").read_text().splitlines()
    assert "no caption" in json.loads(refused)["reason"]
    train = ["align-vlm", "--model", str(model), "--data", str(tmp_path / "three"), "--steps", "2"]
    more = ["--held-out", "0", "--lora-rank", "2", "--objective", "povid()"]
    assert cli.main([*train, *more, "--out", str(tmp_path / "run")]) == 0
    first = JsonLines(tmp_path / "run" / "metrics.jsonl").rows()[0]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_given_rejected_answer_stays_the_last(model: Path, tmp_path: Path) -> None:
    row = {"prompt": "What is there?", "chosen": ANSWER, "rejected": "no dog", "images": ["a.png"]}
    (tmp_path / "a.png").write_bytes(picture(0).content)
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    build = ["build", "noisy-answers", str(tmp_path / "pairs.jsonl"), "--model", str(model)]
    assert cli.main([*build, "--out", str(tmp_path / "three")]) == 0
    (made,) = open_dataset(tmp_path / "three")
    assert text_of(made.rejected.response) == "no dog"
    assert cli.main([*build, "--step", "0", "--out", str(tmp_path / "none")]) == 2
