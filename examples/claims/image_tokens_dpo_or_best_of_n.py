"""Image generation: from how many pictures on training by DPO pays.

The playground's Janus learns from its own pictures as in the quickstart, in a quarter of the steps,
and draws one picture to each prompt of unseen combinations. For as much computing, training
included, the untrained one draws several and the exact checker keeps the best. Costs are in drawn
pictures: drawing takes a picture's codes through the model once, a step of training three times,
and once more for the reference. Three seeds left it open; the fourth was added after them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _image_tokens import aligned, as_asked, drawn, load, repeated
from numpy.typing import NDArray

from mmalign.pipelines.quickstart_image_tokens import RECIPE
from mmalign.playground.relations import prompts
from mmalign.records import Preference, Sample, pair, thumb

FEW, MANY = 1_000, 100_000  # pictures that are wanted
CLAIM = Claim(
    "image_tokens_dpo_or_best_of_n",
    f"For as much computing, DPO makes more of {MANY:,} pictures as asked for than best-of-n does, "
    f"and best-of-n more of {FEW:,}.",
    "arXiv:2505.17017",
    "Best-of-n of the untrained model, whose n is what training cost, with the exact checker to "
    "choose by; fine-tuning on the chosen pictures with the same steps stands beside them.",
)
STEPS, ROUNDS = 100, 8  # of training, and groups of pictures to each of its prompts
WANTED = (FEW, 10_000, MANY)
UNTRAINED, TRAINED = 40, 24  # pictures to each unseen prompt
DPO, CONTROL, BEFORE = "DPO", "fine-tuning on the chosen", "untrained"


def measure(options: Options) -> Outcome:
    size = 20 if options.quick else 1  # how many times smaller
    steps = STEPS // size
    shares: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        train, asked = prompts("train", seed=seed)[::size], prompts("held_out", seed=seed)[::size]
        questions, base = train * ROUNDS, load(seed)
        answered = repeated(questions, RECIPE.samples)
        samples = drawn(base, answered, seed, "pairs")
        cost = len(samples) + 4 * 2 * RECIPE.training.batch_size * steps
        pairs = right_against_wrong(samples, as_asked(samples, answered), RECIPE.samples)
        chosen = [thumb(each.chosen, up=True) for each in pairs]
        found = {
            DPO: aligned(pairs, RECIPE.objective, steps, seed),
            CONTROL: aligned(chosen, RECIPE.control, steps, seed),
        }
        for name, policy in found.items():
            told = repeated(asked, TRAINED)
            right = as_asked(drawn(policy, told, seed, "measured"), told)
            shares.setdefault(name, []).append(float(right.mean()))
        told = repeated(asked, UNTRAINED)
        right = as_asked(drawn(base, told, seed, "measured"), told)
        counts = right.reshape(len(asked), UNTRAINED).sum(1).tolist()
        shares.setdefault(BEFORE, []).append(best_of(counts, 1.0))
        for wanted in WANTED:
            shares.setdefault(_best(wanted), []).append(best_of(counts, 1 + cost / wanted))
    return _outcome(shares, cost)


def right_against_wrong(
    samples: Sequence[Sample], right: NDArray[np.bool_], each: int
) -> list[Preference]:
    """The first picture that is as asked for against the first that is not, wherever `each`
    pictures in a row, which answer one prompt, hold both."""
    pairs = []
    for start in range(0, len(samples), each):
        own = right[start : start + each]
        if own.any() and not own.all():
            best, worst = start + int(own.argmax()), start + int(own.argmin())
            pairs.append(pair(samples[best], samples[worst]))
    return pairs


def best_of(counts: Sequence[int], n: float) -> float:
    """The expected share of prompts with a good picture among n, a mixture of two numbers where n
    is none. counts: good ones of UNTRAINED pictures to each prompt."""
    n = min(n, UNTRAINED)
    low, high = math.floor(n), math.ceil(n)
    shares = [
        np.mean([1 - math.comb(UNTRAINED - c, k) / math.comb(UNTRAINED, k) for c in counts])
        for k in (low, high)
    ]
    return float(shares[0] + (n - low) * (shares[1] - shares[0]))


def _best(wanted: int) -> str:
    return f"best-of-n for {wanted:,} pictures"


def _outcome(shares: dict[str, list[float]], cost: int) -> Outcome:
    means = {name: over_seeds(values).value for name, values in shares.items()}
    each = {_best(wanted): 1 + cost / wanted for wanted in WANTED}
    told = {name: f"{name} (n = {each[name]:.1f})" if name in each else name for name in shares}
    pays, costs = (
        surely_above(shares[DPO], shares[_best(MANY)]),
        surely_above(shares[_best(FEW)], shares[DPO]),
    )
    return Outcome(
        [figure(told[name], "pictures as asked for", values) for name, values in shares.items()],
        pays and costs,
        "Unseen combinations drawn as asked for: "
        + ", ".join(f"{told[name]} {value:.0%}" for name, value in means.items())
        + f". Training cost as much as {cost:,} pictures.",
        details={"cost in drawn pictures": cost},
    )


if __name__ == "__main__":
    run(CLAIM, measure, seeds=4)
