"""The vision-language quickstart: a small LLaVA unlearns to name what mostly comes together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from mmalign.adapters.vision_language import VisionLanguageAdapter, load_vision_language
from mmalign.data.dataset import Preferences
from mmalign.data.opening import open_dataset
from mmalign.data.store import write_store
from mmalign.data_builders.reward_pairs import build
from mmalign.errors import UserError
from mmalign.evaluation.diagnosis import diagnose
from mmalign.evaluation.diagnostics.data import rates
from mmalign.evaluation.intervals import Interval
from mmalign.objectives import objective
from mmalign.pipelines.results import intervals, save_model, training_section
from mmalign.pipelines.stages import (
    Clock,
    Measured,
    aligned_and_control,
    comparison,
    flat,
    hush,
    kept_texts,
)
from mmalign.playground.captioning import MOST_TOKENS, describe, judge, merit
from mmalign.playground.scenes import DESCRIBE, Scene, ask, mentioned, scenes
from mmalign.playground.speed import matmul_rate
from mmalign.playground.vision_language import TINY_LLAVA
from mmalign.records import Preference, text_of
from mmalign.reference import AdapterOff
from mmalign.report.diagnosis import diagnosis
from mmalign.report.figures import figures
from mmalign.report.marked import Case, Marked, cases
from mmalign.report.metrics_file import save_metrics
from mmalign.report.page import page, save_page, section
from mmalign.report.pictures import address
from mmalign.report.tables import settings as settings_table
from mmalign.training.batches import Plan
from mmalign.training.evaluate import held_out_figures
from mmalign.training.log import JsonLines, console, progress
from mmalign.training.options import TrainingOptions
from mmalign.training.seeds import derive
from mmalign.training.step import Scorer

SHOWN = 24  # pictures in the report
LABELS = {
    "chair_i": "CHAIR_i: hallucinated things, of all things named",
    "chair_s": "CHAIR_s: captions with a hallucinated thing",
    "recall": "recall: things in the pictures that are named",
    "mentions": "things named per caption",
    "chosen_logp": "log-probability of chosen captions (nats)",
    "rejected_logp": "log-probability of rejected captions (nats)",
}
NEXT = """\
mmalign align-vlm --model llava-hf/llava-1.5-7b-hf --data openbmb/RLHF-V-Dataset --out runs/llava
mmalign evaluate chair --model llava-hf/llava-1.5-7b-hf --adapter runs/llava/model \\
    --baseline llava-hf/llava-1.5-7b-hf --images val2014 \\
    --annotations instances_val2014.json captions_val2014.json
"""
BUILD = "mmalign build --help lists what makes preferences from pictures of your own."
TRAINING = TrainingOptions(steps=40, batch_size=32, learning_rate=5e-4, save_every=20)


@dataclass(frozen=True)
class Recipe:
    """How the model is aligned. pictures: to make pairs of. samples: captions of each, the best and
    the worst of which make a pair. held_out: share of the pairs. unseen: pictures to measure on."""

    pictures: int = 800
    samples: int = 4
    held_out: float = 0.2
    unseen: int = 600
    objective: str = 'dpo(beta=0.2) + nll(reduction="mean")'
    control: str = 'nll(reduction="mean")'
    lora_rank: int = 16
    training: TrainingOptions = TRAINING


RECIPE = Recipe()


def quickstart_vlm(*, model: str = "auto", out: Path, seed: int = 0) -> None:
    """See `mmalign quickstart --help`."""
    hush()
    align_on_own_captions(TINY_LLAVA if model == "auto" else Path(model), RECIPE, out, seed=seed)


def align_on_own_captions(source: Path, recipe: Recipe, out: Path, *, seed: int) -> None:
    """Make pairs, train the aligned model and its control, measure, report; all under `out`."""
    clock = Clock(out / "seconds.json")
    unseen = scenes("apart", recipe.unseen, seed=f"unseen {seed}")

    def fresh() -> VisionLanguageAdapter:
        """The model with a new LoRA, which starts the same for every stage."""
        torch.manual_seed(derive(seed, "lora"))
        return load_vision_language(source, lora={"r": recipe.lora_rank})

    captions: dict[str, list[str]] = {}
    measured: Measured = {}
    with clock("before"):
        policy = fresh()
        captions["before"] = _captions(policy, unseen, out, "before")
    with clock("preferences"):
        pairs = _preferences(policy, source.name, recipe, out / "preferences", seed)
    train, compared = _apart(pairs, recipe)
    console.print(f"{len(train)} pairs of the model's own captions ({out / 'preferences'})")
    measured["before"] = _figures(policy, captions["before"], unseen, compared)

    training = replace(recipe.training, seed=seed)
    for stage, spec, folder, policy in aligned_and_control(
        fresh, train, recipe.objective, recipe.control, training, out, clock
    ):
        with clock(f"captions {stage}"):
            captions[stage] = _captions(policy, unseen, out, stage)
            measured[stage] = _figures(policy, captions[stage], unseen, compared)
        save_model(
            folder / "model", policy, base_model=source.name, title=f"{source.name}, {stage}",
            data="its own best and worst captions", objective=spec, settings=asdict(training),
            measured={"before": measured["before"], "after": measured[stage]},
        )  # fmt: skip
    details = {
        "preferences": len(train), "held out": len(compared), "steps": training.steps,
        "matmul_gflops": matmul_rate(),
    }  # fmt: skip
    save_metrics(
        out / "metrics.json", measured, n=len(unseen), seconds=clock.seconds, seed=seed,
        details=details,
    )  # fmt: skip
    _report(out, recipe, unseen, captions, measured, details | {"seconds": clock.seconds})


def _preferences(
    policy: VisionLanguageAdapter, name: str, recipe: Recipe, folder: Path, seed: int
) -> Preferences:
    """Best against worst of the model's own captions; built once, then read."""
    if not (folder / "manifest.json").exists():
        shown = scenes("apart", recipe.pictures, seed=f"pairs {seed}")
        with progress("captions to learn from", total=len(shown) * recipe.samples) as advance:
            made = build(
                [ask(scene) for scene in shown],
                policy,
                lambda index, sample: merit(text_of(sample.response), shown[index]),
                samples=recipe.samples,
                model=name,
                seed=seed,
                max_new_tokens=MOST_TOKENS,
                batch_size=100,
                merge=True,
                progress=lambda done, _: advance(to=done),
            )
            found = list(made)
        if not round(recipe.held_out * len(found)):
            raise UserError(
                f"captions of {recipe.pictures} pictures gave {len(found)} pairs of a better and a "
                "worse one, which is too few",
                hint="take another --model or --seed",
            )
        write_store(found, folder)
    return open_dataset(folder)


