"""What the quickstarts of generators share: a small model learns to draw what it is asked for.

It draws several pictures or videos to each prompt, a program that knows what was asked judges them,
and DPO trains a LoRA on the best against the worst. What that changed is measured on prompts whose
combinations of words no training saw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from mmalign.adapters.loading import Modality, load_adapter
from mmalign.adapters.protocol import Adapter
from mmalign.data.dataset import Preferences
from mmalign.data.opening import open_dataset
from mmalign.data.store import write_store
from mmalign.data_builders.reward_pairs import build
from mmalign.errors import UserError
from mmalign.evaluation.diagnosis import diagnose
from mmalign.evaluation.diagnostics.data import rates
from mmalign.evaluation.intervals import Interval, bootstrap_mean
from mmalign.pipelines.results import save_model, training_section
from mmalign.pipelines.samples import kept_media
from mmalign.pipelines.stages import Clock, Measured, aligned_and_control, comparison, flat
from mmalign.playground.speed import matmul_rate
from mmalign.records import Media, Message, Sample
from mmalign.report.diagnosis import diagnosis
from mmalign.report.figures import figures
from mmalign.report.metrics_file import save_metrics
from mmalign.report.page import page, save_page, section
from mmalign.report.pictures import Picture, side_by_side
from mmalign.report.tables import settings as settings_table
from mmalign.training.log import JsonLines, console, progress
from mmalign.training.options import TrainingOptions
from mmalign.training.seeds import derive

SHOWN = 24  # prompts in the report
SATISFIED, RIGHT, DIVERSITY = "satisfied", "right", "diversity"


class Asked(Protocol):
    """What a prompt of a playground asks for."""

    @property
    def text(self) -> str: ...

    @property
    def prompt(self) -> tuple[Message, ...]: ...


Drawn = Mapping[Any, Sequence[Media]]
"""What was drawn to each prompt."""
ByPrompt = Mapping[str, Sequence[float]]
"""Figures by name, one number of each prompt."""


@dataclass(frozen=True, kw_only=True)
class World:
    """A playground, and what suits the model that lives in it.

    things: what is drawn, in the plural. source: the model that comes with mmalign.
    prompts: of a split, "train" or "held_out", and a seed.
    read: a drawing as the checker sees it. score: how much of what was asked for it shows; 1 is all
        of it. painted: where something is drawn, whatever it is. aspects: further figures, 0 .. 1.
    loading, sampling: options of the adapter's loader, and of its `sample`.
    command: what to type next for another model.
    """

    name: str
    things: str
    modality: Modality
    source: Path
    prompts: Callable[[str, int], Sequence[Any]]
    read: Callable[[Media], NDArray[np.uint8]]
    score: Callable[[NDArray[np.uint8], Any], float]
    painted: Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
    loading: Mapping[str, Any]
    sampling: Mapping[str, Any]
    command: str
    library: str | None = None
    aspects: Mapping[str, Callable[[NDArray[np.uint8], Any], float]] = field(default_factory=dict)

    def judged(self, media: Media, asked: Any) -> float:
        return self.score(self.read(media), asked)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the model is aligned. samples: drawings of each prompt, of which the best and the worst
    make a pair. rounds: pairs of each prompt. measured: drawings of each unseen prompt."""

    samples: int
    rounds: int
    measured: int
    objective: str
    control: str
    training: TrainingOptions
    lora_rank: int = 16


