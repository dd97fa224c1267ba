"""`mmalign evaluate mmhal`: open questions whose answers a judge rates. arXiv:2309.14525."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.evaluation.answering import AnswerOptions, AskedModel
from mmalign.evaluation.asking import Question, about_image
from mmalign.evaluation.hallucination.mmhal import HALLUCINATED, MOST, RATE, figures, rating
from mmalign.evaluation.intervals import Interval
from mmalign.evaluation.judging import filled, judgements, template_of
from mmalign.evaluation.reading import image_of, read_rows
from mmalign.evaluation.suite import Judged, Scores, evaluate
from mmalign.records import media_of
from mmalign.report.marked import Marked
from mmalign.rewards.judge import JudgeOptions, Prompt
from mmalign.settings import save_settings

ANSWERS = AnswerOptions()
FIELDS = ("image_id", "image_content", "question", "gt_answer")


def mmhal(
    *,
    model: AskedModel,
    questions: Path,
    images: Path | None = None,
    judge: JudgeOptions,
    judge_prompt: Path | None = None,
    judge_sees: bool = False,
    answers: AnswerOptions = ANSWERS,
    out: Path = Path("runs/mmhal"),
) -> dict[str, dict[str, Interval]]:
    """MMHal-Bench: a judge rates answers to open questions from 0 to 6; below 3 hallucinates.

    As published, the judge sees a list of the image's contents, not the image. Judges differ by
    half a point and more, and 96 questions leave a wide interval: compare figures of one judge.

    Model:
        model: See AskedModel.

    Data:
        questions: The benchmark's response_template.json, or JSON lines with the images in them.
        images: Folder of the images, named by image_id or as in image_src; where the questions do
            not hold them.

    Judge:
        judge: See JudgeOptions.
        judge_prompt: File with the judge's prompt, in which {image_content}, {question},
            {gt_answer} and {answer}, or four {}, are filled in; by default our own.
        judge_sees: Send the image along, which newer judges can look at.

    Answers:
        answers: See AnswerOptions.

    Output:
        out: Folder for answers, judgements, metrics.json and report.html.

    Examples:
        mmalign evaluate mmhal --model llava-hf/llava-1.5-7b-hf --judge gpt-4o
          --questions mmhal/response_template.json --images mmhal/images
        mmalign evaluate mmhal --model llava-hf/llava-1.5-7b-hf --questions mmhal-bench.jsonl
          --judge Qwen/Qwen3-8B --judge-url http://localhost:8000/v1
    """
    save_settings(out / "run.yaml", "evaluate mmhal", mmhal, locals())
    rows = read_rows(questions, FIELDS)
    template = template_of(judge_prompt, RATE)
    judging = judge.open(out / "judge.jsonl")
    asked = [
        Question(
            str(number),
            about_image(image_of(row, images, _names(row), questions), row["question"]),
        )
        for number, row in enumerate(rows)
    ]

    def score(asked: Sequence[Question], texts: Sequence[str]) -> Scores:
        places = [int(question.id) for question in asked]
        told = [
            filled(template, {**_known(rows[place]), "answer": text})
            for place, text in zip(places, texts, strict=True)
        ]
        prompts: list[Prompt] = list(told)
        if judge_sees:
            shown = [media_of(question.prompt)[0] for question in asked]
            prompts = [about_image(image, text) for image, text in zip(shown, told, strict=True)]
        reviews = judgements(judging, prompts, str)
        ratings = [rating(review) for review in reviews]
        judged = [
            Judged(
                Marked(text, good=given >= HALLUCINATED),
                float(MOST - given) if given < HALLUCINATED else 0.0,
                f"A person: {rows[place]['gt_answer']}\nThe judge: {review}",
            )
            for text, given, place, review in zip(texts, ratings, places, reviews, strict=True)
        ]
        return Scores(figures(ratings, places), judged)

    seen = "which sees the image" if judge_sees else "which does not see the image"
    notes = [f"Judged by {judge.judge}, {seen}, with {judge_prompt or 'our own prompt'}."]
    return evaluate("MMHal-Bench", asked, score, model=model, answers=answers, out=out, notes=notes)


def _known(row: dict[str, Any]) -> dict[str, str]:
    """What the judge is told besides the answer, in the order of the published prompt."""
    return {
        "image_content": ", ".join(row["image_content"]),
        "question": row["question"],
        "gt_answer": row["gt_answer"],
    }


def _names(row: dict[str, Any]) -> list[str]:
    """What the image's file may be called."""
    named = [f"{row['image_id']}.{kind}" for kind in ("jpg", "png", "jpeg")]
    return [*named, str(row.get("image_src", "")).rsplit("/", 1)[-1] or named[0]]
