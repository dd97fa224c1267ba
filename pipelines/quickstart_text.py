"""The text quickstart: a small language model learns to keep the rules that it half keeps."""

from __future__ import annotations

from pathlib import Path

import torch

from mmalign.adapters.text import TextAdapter, load_text
from mmalign.data.dataset import Preferences
from mmalign.data.opening import open_dataset
from mmalign.data.store import write_store
from mmalign.data_builders.reward_pairs import build
from mmalign.evaluation.answers import kl_to_reference
from mmalign.evaluation.diagnosis import diagnose
from mmalign.evaluation.diagnostics.data import rates
from mmalign.evaluation.intervals import Interval, bootstrap_mean, wilson
from mmalign.pipelines.results import save_model, training_section
from mmalign.pipelines.stages import (
    Clock,
    Measured,
    aligned_and_control,
    comparison,
    hush,
    kept_texts,
)
from mmalign.playground.instructions import Instruction
from mmalign.playground.language_models import Recipe, recipe_for
from mmalign.playground.speed import matmul_rate
from mmalign.records import Message, Sample, Text, text_of
from mmalign.report.diagnosis import diagnosis
from mmalign.report.figures import figures
from mmalign.report.metrics_file import save_metrics
from mmalign.report.page import page, save_page, section
from mmalign.report.tables import Answer, Comparison, before_after
from mmalign.report.tables import settings as settings_table
from mmalign.settings import read_settings
from mmalign.training.log import JsonLines, console, progress
from mmalign.training.seeds import derive

RULE, LENGTH = "rule kept", "answer length (tokens)"
KL_TOKEN, KL_ANSWER = "KL to the reference per token (nats)", "KL per answer (nats)"
SHOWN = 30  # prompts in the report


def quickstart_text(*, model: str = "auto", out: Path, seed: int = 0) -> None:
    """See `mmalign quickstart --help`."""
    hush()
    clock = Clock(out / "seconds.json")
    with clock("model"):
        recipe = recipe_for(model, seed=seed)
    console.print(recipe.note)

    answers: dict[str, list[str]] = {}
    measured: Measured = {}
    with clock("before"):
        policy = _fresh(recipe, seed)
        answers["before"], measured["before"] = _measure(policy, recipe, out, "before", seed)
    with clock("preferences"):
        pairs = _preferences(policy, recipe, out / "preferences", seed)
    console.print(f"{len(pairs)} preferences of the model's own answers ({out / 'preferences'})")

    for stage, spec, folder, policy in aligned_and_control(
        lambda: _fresh(recipe, seed), pairs, recipe.objective, "nll()", recipe.training, out, clock,
        reference="cache",
    ):  # fmt: skip
        with clock(f"answers {stage}"):
            answers[stage], measured[stage] = _measure(policy, recipe, out, stage, seed)
        save_model(
            folder / "model", policy, base_model=recipe.name, title=f"{recipe.name}, {stage}",
            data="its own best and worst answers", objective=spec,
            settings=read_settings(out / "run.yaml"),
            measured={"before": measured["before"], "after": measured[stage]},
        )  # fmt: skip
    rate = matmul_rate()
    save_metrics(
        out / "metrics.json", measured, n=len(recipe.held_out), seconds=clock.seconds, seed=seed,
        details={
            "preferences": len(pairs), "steps": recipe.training.steps, "matmul_gflops": rate
        },
    )  # fmt: skip
    _report(out, recipe, measured, answers, clock.seconds, rate)


def _fresh(recipe: Recipe, seed: int) -> TextAdapter:
    """The model with a new LoRA, which starts the same for every stage."""
    torch.manual_seed(derive(seed, "lora"))
    return load_text(recipe.path, lora=recipe.lora, precision=recipe.precision)


