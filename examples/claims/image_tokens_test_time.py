"""Image generation: half-drawn pictures are looked at, and only the promising ones finished.

On combinations that were never trained on, the playground's Janus draws one picture; the best of n;
and the best of many begun pictures of which only the promising ones were finished (potential
assessment). The reward is the exact checker, and the potential what it says of upper halves. How
many are begun and finished was chosen on prompts of "tuning".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above

from mmalign.adapters.image_tokens import ImageTokenAdapter, load_image_tokens
from mmalign.adapters.image_tokens.search import Assessment, Chosen, best_of
from mmalign.media import open_image
from mmalign.playground.relations import Asked, Pixels, promise, prompts, score
from mmalign.playground.tiny_janus import TINY_JANUS
from mmalign.records import Media
from mmalign.training.seeds import derive

CLAIM = Claim(
    "image_tokens_test_time",
    "Looking at half-drawn pictures and finishing the promising ones finds more pictures that are "
    "as asked for than best-of-n for as many codes.",
    "arXiv:2501.13926",
    "Best-of-n with the same reward and as many codes.",
)
CODES, ROWS = 36, 6
BEGUN, FINISHED = 6, 4
SAME = (BEGUN + FINISHED) // 2
"""6 upper halves and 4 lower ones are as many codes as 5 pictures."""
ASSESSED, CONTROL = f"{BEGUN} begun, {FINISHED} finished", f"best of {SAME}"


def measure(options: Options) -> Outcome:
    size = 20 if options.quick else 1  # how many times smaller
    shares: dict[str, list[float]] = {}
    costs: dict[str, float] = {}
    base = load_image_tokens(TINY_JANUS)
    for seed in range(options.seeds):
        asked = prompts("held_out", seed=seed)[::size]
        for name, chosen in _searches(base, asked, seed).items():
            shares.setdefault(name, []).append(float(np.mean(chosen.rewards)))
            costs[name] = chosen.codes / CODES / len(asked)
    return _outcome(shares, costs)


def _searches(policy: ImageTokenAdapter, asked: list[Asked], seed: int) -> dict[str, Chosen]:
    found = {f"best of {n}": _search(policy, asked, seed, n, []) for n in (1, 2, SAME, BEGUN)}
    halfway = [Assessment(ROWS // 2, FINISHED)]
    return found | {ASSESSED: _search(policy, asked, seed, BEGUN, halfway)}


def _search(
    policy: ImageTokenAdapter,
    asked: list[Asked],
    seed: int,
    begun: int,
    assessments: Sequence[Assessment],
) -> Chosen:
    """Rewards are 1 for pictures that are as asked for, and 0 for others."""
    return best_of(
        policy,
        [one.prompt for one in asked],
        [[derive(seed, "search", i, draw) for draw in range(begun)] for i in range(len(asked))],
        lambda prompt, sample: float(score(_pixels(sample.response[-1]), asked[prompt]) == 1),
        assessments=assessments,
        potential=lambda prompt, part: promise(_pixels(part), asked[prompt]),
        batch_size=128,
    )


def _pixels(picture: object) -> Pixels:
    assert isinstance(picture, Media)
    return np.asarray(open_image(picture))


def _outcome(shares: dict[str, list[float]], costs: dict[str, float]) -> Outcome:
    figures = [figure(name, "pictures as asked for", values) for name, values in shares.items()]
    means = {name: over_seeds(values).value for name, values in shares.items()}
    return Outcome(
        figures,
        surely_above(shares[ASSESSED], shares[CONTROL]),
        "Unseen combinations drawn as asked for: "
        + ", ".join(f"{name} {value:.0%}" for name, value in means.items())
        + f". The last took {costs[ASSESSED]:.1f} pictures' codes a prompt.",
        details={"cost in drawn pictures": costs},
    )


if __name__ == "__main__":
    run(CLAIM, measure, seeds=16)