def align_on_own_drawings(
    world: World, source: Path, recipe: Recipe, out: Path, *, seed: int
) -> None:
    """Make pairs, train the aligned model and its control, measure, report; all under `out`."""
    clock = Clock(out / "seconds.json")
    unseen = world.prompts("held_out", seed)

    def fresh() -> Adapter:
        """The model with a new LoRA, which starts the same for every stage."""
        torch.manual_seed(derive(seed, "lora"))
        lora = {"r": recipe.lora_rank}
        return load_adapter(world.modality, str(source), lora=lora, **world.loading)

    drawn: dict[str, Drawn] = {}
    judged: dict[str, ByPrompt] = {}
    measured: Measured = {}

    def look(stage: str, policy: Adapter) -> None:
        drawn[stage] = _draw(world, policy, unseen, recipe, out / "drawn" / stage, seed)
        judged[stage] = by_prompt(world, drawn[stage])
        measured[stage] = measure(judged[stage])

    with clock("before"):
        policy = fresh()
        look("before", policy)
    with clock("preferences"):
        pairs = _preferences(world, policy, source.name, recipe, out / "preferences", seed)
    console.print(f"{len(pairs)} pairs of the model's own {world.things} ({out / 'preferences'})")

    training = replace(recipe.training, seed=seed)
    for stage, spec, folder, policy in aligned_and_control(
        fresh, pairs, recipe.objective, recipe.control, training, out, clock
    ):
        with clock(f"{world.things} {stage}"):
            look(stage, policy)
        save_model(
            folder / "model", policy, base_model=source.name, title=f"{source.name}, {stage}",
            data=f"its own best and worst {world.things}", objective=spec,
            settings=asdict(training), library=world.library,
            measured={"before": measured["before"], "after": measured[stage]},
        )  # fmt: skip
    details = {
        "preferences": len(pairs), "steps": training.steps, "matmul_gflops": matmul_rate()
    }  # fmt: skip
    gain = {
        f"over {stage}": gains(judged["after"], judged[stage]) for stage in ("before", "control")
    }
    save_metrics(
        out / "metrics.json", measured, n=len(unseen) * recipe.measured, seconds=clock.seconds,
        seed=seed, details=details | {"gain": _plain(gain)},
    )  # fmt: skip
    _report(world, out, recipe, drawn, measured, gain, details | {"seconds": clock.seconds})


def _preferences(
    world: World, policy: Adapter, name: str, recipe: Recipe, folder: Path, seed: int
) -> Preferences:
    """Best against worst of the model's own drawings, where the best is as asked; built once, then
    read."""
    if not (folder / "manifest.json").exists():
        asked = [*world.prompts("train", seed)] * recipe.rounds
        with progress(
            f"{world.things} to learn from", total=len(asked) * recipe.samples
        ) as advance:
            made = build(
                [each.prompt for each in asked],
                policy,
                lambda index, sample: world.judged(_media(sample), asked[index]),
                samples=recipe.samples,
                least_best=1.0,
                model=name,
                seed=seed,
                progress=lambda done, _: advance(to=done),
                **world.sampling,
            )
            pairs = list(made)
        if not pairs:
            raise UserError(
                f"no prompt got one of the {world.things} as asked and another that is not, so "
                "there is nothing to prefer",
                hint="take another --model or --seed",
            )
        write_store(pairs, folder)
    return open_dataset(folder)


def _draw(
    world: World, policy: Adapter, unseen: Sequence[Asked], recipe: Recipe, folder: Path, seed: int
) -> Drawn:
    """Drawings of each prompt, with equal seeds in every stage; kept in the folder."""
    asked = [each for each in unseen for _ in range(recipe.measured)]

    def make() -> list[Media]:
        seeds = [derive(seed, "unseen", place) for place in range(len(asked))]
        with progress(f"{world.things} {folder.name}", total=len(asked)) as advance:
            samples = policy.sample(
                [each.prompt for each in asked],
                seeds,
                progress=lambda done, _: advance(to=done),
                **world.sampling,
            )
        return [_media(sample) for sample in samples]

    media = kept_media(folder, make)
    count = recipe.measured
    return {each: media[i * count : (i + 1) * count] for i, each in enumerate(unseen)}


def by_prompt(world: World, drawn: Drawn) -> ByPrompt:
    """The mean of each prompt's drawings, in the order of the prompts; diversity is nan where a
    prompt has not two good ones."""
    judges = {RIGHT: world.score, **world.aspects}
    found: dict[str, list[float]] = {name: [] for name in (SATISFIED, *judges, DIVERSITY)}
    for asked, media in drawn.items():
        shown = [world.read(each) for each in media]
        scores = {name: [judge(each, asked) for each in shown] for name, judge in judges.items()}
        good = [each for each, score in zip(shown, scores[RIGHT], strict=True) if score == 1.0]
        found[SATISFIED].append(len(good) / len(shown))
        apart = diversity([world.painted(each) for each in good]) if len(good) > 1 else math.nan
        found[DIVERSITY].append(apart)
        for name, values in scores.items():
            found[name].append(float(np.mean(values)))
    return found


def measure(found: ByPrompt) -> dict[str, Interval]:
    """Means over prompts, so that the intervals know that drawings of a prompt are alike."""
    return {name: _known(values) for name, values in found.items()}