def _preferences(policy: TextAdapter, recipe: Recipe, folder: Path, seed: int) -> Preferences:
    """Best against worst of the model's own answers; built once, then read."""
    if not (folder / "manifest.json").exists():
        count = len(recipe.train) * recipe.samples
        with progress("answers to train on", total=count) as advance:
            made = build(
                [_prompt(instruction) for instruction in recipe.train],
                policy,
                lambda index, answer: recipe.train[index].score(text_of(answer.response)),
                samples=recipe.samples,
                least_margin=recipe.least_margin,
                least_best=recipe.least_best,
                model=recipe.name,
                seed=seed,
                merge=True,
                progress=lambda done, _: advance(to=done),
                **recipe.sampling,
            )
            write_store(made, folder)
    return open_dataset(folder)


def _measure(
    policy: TextAdapter, recipe: Recipe, out: Path, stage: str, seed: int
) -> tuple[list[str], dict[str, Interval]]:
    """Answers to the held-out prompts, and figures about them. Answers are kept in a file."""

    def ask() -> list[str]:
        prompts = [_prompt(instruction) for instruction in recipe.held_out]
        seeds = [derive(seed, "held out", index) for index in range(len(prompts))]
        with progress(f"answers {stage}", total=len(prompts)) as advance:
            responses = policy.sample(
                prompts,
                seeds,
                merge=True,
                progress=lambda done, _: advance(to=done),
                **recipe.sampling,
            )
        return [text_of(response.response) for response in responses]

    texts = kept_texts(out / f"answers-{stage}.json", ask)
    obeyed = [i.satisfied(text) for i, text in zip(recipe.held_out, texts, strict=True)]
    samples = [
        Sample(_prompt(i), (Text(text),)) for i, text in zip(recipe.held_out, texts, strict=True)
    ]
    divergences, lengths = kl_to_reference(policy, samples)
    return texts, {
        RULE: wilson(sum(obeyed), len(obeyed)),
        LENGTH: bootstrap_mean(lengths.tolist()),
        KL_TOKEN: bootstrap_mean((divergences / lengths).tolist()),
        KL_ANSWER: bootstrap_mean(divergences.tolist()),
    }


def _prompt(instruction: Instruction) -> tuple[Message, ...]:
    return (Message("user", (Text(instruction.text),)),)


def _report(
    out: Path,
    recipe: Recipe,
    measured: Measured,
    answers: dict[str, list[str]],
    seconds: dict[str, float],
    rate: float,
) -> None:
    rows = [
        Comparison(
            instruction.text,
            {
                stage: Answer(texts[i], instruction.satisfied(texts[i]))
                for stage, texts in answers.items()
            },
        )
        for i, instruction in enumerate(recipe.held_out[:SHOWN])
    ]
    summary = _summary(measured, len(recipe.held_out))
    sections = [
        section(
            "What changed",
            figures(measured),
            note="Control: fine-tuning on the chosen answers, with the same data and steps. "
            f"{len(recipe.held_out)} prompts, {recipe.unseen}; 95 % intervals.",
        ),
        section("Answers", before_after(rows), note=f"The first {SHOWN} held-out prompts."),
        training_section(out / "aligned"),
        diagnosis(
            diagnose(
                JsonLines(out / "aligned" / "metrics.jsonl").rows(),
                spec=recipe.objective,
                data=rates(open_dataset(out / "preferences")),
            )
        ),
        section(
            "How it was done",
            settings_table(
                recipe.settings()
                | {f"seconds: {stage}": round(value, 1) for stage, value in seconds.items()}
                | {"matrix products on this machine (GFLOP/s)": round(rate)}
            ),
            "With your own model and data: mmalign align-text --model MODEL --data PREFERENCES",
        ),
    ]
    save_page(out / "report.html", page("mmalign quickstart: text", sections, summary=summary))
    console.print(comparison(measured, "held-out prompts, with 95 % intervals"))
    console.print(f"{summary}\nReport: {out / 'report.html'}")


def _summary(measured: Measured, n: int) -> str:
    shares = {stage: found[RULE] for stage, found in measured.items()}
    gain = 100 * (shares["after"].value - shares["before"].value)
    return (
        f"On {n} held-out prompts the rule was kept in {shares['before'].value:.0%} before and "
        f"{shares['after'].value:.0%} after alignment ({gain:+.0f} points); fine-tuning on the "
        f"chosen answers alone came to {shares['control'].value:.0%}."
    )
