"""Sample several responses per prompt, score them, and prefer the better to the worse."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from mmalign.data_builders.command import as_command
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.pair_rules import Rule, preferences
from mmalign.data_builders.records import Asked
from mmalign.data_builders.sampling import (
    Prompt,
    SampledModel,
    Sampler,
    Sampling,
    cache_in,
    draw,
    load,
)
from mmalign.errors import BadSample, UserError
from mmalign.evaluation.pairs import PairOptions, read_pairs
from mmalign.media import open_image
from mmalign.records import PLAIN, Preference, Provenance, Sample, media_of
from mmalign.rewards.ensemble import How
from mmalign.rewards.scorer import Floats, Reward
from mmalign.rewards.table import reward as load_reward
from mmalign.training.seeds import derive

BEST_AGAINST_WORST = Rule()
AS_THE_MODEL = Sampling()


def build(
    prompts: Sequence[Prompt],
    sampler: Sampler,
    reward: Callable[[int, Sample], float],
    *,
    samples: int = 4,
    least_margin: float = 0.0,
    least_best: float | None = None,
    model: str = "",
    seed: int = 0,
    **options: Any,
) -> Iterator[Preference]:
    """One pair per prompt whose best response beats its worst by more than `least_margin`.

    For models and rewards in memory; the command is `build_pairs`.
    reward: of a response, told which prompt it answers. least_best: reward that the best response
        must reach. model: name of the sampler's model, for the record. options: for `sample`.
    """
    rule = Rule(least_margin=least_margin, least_best=least_best)
    asked = [prompt for prompt in prompts for _ in range(samples)]
    seeds = [
        derive(seed, "reward_pairs", index, number)
        for index in range(len(prompts))
        for number in range(samples)
    ]
    responses = sampler.sample(asked, seeds, **options)
    for index in range(len(prompts)):
        own = responses[index * samples : (index + 1) * samples]
        rewards = [reward(index, response) for response in own]
        source = Provenance(
            builder="reward_pairs",
            models=(model,) if model else (),
            seed=seed,
            details={"rewards": rewards, "prompt": index},
        )
        yield from preferences(own, rewards, rule, source, Random(seed))


def build_pairs(
    prompts: Iterable[Asked],
    *,
    model: SampledModel,
    reward: str,
    how: How = "zscore",
    calibrated_on: str | None = None,
    samples: int = 4,
    rule: Rule = BEST_AGAINST_WORST,
    sampling: Sampling = AS_THE_MODEL,
    chat: bool = False,
    cache: Path | None = None,
    seed: int = 0,
) -> Iterator[Preference | Refused]:
    """Sample several responses per prompt, score them, and prefer the better to the worse.

    Any model that mmalign aligns can be sampled, and any reward or sum of rewards can score, as in
    --reward "pick + 0.5*aesthetic" or --reward "rule(name='word_count', most=50)".

    Reward:
        reward: What scores: aesthetic, clip, embeddings, hps, image_reward, judge, pick, rule or
            vqa, with options in parentheses; several with plus signs and weights.
        how: What brings several rewards to one scale: among the samples of one prompt zscore, rank
            or wins; calibrated, what each one's margins are worth on labelled pairs.
        calibrated_on: Dataset of these pairs (folder, file, glob or hub id); 500 are taken.
        samples: Samples per prompt.

    Sampling:
        chat: Ask prompts that are plain text as a user of a chat.
        cache: Folder where samples and scores are kept, for any build; by default .cache beside
            the dataset.
        seed: Each prompt and number of sample has a seed of its own that follows from this.

    Examples:
        mmalign build reward-pairs prompts.txt --modality image --reward pick --out pairs \\
            --model stable-diffusion-v1-5/stable-diffusion-v1-5
        mmalign build reward-pairs prompts.jsonl --model ./policy --chat --samples 8 \\
            --reward "rule(name='word_count', most=60)" --rule margin --least-margin 0.2 --out pairs
    """
    kept = cache_in(cache)
    scorer = _reward(reward, how, calibrated_on, cache)
    asked: list[Asked] = []
    for each in prompts:
        if reason := _unreadable(each):
            yield Refused(each.id, reason, "images")
        else:
            asked.append(each)
    messages = [_as_chat(each.messages) if chat else each.messages for each in asked]
    drawn = draw(
        functools.partial(load, model),
        f"{model.modality}/{model.precision}/{model.name}",
        [prompt for prompt in messages for _ in range(samples)],
        [derive(seed, "reward_pairs", each.id, n) for each in asked for n in range(samples)],
        sampling,
        kept,
    )
    scores = _scored(scorer, drawn)
    for place, each in enumerate(asked):
        own = slice(place * samples, (place + 1) * samples)
        rewards = [float(score) for score in scores[own]]
        source = Provenance(
            builder="reward_pairs",
            parents=(each.id,),
            models=(model.name, scorer.name),
            seed=seed,
            details={"rewards": [None if np.isnan(r) else r for r in rewards], "rule": rule.rule},
        )
        made = preferences(drawn[own], rewards, rule, source, Random(derive(seed, each.id)))
        if not made:
            yield Refused(each.id, _why_not(rewards, rule))
        yield from made


def _unreadable(asked: Asked) -> str:
    """What is wrong with an image of the prompt; found before anything is sampled for others."""
    try:
        for media in media_of(asked.messages):
            if media.kind == "image":
                open_image(media)
    except BadSample as error:
        return str(error)
    return ""


def _scored(scorer: Reward, drawn: Sequence[Sample]) -> Floats:
    """(n,) nan for samples that the reward cannot take."""
    try:
        return scorer(drawn)
    except BadSample:
        if len(drawn) == 1:
            return np.array([np.nan])
    return np.concatenate([_scored(scorer, [sample]) for sample in drawn])


def _why_not(rewards: Sequence[float], rule: Rule) -> str:
    scored = [reward for reward in rewards if not np.isnan(reward)]
    if len(scored) < 2:
        return f"{len(scored)} of {len(rewards)} samples could be scored, and two are compared"
    return (
        f"the rule {rule.rule} makes no pair of rewards from {min(scored):.4g} to {max(scored):.4g}"
    )


def _as_chat(messages: Prompt) -> Prompt:
    return tuple(replace(m, role="user") if m.role == PLAIN else m for m in messages)


@functools.lru_cache(maxsize=1)
def _reward(spec: str, how: How, calibrated_on: str | None, cache: Path | None) -> Reward:
    """The reward, loaded once in this process."""
    if (how == "calibrated") != (calibrated_on is not None):
        raise UserError(
            "a calibrated ensemble needs labelled pairs, and no other does",
            hint="give both --how calibrated and --calibrated-on DATASET",
        )
    pairs = [] if calibrated_on is None else read_pairs(PairOptions(data=calibrated_on))
    return load_reward(spec, how=how, labelled=pairs, cache=cache_in(cache))


command = as_command("reward-pairs", build_pairs, chunk=16)
