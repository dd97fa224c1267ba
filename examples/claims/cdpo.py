"""cDPO: contrastive estimation finds the token that made a trace wrong.

A positive model is fine-tuned on right traces and a negative one on wrong traces; the token of a
held-out wrong trace with the least contrastive score is compared with the planted error. Chance is
one token of the trace. The positive model alone shows what the contrast adds.
"""

from __future__ import annotations

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run
from _traces import Trace, base_model, fine_tune, right_traces, wrong_traces
from torch import Tensor

from mmalign.adapters.text import TextAdapter, load_text
from mmalign.evaluation.critical_tokens import critical_scores

CLAIM = Claim(
    "cdpo",
    "Contrastive estimation with a positive and a negative model finds planted errors far above "
    "chance.",
    "arXiv:2411.19943",
    "A token of the trace at random; the positive model alone; the base model alone.",
)


def measure(options: Options) -> Outcome:
    base = base_model(options.out / "traces-base", seed=0, quick=options.quick)
    count, steps = (100, 5) if options.quick else (4_000, 80)
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        models = {}
        for name, traces in (("positive", right_traces), ("negative", wrong_traces)):
            models[name] = load_text(base)
            shown = traces(count, f"{name} {seed}")
            out = options.out / CLAIM.name / f"{name}-{seed}"
            fine_tune(models[name], shown, out, steps=steps, seed=seed)
        held_out = wrong_traces(300, f"held out {seed}")
        for name, least in _scores(models, load_text(base), held_out).items():
            share = sum(map(_is_error, least, held_out)) / len(held_out)
            found.setdefault(name, []).append(share)
        chance = sum(1 / len(one.words) for one in held_out) / len(held_out)
        found.setdefault("chance", []).append(chance)
    figures = [figure(name, "share of errors found", values) for name, values in found.items()]
    words = ", ".join(f"{name} {over_seeds(values).value:.1%}" for name, values in found.items())
    contrast = over_seeds(found["contrast"])
    return Outcome(
        figures,
        contrast.low > 5 * found["chance"][0] and contrast.low > 0.5,
        f"Errors that are the least-scored token of their trace: {words}.",
        "The contrast gains "
        f"{contrast.value - over_seeds(found['positive alone']).value:+.1%} on the positive model "
        "alone, whose likelihood is enough where right traces leave little choice.",
    )


def _scores(
    models: dict[str, TextAdapter], base: TextAdapter, held_out: list[Trace]
) -> dict[str, list[Tensor]]:
    samples = [one.sample for one in held_out]
    positive = models["positive"]
    return {
        "contrast": critical_scores(positive, models["negative"], samples),
        "positive alone": critical_scores(positive, positive, samples, strength=0.0),
        "base alone": critical_scores(base, base, samples, strength=0.0),
    }


def _is_error(scores: Tensor, one: Trace) -> bool:
    words = scores[: len(one.words)]  # the end of the text is no step
    return bool(torch.argmin(words) == one.error)


if __name__ == "__main__":
    run(CLAIM, measure, seeds=3)
