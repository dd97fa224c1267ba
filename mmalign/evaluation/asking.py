"""Questions put to a model, its answers kept as they come: a stopped run goes on where it was."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign.errors import BadSample, UserError
from mmalign.evaluation.answering import (
    AnswerOptions,
    AskedModel,
    ModelSampler,
    Prompt,
    Sampler,
    ServedSampler,
    is_file,
)
from mmalign.media import digest
from mmalign.records import Media, Message, Sample, Text, media_of, text_of
from mmalign.training.log import JsonLines, progress
from mmalign.training.seeds import derive


@dataclass(frozen=True)
class Question:
    """What a model is asked; `id` tells it from the other questions of its suite."""

    id: str
    prompt: Prompt


def about_image(image: Path | Media, text: str) -> Prompt:
    """A prompt with an image and a text about it."""
    media = Media("image", path=str(image)) if isinstance(image, Path) else image
    return (Message("user", (media, Text(text))),)


@dataclass(frozen=True)
class Asked:
    """Answers by stage and id, for the questions that every stage answered.

    refused: the other questions, with the reason.
    """

    questions: list[Question]
    answers: dict[str, dict[str, str]]
    refused: dict[str, str]

    def texts(self, stage: str) -> list[str]:
        """The answers of a stage, in the order of the questions."""
        return [self.answers[stage][question.id] for question in self.questions]


def ask_all(
    questions: Sequence[Question], models: AskedModel, options: AnswerOptions, out: Path
) -> Asked:
    """Put the questions to every stage's model. Answers are kept in `out`/answers-STAGE.jsonl.

    Raises UserError for questions that share an id, when none could be answered, and when the
    answers in `out` are another model's.
    """
    questions = spread(questions, options.limit)
    counts = Counter(question.id for question in questions)
    if twice := [name for name, count in counts.items() if count > 1]:
        raise UserError(f"{len(twice)} ids stand for several questions, as {twice[0]!r} does")
    if not questions:
        raise UserError("there are no questions to ask")
    answers: dict[str, dict[str, str]] = {}
    refused: dict[str, str] = {}
    for stage, (model, adapter) in models.stages().items():
        if is_file(model):
            answers[stage] = read_answers(Path(model))
            missing = [q.id for q in questions if q.id not in answers[stage]]
            refused |= dict.fromkeys(missing, f"{model} has no answer to it")
        else:
            sampler: ModelSampler | ServedSampler = ModelSampler(models, model, adapter, options)
            if models.url is not None:
                sampler = ServedSampler(models, model, options)
            answers[stage], bad = ask(
                questions,
                sampler,
                out / f"answers-{stage}.jsonl",
                asked=sampler.identity(),
                batch_size=options.batch_size,
                seed=options.seed,
                resume=options.resume,
                title=f"answers {stage}",
            )
            refused |= bad
    _save_refused(out / "refused.jsonl", refused)
    kept = [question for question in questions if question.id not in refused]
    if not kept:
        name, reason = next(iter(refused.items()))
        raise UserError(
            f"none of the {len(refused)} questions was answered; of {name!r} because {reason}"
        )
    return Asked(kept, answers, refused)


def spread(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """At most `limit` of the questions, from all over them: files mostly come sorted by kind."""
    if limit is None or limit >= len(questions):
        return list(questions)
    return [questions[place * len(questions) // limit] for place in range(limit)]


def ask(
    questions: Sequence[Question],
    sample: Sampler,
    file: Path,
    *,
    asked: Mapping[str, Any],
    batch_size: int = 16,
    seed: int = 0,
    resume: bool = True,
    title: str = "answers",
) -> tuple[dict[str, str], dict[str, str]]:
    """Answers by id, and the reasons for which questions were refused.

    file: JSON lines that grow batch by batch; what it holds is not asked again, unless its prompt
        has changed. asked: whatever answers depend on; it is the file's first line.
    Raises UserError when the file's first line is another one.
    """
    if not resume:
        file.unlink(missing_ok=True)
    lines, known = JsonLines(file), _known(file, asked)
    if not lines.rows():
        lines.write({"asked": dict(asked)})
    refused: dict[str, str] = {}
    waiting = []
    for question in questions:
        try:
            if known.get(question.id, {}).get("prompt") != _prompt_id(question):
                waiting.append(question)
        except BadSample as error:
            refused[question.id] = str(error)
    answers = {q.id: str(known[q.id]["answer"]) for q in questions if q.id in known}
    total = len(questions) - len(refused)
    with progress(title, total=total, done=total - len(waiting)) as advance:
        for start in range(0, len(waiting), batch_size):
            some = waiting[start : start + batch_size]
            for question, answer in _answered(some, sample, seed):
                if isinstance(answer, BadSample):
                    refused[question.id] = str(answer)
                else:
                    answers[question.id] = answer
                    lines.write(_row(question, answer))
                advance()
    return {name: text for name, text in answers.items() if name not in refused}, refused


def _answered(
    questions: Sequence[Question], sample: Sampler, seed: int
) -> Iterator[tuple[Question, str | BadSample]]:
    """Answers to a batch; where one question is bad, each by itself."""
    seeds = [derive(seed, "evaluate", question.id) for question in questions]
    try:
        samples = sample([question.prompt for question in questions], seeds)
    except BadSample as error:
        if len(questions) == 1:
            yield questions[0], error
            return
        for question in questions:
            yield from _answered([question], sample, seed)
        return
    for question, made in zip(questions, samples, strict=True):
        yield question, text_of(made.response)


def read_answers(file: Path) -> dict[str, str]:
    """Answers by id out of a file of JSON lines, our own or one {"id", "answer"} a line.

    Raises UserError naming the line that is wrong.
    """
    answers = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            if "asked" not in row:
                answers[str(row["id"])] = str(row["answer"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{file}, line {number}: {error!r}",
                hint='one {"id": ..., "answer": ...} a line is wanted',
            ) from error
    return answers


def _known(file: Path, asked: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of earlier answers, by id. A half-written last line is dropped from the file."""
    lines = JsonLines(file)
    lines.keep(lambda row: True)
    head, *rows = lines.rows() or [{}]
    if head:
        before = head.get("asked", {})
        if before.get("weights") is None:  # the model was not downloaded when it was first asked
            before = {**before, "weights": asked.get("weights")}
        differ = [
            f"{name} was {before.get(name)!r} and is {value!r}"
            for name, value in asked.items()
            if before.get(name) != value
        ]
        if differ:
            raise UserError(
                f"{file} holds other answers: {'; '.join(differ)}",
                hint="give another --out, or --no-resume to ask anew",
            )
    return {row["id"]: row for row in rows}


def _prompt_id(question: Question) -> str:
    """Raises BadSample for an image that is not there."""
    for media in media_of(question.prompt):
        digest(media)
    return Sample(question.prompt, ()).prompt_id


def _row(question: Question, answer: str) -> dict[str, Any]:
    asked = " ".join(text_of(message.parts) for message in question.prompt)
    return {
        "id": question.id,
        "question": asked,
        "answer": answer,
        "prompt": _prompt_id(question),
    }


def _save_refused(file: Path, refused: Mapping[str, str]) -> None:
    file.unlink(missing_ok=True)
    for name, reason in refused.items():
        JsonLines(file).write({"id": name, "reason": reason})
