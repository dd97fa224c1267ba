"""The vision-language quickstart: a small LLaVA unlearns to name what mostly comes together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
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
from mmalign.evaluation.hallucination.chair import chair
from mmalign.evaluation.intervals import Interval
from mmalign.objectives import objective
from mmalign.pipelines.results import intervals, save_model, training_section
from mmalign.pipelines.stages import Clock, Measured, aligned_and_control, comparison, kept_texts
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
from mmalign.settings import read_settings, save_settings
from mmalign.training.batches import Plan
from mmalign.training.evaluate import held_out_figures
from mmalign.training.log import JsonLines, console, progress
from mmalign.training.options import TrainingOptions
from mmalign.training.seeds import derive
from mmalign.training.step import Scorer

PICTURES, UNSEEN = 800, 600  # scenes to make pairs of, and to measure on
COMPARED = 0.2  # share of the pairs that is held out
SAMPLES = 4  # captions of each picture, of which the best and the worst make a pair
OBJECTIVE, CONTROL = 'dpo(beta=0.2) + nll(reduction="mean")', 'nll(reduction="mean")'
TRAINING = TrainingOptions(steps=40, batch_size=32, learning_rate=5e-4, save_every=20)
LORA = {"r": 16}
SAMPLING: dict[str, Any] = {"max_new_tokens": 48, "batch_size": 100, "merge": True}
SHOWN = 24  # pictures in the report
LABELS = {
    "chair_i": "CHAIR_i: hallucinated things, of all things named",
    "chair_s": "CHAIR_s: captions with a hallucinated thing",
    "recall": "recall: things in the pictures that are named",
    "mentions": "things named per caption",
    "chosen_logp": "log-probability of chosen captions (nats)",
    "rejected_logp": "log-probability of rejected captions (nats)",
}
NEXT = (
    "Preferences about your own model come from data in any public format, or from a builder:",
    Markup(
        '<pre class="card">mmalign align-vlm --model llava-hf/llava-1.5-7b-hf '
        "--data openbmb/RLHF-V-Dataset\nmmalign align-vlm --help</pre>"
    ),
)


def quickstart_vlm(*, model: str = "auto", out: Path, seed: int = 0) -> None:
    """See `mmalign quickstart --help`."""
    save_settings(out / "run.yaml", "quickstart", quickstart_vlm, locals())
    clock = Clock(out / "seconds.json")
    source = TINY_LLAVA if model == "auto" else Path(model)
    unseen = scenes("apart", UNSEEN, seed=f"unseen {seed}")

    captions: dict[str, list[str]] = {}
    measured: Measured = {}
    with clock("before"):
        policy = _fresh(source, seed)
        captions["before"] = _captions(policy, unseen, out, "before")
    with clock("preferences"):
        pairs = _preferences(policy, source.name, out / "preferences", seed)
    held_out = round(COMPARED * len(pairs))
    if not held_out:
        raise UserError(
            f"captions of {PICTURES} pictures gave {len(pairs)} pairs of a better and a worse one",
            hint="take another --model or --seed",
        )
    train, compared = pairs[:-held_out], pairs[-held_out:]
    console.print(f"{len(train)} pairs of the model's own captions ({out / 'preferences'})")
    measured["before"] = _figures(policy, captions["before"], unseen, compared)

    for stage, spec, folder, policy in aligned_and_control(
        lambda: _fresh(source, seed), train, OBJECTIVE, CONTROL, TRAINING, out, clock
    ):
        with clock(f"captions {stage}"):
            captions[stage] = _captions(policy, unseen, out, stage)
            measured[stage] = _figures(policy, captions[stage], unseen, compared)
        save_model(
            folder / "model", policy, base_model=source.name, title=f"{source.name}, {stage}",
            data="its own best and worst captions", objective=spec,
            settings=read_settings(out / "run.yaml"),
            measured={"before": measured["before"], "after": measured[stage]},
        )  # fmt: skip
    rate = matmul_rate()
    details = {
        "preferences": len(train), "held out": len(compared), "steps": TRAINING.steps,
        "matmul_gflops": rate,
    }  # fmt: skip
    save_metrics(
        out / "metrics.json", measured, n=UNSEEN, seconds=clock.seconds, seed=seed, details=details
    )
    _report(out, unseen, captions, measured, details | {"seconds": sum(clock.seconds.values())})


def _fresh(source: Path, seed: int) -> VisionLanguageAdapter:
    """The model with a new LoRA, which starts the same for every stage."""
    torch.manual_seed(derive(seed, "lora"))
    return load_vision_language(source, lora=LORA)


def _preferences(policy: VisionLanguageAdapter, name: str, folder: Path, seed: int) -> Preferences:
    """Best against worst of the model's own captions; built once, then read."""
    if not (folder / "manifest.json").exists():
        shown = scenes("apart", PICTURES, seed=f"pairs {seed}")
        with progress("captions to learn from", total=len(shown) * SAMPLES) as advance:
            made = build(
                [ask(scene) for scene in shown],
                policy,
                lambda index, sample: _reward(shown[index], text_of(sample.response)),
                samples=SAMPLES,
                model=name,
                seed=seed,
                progress=lambda done, _: advance(to=done),
                **SAMPLING,
            )
            write_store(made, folder)
    return open_dataset(folder)


