"""`mmalign evaluate amber`: descriptions of images and questions about them. arXiv:2311.07397."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from mmalign.errors import UserError
from mmalign.evaluation.answering import AnswerOptions, AskedModel
from mmalign.evaluation.asking import Question, about_image
from mmalign.evaluation.hallucination.amber import (
    SIMILAR,
    Alike,
    Annotation,
    Described,
    Words,
    amber_score,
    describe,
    discriminative,
    generative,
)
from mmalign.evaluation.hallucination.yes_no import first_word
from mmalign.evaluation.intervals import Estimate, Interval
from mmalign.evaluation.reading import read_rows
from mmalign.evaluation.suite import Judged, Scores, evaluate
from mmalign.report.marked import Marked
from mmalign.settings import save_settings

ANSWERS = AnswerOptions()


def amber(
    *,
    model: AskedModel,
    questions: Path,
    annotations: Path,
    images: Path,
    relations: Path | None = None,
    safe_words: Path | None = None,
    similarity: str | None = None,
    suffix: str = "Please answer with yes or no.",
    answers: AnswerOptions = ANSWERS,
    out: Path = Path("runs/amber"),
) -> dict[str, dict[str, Interval]]:
    """AMBER: nouns that descriptions name in error, and questions whose answer is known.

    Of descriptions: chair (nouns that are not there), cover (objects that are named), hal
    (descriptions with an error), cog (expected objects named in error). Of questions: accuracy, and
    precision, recall and F1 of the answer no. All as shares. Without --similarity only equal words
    are the same, which raises chair and lowers cover: such figures stand beside one another, not
    beside published ones.

    Model:
        model: See AskedModel.

    Data:
        questions: AMBER's query_all.json, or one of its parts.
        annotations: AMBER's annotations.json.
        images: Folder of the images.
        relations: AMBER's relation.json; by default beside the annotations.
        safe_words: AMBER's safe_words.txt; by default beside the annotations.
        similarity: A spaCy model with word vectors, en_core_web_lg in the paper, for which words
            are the same.
        suffix: Put after every yes or no question on a line of its own; nothing if empty.

    Answers:
        answers: See AnswerOptions.

    Output:
        out: Folder for answers, metrics.json and report.html.

    Examples:
        mmalign evaluate amber --model llava-hf/llava-1.5-7b-hf --images amber/image
          --questions data/query/query_all.json --annotations data/annotations.json
    """
    save_settings(out / "run.yaml", "evaluate amber", amber, locals())
    known = {row["id"]: row for row in read_rows(annotations, ("id", "type", "truth"))}
    rows = read_rows(questions, ("id", "image", "query"))
    if unknown := [row["id"] for row in rows if row["id"] not in known]:
        raise UserError(f"{annotations} says nothing of question {unknown[0]}")
    words = _words(
        relations or annotations.with_name("relation.json"),
        safe_words or annotations.with_name("safe_words.txt"),
    )
    alike = _vectors(similarity) if similarity else None
    images_of = {row["id"]: row["image"] for row in rows}
    asked = []
    for row in rows:
        described = known[row["id"]]["type"] == "generative"
        ending = "" if described or not suffix else f"\n{suffix}"
        prompt = about_image(images / row["image"], row["query"] + ending)
        asked.append(Question(str(row["id"]), prompt))

    def score(asked: Sequence[Question], texts: Sequence[str]) -> Scores:
        told = [{**known[int(q.id)], "image": images_of[int(q.id)]} for q in asked]
        return amber_scores(told, texts, words, alike)

    same = f"similarity by {similarity}" if similarity else "no similarity: only equal words"
    notes = [f"Nouns compared with {same}.", f"Yes or no asked with: {suffix}"]
    return evaluate("AMBER", asked, score, model=model, answers=answers, out=out, notes=notes)


def amber_scores(
    known: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    words: Words,
    alike: Alike | None = None,
) -> Scores:
    """known: AMBER's annotation of each text, with its image."""
    found: list[Described] = []
    answered: list[tuple[Mapping[str, Any], str | None]] = []
    judged = []
    for row, text in zip(known, texts, strict=True):
        if row["type"] == "generative":
            there = Annotation(*([n.lower() for n in row[k]] for k in ("truth", "hallu")))
            each = describe(text, there, words, alike)
            found.append(each)
            note = f"In the image: {', '.join(row['truth'])}."
            judged.append(Judged(Marked(text, each.unsafe), len(each.unsafe), note))
        else:
            said = first_word(text)
            answered.append((row, said))
            good = said == row["truth"]
            note = f"Right is: {row['truth']}."
            judged.append(Judged(Marked(text, good=good), float(not good), note))
    estimates: dict[str, Estimate] = {}
    if found:
        estimates |= generative(found)
    if answered:
        kinds, truth, images = ([r[k] for r, _ in answered] for k in ("type", "truth", "image"))
        estimates |= discriminative(kinds, [said for _, said in answered], truth, images)
    if found and answered:
        estimates = {"amber": amber_score(estimates["chair"], estimates["f1"]), **estimates}
    return Scores(estimates, judged)


def _words(relations: Path, safe_words: Path) -> Words:
    for file in (relations, safe_words):
        if not file.exists():
            raise UserError(
                f"AMBER's {file} is not there", hint="say where with --relations and --safe-words"
            )
    related = json.loads(relations.read_text(encoding="utf-8").lower())  # it has a "TV"
    return Words(related, frozenset(safe_words.read_text(encoding="utf-8").lower().split()))


def _vectors(name: str) -> Alike:
    """Similarity by a spaCy model."""
    try:
        model = importlib.import_module("spacy").load(name)
    except (ImportError, OSError) as error:
        raise UserError(
            f"the spaCy model {name!r} cannot be loaded: {str(error).splitlines()[0]}",
            hint=f"pip install spacy && python -m spacy download {name}",
        ) from error

    @cache
    def vector(word: str) -> Any:
        return model(word)

    @cache
    def alike(one: str, other: str) -> bool:
        return bool(vector(one).similarity(vector(other)) > SIMILAR)

    return alike
