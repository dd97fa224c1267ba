"""FiFA: a few per cent of noisy preferences, chosen well, train as well as all of them.

The tiny language model answers "name three fruits" and the like. Its preferences are as crowds give
them: the closer two answers, the more labels are wrong; most prompts are about two popular kinds of
things; a quarter is word salad, about which the crowd prefers whatever is longer and the reward
model has strong opinions. FiFA sees what it would see of real data: a noisy reward's margins, a
noisy rating of the prompts, and the prompts.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above

from mmalign.adapters.text import load_text
from mmalign.data_builders.fifa import build
from mmalign.data_builders.importance import Weights
from mmalign.objectives import objective
from mmalign.playground.instructions import Instruction
from mmalign.playground.lists import NUMBERS, THINGS, instruction, lists, vocabulary
from mmalign.playground.tiny_language_model import tiny_language_model
from mmalign.records import Message, Preference, Sample, Text, pair, text_of, thumb
from mmalign.training.align import align
from mmalign.training.options import TrainingOptions
from mmalign.training.seeds import derive

CLAIM = Claim(
    "fifa",
    "A few per cent of noisy preferences, selected by margin, prompt quality and diversity, train "
    "at least as well as all of them in a fraction of the steps, and each of the three helps.",
    "arXiv:2410.10166",
    "The same number of pairs at random; the selection without each of its terms; fine-tuning on "
    "the chosen answers of the selection; all with the selection's steps.",
)
OBJECTIVE = "dpo(beta=0.3) + 0.2*nll()"
PAIRS, KEEP, SALAD, SAMPLES = 6000, 240, 0.25, 8
STEPS, FULL_STEPS = 30, 165
TEMPERATURE = 0.06
"""Of the labels: answers whose scores differ by this much are ordered wrongly in 27 % of pairs."""
POPULAR = ("fruits", "animals")
SHARE = 0.8  # of the prompts that are about them
SELECTIONS = {
    "selected": Weights(normalise="zscore", mu=1.0, alpha=2.0, gamma=0.5),
    "without margin": Weights(normalise="zscore", mu=0.0, alpha=2.0, gamma=0.5),
    "without quality": Weights(normalise="zscore", mu=1.0, alpha=0.0, gamma=0.5),
    "without diversity": Weights(normalise="zscore", mu=1.0, alpha=2.0, gamma=0.0),
}


def measure(options: Options) -> Outcome:
    base = tiny_language_model(options.out / "tiny-language-model", seed=0)
    found: dict[str, list[float]] = {}
    kept: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        pairs, salad = crowd(base, seed, quick=options.quick)
        data: dict[str, Sequence[Preference]] = {"all": pairs}
        data["random"] = random.Random(f"random {seed}").sample(pairs, _count(pairs))
        for name, weights in SELECTIONS.items():
            data[name] = selection(pairs, weights, seed)
            kept.setdefault(f"{name}: word salad", []).append(_share(data[name], salad))
        data["all, as few steps"] = pairs
        data["chosen alone"] = [thumb(each.chosen, up=True) for each in data["selected"]]
        for name, some in data.items():
            spec = "nll()" if name == "chosen alone" else OBJECTIVE
            steps = FULL_STEPS if name == "all" else STEPS
            out = options.out / "fifa" / f"{name}-{seed}{'-quick' if options.quick else ''}"
            score = trained(base, some, spec, 2 if options.quick else steps, out, seed)
            found.setdefault(name, []).append(score)
        found.setdefault("before", []).append(satisfied(load_text(base), seed))
    figures = [figure(name, "instructions obeyed", values) for name, values in found.items()]
    figures += [figure(*name.split(": "), values) for name, values in kept.items()]
    selected = found["selected"]
    reasons = {
        "all of the data is surely better": not surely_above(found["all"], selected),
        "as many pairs at random do as well": surely_above(selected, found["random"]),
        "fine-tuning on the chosen does as well": surely_above(selected, found["chosen alone"]),
    } | {
        f"{name.removeprefix('without ')} adds nothing that is sure": surely_above(
            selected, found[name]
        )
        for name in SELECTIONS
        if name != "selected"
    }
    words = ", ".join(f"{name} {over_seeds(values).value:.1%}" for name, values in found.items())
    return Outcome(
        figures,
        all(reasons.values()),
        f"Unseen instructions obeyed: {words}.",
        "; ".join(reason for reason, fine in reasons.items() if not fine).capitalize(),
        {"pairs": PAIRS, "kept": KEEP, "steps": STEPS, "steps on all": FULL_STEPS},
    )


def crowd(base: Path, seed: int, *, quick: bool) -> tuple[list[Preference], set[str]]:
    """Noisy preferences with the reward's margin and the prompt's rating in aux, and which prompts
    are word salad."""
    draw = random.Random(f"crowd {seed}")
    asked = [*lists("train", seed=seed), *_salad(draw, 150)]
    popular = [one for one in asked if one.kind in POPULAR]
    rare = _few_of_each([one for one in asked if one.kind not in (*POPULAR, "salad")])
    salad = [one for one in asked if one.kind == "salad"]
    answers = _answers(base, [*popular, *rare, *salad], seed)
    pairs = []
    for _ in range(200 if quick else PAIRS):
        crowd_ = salad if draw.random() < SALAD else popular if draw.random() < SHARE else rare
        one = draw.choice(crowd_)
        first, second = draw.sample(answers[one.text], 2)
        if first != second:
            pairs.append(_labelled(one, first, second, draw))
    return pairs, {one.text for one in salad}


def _labelled(one: Instruction, first: str, second: str, draw: random.Random) -> Preference:
    if one.kind == "salad":
        better = len(first.split()) - len(second.split()) + 0.1 * draw.gauss(0, 1)
        margin, rating = draw.gauss(0, 0.4), 2 + draw.gauss(0, 1)
    else:
        gap = one.score(first) - one.score(second)
        logistic = -np.log(1 / draw.uniform(1e-9, 1 - 1e-9) - 1)
        better = gap + TEMPERATURE * logistic
        margin, rating = gap + 0.05 * draw.gauss(0, 1), 8 + draw.gauss(0, 1)
    if better < 0:
        first, second, margin = second, first, -margin
    prompt = _prompt(one.text)
    samples = (Sample(prompt, (Text(text),)) for text in (first, second))
    return pair(*samples, aux={"margin": float(margin), "quality": float(rating)})


def selection(pairs: Sequence[Preference], weights: Weights, seed: int) -> list[Preference]:
    ratings: dict[str, list[float]] = {}
    for each in pairs:
        ratings.setdefault(_text(each), []).append(each.aux["quality"])
    return list(
        build(
            pairs,
            embed=words_counted,
            quality_of=lambda prompts: [float(np.mean(ratings[text])) for text in prompts],
            keep=_count(pairs),
            weights=weights,
            seed=seed,
        )
    )


def words_counted(prompts: Sequence[str]) -> Any:
    """(p d) How often each word of the little world stands in a prompt, at length 1."""
    places = {word: place for place, word in enumerate(vocabulary())}
    points = np.zeros((len(prompts), len(places)), np.float32)
    for row, text in enumerate(prompts):
        for word in text.split():
            points[row, places[word]] += 1
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def trained(
    base: Path, data: Sequence[Preference], spec: str, steps: int, out: Path, seed: int
) -> float:
    """Share of unseen instructions that the trained model obeys; kept in a file, so that a stopped
    script goes on."""
    score = out / "obeyed.json"
    if score.exists():
        return float(json.loads(score.read_text()))
    torch.manual_seed(derive(seed, "lora"))
    policy = load_text(base, lora={"r": 16})
    options = TrainingOptions(steps=steps, batch_size=32, learning_rate=3e-3, seed=seed)
    align(policy, data, (), objective(spec), options, out, resume=False)
    obeyed = satisfied(policy, seed)
    score.write_text(json.dumps(obeyed))
    return obeyed


def satisfied(policy: Any, seed: int) -> float:
    asked = lists("held_out", seed=seed)
    drawn = policy.sample(
        [_prompt(one.text) for one in asked],
        range(len(asked)),
        max_new_tokens=8,
        temperature=1.0,
        batch_size=100,
    )
    right = (one.satisfied(text_of(s.response)) for one, s in zip(asked, drawn, strict=True))
    return sum(right) / len(asked)


def _answers(base: Path, asked: Sequence[Instruction], seed: int) -> dict[str, list[str]]:
    prompts = [_prompt(one.text) for one in asked for _ in range(SAMPLES)]
    seeds = [derive(seed, "crowd", i) for i in range(len(prompts))]
    drawn = load_text(base).sample(
        prompts, seeds, max_new_tokens=8, temperature=1.0, batch_size=100
    )
    texts = [text_of(sample.response) for sample in drawn]
    return {one.text: texts[i * SAMPLES : (i + 1) * SAMPLES] for i, one in enumerate(asked)}


def _salad(draw: random.Random, count: int) -> list[Instruction]:
    """Words of the little world in no order; their rules are never asked for."""
    words = vocabulary()
    rules = instruction("", next(iter(NUMBERS)), next(iter(THINGS))).rules
    texts = {" ".join(draw.choices(words, k=draw.randint(3, 6))) for _ in range(count)}
    return [Instruction(text, "salad", rules) for text in sorted(texts)]


def _few_of_each(asked: Sequence[Instruction]) -> list[Instruction]:
    """Three wordings of each kind."""
    kinds: dict[str, list[Instruction]] = {}
    for one in asked:
        kinds.setdefault(one.kind, []).append(one)
    return [one for some in kinds.values() for one in some[:3]]


def _share(some: Sequence[Preference], salad: set[str]) -> float:
    return sum(_text(each) in salad for each in some) / len(some)


def _count(pairs: Sequence[Preference]) -> int:
    return min(KEEP, len(pairs) // 10)


def _text(preference: Preference) -> str:
    return text_of(preference.chosen.prompt[0].parts)


def _prompt(text: str) -> tuple[Message, ...]:
    return (Message("user", (Text(text),)),)


if __name__ == "__main__":
    run(CLAIM, measure, seeds=8)