def gains(after: ByPrompt, other: ByPrompt) -> dict[str, Interval]:
    """How much more there is after alignment than in another stage, prompt by prompt: what prompts
    differ in is not in these intervals."""
    return {
        name: _known([a - b for a, b in zip(values, other[name], strict=True)])
        for name, values in after.items()
    }


def _known(values: Sequence[float]) -> Interval:
    known = [value for value in values if not math.isnan(value)]
    return bootstrap_mean(known) if known else Interval(math.nan, math.nan, math.nan)


def diversity(painted: Sequence[NDArray[np.bool_]]) -> float:
    """1 - intersection over union of what is painted, the mean over all pairs of drawings."""
    overlaps = [np.sum(a & b) / np.sum(a | b) for a, b in combinations(painted, 2)]
    return 1.0 - float(np.mean(overlaps))


def _media(sample: Sample) -> Media:
    (part,) = sample.response
    assert isinstance(part, Media)  # a generator answers with nothing else
    return part


def _report(
    world: World,
    out: Path,
    recipe: Recipe,
    drawn: Mapping[str, Drawn],
    measured: Measured,
    gain: Measured,
    details: Mapping[str, Any],
) -> None:
    n = len(drawn["before"])
    summary = _summary(world, measured, gain, n)
    labels = {
        SATISFIED: f"{world.things} that satisfy their prompt",
        RIGHT: "words of the prompt that are kept",
        DIVERSITY: f"how much two good {world.things} of a prompt differ (1 - overlap)",
    }
    sections = [
        section(
            "What changed",
            figures(measured, labels=labels),
            note=f"Control: fine-tuning on the better {world.things}, with the same data and "
            f"steps. {n} prompts whose combinations of words were never trained on, "
            f"{recipe.measured} {world.things} each with the same seeds; 95 % intervals over "
            "prompts.",
        ),
        section(
            "What alignment gains",
            figures(gain, labels=labels),
            note="The differences prompt by prompt, with 95 % intervals: what one prompt is harder "
            "than another is not in them.",
        ),
        section(
            world.things.capitalize(),
            side_by_side(_rows(world, drawn), good="as asked", bad="not"),
            note="The first of each prompt, with the same seed in every stage; not chosen.",
        ),
        training_section(out / "aligned"),
        diagnosis(
            diagnose(
                JsonLines(out / "aligned" / "metrics.jsonl").rows(),
                spec=recipe.objective,
                data=rates(open_dataset(out / "preferences")),
                denoiser=world.modality in ("image", "video"),
            )
        ),
        section(
            "With your own model",
            f"Preferences about {world.things} of your own model come from data in any public "
            "format, or from a reward that judges what it draws:",
            Markup('<pre class="card">{}</pre>').format(world.command),
        ),
        section("How it was done", settings_table(flat(asdict(recipe) | dict(details)))),
    ]
    title = f"mmalign quickstart: {world.name}"
    save_page(out / "report.html", page(title, sections, summary=summary))
    console.print(comparison(measured, f"{n} unseen prompts, with 95 % intervals"))
    console.print(f"{summary}\nReport: {out / 'report.html'}")


def _rows(world: World, drawn: Mapping[str, Drawn]) -> list[tuple[str, dict[str, Picture]]]:
    """The first drawing of each prompt, from every stage."""
    rows = []
    for asked in list(drawn["before"])[:SHOWN]:
        first = {stage: found[asked][0] for stage, found in drawn.items()}
        judged = {
            stage: Picture(media.content, world.judged(media, asked) == 1.0)
            for stage, media in first.items()
        }
        rows.append((asked.text, judged))
    return rows


def _plain(found: Measured) -> dict[str, Any]:
    """JSON has no nan: what is not known is null."""
    return {
        stage: {
            name: {k: None if math.isnan(v) else v for k, v in interval._asdict().items()}
            for name, interval in figures.items()
        }
        for stage, figures in found.items()
    }


def _summary(world: World, measured: Measured, gain: Measured, n: int) -> str:
    share = {stage: found[SATISFIED] for stage, found in measured.items()}
    value, low, high = (100 * bound for bound in gain["over before"][SATISFIED])
    return (
        f"Of {world.things} to {n} prompts that were never trained on, "
        f"{share['before'].value:.0%} were as asked before and {share['after'].value:.0%} after "
        f"alignment ({value:+.0f} points, {low:+.0f} to {high:+.0f} prompt by prompt); "
        f"fine-tuning on the better {world.things} alone came to "
        f"{share['control'].value:.0%}."
    )
