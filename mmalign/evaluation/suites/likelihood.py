"""`mmalign evaluate likelihood`: how far chosen and rejected responses moved, each by itself."""

from __future__ import annotations

import time
from pathlib import Path

from mmalign.errors import UserError
from mmalign.evaluation.intervals import Interval, mean, ratio
from mmalign.evaluation.pairs import PairOptions, ScoredModel, read_pairs
from mmalign.evaluation.suite import Results, save_results
from mmalign.settings import save_settings


def likelihood(
    *, model: ScoredModel, pairs: PairOptions, out: Path = Path("runs/likelihood")
) -> dict[str, dict[str, Interval]]:
    """Likelihood displacement: whether chosen responses became less likely while margins grew.

    Changes are in nats, of whole responses and per token, against the model before alignment. The
    page colours the tokens of a few responses by how far each was raised or lowered.

    Model:
        model: See ScoredModel.

    Data:
        pairs: See PairOptions.

    Output:
        out: Folder for metrics.json and report.html.

    Examples:
        mmalign evaluate likelihood --model HuggingFaceTB/SmolLM2-135M-Instruct
          --adapter runs/align-text/model --data test.jsonl
    """
    if model.adapter is None and model.reference is None:
        raise UserError(
            "likelihoods change against something, and there is nothing to compare with",
            hint="give --adapter (its model is the reference) or --reference",
        )
    save_settings(out / "run.yaml", "evaluate likelihood", likelihood, locals())
    from mmalign.evaluation.diagnosis.pairs import displacement_findings
    from mmalign.evaluation.scoring import Judges
    from mmalign.report.diagnosis import diagnosis
    from mmalign.report.histograms import histograms
    from mmalign.report.page import section

    began = time.perf_counter()
    data = read_pairs(pairs)
    judges = Judges(model, data)
    scored = judges.score(data, pairs)
    chosen, rejected = scored.chosen, scored.rejected
    margin = chosen.ratio - rejected.ratio
    displaced = (chosen.ratio < 0) & (margin > 0)
    figures = {
        "chosen": mean(chosen.ratio),
        "rejected": mean(rejected.ratio),
        "margin": mean(margin),
        "chosen per token": mean(chosen.mean_ratio),
        "rejected per token": mean(rejected.mean_ratio),
        "displaced pairs": mean(displaced.double()),
    }
    if margin.mean() > 0:
        figures["nats lost per nat of margin"] = ratio(-chosen.ratio, margin)
    findings = displacement_findings(chosen, rejected)
    drawn = {
        "change of the chosen, nats": chosen.ratio.tolist(),
        "change of the rejected, nats": rejected.ratio.tolist(),
        "margin, nats": margin.tolist(),
    }
    results = Results(
        "Likelihood of chosen and rejected",
        {"change": figures},
        n=len(scored.preferences),
        notes=[*map(str, findings), *scored.notes()],
        sections=[
            section("Changes", histograms(drawn)),
            diagnosis(findings),
            *judges.credit(scored.preferences),
        ],
        items="pairs",
    )
    return save_results(
        out, results, seconds={"scores": time.perf_counter() - began}, seed=pairs.seed
    )
