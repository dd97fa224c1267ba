"""Answers are kept as they come, and only what is missing is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_vision_language import picture

from mmalign.errors import BadSample, UserError
from mmalign.evaluation.answering import Prompt, weights_mark
from mmalign.evaluation.asking import Question, about_image, ask, spread
from mmalign.evaluation.suite import spoken
from mmalign.records import Media, Sample, Text, text_of

QUESTIONS = [Question(str(i), about_image(picture(i), f"What is {i}?")) for i in range(5)]
ASKED = {"model": "m", "max_new_tokens": 8}


class Parrot:
    """Repeats the question, and counts. Breaks down when asked more often than it can bear."""

    def __init__(self, patience: int = 100) -> None:
        self.heard: list[str] = []
        self.patience = patience

    def __call__(self, prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Sample]:
        questions = [text_of(prompt[0].parts) for prompt in prompts]
        if any("bad" in question for question in questions):
            raise BadSample("that is a bad question")
        if len(self.heard) + len(prompts) > self.patience:
            raise KeyboardInterrupt
        self.heard += questions
        return [Sample(p, (Text(q),)) for p, q in zip(prompts, questions, strict=True)]


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with pytest.raises(KeyboardInterrupt):
        ask(QUESTIONS, Parrot(patience=3), file, asked=ASKED, batch_size=2)
    with file.open("a") as torn:
        torn.write('{"id": "2", "ans')  # killed while writing
    rest = Parrot()
    answers, refused = ask(QUESTIONS, rest, file, asked=ASKED, batch_size=2)
    assert rest.heard == ["What is 2?", "What is 3?", "What is 4?"]
    assert answers == {str(i): f"What is {i}?" for i in range(5)}
    assert not refused
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row.get("id") for row in rows] == [None, "0", "1", "2", "3", "4"]


def test_a_changed_question_is_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    ask(QUESTIONS, Parrot(), file, asked=ASKED)
    changed = [*QUESTIONS[:4], Question("4", about_image(picture(4), "Why?"))]
    again = Parrot()
    answers, _ = ask(changed, again, file, asked=ASKED)
    assert again.heard == ["Why?"]
    assert answers["4"] == "Why?"


def test_answers_of_another_model_are_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    ask(QUESTIONS, Parrot(), file, asked=ASKED)
    with pytest.raises(UserError, match="max_new_tokens was 8 and is 9"):
        ask(QUESTIONS, Parrot(), file, asked={**ASKED, "max_new_tokens": 9})
    anew = Parrot()
    ask(QUESTIONS, anew, file, asked={**ASKED, "max_new_tokens": 9}, resume=False)
    assert len(anew.heard) == 5


def test_a_model_that_was_not_there_yet_is_the_same_later(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    ask(QUESTIONS, Parrot(), file, asked={**ASKED, "weights": None})
    ask(QUESTIONS, Parrot(patience=0), file, asked={**ASKED, "weights": "abc"})
    other = tmp_path / "other.jsonl"
    ask(QUESTIONS, Parrot(), other, asked={**ASKED, "weights": "abc"})
    with pytest.raises(UserError, match="weights was 'abc' and is 'def'"):
        ask(QUESTIONS, Parrot(), other, asked={**ASKED, "weights": "def"})


def test_a_bad_question_costs_its_own_answer_only(tmp_path: Path) -> None:
    missing = Media("image", path=str(tmp_path / "none.png"))
    questions = [
        *QUESTIONS,
        Question("bad", about_image(picture(9), "bad")),
        Question("blind", about_image(missing, "What?")),
    ]
    answers, refused = ask(questions, Parrot(), tmp_path / "answers.jsonl", asked=ASKED)
    assert len(answers) == 5
    assert refused["bad"] == "that is a bad question"
    assert "does not exist" in refused["blind"]


def test_other_weights_have_another_mark(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"0" * 300_000)
    before = weights_mark(str(tmp_path))
    (tmp_path / "README.md").write_text("a new card")
    assert weights_mark(str(tmp_path)) == before
    weights.write_bytes(b"0" * 299_000 + b"1" * 1000)
    assert weights_mark(str(tmp_path)) != before


def test_few_questions_come_from_all_over() -> None:
    assert [question.id for question in spread(QUESTIONS, 2)] == ["0", "2"]
    assert spread(QUESTIONS, None) == spread(QUESTIONS, 9) == QUESTIONS


def test_what_a_model_thinks_is_not_what_it_says() -> None:
    assert spoken("<think>a dog? no.</think>\n\nA cat.") == "A cat."
    assert spoken("A cat.") == "A cat."
