"""DPO corrects few of the pairs that its reference ranks wrongly.

Log-linear worlds whose reference prefers some responses to others for reasons that have nothing to
do with the reward, as a language model prefers common words and short answers. Four raters vote on
each pair by Bradley-Terry, the majority is the label, and DPO stops where its loss on held-out
pairs is least. Because the raters are known, so is what the exact optimum would rank right.

The first world that was tried had a reference of 8 nats, where the gap is small; whole answers of a
language model differ by tens of nats. Both are shown. And a tiny Llama, through the same training
as any model: raters vote on its own answers, two by two. Its first setting had a quarter as many
and kept pairs of equally good ones, about every fourth, whose labels are lots: DPO told 54 %
of held-out pairs apart, the gap was 39 points, and the claim did not hold, since 19 % [-16 %, 54 %]
of the wrong pairs were corrected.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run
from _lists import aligned, recipe
from _loglinear import Labels, World, descend, sides, world
from _smollm2 import fresh, prompt
from torch import Tensor

from mmalign.evaluation.diagnostics.ranking import (
    difficulty,
    flips,
    idealized_ranking_accuracy,
    ranking_accuracy,
)
from mmalign.evaluation.scoring import score_pairs
from mmalign.objectives import LogProbs, objective
from mmalign.playground.instructions import Instruction
from mmalign.playground.language_models import Recipe
from mmalign.records import Preference, pair, text_of
from mmalign.reference import AdapterOff
from mmalign.training.seeds import derive

CLAIM = Claim(
    "ranking_accuracy",
    "A DPO-trained model ranks far fewer pairs right by likelihood than the exact optimum of its "
    "objective would, and leaves most of those that its reference ranks wrongly as they were.",
    "arXiv:2405.19534",
    "The reference before training, the same model's reward accuracy, and the idealised accuracy.",
)
BETA, RATERS = 0.1, 4
SPREADS = (8.0, 25.0)
"""Standard deviations of the reference's log-probabilities, nats; the last one counts."""
REWARD = 3.0  # of an answer that keeps all rules, to the raters of the transformer
STEPS, SEEDS, ANSWERS = 60, 6, 8  # of the transformer
NAMES = {
    "reference": "ranking accuracy of the reference",
    "dpo": "ranking accuracy of dpo",
    "reward": "reward accuracy of dpo",
    "ideal": "ranking accuracy of the exact optimum",
    "corrected": "share of the reference's wrong pairs that dpo corrected",
}


def voted(here: World, count: int, draws: torch.Generator) -> tuple[Labels, Tensor]:
    """Pairs by the majority of the raters, without ties, and the share of votes (n,) it had."""
    prompts = torch.randint(len(here.features), (4 * count,), generator=draws)
    ahead = here.rewards[prompts, 0] - here.rewards[prompts, 1]
    ballots = torch.rand(4 * count, RATERS, generator=draws, dtype=torch.float64)
    votes = (ballots < ahead.sigmoid()[:, None]).double().mean(1)
    decided = (votes != 0.5).nonzero()[:count, 0]
    prompts, votes = prompts[decided], votes[decided]
    first, second = torch.zeros_like(prompts), torch.ones_like(prompts)
    won = votes > 0.5
    labels = Labels(prompts, torch.where(won, first, second), torch.where(won, second, first))
    return labels, torch.maximum(votes, 1 - votes)


def trained(seed: int, spread: float, steps: int) -> dict[str, float]:
    """The figures of one world, by `NAMES`."""
    loss = objective(f"dpo(beta={BETA})")
    here = world(seed, prompts=2_000, responses=2, features=50, scale=1.5)
    draws = torch.Generator().manual_seed(seed)
    preferred = torch.randn(2_000, 2, generator=draws, dtype=torch.float64)
    here = replace(here, logits=spread * preferred)
    (train, _), (watched, _), (held_out, share) = (
        voted(here, count, draws) for count in (200, 200, 1_000)
    )
    course = list(descend(here, loss, train, steps=steps, rate=0.02))
    theta = min(course, key=lambda one: float(loss(*sides(here, one, watched)).mean()))
    return judged(*sides(here, theta, held_out), share)


