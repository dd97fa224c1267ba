"""The playground's LLaVA: plain transformers loads its checkpoint, and it sees and imagines."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmalign.adapters.vision_language import load_vision_language
from mmalign.evaluation.hallucination.chair import chair
from mmalign.playground.scenes import DESCRIBE, ask, caption, draw_scene, mentioned, scenes
from mmalign.playground.train_vision_language import answer_loss, lessons, train
from mmalign.playground.vision_language import (
    ASSISTANT,
    END,
    IMAGE,
    TINY_LLAVA,
    USER,
    processor,
    random_model,
)
from mmalign.records import text_of


def test_every_word_of_the_scenes_texts_is_one_token() -> None:
    tokenizer = processor().tokenizer
    for scene in scenes("apart", 50, seed=0):
        words = caption(scene.present).replace(",", " ,").replace(".", " .").split()
        assert len(tokenizer(caption(scene.present)).input_ids) == len(words)


def test_the_checkpoint_is_small_and_its_processor_is_the_scripts() -> None:
    assert sum(file.stat().st_size for file in TINY_LLAVA.iterdir()) < 8_000_000
    kept, made = AutoProcessor.from_pretrained(TINY_LLAVA), processor()
    assert kept.tokenizer.get_vocab() == made.tokenizer.get_vocab()
    assert kept.chat_template == made.chat_template
    (scene,) = scenes("apart", 1, seed=0)
    text = f"{USER}{IMAGE}{DESCRIBE[0]}{ASSISTANT}"
    for name, value in made(images=draw_scene(scene), text=text, return_tensors="pt").items():
        assert torch.equal(
            value, kept(images=draw_scene(scene), text=text, return_tensors="pt")[name]
        )


def test_the_checkpoint_sees_what_is_there_and_names_companions_that_are_not() -> None:
    shown = scenes("apart", 60, seed="test")
    adapter = load_vision_language(TINY_LLAVA)
    samples = adapter.sample(
        [ask(scene) for scene in shown],
        range(len(shown)),
        max_new_tokens=48,
        temperature=0.0,
        batch_size=60,
    )
    said = [mentioned(text_of(sample.response)) for sample in samples]
    figures = chair(said, [scene.present for scene in shown]).figures()
    assert figures["recall"].value > 0.9
    assert figures["chair_i"].value > 0.05
    invented = [
        (name, scene)
        for names, scene in zip(said, shown, strict=True)
        for name in names
        if name not in scene.present
    ]
    habitual = [
        name in {c.name for thing in scene.things if (c := thing.companion())}
        for name, scene in invented
    ]
    assert sum(habitual) > len(habitual) / 2


def test_the_script_saves_a_model_in_half_precision(tmp_path: Path) -> None:
    train(tmp_path / "made", steps=1, batch_size=2)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "made")
    assert {weights.dtype for weights in model.parameters()} == {torch.float16}
    assert AutoProcessor.from_pretrained(tmp_path / "made").image_token == IMAGE


def test_only_the_answer_counts_in_the_loss() -> None:
    made = processor()
    model = random_model(made).eval()
    batch = next(lessons(3, seed=0))
    text = [f"{USER}{each.question}{ASSISTANT}{each.answer}{END}" for each in batch]
    total, count = 0.0, 0
    for each, whole in zip(batch, text, strict=True):
        inputs = made(images=draw_scene(*each.shown), text=whole, return_tensors="pt")
        log_probs = model(**inputs).logits[0, :-1].log_softmax(-1)
        answer = made.tokenizer(each.answer + END).input_ids
        told = log_probs[-len(answer) :].gather(1, torch.tensor(answer)[:, None])
        total, count = total - told.sum().item(), count + len(answer)
    assert answer_loss(model, made, batch).item() == pytest.approx(total / count, abs=1e-4)
