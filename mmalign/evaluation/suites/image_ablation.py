"""`mmalign evaluate image-ablation`: whether preferences need the image that they are about."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

from mmalign.errors import UserError
from mmalign.evaluation.intervals import Interval, mean
from mmalign.evaluation.pairs import PairOptions, ScoredModel, read_pairs
from mmalign.evaluation.suite import Results, save_results
from mmalign.settings import save_settings


def image_ablation(
    *,
    model: ScoredModel,
    pairs: PairOptions,
    without: Literal["no_image", "grey", "black", "noise"] = "no_image",
    out: Path = Path("runs/image-ablation"),
) -> dict[str, dict[str, Interval]]:
    """Accuracy on pairs about images, with the images and without them.

    A vision-language model that is as often right without the image has learned the wording of the
    answers. Accuracy is of rewards where there is a reference, otherwise of likelihoods.

    Model:
        model: See ScoredModel.

    Data:
        pairs: See PairOptions.
        without: What is in the image's place: nothing at all, grey, black, or noise over it.

    Output:
        out: Folder for metrics.json and report.html.

    Examples:
        mmalign evaluate image-ablation --model llava-hf/llava-1.5-7b-hf
          --adapter runs/align-vlm/model --data test.jsonl
    """
    save_settings(out / "run.yaml", "evaluate image-ablation", image_ablation, locals())
    import torch

    from mmalign.evaluation.diagnosis import diagnose
    from mmalign.evaluation.diagnostics.images import image_ablation as compare
    from mmalign.evaluation.diagnostics.images import without_images
    from mmalign.evaluation.scoring import Judges
    from mmalign.objectives.scores import pair_batch
    from mmalign.report.diagnosis import diagnosis
    from mmalign.report.page import section
    from mmalign.report.tables import table

    began = time.perf_counter()
    data = read_pairs(pairs)
    if model.modality not in ("auto", "vlm"):
        raise UserError("images can be taken away from the prompts of vision-language models only")
    judges = Judges(replace(model, modality="vlm"), data)
    seen = judges.score(data, pairs)
    unseen = judges.score(without_images(seen.preferences, without, seed=pairs.seed), pairs)
    by = "reward" if seen.compared else "likelihood"
    both = [pair_batch(each.chosen, each.rejected).candidates for each in (seen, unseen)]
    counts = compare(*both, by=by)
    right = [
        ((c.ratio > r.ratio) if by == "reward" else (c.policy > r.policy)).double()
        for c, r in ((seen.chosen, seen.rejected), (unseen.chosen, unseen.rejected))
    ]
    lost = torch.stack(right).diff(dim=0)[0].neg()
    measured = {
        "accuracy": {"with the image": mean(right[0]), "without it": mean(right[1]),
                     "lost without it": mean(lost)},
    }  # fmt: skip
    findings = diagnose(images=counts)
    rows = [
        {"": "right with the image", "right without": counts.right_both,
         "wrong without": counts.only_with},
        {"": "wrong with the image", "right without": counts.only_without,
         "wrong without": counts.wrong_both},
    ]  # fmt: skip
    results = Results(
        "Do preferences need the image?",
        measured,
        n=counts.pairs,
        notes=[*map(str, findings), *seen.notes()],
        details={"without": without, "by": by, "counts": vars(counts)},
        sections=[section("Pairs", table(rows)), diagnosis(findings)],
        items="pairs",
    )
    return save_results(
        out, results, seconds={"scores": time.perf_counter() - began}, seed=pairs.seed
    )