def by_raters(
    made: Recipe, asked: Sequence[Instruction], seed: int
) -> tuple[list[Preference], Tensor]:
    """The model's own answers to each instruction, two by two, where they keep the rules
    differently well, by the majority of raters who know how well; and the share of votes (n,)."""
    policy, draw = fresh(made, seed=seed), random.Random(f"votes {seed}")
    often = [prompt(one) for one in asked for _ in range(ANSWERS)]
    seeds = [derive(seed, "answer", number) for number in range(len(often))]
    said = policy.sample(often, seeds, merge=True, **made.sampling)
    kept, shares = [], []
    for number in range(0, len(said), 2):
        first, second = said[number : number + 2]
        one = asked[number // ANSWERS]
        ahead = one.score(text_of(first.response)) - one.score(text_of(second.response))
        chance = 1 / (1 + math.exp(-REWARD * ahead))
        votes = sum(draw.random() < chance for _ in range(RATERS)) / RATERS
        if ahead and votes != 0.5:
            kept.append(pair(first, second) if votes > 0.5 else pair(second, first))
            shares.append(max(votes, 1 - votes))
    return kept, torch.tensor(shares, dtype=torch.float64)


def on_a_transformer(seed: int, options: Options) -> dict[str, float]:
    """The figures of one run of `align` on a tiny Llama, by `NAMES`."""
    made = recipe(quick=options.quick)
    half = len(made.held_out) // 2
    (train, _), (watched, _), (held_out, share) = (
        by_raters(made, asked, seed)
        for asked in (made.train, made.held_out[:half], made.held_out[half:])
    )
    policy, _ = aligned(
        made, train, watched, f"dpo(beta={BETA})", options.out / CLAIM.name / str(seed),
        seed=seed, quick=options.quick, steps=STEPS, eval_every=5,
    )  # fmt: skip
    found = score_pairs(policy, AdapterOff(policy), held_out)
    return judged(found.chosen, found.rejected, share)


def judged(chosen: LogProbs, rejected: LogProbs, share: Tensor) -> dict[str, float]:
    """By `NAMES`, of held-out pairs (n,)."""
    c = difficulty(chosen, rejected)
    return {
        "reference": float((c <= 0).double().mean()),
        "dpo": float(ranking_accuracy(chosen, rejected).mean()),
        "reward": float((chosen.ratio > rejected.ratio).double().mean()),
        "ideal": idealized_ranking_accuracy(c, share, [BETA])[BETA],
        "corrected": flips(chosen, rejected).corrected_share,
    }


def measure(options: Options) -> Outcome:
    steps = 10 if options.quick else 300
    settings = {
        f"reference of {spread:g} nats": [
            trained(seed, spread, steps) for seed in range(options.seeds)
        ]
        for spread in SPREADS
    }
    settings["transformer"] = [
        on_a_transformer(seed, options) for seed in range(min(SEEDS, options.seeds))
    ]
    figures, said, verdicts = [], [], []
    for setting, runs in settings.items():
        found = {name: [run[name] for run in runs] for name in NAMES}
        figures += [figure(setting, words, found[name]) for name, words in NAMES.items()]
        means = {name: over_seeds(values) for name, values in found.items()}
        gap = over_seeds([run["ideal"] - run["dpo"] for run in runs])
        verdicts.append(gap.low > 0.1 and means["corrected"].high < 0.5)
        said.append(
            f"{setting}: reference {means['reference'].value:.1%}, dpo {means['dpo'].value:.1%} "
            f"(reward accuracy {means['reward'].value:.1%}), exact optimum "
            f"{means['ideal'].value:.1%}, gap {gap.value:.1%} [{gap.low:.1%}, {gap.high:.1%}], "
            f"corrected {means['corrected'].value:.1%}"
        )
    _, large, transformer = verdicts
    failed = (
        ""
        if transformer
        else "On the transformer it is not sure that the gap exceeds 10 points and that fewer than "
        "half of the wrong pairs were corrected. "
    )
    return Outcome(
        figures,
        large and transformer,
        f"Ranking accuracy on held-out pairs. {'; '.join(said)}.",
        failed + LIMIT,
    )


LIMIT = (
    "The transformer's gap is more than the paper means: at its least held-out loss it had learned "
    "little of these pairs at all, as its reward accuracy shows. In the exact worlds, where DPO "
    "learned most of what there is, the gap is that between margins and ranks. The paper finds "
    "gaps of 19 to 59 points, and fewer than 10 % of the wrong pairs corrected, for answers that "
    "differ by tens of nats."
)


if __name__ == "__main__":
    run(CLAIM, measure, seeds=10)