def _reward(scene: Scene, caption: str) -> float:
    """Things named rightly, less those that are not there or named twice, per thing in the scene.
    The checker is exact: it knows what was drawn."""
    named, there = mentioned(caption), set(scene.present)
    right = len(there.intersection(named))
    return (right - (len(named) - right)) / len(there)


def _captions(
    policy: VisionLanguageAdapter, unseen: Sequence[Scene], out: Path, stage: str
) -> list[str]:
    """The likeliest caption of every unseen scene; kept in a file."""

    def describe() -> list[str]:
        with progress(f"captions {stage}", total=len(unseen)) as advance:
            samples = policy.sample(
                [ask(scene) for scene in unseen],
                range(len(unseen)),
                temperature=0.0,
                progress=lambda done, _: advance(to=done),
                **SAMPLING,
            )
        return [text_of(sample.response) for sample in samples]

    return kept_texts(out / f"captions-{stage}.json", describe)


def _figures(
    policy: VisionLanguageAdapter,
    captions: Sequence[str],
    unseen: Sequence[Scene],
    compared: Sequence[Preference],
) -> dict[str, Interval]:
    """CHAIR's figures on unseen scenes, and log-probabilities of pairs that are not trained on."""
    counted = chair([mentioned(text) for text in captions], [scene.present for scene in unseen])
    dpo = objective("dpo()")
    plan = Plan(policy.collate, policy.size, dpo.needs, TRAINING.batch_size, TRAINING.micro_batch)
    pairs = intervals(
        held_out_figures(policy, Scorer(policy), compared, dpo, AdapterOff(policy), plan)
    )
    return counted.figures() | {name: pairs[name] for name in ("chosen_logp", "rejected_logp")}


def _report(
    out: Path,
    unseen: Sequence[Scene],
    captions: dict[str, list[str]],
    measured: Measured,
    details: Mapping[str, Any],
) -> None:
    summary = _summary(measured)
    sections = [
        section(
            "What changed",
            figures(measured, labels=LABELS),
            note="Control: fine-tuning on the chosen captions, with the same data and steps. "
            f"{UNSEEN} scenes never seen before, in which nothing comes in company, and "
            f"{details['held out']} pairs that were not trained on; 95 % intervals.",
        ),
        section(
            "Pictures and captions",
            cases(_wrong_somewhere(unseen, captions), good="all there", bad="not all there"),
            note="Unseen scenes of which some model named what is not there: the words marked.",
        ),
        training_section(out / "aligned"),
        diagnosis(
            diagnose(
                JsonLines(out / "aligned" / "metrics.jsonl").rows(),
                spec=OBJECTIVE,
                data=rates(open_dataset(out / "preferences")),
            )
        ),
        section("With your own model", *NEXT),
        section(
            "How it was done",
            settings_table({"objective": OBJECTIVE, "control": CONTROL, **details}),
        ),
    ]
    save_page(out / "report.html", page("mmalign quickstart: vlm", sections, summary=summary))
    console.print(comparison(measured, f"{UNSEEN} unseen scenes, with 95 % intervals"))
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


def _summary(measured: Measured) -> str:
    chair_i = {stage: found["chair_i"].value for stage, found in measured.items()}
    recall = {stage: found["recall"].value for stage, found in measured.items()}
    return (
        f"Of the things named in captions of {UNSEEN} unseen scenes, {chair_i['before']:.1%} were "
        f"not there before and {chair_i['after']:.1%} after alignment, while of the things there "
        f"{recall['before']:.1%} and {recall['after']:.1%} were named; fine-tuning on the chosen "
        f"captions alone came to {chair_i['control']:.1%} and {recall['control']:.1%}."
    )
