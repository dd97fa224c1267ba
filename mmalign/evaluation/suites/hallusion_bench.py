"""`mmalign evaluate hallusion-bench`: questions over changed figures. arXiv:2310.14566."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmalign.evaluation.answering import AnswerOptions, AskedModel, Prompt
from mmalign.evaluation.asking import Question, about_image
from mmalign.evaluation.hallucination.hallusion_bench import (
    COMPARE,
    figures,
    is_right,
    matched,
    verdict,
)
from mmalign.evaluation.intervals import Interval
from mmalign.evaluation.judging import filled, judgements, template_of
from mmalign.evaluation.reading import read_rows
from mmalign.evaluation.suite import Judged, Scores, evaluate
from mmalign.records import Message, Text
from mmalign.report.marked import Marked
from mmalign.rewards.judge import JudgeOptions
from mmalign.settings import save_settings

ANSWERS = AnswerOptions()
NO_JUDGE = JudgeOptions(judge="")
FIELDS = (
    "category", "subcategory", "visual_input", "set_id", "figure_id", "question_id", "question",
    "gt_answer", "gt_answer_details",
)  # fmt: skip


def hallusion_bench(
    *,
    model: AskedModel,
    questions: Path,
    images: Path,
    judge: JudgeOptions = NO_JUDGE,
    judge_prompt: Path | None = None,
    answers: AnswerOptions = ANSWERS,
    out: Path = Path("runs/hallusion-bench"),
) -> dict[str, dict[str, Interval]]:
    """HallusionBench: the same questions over figures as they were, changed, and left out.

    A judge compares each answer with the reference, as published. Without --judge the answer's
    first word has to be the right yes or no. aAcc counts questions; qAcc counts questions that are
    right over all their figures, fAcc figures with all their questions right.

    Model:
        model: See AskedModel.

    Data:
        questions: The benchmark's HallusionBench.json.
        images: Its folder of images, with VD and VS in it.

    Judge:
        judge: See JudgeOptions.
        judge_prompt: File with the judge's prompt, in which {question}, {reference} and {answer},
            or three {}, are filled in; by default our own.

    Answers:
        answers: See AnswerOptions.

    Output:
        out: Folder for answers, judgements, metrics.json and report.html.

    Examples:
        mmalign evaluate hallusion-bench --model llava-hf/llava-1.5-7b-hf --judge gpt-4o
          --questions HallusionBench.json --images hallusion_bench
    """
    save_settings(out / "run.yaml", "evaluate hallusion-bench", hallusion_bench, locals())
    rows = {_name(row): row for row in read_rows(questions, FIELDS)}
    template = template_of(judge_prompt, COMPARE)
    judging = judge.open(out / "judge.jsonl") if judge.judge else None
    asked = [Question(name, _prompt(row, images)) for name, row in rows.items()]

    def score(asked: Sequence[Question], texts: Sequence[str]) -> Scores:
        known = [rows[question.id] for question in asked]
        if judging is None:
            found = [matched(t, str(row["gt_answer"])) for t, row in zip(texts, known, strict=True)]
        else:
            prompts = [
                filled(
                    template,
                    {
                        "question": row["question"],
                        "reference": row["gt_answer_details"],
                        "answer": text,
                    },
                )
                for row, text in zip(known, texts, strict=True)
            ]
            found = judgements(judging, prompts, verdict)
        right = [is_right(row, each) for row, each in zip(known, found, strict=True)]
        judged = [
            Judged(Marked(text, good=good), float(not good), f"Right: {row['gt_answer_details']}")
            for text, good, row in zip(texts, right, known, strict=True)
        ]
        return Scores(figures(known, right), judged)

    by = f"by {judge.judge}" if judging else "by their first word, without a judge"
    notes = [f"Answers judged {by}."]
    return evaluate(
        "HallusionBench", asked, score, model=model, answers=answers, out=out, notes=notes
    )


def _name(row: dict[str, Any]) -> str:
    names = ("category", "subcategory", "set_id", "figure_id", "question_id")
    return "/".join(str(row[name]) for name in names)


def _prompt(row: dict[str, Any], images: Path) -> Prompt:
    """A question, with its figure if it has one: as the row names it, where that starts in the
    folder, or CATEGORY/SUBCATEGORY/SET_FIGURE.png."""
    if str(row["visual_input"]) == "0":
        return (Message("user", (Text(row["question"]),)),)
    usual = f"{row['category']}/{row['subcategory']}/{row['set_id']}_{row['figure_id']}.png"
    named = str(row.get("filename") or usual).removeprefix("./")
    here = next((name for name in (named, usual) if (images / name).exists()), usual)
    return about_image(images / here, row["question"])