def _apart(pairs: Preferences, recipe: Recipe) -> tuple[Preferences, Preferences]:
    """Pairs to train on, and the last ones, which are held out."""
    held_out = round(recipe.held_out * len(pairs))
    return pairs[:-held_out], pairs[-held_out:]


def _captions(
    policy: VisionLanguageAdapter, unseen: Sequence[Scene], out: Path, stage: str
) -> list[str]:
    """Captions of the unseen scenes, kept in a file."""

    def make() -> list[str]:
        with progress(f"captions {stage}", total=len(unseen)) as advance:
            return describe(policy, unseen, progress=lambda done, _: advance(to=done))

    return kept_texts(out / f"captions-{stage}.json", make)


def _figures(
    policy: VisionLanguageAdapter,
    captions: Sequence[str],
    unseen: Sequence[Scene],
    compared: Sequence[Preference],
) -> dict[str, Interval]:
    """CHAIR's figures on unseen scenes, and log-probabilities of pairs that are not trained on."""
    dpo = objective("dpo()")
    plan = Plan(policy.collate, policy.size, dpo.needs, batch_size=32, budget=8192)
    pairs = intervals(
        held_out_figures(policy, Scorer(policy), compared, dpo, AdapterOff(policy), plan)
    )
    log_probs = {name: pairs[name] for name in ("chosen_logp", "rejected_logp")}
    return judge(captions, unseen).figures() | log_probs


def _report(
    out: Path,
    recipe: Recipe,
    unseen: Sequence[Scene],
    captions: dict[str, list[str]],
    measured: Measured,
    details: Mapping[str, Any],
) -> None:
    summary = _summary(measured, len(unseen))
    sections = [
        section(
            "What changed",
            figures(measured, labels=LABELS),
            note="Control: fine-tuning on the chosen captions, with the same data and steps. "
            f"{len(unseen)} scenes never seen before, in which nothing comes in company, and "
            f"{details['held out']} pairs that were not trained on; 95 % intervals. Most rejected "
            "captions name a thing too many, so that chosen ones are shorter: recall shows whether "
            "anything is lost by it.",
        ),
        section(
            "Pictures and captions",
            cases(_wrong_somewhere(unseen, captions), good="nothing invented", bad="hallucinates"),
            note="Unseen scenes of which some model named what is not there: the words marked.",
        ),
        training_section(out / "aligned"),
        diagnosis(
            diagnose(
                JsonLines(out / "aligned" / "metrics.jsonl").rows(),
                spec=recipe.objective,
                data=rates(open_dataset(out / "preferences")),
            )
        ),
        section("With a real model", Markup('<pre class="card">{}</pre>').format(NEXT), BUILD),
        section(
            "How it was done",
            settings_table(flat(asdict(recipe) | dict(details))),
        ),
    ]
    save_page(out / "report.html", page("mmalign quickstart: vlm", sections, summary=summary))
    console.print(comparison(measured, f"{len(unseen)} unseen scenes, with 95 % intervals"))
    console.print(f"{summary}\nReport: {out / 'report.html'}")


def _wrong_somewhere(unseen: Sequence[Scene], captions: dict[str, list[str]]) -> list[Case]:
    """The first scenes of which some stage's caption names what is not there."""
    shown: list[Case] = []
    for index, scene in enumerate(unseen):
        said = {stage: _marked(scene, texts[index]) for stage, texts in captions.items()}
        if any(answer.wrong for answer in said.values()) and len(shown) < SHOWN:
            shown.append(Case(DESCRIBE[0], said, [address(scene.image().content)]))
    return shown


def _marked(scene: Scene, caption: str) -> Marked:
    absent = set(mentioned(caption)).difference(scene.present)
    wrong = [found.span() for name in absent for found in re.finditer(name, caption)]
    return Marked(caption, wrong, good=not wrong)


def _summary(measured: Measured, n: int) -> str:
    chair_i = {stage: found["chair_i"].value for stage, found in measured.items()}
    recall = {stage: found["recall"].value for stage, found in measured.items()}
    return (
        f"Of the things named in captions of {n} unseen scenes, {chair_i['before']:.1%} were "
        f"not there before and {chair_i['after']:.1%} after alignment, while of the things there "
        f"{recall['before']:.1%} and {recall['after']:.1%} were named; fine-tuning on the chosen "
        f"captions alone came to {chair_i['control']:.1%} and {recall['control']:.1%}."
    )
