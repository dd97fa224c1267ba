"""What every alignment leaves behind: the model with its card, metrics.json and report.html."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from torch import Tensor

from mmalign.adapters.lora import has_lora
from mmalign.adapters.protocol import Adapter
from mmalign.evaluation.diagnosis import diagnose
from mmalign.evaluation.diagnostics.data import blank_images, rates
from mmalign.evaluation.diagnostics.images import ImageAblation
from mmalign.evaluation.intervals import Interval, bootstrap_mean, wilson
from mmalign.files import whole_folder
from mmalign.records import Preference
from mmalign.report.curves import curves
from mmalign.report.diagnosis import diagnosis
from mmalign.report.figures import figures
from mmalign.report.metrics_file import save_metrics
from mmalign.report.model_card import model_card, save_model_card
from mmalign.report.page import page, save_page, section
from mmalign.report.tables import settings as settings_table
from mmalign.settings import read_settings
from mmalign.training.align import Alignment
from mmalign.training.log import JsonLines, console

LOOKED_AT = 20_000
"""Training data in which faults are looked for."""

CURVES: tuple[tuple[str, ...], ...] = (
    ("loss", "held_out/loss"),
    ("reward_accuracy", "held_out/reward_accuracy"),
    ("chosen_ratio", "rejected_ratio"),
    ("chosen_logp", "rejected_logp"),
    ("learning_rate",),
    ("grad_norm",),
)
WATCHED: tuple[tuple[str, ...], ...] = (
    ("outputs/top10_entropy",),
    ("outputs/top10_mass",),
    ("outputs/kl_per_token",),
    ("outputs/tokens",),
)
"""Shown where they were recorded."""


def save_alignment(
    out: Path,
    done: Alignment,
    adapter: Adapter,
    *,
    title: str,
    base_model: str,
    data: str,
    trained_on: Sequence[Preference] | None,
    objective: str,
    seed: int,
    library: str | None = None,
    loading: str | None = None,
    sections: Sequence[Markup] = (),
    images: ImageAblation | None = None,
    others: Mapping[str, Interval] | None = None,
) -> None:
    """Write everything about one alignment under `out`, from the main process.

    trained_on: the preferences, to look for faults in them; None where they were streamed. images:
    accuracy on held-out pairs with and without their images, where it was measured.
    others: further figures from after training, which are in metrics.json and on the model card.
    library, loading: see `model_card`. sections: of the report, put before those of every run.
    """
    if not done.main_process:
        return
    stages = {"before": done.before, "after": done.after}
    measured = {stage: intervals(found) for stage, found in stages.items() if found}
    n = len(next(iter(done.before.values()), ()))
    if images is not None:
        right = images.right_both + images.only_without
        measured["after"]["reward_accuracy_without_image"] = wilson(right, images.pairs)
    settings = read_settings(out / "run.yaml")
    complete = (
        {**measured, "after": {**measured.get("after", {}), **others}} if others else measured
    )
    save_model(
        out / "model", adapter, base_model=base_model, title=title, data=data,
        objective=objective, settings=settings, measured=complete, library=library,
        loading=loading,
    )  # fmt: skip
    findings = diagnose(
        JsonLines(out / "metrics.jsonl").rows(),
        spec=objective,
        data=None if trained_on is None else rates(_some(trained_on)),
        images=images,
        held_out=n or None,
        pictures=None if trained_on is None else blank_images(trained_on),
        denoiser=adapter.seeded,
    )
    for finding in findings:
        console.print(str(finding))
    save_metrics(out / "metrics.json", complete, n=n, seconds=done.seconds, seed=seed)
    own = [
        section(
            "Held-out preferences",
            figures(measured),
            note=f"{n} preferences that were not trained on, with 95 % intervals.",
        ),
        diagnosis(findings),
        training_section(out),
        section("Settings", settings_table(settings), note=data),
    ]
    save_page(out / "report.html", page(title, [*sections, *own], summary=_summary(done, measured)))
    console.print(f"{_summary(done, measured)}\nReport: {out / 'report.html'}")


def save_model(
    folder: Path,
    adapter: Adapter,
    *,
    base_model: str,
    title: str,
    data: str,
    objective: str,
    settings: Mapping[str, object],
    measured: Mapping[str, Mapping[str, Interval]],
    library: str | None = None,
    loading: str | None = None,
) -> None:
    """Write the trained weights and their model card."""
    lora = has_lora(adapter.policy)
    card = model_card(
        title=title,
        base_model=base_model,
        data=data,
        objective=objective,
        settings=settings,
        measured=measured,
        adapter=lora,
        library=library,
        loading=loading,
    )
    with whole_folder(folder) as partial:
        adapter.save(partial)
        save_model_card(partial, card)


def training_section(out: Path) -> Markup:
    """The curves of a run."""
    rows = JsonLines(out / "metrics.jsonl").rows()
    recorded = {name for row in rows for name in row}
    names = [*CURVES, *(group for group in WATCHED if recorded.intersection(group))]
    return section("Training", curves(rows, names), note="One point per optimiser step.")


def intervals(found: Mapping[str, Tensor]) -> dict[str, Interval]:
    """Each figure with its 95 % interval, over the preferences for which it exists: Wilson's for
    accuracies, in which a tie is half a success, the bootstrap's for means."""
    measured: dict[str, Interval] = {}
    for name, values in found.items():
        known = values[~values.isnan()].tolist()
        if known and name.endswith("accuracy"):
            measured[name] = wilson(sum(known), len(known))
        elif known:
            measured[name] = bootstrap_mean(known)
    return measured


def _some(data: Sequence[Preference]) -> Sequence[Preference]:
    """At most `LOOKED_AT` of them, evenly spaced: looking reads their images."""
    return data[:: math.ceil(len(data) / LOOKED_AT)] if len(data) else data


def _summary(done: Alignment, measured: Mapping[str, Mapping[str, Interval]]) -> str:
    assert done.result is not None  # training has happened
    words = f"{done.result.steps} steps in {done.result.seconds:.0f} s."
    if "after" in measured and "reward_accuracy" in measured["after"]:
        after = measured["after"]["reward_accuracy"]
        words += (
            f" Held-out pairs ordered as preferred: {after.value:.0%}"
            f" ({after.low:.0%} to {after.high:.0%})."
        )
    if done.result.refused:
        words += f" {done.result.refused} records could not be used; refused-*.jsonl says why."
    return words
