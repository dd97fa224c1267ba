"""`mmalign evaluate ranking`: whether a model ranks pairs right by likelihood. arXiv:2405.19534."""

from __future__ import annotations

import time
from pathlib import Path

from mmalign.evaluation.intervals import Interval, mean
from mmalign.evaluation.pairs import PairOptions, ScoredModel, read_pairs
from mmalign.evaluation.suite import Results, save_results
from mmalign.settings import save_settings


def ranking(
    *,
    model: ScoredModel,
    pairs: PairOptions,
    beta: float = 0.1,
    share: str | None = None,
    out: Path = Path("runs/ranking"),
) -> dict[str, dict[str, Interval]]:
    """Ranking accuracy: for how many pairs the model gives the better response more likelihood.

    That is not reward accuracy, which asks how likelihoods changed. With a reference it also says
    how hard its order makes each pair, which pairs training turned, and, where the data tell how
    many raters agreed, what the exact optimum of the objective would rank right.

    Model:
        model: See ScoredModel.

    Data:
        pairs: See PairOptions.
        share: Name in each record's aux of the share of raters who prefer the chosen response.

    Objective:
        beta: That the model was trained with.

    Output:
        out: Folder for metrics.json and report.html.

    Examples:
        mmalign evaluate ranking --model HuggingFaceTB/SmolLM2-135M-Instruct
          --adapter runs/align-text/model --data test.jsonl
    """
    save_settings(out / "run.yaml", "evaluate ranking", ranking, locals())
    import torch

    from mmalign.errors import UserError
    from mmalign.evaluation.diagnosis.pairs import ranking_findings
    from mmalign.evaluation.diagnostics import ranking as judge
    from mmalign.evaluation.scoring import Judges
    from mmalign.report.diagnosis import diagnosis
    from mmalign.report.histograms import histograms
    from mmalign.report.page import section
    from mmalign.report.tables import table

    began = time.perf_counter()
    data = read_pairs(pairs)
    scored = Judges(model, data).score(data, pairs)
    chosen, rejected = scored.chosen, scored.rejected
    after = {
        "ranking accuracy": mean(judge.ranking_accuracy(chosen, rejected)),
        "ranking accuracy per token": mean(
            judge.ranking_accuracy(chosen, rejected, normalize=True)
        ),
    }
    measured = {"model": after}
    sections, findings, details = [], [], {}
    if scored.compared:
        c = judge.difficulty(chosen, rejected)
        per_token = judge.difficulty(chosen, rejected, normalize=True)
        before = {
            "ranking accuracy": mean((c <= 0).double()),
            "ranking accuracy per token": mean((per_token <= 0).double()),
        }
        after["reward accuracy"] = mean((chosen.ratio > rejected.ratio).double())
        measured = {"before": before, "after": after}
        if share is not None:
            missing = [one.id for one in scored.preferences if share not in one.aux]
            if missing:
                raise UserError(
                    f"{len(missing)} records have no {share!r} in their aux, {missing[0]} for one",
                    hint="name the number that says which share of raters prefers the chosen one",
                )
            raters = torch.tensor([one.aux[share] for one in scored.preferences])
            log_odds = judge.idealized_log_odds(c, raters, beta=beta)
            after["idealised ranking accuracy"] = mean((log_odds > 0).double())
            betas = judge.idealized_ranking_accuracy(c, raters)
            details["idealised"] = {f"{b:g}": value for b, value in betas.items()}
        turned = judge.flips(chosen, rejected)
        details["flips"] = vars(turned)
        findings = ranking_findings(chosen, rejected, beta=beta)
        sections = [
            section(
                "Difficulty",
                histograms(
                    {
                        "nats by which the reference prefers the rejected response": c.tolist(),
                        "margin that training gave": (chosen.ratio - rejected.ratio).tolist(),
                    }
                ),
                note="A pair is ranked right where its margin is at least its difficulty.",
            ),
            section(
                "What training turned",
                table(
                    [
                        {"reference": "right", "model right": turned.stayed_right,
                         "model wrong": turned.spoiled},
                        {"reference": "wrong", "model right": turned.corrected,
                         "model wrong": turned.stayed_wrong},
                    ]
                ),
            ),
            diagnosis(findings),
        ]  # fmt: skip
    results = Results(
        "Ranking accuracy",
        measured,
        n=len(scored.preferences),
        notes=[*map(str, findings), *scored.notes()],
        details=details,
        sections=sections,
        items="pairs",
    )
    return save_results(
        out, results, seconds={"scores": time.perf_counter() - began}, seed=pairs.seed
    )
