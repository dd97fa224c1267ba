"""`mmalign evaluate chair`: objects that descriptions of COCO's images mention in error.

arXiv:1809.02156.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path

from mmalign.errors import UserError
from mmalign.evaluation.answering import AnswerOptions, AskedModel, is_file
from mmalign.evaluation.asking import Question, about_image, read_answers
from mmalign.evaluation.hallucination.chair import chair as count
from mmalign.evaluation.hallucination.coco import read_coco
from mmalign.evaluation.hallucination.mentions import mentions
from mmalign.evaluation.hallucination.objects import COCO, Vocabulary, read_synonyms
from mmalign.evaluation.intervals import Interval
from mmalign.evaluation.suite import Judged, Score, Scores, evaluate
from mmalign.report.marked import Marked
from mmalign.settings import save_settings
from mmalign.training.seeds import derive

ANSWERS = AnswerOptions(limit=500)


def chair(
    *,
    model: AskedModel,
    annotations: list[Path],
    images: Path,
    question: str = "Describe this image in detail.",
    synonyms: Path | None = None,
    answers: AnswerOptions = ANSWERS,
    out: Path = Path("runs/chair"),
) -> dict[str, dict[str, Interval]]:
    """CHAIR: which share of the objects that descriptions mention is not there.

    Draws images of COCO, has them described, and looks for the names of COCO's 80 objects. chair_i
    is the share of mentions that are wrong, chair_s the share of descriptions with a wrong mention.
    Read both beside recall, mentions and words: who says less errs less.

    Model:
        model: See AskedModel.

    Data:
        annotations: COCO's files, instances_val2014.json and captions_val2014.json; an object is
            present if either has it.
        images: Folder of the images.
        question: What is asked about every image.
        synonyms: File of objects, one a line with its synonyms, as it comes with the benchmark; by
            default our own list.

    Answers:
        answers: See AnswerOptions.

    Output:
        out: Folder for answers, metrics.json and report.html.

    Examples:
        mmalign evaluate chair --model llava-hf/llava-1.5-7b-hf --images val2014 --annotations
          instances_val2014.json captions_val2014.json
        mmalign evaluate chair --config runs/chair/run.yaml --adapter runs/align-vlm/model
          --baseline llava-hf/llava-1.5-7b-hf --out runs/chair-aligned
    """
    save_settings(out / "run.yaml", "evaluate chair", chair, locals())
    objects = read_synonyms(synonyms) if synonyms else COCO
    annotated = read_coco(annotations, objects)
    files = {str(number): images / found.file for number, found in annotated.items()}
    present = {str(number): found.present for number, found in annotated.items()}
    if is_file(model.model):
        chosen = [name for name in read_answers(Path(model.model)) if name in files]
    else:
        chosen = _drawn(files, answers.seed)[: answers.limit]
    return evaluate(
        "CHAIR",
        [Question(name, about_image(files[name], question)) for name in chosen],
        mentions_against(present, objects),
        model=model,
        answers=answers,
        out=out,
        notes=[f"Objects by {synonyms or 'our own list'}."],
    )


def mentions_against(present: Mapping[str, AbstractSet[str]], objects: Vocabulary) -> Score:
    """Scores answers by the objects that are `present`, by question id."""

    def score(questions: Sequence[Question], texts: Sequence[str]) -> Scores:
        found = [mentions(text, objects) for text in texts]
        there = [present[question.id] for question in questions]
        counts = count([[m.name for m in each] for each in found], there)
        judged = []
        for text, said, shown in zip(texts, found, there, strict=True):
            wrong = [(m.start, m.end) for m in said if m.name not in shown]
            note = f"In the image: {', '.join(sorted(shown)) or 'none of the objects'}."
            judged.append(Judged(Marked(text, wrong), len(wrong), note))
        return Scores(counts.estimates(), judged)

    return score


def _drawn(files: Mapping[str, Path], seed: int) -> list[str]:
    """Ids of the images that are there, in an order that the seed decides."""
    there = [name for name, file in files.items() if file.exists()]
    if not there:
        raise UserError(
            f"none of the {len(files)} annotated images is in {next(iter(files.values())).parent}",
            hint="--images is the folder with COCO's images, the annotations those of its split",
        )
    return sorted(there, key=lambda name: derive(seed, "images", name))
