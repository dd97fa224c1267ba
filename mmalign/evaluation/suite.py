"""What every suite leaves behind: a table, metrics.json and a page with the worst answers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import sub
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.table import Table

from mmalign.data.gallery import thumbnail
from mmalign.errors import BadSample
from mmalign.evaluation.answering import AnswerOptions, AskedModel, is_file
from mmalign.evaluation.asking import Question, ask_all
from mmalign.evaluation.intervals import Estimate, Interval, combined, mean
from mmalign.records import media_of, text_of
from mmalign.report.figures import figures
from mmalign.report.marked import Case, Marked, cases
from mmalign.report.metrics_file import save_metrics
from mmalign.report.page import page, save_page, section
from mmalign.report.scale import with_interval
from mmalign.report.tables import settings as settings_table
from mmalign.settings import read_settings
from mmalign.training.log import console

Measured = Mapping[str, Mapping[str, Estimate]]
"""Stage ("model", or "before" and "after") to metric to figure."""

PICTURE = 320  # pixels of the longer side on the page


@dataclass(frozen=True)
class Judged:
    """An answer as the page shows it; the larger `fault`, the sooner.

    note: what would have been right.
    """

    answer: Marked
    fault: float
    note: str = ""


@dataclass(frozen=True)
class Scores:
    """Figures over answers, the one that matters most first, and a judgement of each answer."""

    estimates: Mapping[str, Estimate]
    judged: Sequence[Judged]


Score = Callable[[Sequence[Question], Sequence[str]], Scores]
"""Questions and their answers to figures: a suite without any model in it."""


def evaluate(
    title: str,
    questions: Sequence[Question],
    score: Score,
    *,
    model: AskedModel,
    answers: AnswerOptions,
    out: Path,
    notes: Sequence[str] = (),
) -> dict[str, dict[str, Interval]]:
    """Have the questions answered, score what every stage says, and save the results in `out`."""
    began = time.perf_counter()
    asked = ask_all(questions, model, answers, out)
    answered = time.perf_counter()
    scores = {}
    for stage in asked.answers:
        texts = [spoken(text) for text in asked.texts(stage)]
        found = score(asked.questions, texts)
        words = mean([len(text.split()) for text in texts])
        scores[stage] = Scores({**found.estimates, "words": words}, found.judged)
    results = Results(
        title,
        {stage: found.estimates for stage, found in scores.items()},
        n=len(asked.questions),
        shown=[
            Shown(question, {stage: found.judged[i] for stage, found in scores.items()})
            for i, question in enumerate(asked.questions)
        ],
        refused=asked.refused,
        notes=[*_lengths(model, answers), *notes],
    )
    seconds = {"answers": answered - began, "scores": time.perf_counter() - answered}
    return save_results(out, results, seconds=seconds, seed=answers.seed)


def _lengths(model: AskedModel, answers: AnswerOptions) -> list[str]:
    if all(is_file(name) for name, _ in model.stages().values()):
        return []
    return [f"At most {answers.max_new_tokens} new tokens an answer."]


def spoken(answer: str) -> str:
    """An answer without what a reasoning model thinks before it."""
    return re.sub(r"^.*</think>", "", answer, flags=re.DOTALL).strip()


@dataclass(frozen=True)
class Shown:
    """An answered question as the page shows it, with every stage's judgement."""

    question: Question
    judged: Mapping[str, Judged]

    @property
    def last(self) -> Judged:
        """That of the last stage, which decides whether it is shown."""
        return list(self.judged.values())[-1]


@dataclass(frozen=True)
class Results:
    """What a suite found.

    title: of the page. n: answered questions, or other items. notes: how to read the figures.
    details: what else goes to metrics.json. sections: of the page, further ones.
    """

    title: str
    measured: Measured
    n: int
    shown: Sequence[Shown] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    sections: Sequence[Markup] = ()
    items: str = "answers"


