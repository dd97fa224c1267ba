"""From r to Q*: a DPO policy's per-token rewards single out the token that made a trace wrong.

DPO sees whole traces, a right and a wrong one for the same digits, never where the error lies. On
held-out wrong traces the least of the token rewards beta log pi/ref is compared with the planted
error. The reference's own likelihood of tokens is the control: it knows unlikely from likely.
Beam search on the policy is value-guided search: its traces are compared with greedy ones.
"""

from __future__ import annotations

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _traces import Trace, base_model, pairs, scores
from torch import Tensor

from mmalign.adapters.text import TextAdapter, load_text
from mmalign.objectives import objective
from mmalign.objectives.scores import LogProbs, TokenLogProbs
from mmalign.objectives.tokens import token_rewards
from mmalign.records import text_of
from mmalign.training.align import align
from mmalign.training.options import TrainingOptions

CLAIM = Claim(
    "r_to_q",
    "Per-token rewards of a DPO policy single out the planted wrong token.",
    "arXiv:2404.12358",
    "The reference's own log-probabilities of the same tokens; a token at random.",
)
BETA = 0.1


def measure(options: Options) -> Outcome:
    base = base_model(options.out / "traces-base", seed=0, quick=options.quick)
    count, steps = (64, 5) if options.quick else (2_000, 60)
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        policy = load_text(base)
        data, _ = pairs(count, f"pairs {seed}")
        settings = TrainingOptions(
            steps=steps, batch_size=32, learning_rate=1e-4, micro_batch=8192, seed=seed
        )
        out = options.out / CLAIM.name / str(seed)
        align(policy, data, (), objective(f"dpo(beta={BETA})"), settings, out)
        _, wrong = pairs(300, f"held out {seed}")
        reference = load_text(base)
        rewards, likelihood = _tokens(policy, reference, wrong)
        for name, values in (("token rewards", rewards), ("reference alone", likelihood)):
            hits = sum(map(_is_error, values, wrong)) / len(wrong)
            found.setdefault(name, []).append(hits)
        found.setdefault("chance", []).append(1 / len(wrong[0].words))
        for name, model, beams in (
            ("before, greedy", reference, 1),
            ("policy, greedy", policy, 1),
            ("policy, 5 beams", policy, 5),
        ):
            found.setdefault(name, []).append(_right(model, wrong, beams))
    located = list(found)[:3]
    figures = [figure(name, "share of errors found", found[name]) for name in located]
    figures += [figure(name, "right traces", found[name]) for name in list(found)[3:]]
    rewards_best = surely_above(found["token rewards"], found["reference alone"])
    words = ", ".join(f"{name} {over_seeds(found[name]).value:.1%}" for name in located)
    written = ", ".join(f"{name} {over_seeds(found[name]).value:.1%}" for name in list(found)[3:])
    return Outcome(
        figures,
        rewards_best and over_seeds(found["token rewards"]).low > 0.5,
        f"Errors that have the least value of their trace: {words}. Right traces written: "
        f"{written}.",
        "Not surely better than the reference alone." * (not rewards_best),
    )


def _tokens(
    policy: TextAdapter, reference: TextAdapter, wrong: list[Trace]
) -> tuple[Tensor, Tensor]:
    """(n t) token rewards, and the reference's log-probabilities."""
    ours, theirs = scores(policy, wrong), scores(reference, wrong)
    assert ours.tokens is not None  # a language model has tokens
    assert theirs.tokens is not None
    tokens = TokenLogProbs(
        ours.tokens.log_probs, theirs.tokens.log_probs, ours.tokens.mask, ours.tokens.weights
    )
    whole = LogProbs(ours.log_probs, theirs.log_probs, ours.lengths, tokens)
    return token_rewards(whole, beta=BETA), theirs.tokens.log_probs


def _is_error(values: Tensor, one: Trace) -> bool:
    return bool(torch.argmin(values[: len(one.words)]) == one.error)


def _right(model: TextAdapter, asked: list[Trace], beams: int) -> float:
    """Share of prompts whose trace of sums is right."""
    prompts = [one.sample.prompt for one in asked]
    written = model.beam_search(prompts, beams=beams, max_new_tokens=3 * len(asked[0].digits) + 1)
    return sum(
        one.sums_are_right(text_of(sample.response))
        for one, sample in zip(asked, written, strict=True)
    ) / len(asked)


if __name__ == "__main__":
    run(CLAIM, measure, seeds=3)
