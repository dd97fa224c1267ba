"""The image quickstart: a small PixArt learns to paint what it is asked for, as it often does not.

The painter has learned from careless captions. It paints several pictures to each prompt, a
program that knows shapes judges them, and Diffusion-DPO trains a LoRA on the best against the
worst. What that changed is measured on combinations of words that no training saw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from mmalign.adapters.diffusion import DiffusionAdapter, load_diffusion
from mmalign.data.dataset import Preferences
from mmalign.data.opening import open_dataset
from mmalign.data.store import write_store
from mmalign.data_builders.reward_pairs import build
from mmalign.errors import UserError
from mmalign.evaluation.diagnosis import diagnose
from mmalign.evaluation.diagnostics.data import rates
from mmalign.evaluation.intervals import Interval, bootstrap_mean
from mmalign.files import whole_folder
from mmalign.media import open_image
from mmalign.pipelines.results import save_model, training_section
from mmalign.pipelines.stages import (
    Clock,
    Measured,
    aligned_and_control,
    comparison,
    flat,
    hush,
)
from mmalign.playground.pictures import Pixels, Shape, foreground, prompts, score
from mmalign.playground.speed import matmul_rate
from mmalign.playground.tiny_painter import LENGTH, TINY_PAINTER
from mmalign.records import Media, Sample
from mmalign.report.diagnosis import diagnosis
from mmalign.report.figures import figures
from mmalign.report.metrics_file import save_metrics
from mmalign.report.page import page, save_page, section
from mmalign.report.pictures import Picture, side_by_side
from mmalign.report.tables import settings as settings_table
from mmalign.settings import save_settings
from mmalign.training.log import JsonLines, console, progress
from mmalign.training.options import TrainingOptions
from mmalign.training.seeds import derive

SHOWN = 24  # prompts in the report
LOADING: dict[str, Any] = {"text": {"max_sequence_length": LENGTH, "clean_caption": False}}
SAMPLING: dict[str, Any] = {"steps": 12, "guidance": 1.0, "batch_size": 64}
Painted = dict[Shape, list[Media]]
"""Prompts and the pictures that were painted to each."""

SATISFIED, RIGHT, DIVERSITY = "satisfied", "right", "diversity"
LABELS = {
    SATISFIED: "pictures that satisfy their prompt",
    RIGHT: "words of the prompt that are kept",
    DIVERSITY: "how much two good pictures of a prompt differ (1 - overlap of their shapes)",
}
NEXT = (
    "Votes about your own model's pictures come from Pick-a-Pic and its like, from a table of "
    "files and winners, or from a reward that judges what it paints:",
    Markup(
        '<pre class="card">mmalign align-diffusion --model stable-diffusion-v1-5/'
        "stable-diffusion-v1-5 --data votes.csv\nmmalign align-diffusion --help</pre>"
    ),
)


TRAINING = TrainingOptions(
    steps=150, batch_size=32, micro_batch=32 * 2 * 64, learning_rate=1e-3, save_every=50
)


@dataclass(frozen=True)
class Recipe:
    """How the model is aligned. samples: pictures of each prompt, of which the best and the worst
    make a pair. rounds: pairs of each prompt. measured: pictures of each unseen prompt."""

    samples: int = 6
    rounds: int = 8
    measured: int = 24
    objective: str = "dpo(beta=200.0) + 100*nll()"
    control: str = "nll()"
    lora_rank: int = 16
    training: TrainingOptions = TRAINING


RECIPE = Recipe()


def quickstart_image(*, model: str = "auto", out: Path, seed: int = 0) -> None:
    """See `mmalign quickstart --help`."""
    save_settings(out / "run.yaml", "quickstart", quickstart_image, locals())
    hush()
    align_on_own_pictures(TINY_PAINTER if model == "auto" else Path(model), RECIPE, out, seed=seed)


def align_on_own_pictures(source: Path, recipe: Recipe, out: Path, *, seed: int) -> None:
    """Make pairs, train the aligned model and its control, measure, report; all under `out`."""
    clock = Clock(out / "seconds.json")
    unseen = prompts("held_out", seed=seed)

    def fresh() -> DiffusionAdapter:
        """The model with a new LoRA, which starts the same for every stage."""
        torch.manual_seed(derive(seed, "lora"))
        return load_diffusion(source, lora={"r": recipe.lora_rank}, **LOADING)

    painted: dict[str, Painted] = {}
    measured: Measured = {}
    with clock("before"):
        policy = fresh()
        painted["before"] = _paint(policy, unseen, recipe, out / "pictures" / "before", seed)
        measured["before"] = _figures(painted["before"])
    with clock("preferences"):
        pairs = _preferences(policy, source.name, recipe, out / "preferences", seed)
    console.print(f"{len(pairs)} pairs of the model's own pictures ({out / 'preferences'})")

    training = replace(recipe.training, seed=seed)
    for stage, spec, folder, policy in aligned_and_control(
        fresh, pairs, recipe.objective, recipe.control, training, out, clock
    ):
        with clock(f"pictures {stage}"):
            painted[stage] = _paint(policy, unseen, recipe, out / "pictures" / stage, seed)
            measured[stage] = _figures(painted[stage])
        save_model(
            folder / "model", policy, base_model=source.name, title=f"{source.name}, {stage}",
            data="its own best and worst pictures", objective=spec, settings=asdict(training),
            measured={"before": measured["before"], "after": measured[stage]}, library="diffusers",
        )  # fmt: skip
    details = {
        "preferences": len(pairs), "steps": training.steps, "matmul_gflops": matmul_rate()
    }  # fmt: skip
    save_metrics(
        out / "metrics.json", measured, n=len(unseen) * recipe.measured, seconds=clock.seconds,
        seed=seed, details=details,
    )  # fmt: skip
    _report(out, recipe, painted, measured, details | {"seconds": clock.seconds})


def _preferences(
    policy: DiffusionAdapter, name: str, recipe: Recipe, folder: Path, seed: int
) -> Preferences:
    """Best against worst of the model's own pictures, where the best is as asked; built once, then
    read."""
    if not (folder / "manifest.json").exists():
        asked = prompts("train", seed=seed) * recipe.rounds
        with progress("pictures to learn from", total=len(asked) * recipe.samples) as advance:
            made = build(
                [shape.prompt for shape in asked],
                policy,
                lambda index, sample: score(_pixels(_media(sample)), asked[index]),
                samples=recipe.samples,
                least_best=1.0,
                model=name,
                seed=seed,
                progress=lambda done, _: advance(to=done),
                **SAMPLING,
            )
            pairs = list(made)
        if not pairs:
            raise UserError(
                "no prompt got one picture as asked and another that is not, so there is nothing "
                "to prefer",
                hint="take another --model or --seed",
            )
        write_store(pairs, folder)
    return open_dataset(folder)


def _paint(
    policy: DiffusionAdapter, unseen: Sequence[Shape], recipe: Recipe, folder: Path, seed: int
) -> Painted:
    """Pictures of each prompt, with equal seeds in every stage; kept in the folder."""
    asked = [shape for shape in unseen for _ in range(recipe.measured)]
    if not folder.exists():
        seeds = [derive(seed, "unseen", place) for place in range(len(asked))]
        with progress(f"pictures {folder.name}", total=len(asked)) as advance:
            samples = policy.sample(
                [shape.prompt for shape in asked],
                seeds,
                progress=lambda done, _: advance(to=done),
                **SAMPLING,
            )
        with whole_folder(folder) as partial:
            for place, sample in enumerate(samples):
                (partial / f"{place:04d}.png").write_bytes(_media(sample).content)
    found: Painted = {shape: [] for shape in unseen}
    for place, shape in enumerate(asked):
        found[shape].append(Media("image", path=str(folder / f"{place:04d}.png")))
    return found


def _figures(painted: Painted) -> dict[str, Interval]:
    """Means over prompts, so that the intervals know that pictures of a prompt are alike.
    Diversity is nan where no prompt has two good pictures."""
    found: dict[str, list[float]] = {SATISFIED: [], RIGHT: [], DIVERSITY: []}
    for shape, media in painted.items():
        pictures = [_pixels(each) for each in media]
        scores = [score(pixels, shape) for pixels in pictures]
        good = [pixels for pixels, right in zip(pictures, scores, strict=True) if right == 1.0]
        found[SATISFIED].append(len(good) / len(pictures))
        found[RIGHT].append(float(np.mean(scores)))
        if len(good) > 1:
            found[DIVERSITY].append(_diversity(good))
    unknown = Interval(math.nan, math.nan, math.nan)
    return {name: bootstrap_mean(each) if each else unknown for name, each in found.items()}


def _diversity(pictures: Sequence[Pixels]) -> float:
    """1 - intersection over union of what is painted, the mean over all pairs of pictures."""
    painted = [foreground(pixels) for pixels in pictures]
    overlaps = [np.sum(a & b) / np.sum(a | b) for a, b in combinations(painted, 2)]
    return 1.0 - float(np.mean(overlaps))


def _media(sample: Sample) -> Media:
    (part,) = sample.response
    assert isinstance(part, Media)  # a denoiser answers with nothing else
    return part


def _pixels(media: Media) -> Pixels:
    return np.asarray(open_image(media))


def _report(
    out: Path,
    recipe: Recipe,
    painted: Mapping[str, Painted],
    measured: Measured,
    details: Mapping[str, Any],
) -> None:
    n = len(painted["before"])
    summary = _summary(measured, n)
    sections = [
        section(
            "What changed",
            figures(measured, labels=LABELS),
            note="Control: fine-tuning on the better pictures, with the same data and steps. "
            f"{n} prompts whose combinations of words were never trained on, {recipe.measured} "
            "pictures each with the same seeds; 95 % intervals over prompts.",
        ),
        section("Pictures", side_by_side(_rows(painted), good="as asked", bad="not")),
        training_section(out / "aligned"),
        diagnosis(
            diagnose(
                JsonLines(out / "aligned" / "metrics.jsonl").rows(),
                spec=recipe.objective,
                data=rates(open_dataset(out / "preferences")),
            )
        ),
        section("With your own model", *NEXT),
        section("How it was done", settings_table(flat(asdict(recipe) | dict(details)))),
    ]
    save_page(out / "report.html", page("mmalign quickstart: image", sections, summary=summary))
    console.print(comparison(measured, f"{n} unseen prompts, with 95 % intervals"))
    console.print(f"{summary}\nReport: {out / 'report.html'}")


def _rows(painted: Mapping[str, Painted]) -> list[tuple[str, dict[str, Picture]]]:
    """The first picture of each prompt, from every stage."""
    rows = []
    for shape in list(painted["before"])[:SHOWN]:
        pictures = {stage: found[shape][0] for stage, found in painted.items()}
        judged = {
            stage: Picture(media.content, score(_pixels(media), shape) == 1.0)
            for stage, media in pictures.items()
        }
        rows.append((shape.text, judged))
    return rows


def _summary(measured: Measured, n: int) -> str:
    share = {stage: found[SATISFIED] for stage, found in measured.items()}
    gain = 100 * (share["after"].value - share["before"].value)
    return (
        f"Of pictures to {n} prompts that were never trained on, {share['before'].value:.0%} were "
        f"as asked before and {share['after'].value:.0%} after alignment ({gain:+.0f} points); "
        f"fine-tuning on the better pictures alone came to {share['control'].value:.0%}."
    )
