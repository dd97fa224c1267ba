"""Diagnosis in words: what went wrong in a run, by which evidence, and what would help.

    diagnose(rows, spec="dpo(beta=0.1)", data=rates(preferences), held_out=500)

Each rule looks for the trace that one fault must leave, in the figures of metrics.jsonl or in
counts of the data. Shares are judged by Wilson's interval at `LEVEL`, so that chance seldom raises
a finding; the other thresholds are sizes below which a fault would not matter, with the reason
beside each. What leaves no trace is not found: labels flipped at random in training and held-out
data alike look like hard data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmalign.evaluation.diagnosis.case import Case, Finding, Row, Severity, loss_of
from mmalign.evaluation.diagnosis.course import (
    displacement,
    over_optimisation,
    rising_loss,
    saturation,
)
from mmalign.evaluation.diagnosis.labels import (
    blank_images,
    faulty_pairs,
    flipped_labels,
    images_do_not_matter,
    length_bias,
)
from mmalign.evaluation.diagnosis.scale import reference_mismatch, wrong_scale
from mmalign.evaluation.diagnostics.data import Blanks, Rates
from mmalign.evaluation.diagnostics.images import ImageAblation

__all__ = ["Finding", "diagnose", "loss_of"]


def diagnose(
    rows: Sequence[Row] = (),
    *,
    spec: str | None = None,
    data: Rates | None = None,
    images: ImageAblation | None = None,
    held_out: int | None = None,
    from_reference: bool = True,
    pictures: Blanks | None = None,
    denoiser: bool = False,
) -> list[Finding]:
    """Findings, worst first; none for a healthy run.

    Args:
        rows: The lines of a run's metrics.jsonl, in order; none to judge data alone.
        spec: The objective. Rules about beta apply to DPO and its kin.
        data: Counts over the training data (`diagnostics.data.rates`).
        images: Accuracy with and without the image (`diagnostics.images.image_ablation`).
        held_out: Number of held-out preferences behind the held_out/ figures.
        from_reference: Whether training began with the weights of the reference.
        pictures: How many preferences show nothing (`diagnostics.data.blank_images`).
        denoiser: Whether a log-probability is half of a denoiser's mean squared error.
    """
    loss = None if spec is None else loss_of(spec)
    case = Case(rows, loss, data, images, held_out, from_reference, pictures, denoiser)
    found = [finding for rule in RULES for finding in rule(case)]
    order: list[Severity] = ["error", "warning", "note"]
    return sorted(found, key=lambda finding: order.index(finding.severity))


RULES: list[Callable[[Case], list[Finding]]] = [
    reference_mismatch,
    flipped_labels,
    faulty_pairs,
    length_bias,
    blank_images,
    images_do_not_matter,
    wrong_scale,
    displacement,
    over_optimisation,
    saturation,
    rising_loss,
]
"""A new fault is a function and a line here."""
