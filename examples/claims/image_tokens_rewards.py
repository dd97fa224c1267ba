"""Image generation: pairs from a reward that generalises help more on unseen combinations.

Two judges learn from as many labelled pictures of the playground's Janus, one from all prompts to
train on and one from a few. Both see what each cell of a picture shows; what a prompt asks of it
they must learn, a weight for every word of it with every content of a cell. Each chooses the best
and the worst of the same pictures to the same prompts, and as many of these pairs are trained on.
In domain are the few prompts, out of domain combinations that no judge and no training has seen.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _image_tokens import aligned, as_asked, drawn, load, picture, repeated
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from mmalign.pipelines.quickstart_image_tokens import RECIPE, TOKENS
from mmalign.playground.relations import PALETTE, RELATIONS, SHAPES, Asked, Thing, prompts, seen
from mmalign.records import Preference, Sample, pair, thumb

CLAIM = Claim(
    "image_tokens_rewards",
    "DPO with pairs from a reward that generalises makes more pictures of unseen combinations as "
    "asked for than DPO with pairs from a reward that does not.",
    "arXiv:2505.17017",
    "As many pairs of the same pictures by the other reward; fine-tuning on the pictures that the "
    "better reward chose, with the same steps; and no training.",
)
FEW = 8  # prompts of the narrow judge's labels
LABELLED = 2000  # pictures that each judge learns from
GROUPS, GROUP = 4, 4  # of pictures to each training prompt, and pictures in one
STEPS = 100
MEASURED = 16  # pictures to each prompt
WIDE, NARROW = "a reward of all prompts", f"a reward of {FEW} prompts"
CONTROL, BEFORE = "fine-tuning on the former's chosen", "untrained"
CONTENTS = {
    "colour": [*PALETTE, "empty", "unclear"],
    "shape": [*SHAPES, "empty", "unclear"],
}


def measure(options: Options) -> Outcome:
    size = 20 if options.quick else 1  # how many times smaller
    each = 2 if options.quick else MEASURED
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(options.seeds):
        train = prompts("train", seed=seed)
        few, unseen = train[:FEW], prompts("held_out", seed=seed)[::size]
        base = load(seed)
        questions = repeated(train[::size], GROUPS * GROUP)
        samples = drawn(base, questions, seed, "pairs")
        pairs = {}
        for name, known in ((WIDE, train), (NARROW, few)):
            judge = _judge(known, LABELLED // size, seed)
            pairs[name] = _pairs(samples, judge(_features(samples, questions)))
            for where, asked in (("in domain", few), ("out of domain", unseen)):
                told = repeated(asked, each)
                shown = drawn(base, told, seed, f"judged {where}")
                accuracy = _balanced(judge(_features(shown, told)), as_asked(shown, told))
                found.setdefault((name, f"judge's accuracy, {where}"), []).append(accuracy)
        fewest, hand = min(map(len, pairs.values())), random.Random(seed)
        even = {name: hand.sample(made, fewest) for name, made in pairs.items()}
        steps = STEPS // size
        policies = {BEFORE: base} | {
            name: aligned(data, RECIPE.objective, steps, seed) for name, data in even.items()
        }
        chosen = [thumb(one.chosen, up=True) for one in even[WIDE]]
        policies[CONTROL] = aligned(chosen, RECIPE.control, steps, seed)
        for name, policy in policies.items():
            for where, asked in (("in domain", few), ("out of domain", unseen)):
                told = repeated(asked, each)
                right = as_asked(drawn(policy, told, seed, f"measured {where}"), told)
                key = (name, f"pictures as asked for, {where}")
                found.setdefault(key, []).append(float(right.mean()))
    return _outcome(found)


class Judge(nn.Module):
    """A weight for each word of a prompt, by its place there, with each content of each cell."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.EmbeddingBag(_count(), 1, mode="sum")
        self.bias = nn.Parameter(torch.zeros(()))
        nn.init.zeros_(self.weights.weight)

    def forward(self, features: Tensor) -> Tensor:
        """(n k) numbers of features -> (n,) log-odds that a picture is as asked for."""
        logits: Tensor = self.weights(features)[:, 0] + self.bias
        return logits


