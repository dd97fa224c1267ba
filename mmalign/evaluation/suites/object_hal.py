"""`mmalign evaluate object-hal`: different objects that descriptions name in error.

Object-HalBench, as in RLHF-V, arXiv:2312.00849.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmalign.errors import UserError
from mmalign.evaluation.answering import AnswerOptions, AskedModel
from mmalign.evaluation.asking import Question, about_image
from mmalign.evaluation.hallucination.coco import read_coco
from mmalign.evaluation.hallucination.mentions import mentions
from mmalign.evaluation.hallucination.object_hal import (
    extraction,
    figures,
    objects_of,
    read_names,
)
from mmalign.evaluation.hallucination.objects import COCO, read_synonyms
from mmalign.evaluation.intervals import Interval
from mmalign.evaluation.judging import judgements
from mmalign.evaluation.reading import image_of, read_rows
from mmalign.evaluation.suite import Judged, Scores, evaluate
from mmalign.records import text_of
from mmalign.report.marked import Marked
from mmalign.rewards.judge import JudgeOptions
from mmalign.settings import save_settings

ANSWERS = AnswerOptions()
NO_JUDGE = JudgeOptions(judge="")


def object_hal(
    *,
    model: AskedModel,
    questions: Path,
    annotations: list[Path],
    images: Path | None = None,
    synonyms: Path | None = None,
    judge: JudgeOptions = NO_JUDGE,
    answers: AnswerOptions = ANSWERS,
    out: Path = Path("runs/object-hal"),
) -> dict[str, dict[str, Interval]]:
    """Object-HalBench: different objects that descriptions name and that are not there.

    A judge lists the objects of each answer, as published. Without --judge the words of the answer
    are looked up instead, which gives other figures: compare like with like. chair_s_refine is what
    is published as CHAIRs.

    Model:
        model: See AskedModel.

    Data:
        questions: The benchmark's JSON lines, with image_id, question or prompt, and the image.
        annotations: COCO's instances_*.json and captions_*.json of train and val 2014.
        images: Folder of COCO's images, where the questions do not hold them.
        synonyms: File of objects, one a line with its synonyms, as it comes with the benchmark; by
            default our own list.

    Judge:
        judge: See JudgeOptions.

    Answers:
        answers: See AnswerOptions.

    Output:
        out: Folder for answers, metrics.json and report.html.

    Examples:
        mmalign evaluate object-hal --model llava-hf/llava-1.5-7b-hf --questions obj_halbench.jsonl
          --annotations instances_val2014.json captions_val2014.json --judge gpt-4o-mini
    """
    save_settings(out / "run.yaml", "evaluate object-hal", object_hal, locals())
    objects = read_synonyms(synonyms) if synonyms else COCO
    annotated = read_coco(annotations, objects)
    rows = {str(row["image_id"]): row for row in read_rows(questions, ("image_id",))}
    if unknown := [name for name in rows if int(name) not in annotated]:
        raise UserError(
            f"the annotations say nothing of image {unknown[0]}",
            hint="its questions are about images of COCO 2014, train and val",
        )
    asked = [
        Question(
            name,
            about_image(
                image_of(row, images, [annotated[int(name)].file], questions),
                row.get("question") or row.get("prompt") or "",
            ),
        )
        for name, row in rows.items()
    ]
    judging = judge.open(out / "judge.jsonl") if judge.judge else None

    def score(asked: Sequence[Question], texts: Sequence[str]) -> Scores:
        lists: Sequence[list[str] | None] = [None] * len(texts)
        if judging is not None:
            told = [text_of(question.prompt[0].parts) for question in asked]
            prompts = [extraction(q, text) for q, text in zip(told, texts, strict=True)]
            lists = judgements(judging, prompts, read_names)
        there = [annotated[int(question.id)].present for question in asked]
        said = [objects_of(t, names, objects) for t, names in zip(texts, lists, strict=True)]
        judged = []
        for text, named, shown in zip(texts, said, there, strict=True):
            wrong = named - shown
            places = [(m.start, m.end) for m in mentions(text, objects) if m.name in wrong]
            note = (
                f"In the image: {', '.join(sorted(shown))}. Not there: {', '.join(sorted(wrong))}"
            )
            judged.append(Judged(Marked(text, places), len(wrong), note))
        return Scores(figures(said, there), judged)

    by = f"listed by {judge.judge}" if judging else "by the words of the answers, without a judge"
    notes = [f"Objects {by}; synonyms by {synonyms or 'our own list'}."]
    return evaluate(
        "Object-HalBench", asked, score, model=model, answers=answers, out=out, notes=notes
    )
