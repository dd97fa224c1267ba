"""`mmalign evaluate subnetworks`: which part of the weights alignment moved. arXiv:2505.11711."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from mmalign.errors import UserError
from mmalign.evaluation.intervals import Estimate, Interval, mean
from mmalign.evaluation.suite import Results, save_results
from mmalign.settings import save_settings


def subnetworks(
    *,
    before: Path,
    after: Path,
    other: Path | None = None,
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16",
    tolerance: float = 1e-5,
    ranks: bool = True,
    out: Path = Path("runs/subnetworks"),
) -> dict[str, dict[str, Interval]]:
    """How much of the network training moved, where, and whether another run moved the same.

    Compares safetensors: two folders of models, or a model and the folder of a LoRA on it. A weight
    counts as moved when it differs by more than the tolerance after both were cast; bfloat16, in
    which models are published, rounds small updates away, so say both with the result.

    Weights:
        before: Folder of the model that training started from.
        after: Folder of the trained model, or of its LoRA.
        other: The same of another run from the same start.
        dtype: Cast both to it before they are compared.
        tolerance: Differences up to this count as none.
        ranks: Compute the rank of each matrix's update, which takes a while on large models.

    Output:
        out: Folder for metrics.json and report.html.

    Examples:
        mmalign evaluate subnetworks --before ./SmolLM2 --after runs/a/model --other runs/b/model
    """
    save_settings(out / "run.yaml", "evaluate subnetworks", subnetworks, locals())
    import torch

    from mmalign.evaluation.diagnostics import subnetworks as judge
    from mmalign.evaluation.diagnostics.weights import Stored
    from mmalign.report.histograms import histograms
    from mmalign.report.page import section
    from mmalign.report.tables import table

    began = time.perf_counter()
    start = Stored(before)
    moved = _weights(start, after)
    cast = getattr(torch, dtype)
    options: dict[str, Any] = {"atol": tolerance, "dtype": cast}
    matrices = judge.update_sparsity(start, moved, group=lambda name: name, **options)
    groups = judge.update_sparsity(start, moved, group=part_of, **options)
    whole = sum(groups.values(), judge.Change(0, 0))
    figures: dict[str, Estimate] = {"share of weights that moved": mean([whole.density])}
    details: dict[str, Any] = {
        "dtype": dtype, "tolerance": tolerance, "changed": whole.changed, "weights": whole.entries,
        "matrices": {name: change.density for name, change in matrices.items()},
    }  # fmt: skip
    densities = {"share moved, by matrix": [change.density for change in matrices.values()]}
    if ranks:
        found = judge.rank_fractions(start, moved)
        densities["rank of the update over the full rank, by matrix"] = list(found.values())
        details["ranks"] = found
        if found:
            figures["rank of the updates over the full rank"] = mean(list(found.values()))
    sections = [
        section(
            "Where",
            table(
                [
                    {"part": name, "share moved": change.density, "weights": change.entries}
                    for name, change in groups.items()
                ]
            ),
        ),
        section("Matrices", histograms(densities)),
    ]
    notes = [f"Moved by more than {tolerance:g} after both were cast to {dtype}."]
    if other is not None:
        shared = judge.update_overlap(start, moved, _weights(start, other), **options)
        figures["of what this run moved, moved by the other too"] = mean([shared.of_first])
        figures["of that, expected by chance"] = mean([shared.chance_of_first])
        figures["of what the other moved, moved by this one too"] = mean([shared.of_second])
        details["overlap"] = vars(shared)
    if not whole.changed:
        notes.append("Nothing moved: are these the right folders?")
    results = Results(
        "Subnetworks", {"after": figures}, n=len(matrices), notes=notes, details=details,
        sections=sections, items="tensors",
    )  # fmt: skip
    return save_results(out, results, seconds={"weights": time.perf_counter() - began}, seed=0)


def _weights(start: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Of a model, or of the start with a LoRA in it."""
    from mmalign.evaluation.diagnostics.weights import Stored, merged

    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", hint="name the folder of a model or a LoRA")
    if (folder / "adapter_config.json").exists():
        return merged(start, folder)
    return Stored(folder)


PARTS = {
    "vision tower": ("vision", "visual", "image_encoder"),
    "projector": ("projector", "merger", "aligner"),
    "embeddings and head": ("embed", "lm_head", "wte", "wpe"),
    "attention": ("attn", "attention"),
    "feed-forward": ("mlp", "feed_forward", ".ff."),
}
"""What a tensor's name says about its part, in the order in which they are asked."""


def part_of(name: str) -> str:
    """The part of a network that a tensor belongs to, by its name."""
    lower = name.lower()
    return next(
        (part for part, words in PARTS.items() if any(word in lower for word in words)), "other"
    )