def _judge(known: Sequence[Asked], labelled: int, seed: int) -> Judge:
    """Logistic regression with a little decay, from pictures of these prompts alone."""
    told = [known[index % len(known)] for index in range(labelled)]
    shown = drawn(load(seed), told, seed, f"labelled {len(known)}")
    features = _features(shown, told)
    labels = torch.tensor(as_asked(shown, told), dtype=torch.float32)
    judge = Judge()
    optimizer = torch.optim.LBFGS(judge.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        decay = 1e-3 * judge.weights.weight.square().sum()
        found = F.binary_cross_entropy_with_logits(judge(features), labels) + decay
        found.backward()
        return found

    optimizer.step(loss)
    return judge.requires_grad_(False)


def _features(samples: Sequence[Sample], asked: Sequence[Asked]) -> Tensor:
    """(n k) for each cell, each of the two things asked for, and each of its two words: which."""
    rows = []
    for sample, one in zip(samples, asked, strict=True):
        row: list[int] = []
        start = 0
        for cell in seen(TOKENS.read(picture(sample))):
            for thing in (one.first, one.second):
                for kind, words in (("colour", PALETTE), ("shape", SHAPES)):
                    shown = getattr(cell, kind) if isinstance(cell, Thing) else cell
                    contents = CONTENTS[kind]
                    place = list(RELATIONS).index(one.relation) * len(words)
                    place += list(words).index(getattr(thing, kind))
                    row.append(start + place * len(contents) + contents.index(shown))
                    start += len(RELATIONS) * len(words) * len(contents)
        rows.append(row)
    return torch.tensor(rows)


def _count() -> int:
    """Of features: 4 cells with 2 things of 2 words, in each relation."""
    words = {"colour": len(PALETTE), "shape": len(SHAPES)}
    each = sum(len(RELATIONS) * words[kind] * len(CONTENTS[kind]) for kind in words)
    return 4 * 2 * each


def _pairs(samples: Sequence[Sample], scores: Tensor) -> list[Preference]:
    """The best against the worst of each group, where the judge tells them apart."""
    pairs = []
    for start in range(0, len(samples), GROUP):
        own = scores[start : start + GROUP]
        best, worst = int(own.argmax()), int(own.argmin())
        if own[best] > own[worst]:
            pairs.append(pair(samples[start + best], samples[start + worst]))
    return pairs


def _balanced(logits: Tensor, right: NDArray[np.bool_]) -> float:
    """Mean of the accuracies on good and on bad pictures; nan without either."""
    said = logits.numpy() > 0
    return float((said[right].mean() + (~said[~right]).mean()) / 2)


def _outcome(found: dict[tuple[str, str], list[float]]) -> Outcome:
    outside = "pictures as asked for, out of domain"
    means = {
        name: over_seeds(found[name, outside]).value for name in (BEFORE, NARROW, WIDE, CONTROL)
    }
    gains = {
        where: float(
            np.mean(found[WIDE, f"pictures as asked for, {where}"])
            - np.mean(found[NARROW, f"pictures as asked for, {where}"])
        )
        for where in ("in domain", "out of domain")
    }
    accuracies = {
        name: np.mean(found[name, "judge's accuracy, out of domain"]) for name in (NARROW, WIDE)
    }
    return Outcome(
        [figure(name, metric, values) for (name, metric), values in found.items()],
        surely_above(found[WIDE, outside], found[NARROW, outside]),
        "Unseen combinations drawn as asked for: "
        + ", ".join(f"{name} {value:.0%}" for name, value in means.items())
        + f". The reward of all prompts is worth {gains['out of domain']:+.1%} there and "
        f"{gains['in domain']:+.1%} on the {FEW} prompts; balanced accuracy on unseen combinations "
        + " and ".join(f"{value:.0%}" for value in accuracies.values())
        + ".",
    )


if __name__ == "__main__":
    run(CLAIM, measure, seeds=5)
