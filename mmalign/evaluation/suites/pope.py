"""`mmalign evaluate pope`: whether an object is in an image. arXiv:2305.10355."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mmalign.errors import UserError
from mmalign.evaluation.answering import AnswerOptions, AskedModel
from mmalign.evaluation.asking import Question, about_image
from mmalign.evaluation.hallucination.coco import Annotated, read_coco
from mmalign.evaluation.hallucination.pope import SETTINGS, YesNo
from mmalign.evaluation.hallucination.pope import questions as made
from mmalign.evaluation.hallucination.yes_no import detection, pope_answer
from mmalign.evaluation.intervals import Estimate, Interval, combined
from mmalign.evaluation.reading import read_rows
from mmalign.evaluation.suite import Judged, Scores, evaluate
from mmalign.files import whole_file
from mmalign.report.marked import Marked
from mmalign.settings import save_settings

ANSWERS = AnswerOptions(max_new_tokens=16)


def pope(
    *,
    model: AskedModel,
    images: Path,
    questions: list[Path] | None = None,
    annotations: list[Path] | None = None,
    suffix: str = "Answer the question using a single word or phrase.",
    answers: AnswerOptions = ANSWERS,
    out: Path = Path("runs/pope"),
) -> dict[str, dict[str, Interval]]:
    """POPE: whether an object is in an image, asked of objects that are and that are not.

    The positive answer is yes. A model that says yes to everything has a recall of 1 and an
    accuracy of 0.5; adversarial questions ask for what mostly comes with what is there. With
    several files, the figures without a name before them are means over the files.

    Model:
        model: See AskedModel.

    Data:
        images: Folder of the images.
        questions: POPE's files, one a setting, such as coco_pope_adversarial.json.
        annotations: COCO's instances_*.json, from which questions of all three settings are made;
            they are kept in the output folder. In place of questions.
        suffix: Put after every question on a line of its own; nothing if empty.

    Answers:
        answers: See AnswerOptions.

    Output:
        out: Folder for answers, metrics.json and report.html.

    Examples:
        mmalign evaluate pope --model llava-hf/llava-1.5-7b-hf --images val2014 --questions
          coco_pope_random.json coco_pope_popular.json coco_pope_adversarial.json
        mmalign evaluate pope --model llava-hf/llava-1.5-7b-hf --images val2014
          --annotations instances_val2014.json
    """
    save_settings(out / "run.yaml", "evaluate pope", pope, locals())
    if bool(questions) == bool(annotations):
        raise UserError("POPE needs either --questions or --annotations to make them from")
    files = questions or _made(read_coco(annotations or ()), out, answers.seed)
    lines = {
        f"{setting}/{row['question_id']}": YesNo(**{k: row[k] for k in FIELDS})
        for setting, file in _by_setting(files).items()
        for row in read_rows(file, FIELDS)
    }
    ending = f"\n{suffix}" if suffix else ""
    asked = [
        Question(name, about_image(images / line.image, f"{line.text}{ending}"))
        for name, line in lines.items()
    ]

    def score(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
        return yes_no_scores([q.id for q in questions], texts, lines)

    return evaluate(
        "POPE", asked, score, model=model, answers=answers, out=out, notes=[f"Asked with: {suffix}"]
    )


FIELDS = ("question_id", "image", "text", "label")


def yes_no_scores(names: Sequence[str], texts: Sequence[str], lines: Mapping[str, YesNo]) -> Scores:
    """names: ids "setting/number". Figures of every setting, and their means before them; intervals
    draw images anew."""
    said = [pope_answer(text) for text in texts]
    truth = [lines[name].label for name in names]
    judged = [
        Judged(Marked(text, good=a == b), float(a != b), f"Right is: {b}.")
        for text, a, b in zip(texts, said, truth, strict=True)
    ]
    settings = list(dict.fromkeys(name.split("/")[0] for name in names))
    by_setting: dict[str, dict[str, Estimate]] = {}
    for setting in settings:
        rows = [i for i, name in enumerate(names) if name.split("/")[0] == setting]
        images = [lines[names[i]].image for i in rows]
        by_setting[setting] = detection(
            [said[i] for i in rows], [truth[i] for i in rows], "yes", images=images
        )
    first = by_setting[settings[0]]
    if len(settings) == 1:
        return Scores(first, judged)
    means = {
        metric: combined(_mean, *(found[metric] for found in by_setting.values()))
        for metric in first
    }
    each = {f"{s}/{m}": figure for s, found in by_setting.items() for m, figure in found.items()}
    return Scores({**means, **each}, judged)


def _mean(*figures: float) -> float:
    return sum(figures) / len(figures)


def _made(annotated: Mapping[int, Annotated], out: Path, seed: int) -> list[Path]:
    """Files of questions of each setting."""
    files = []
    for setting in SETTINGS:
        file = out / f"pope_{setting}.json"
        with whole_file(file) as partial:
            rows = made(annotated, setting, seed=seed)
            partial.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
        files.append(file)
    return files


def _by_setting(files: Sequence[Path]) -> dict[str, Path]:
    """Files by the setting that their names tell of; where two tell the same, by their names."""
    told = [next((s for s in SETTINGS if s in file.stem), file.stem) for file in files]
    names = told if len(set(told)) == len(files) else [file.stem for file in files]
    if len(set(names)) < len(files):
        raise UserError(f"two files of questions are both called {names[0]}")
    return dict(zip(names, files, strict=True))
