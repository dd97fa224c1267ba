"""`mmalign evaluate preference-accuracy`: how often a model's implicit reward orders pairs as
people did."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmalign.adapters.loading import Modality, load_adapter
from mmalign.adapters.protocol import Adapter
from mmalign.data.errors import Quarantine
from mmalign.data.opening import open_dataset, parse_columns
from mmalign.errors import UserError
from mmalign.evaluation.intervals import Interval, mean
from mmalign.evaluation.suite import Results, save_results
from mmalign.objectives.scores import Needs
from mmalign.records import Preference
from mmalign.reference import AsItIs, Cached, weights_digest
from mmalign.settings import save_settings
from mmalign.training.batches import Plan, Refused, Steps, unusable
from mmalign.training.log import progress


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """Which model is asked, and against which.

    Args:
        model: Hub id or folder.
        adapter: Folder of a LoRA on it.
        baseline: The model before alignment; with an adapter it is the model without it.
        modality: What the model makes.
        precision: Arithmetic and weights.
    """

    model: str
    adapter: str | None = None
    baseline: str | None = None
    modality: Modality = "image"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"


def preference_accuracy(
    *,
    model: ComparedModel,
    data: str,
    split: str | None = None,
    columns: list[str] | None = None,
    draws: int = 10,
    resolution: int | None = None,
    frames: int | None = None,
    micro_batch: int = 8192,
    limit: int | None = None,
    seed: int = 0,
    out: Path = Path("runs/preference-accuracy"),
) -> dict[str, dict[str, Interval]]:
    """How often a model's implicit reward orders pairs as people did.

    The implicit reward of a sample is its log-probability under the aligned model less that under
    the model before; for denoisers the fall of the denoising error, averaged over timesteps and
    noises that both images of a pair share (Diffusion-DPO, arXiv:2311.12908, takes ten). A pair
    whose rewards are equal counts one half. Give pairs that were not trained on.

    Model:
        model: See ComparedModel.

    Data:
        data: Folder, file or hub id of a dataset of preferences.
        split: Split of a hub dataset.
        columns: Columns that go by other names, as in chosen=better rejected=worse.
        limit: Take so many pairs only, the first ones.

    Scores:
        draws: Timesteps and noises of each pair, for denoisers.
        resolution: Side of pictures in pixels, for denoisers; the model's own by default.
        frames: Frames of videos.
        micro_batch: Elements (tokens, latent positions) that go through the model at once.
        seed: Of timesteps and noises.

    Output:
        out: Folder for metrics.json and report.html.

    Examples:
        mmalign evaluate preference-accuracy --model ./sd15 --adapter runs/align-diffusion/model
          --data ./votes --split test
    """
    save_settings(out / "run.yaml", "evaluate preference-accuracy", preference_accuracy, locals())
    baseline = model.baseline or (model.model if model.adapter else None)
    if baseline is None:
        raise UserError(
            "an implicit reward compares two models",
            hint="give an --adapter on the model, or a --baseline",
        )
    names = parse_columns(columns)
    pairs = open_dataset(data, split=split, columns=names)
    usable: list[Preference] = list(pairs[:limit].usable(Quarantine(out / "unreadable.jsonl")))
    refused: list[Refused] = []
    options: dict[str, Any] = {}
    if model.modality in ("image", "video"):
        options = {"draws": draws, "resolution": resolution}
    if model.modality == "video":
        options["frames"] = frames
    began = time.perf_counter()
    scored = []
    for stage, (name, adapter) in {
        "before": (baseline, None),
        "after": (model.model, model.adapter),
    }.items():
        policy = load_adapter(
            model.modality, name, adapter=adapter, precision=model.precision, **options
        )
        plan = Plan(policy.collate, policy.size, Needs(), 32, budget=micro_batch, seed=seed)
        if stage == "before":
            refused = unusable(usable, plan)
            gone = {one.row for one in refused}
            usable = [one for row, one in enumerate(usable) if row not in gone]
            if not usable:
                raise UserError(f"no pair of {data} can be used: {_first(refused)}")
        scored.append(log_probs(policy, usable, plan, out / "log-probs.sqlite", title=stage))
        del policy
    margins = [float(new[0] - new[-1] - old[0] + old[-1]) for old, new in zip(*scored, strict=True)]
    accuracy = mean([0.5 + 0.5 * (margin > 0) - 0.5 * (margin < 0) for margin in margins])
    results = Results(
        "Preference accuracy",
        {"model": {"implicit reward accuracy": accuracy, "reward margin": mean(margins)}},
        n=len(margins),
        notes=[
            f"{pairs.describe()}; the best candidate against the worst of each preference.",
            *([f"{len(refused)} pairs cannot be used: {_first(refused)}"] if refused else []),
        ],
    )
    seconds = {"scores": time.perf_counter() - began}
    return save_results(out, results, seconds=seconds, seed=seed)


def _first(refused: Sequence[Refused]) -> str:
    return refused[0].reason if refused else "it holds none"


def log_probs(
    adapter: Adapter, data: Sequence[Preference], plan: Plan, file: Path, *, title: str
) -> list[Tensor]:
    """(k,) float64 for each preference: what the model thinks of its candidates, best first.

    file: where it is kept, so that a stopped run goes on.
    """
    scope = f"{weights_digest(adapter.policy)} {adapter.fingerprint}"
    kept = Cached(file, scope, AsItIs(adapter), seeded=adapter.seeded)
    steps = Steps(data, plan)
    found: dict[str, Tensor] = {}
    adapter.policy.eval()
    with progress(title, total=len(data)) as advance:
        for number in range(steps.per_epoch):
            for micro in steps[number].micro_batches:
                asked = micro.candidates
                inputs = adapter.encode(asked.inputs)
                scored = kept.log_probs(inputs, asked.keys, asked.seeds).log_probs.double().cpu()
                for name, slots in zip(micro.ids, asked.slots, strict=True):
                    found[name] = scored[slots[slots >= 0]]
                    advance()
    return [found[preference.id] for preference in data]