def save_results(
    out: Path, results: Results, *, seconds: Mapping[str, float], seed: int, show: int = 30
) -> dict[str, dict[str, Interval]]:
    """Print the table, write metrics.json and report.html under `out`, and return the figures.

    Two stages are compared: "difference" is that of the second and the first on the same items.
    out: where run.yaml is already. show: how many answers the page shows.
    """
    measured = intervals(results.measured)
    save_metrics(
        out / "metrics.json",
        measured,
        n=results.n,
        seconds=seconds,
        seed=seed,
        details={"refused": len(results.refused), **results.details},
    )
    wrong = [shown for shown in results.shown if shown.last.fault > 0]
    worst = sorted(wrong, key=lambda shown: -shown.last.fault)[:show]
    stages = {name: found for name, found in measured.items() if name != "difference"}
    notes = [*results.notes, *_refusals(results.refused, results.n)]
    sections = [
        section(
            "Results", figures(stages), *notes, note=f"{results.n} {results.items}, 95 % intervals."
        ),
        *_compared(measured),
        *results.sections,
        *([_worst(worst, len(wrong))] if results.shown else []),
        section("Settings", settings_table(read_settings(out / "run.yaml"))),
    ]
    save_page(out / "report.html", page(results.title, sections, summary=_summary(stages)))
    console.print(table(results.title, measured))
    for note in notes:
        console.print(note)
    console.print(f"Report: {out / 'report.html'}")
    return measured


def intervals(measured: Measured) -> dict[str, dict[str, Interval]]:
    """Each figure with its 95 % interval; with two stages, also their differences."""
    found = {
        stage: {name: estimate.interval() for name, estimate in estimates.items()}
        for stage, estimates in measured.items()
    }
    if len(measured) == 2:
        before, after = measured.values()
        found["difference"] = {
            name: combined(sub, after[name], before[name]).interval()
            for name in after
            if name in before
        }
    return found


def table(title: str, measured: Mapping[str, Mapping[str, Interval]]) -> Table:
    """Metrics by stages, for the terminal."""
    shown = Table(title=f"{title}, with 95 % intervals")
    shown.add_column("", overflow="fold")
    for stage in measured:
        shown.add_column(stage, justify="right")
    for metric in dict.fromkeys(name for found in measured.values() for name in found):
        cells = [found.get(metric) for found in measured.values()]
        shown.add_row(metric, *(" ".join(with_interval(*cell)) if cell else "" for cell in cells))
    return shown


def _compared(measured: Mapping[str, Mapping[str, Interval]]) -> list[Markup]:
    if "difference" not in measured:
        return []
    note = "After less before, on the same questions; an interval without 0 is a difference."
    return [section("Difference", figures({"change": measured["difference"]}), note=note)]


def _worst(worst: Sequence[Shown], wrong: int) -> Markup:
    if not worst:
        return section("Worst answers", "No answer is wrong.")
    note = f"{len(worst)} of {wrong} that are wrong; what is wrong in them is marked."
    return section("Worst answers", cases([_case(each) for each in worst]), note=note)


def _refusals(refused: Mapping[str, str], n: int) -> list[str]:
    if not refused:
        return []
    name, reason = next(iter(refused.items()))
    return [
        f"{len(refused)} of {len(refused) + n} questions were not answered and do not count; "
        f"refused.jsonl says why. {name}: {reason}"
    ]


def _summary(stages: Mapping[str, Mapping[str, Interval]]) -> str:
    """The first figure of every stage in words."""
    parts = []
    for stage, found in stages.items():
        for metric, figure in list(found.items())[:1]:  # there may be none
            parts.append(f"{stage}: {metric} {' '.join(with_interval(*figure))}")
    return "; ".join(parts) + "."


def _case(shown: Shown) -> Case:
    pictures = []
    for media in media_of(shown.question.prompt):
        try:
            pictures.append(thumbnail(media, PICTURE)[0])
        except (BadSample, OSError):  # answers from a file need no images
            continue
    asked = "\n".join(text_of(message.parts) for message in shown.question.prompt)
    answers = {stage: judged.answer for stage, judged in shown.judged.items()}
    return Case(asked, answers, pictures, shown.last.note)
