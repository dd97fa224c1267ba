"""`mmalign evaluate overoptimisation`: a model's own outputs, checkpoint by checkpoint.

arXiv:2410.11677.
"""

from __future__ import annotations

import time
from pathlib import Path

from mmalign.evaluation.intervals import Estimate, Interval, mean
from mmalign.evaluation.pairs import PairOptions, ScoredModel, read_pairs
from mmalign.evaluation.suite import Results, save_results
from mmalign.settings import save_settings

CURVES = (
    ("top10_entropy",), ("top10_mass",), ("kl_per_token",), ("tokens",), ("cut_short",),
)  # fmt: skip


def overoptimisation(
    *,
    model: ScoredModel,
    pairs: PairOptions,
    checkpoints: list[str],
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    out: Path = Path("runs/overoptimisation"),
) -> dict[str, dict[str, Interval]]:
    """Early signs that a model was trained too long, in what it writes itself.

    The model without adapter and then every checkpoint answer the prompts. Measured on their own
    answers: entropy and mass of the ten likeliest tokens (at temperature 1), KL to the model
    without adapter, and length. Entropy that falls after a rise, or rises while mass leaks away,
    comes with falling quality; five checkpoints or more are needed to tell a turn from noise.

    Model:
        model: See ScoredModel.
        checkpoints: Folders of LoRAs on the model, or of whole models, in the order of training.

    Data:
        pairs: See PairOptions. Only the prompts are used.

    Answers:
        max_new_tokens: Tokens of an answer at most.
        temperature: Of sampling.

    Output:
        out: Folder for metrics.json and report.html.

    Examples:
        mmalign evaluate overoptimisation --model ./SmolLM2 --data test.jsonl --limit 100
          --checkpoints runs/a/model runs/b/model runs/c/model runs/d/model runs/e/model
    """
    save_settings(out / "run.yaml", "evaluate overoptimisation", overoptimisation, locals())
    from mmalign.errors import UserError
    from mmalign.evaluation.diagnosis import diagnose
    from mmalign.evaluation.outputs import Outputs, look_at
    from mmalign.evaluation.scoring import kind_of, load
    from mmalign.reference import FrozenCopy
    from mmalign.report.curves import curves
    from mmalign.report.diagnosis import diagnosis
    from mmalign.report.page import section

    if model.adapter or model.reference:
        raise UserError(
            "checkpoints are compared with --model itself",
            hint="name adapters among --checkpoints, in the order of training",
        )
    began = time.perf_counter()
    data = read_pairs(pairs)
    prompts = [one.chosen.prompt for one in data]
    kind = kind_of(model, data)
    if kind not in ("text", "vlm"):
        raise UserError(f"a model of modality {kind} does not answer in words, which is looked at")
    base = load(model, model.model, None, kind=kind)
    before = FrozenCopy(base, base.policy)
    found: list[Outputs] = []
    for name in ["", *checkpoints]:
        if not name:
            policy = base
        elif (Path(name) / "adapter_config.json").exists():
            policy = load(model, model.model, name, kind=kind)
        else:
            policy = load(model, name, None, kind=kind)
        look = look_at(
            policy, before, prompts, seed=pairs.seed, max_new_tokens=max_new_tokens,
            temperature=temperature,
        )  # fmt: skip
        found.append(look)
    rows = [{"step": number, **each.means()} for number, each in enumerate(found)]
    findings = diagnose(rows)
    measured: dict[str, dict[str, Estimate]] = {
        name: {figure: mean(values) for figure, values in each.figures().items()}
        for name, each in zip(["start", *map(_short, checkpoints)], found, strict=True)
    }
    results = Results(
        "Over-optimisation",
        measured,
        n=len(prompts),
        notes=list(map(str, findings)),
        details={"course": rows},
        sections=[
            section("Course", curves(rows, CURVES, smoothing=0.0), note="0 is the model itself."),
            diagnosis(findings),
        ],
    )
    return save_results(
        out, results, seconds={"answers": time.perf_counter() - began}, seed=pairs.seed
    )


def _short(folder: str) -> str:
    """The last two names of a path, which tell checkpoints apart."""
    return "/".join(Path(folder).parts[-2:])
