"""VideoDPO in miniature, on the filmer of the video quickstart.

The filmer's own videos are scored for how clean the frames are, how steadily they follow one
another, and how much of the prompt they show; the sum, the OmniScore, decides which two of a
prompt's videos make a pair. What counts are the scores of videos to prompts that no training saw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import torch
from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above

from mmalign.adapters.loading import load_adapter
from mmalign.adapters.protocol import Adapter
from mmalign.data_builders.pair_rules import Rule, preferences
from mmalign.objectives import objective
from mmalign.pipelines.quickstart_video import RECIPE, VIDEOS
from mmalign.playground.pictures import palette
from mmalign.playground.tiny_filmer import TINY_FILMER
from mmalign.playground.videos import STEP, Frames, Motion, motions, score
from mmalign.records import Media, Preference, Provenance, Sample, thumb
from mmalign.training.align import align
from mmalign.training.seeds import derive

CLAIM = Claim(
    "video_dpo",
    "DPO on best against worst by a sum of visual quality and text alignment, in which rare pairs "
    "weigh more, raises both, and their sum more than fine-tuning on the best videos does.",
    "arXiv:2412.14167",
    "Fine-tuning on the chosen videos, same data, steps and LoRA; the same pairs with equal "
    "weights; pairs by text alignment alone; the model before.",
)
BEFORE, WEIGHTED, EQUAL = "before", "OmniScore, rare pairs weigh more", "OmniScore, equal weights"
ALIGNMENT, CONTROL = "text alignment alone", "fine-tuning on the best (control)"
OMNI = "OmniScore"
BETA, ANCHOR = 500.0, 20
SPEC = f"dpo(beta={BETA}) + {ANCHOR}*nll()"
GAMMA, USUAL, BINS = 0.5, 0.72, 10
"""A pair weighs (USUAL / p)^GAMMA, p the share of pairs whose margin is in the same of BINS. The
released settings have gamma 0."""


@dataclass(frozen=True)
class Size:
    """rounds: pairs of each prompt. samples: videos that a pair is chosen from. measured: videos of
    each unseen prompt."""

    rounds: int = 3
    samples: int = 6
    measured: int = 8
    steps: int = 40


def measure(options: Options) -> Outcome:
    size = Size(1, 3, 1, 2) if options.quick else Size()
    found: dict[str, dict[str, list[float]]] = {}
    for seed in range(options.seeds):
        for setting, values in _settings(size, options.out / CLAIM.name / str(seed), seed).items():
            for metric, value in values.items():
                found.setdefault(setting, {}).setdefault(metric, []).append(value)
    return _outcome(found)


def _settings(size: Size, out: Path, seed: int) -> dict[str, dict[str, float]]:
    """The scores of every setting's videos, for one seed."""
    policy = _fresh(seed)
    measured = {BEFORE: _measured(policy, size, seed)}
    omni, alignment = _pairs(policy, size, seed)
    trained: dict[str, tuple[str, Sequence[Preference]]] = {
        WEIGHTED: (f"importance(dpo(beta={BETA})) + {ANCHOR}*nll()", omni),
        EQUAL: (SPEC, omni),
        ALIGNMENT: (SPEC, alignment),
        CONTROL: (RECIPE.control, [thumb(pair.chosen, up=True) for pair in omni]),
    }
    training = replace(RECIPE.training, steps=size.steps, batch_size=16, seed=seed)
    for number, (setting, (loss, data)) in enumerate(trained.items()):
        policy = _fresh(seed)
        align(policy, data, (), objective(loss), training, out / str(number))
        measured[setting] = _measured(policy, size, seed)
    return measured


def _fresh(seed: int) -> Adapter:
    torch.manual_seed(derive(seed, "lora"))
    return load_adapter(
        VIDEOS.modality, str(TINY_FILMER), lora={"r": RECIPE.lora_rank}, **VIDEOS.loading
    )


def _pairs(policy: Adapter, size: Size, seed: int) -> tuple[list[Preference], list[Preference]]:
    """Best against worst by the OmniScore, and by text alignment alone, of the same videos."""
    prompts = motions("train", seed=seed) * size.rounds
    asked = [motion for motion in prompts for _ in range(size.samples)]
    films = _films(policy, asked, derive(seed, "pairs"))
    made: dict[str, list[Preference]] = {OMNI: [], "alignment": []}
    for start in range(0, len(asked), size.samples):
        own = films[start : start + size.samples]
        judged = [scores(VIDEOS.read(_media(film)), asked[start]) for film in own]
        for metric, pairs in made.items():
            rewards = [each[metric] for each in judged]
            pairs += preferences(own, rewards, Rule(), Provenance("video_dpo"), Random(seed))
    return weighted(made[OMNI]), made["alignment"]


def weighted(pairs: list[Preference]) -> list[Preference]:
    """The pairs, heavier where few have such a margin; the weights' mean is 1."""
    margins = np.array([pair.aux["margin"] for pair in pairs])
    bins = np.digitize(margins, np.linspace(margins.min(), margins.max(), BINS + 1)[1:-1])
    share = Counter(bins.tolist())
    weights = np.array([(USUAL * len(pairs) / share[each]) ** GAMMA for each in bins.tolist()])
    weights /= weights.mean()
    return [
        replace(pair, aux={**pair.aux, "weight": float(weight)})
        for pair, weight in zip(pairs, weights, strict=True)
    ]


def scores(frames: Frames, asked: Motion) -> dict[str, float]:
    """quality: mean of how clean and how steady the video is, 0 .. 1. alignment: share of the
    prompt's words that it shows. OmniScore: their sum."""
    quality = (_clean(frames) + _steady(frames)) / 2
    alignment = score(frames, asked)
    return {"quality": quality, "alignment": alignment, OMNI: quality + alignment}


def _clean(frames: Frames) -> float:
    """Share of the painted pixels that have the video's main colour."""
    counts = np.bincount(np.concatenate([palette(frame).ravel() for frame in frames]))[1:]
    return float(counts.max() / counts.sum()) if counts.any() else 0.0


def _steady(frames: Frames) -> float:
    """1 where the shape keeps its size and moves as far from each frame to the next; 0 where it is
    missing in one."""
    shapes = [np.argwhere(palette(frame) > 0) for frame in frames]
    if not all(len(shape) for shape in shapes):
        return 0.0
    areas = np.array([len(shape) for shape in shapes])
    moves = np.diff([shape.mean(0) for shape in shapes], axis=0)
    uneven = np.linalg.norm(moves - moves.mean(0), axis=1).mean() / STEP
    return float(max(0.0, 1 - areas.std() / areas.mean() - uneven))


def _measured(policy: Adapter, size: Size, seed: int) -> dict[str, float]:
    asked = [motion for motion in motions("held_out") for _ in range(size.measured)]
    films = _films(policy, asked, derive(seed, "unseen"))
    judged = [
        scores(VIDEOS.read(_media(film)), motion) for film, motion in zip(films, asked, strict=True)
    ]
    return {metric: float(np.mean([each[metric] for each in judged])) for metric in judged[0]}


def _films(policy: Adapter, asked: Sequence[Motion], seed: int) -> list[Sample]:
    seeds = [derive(seed, "film", place) for place in range(len(asked))]
    return policy.sample([motion.prompt for motion in asked], seeds, **VIDEOS.sampling)


def _media(film: Sample) -> Media:
    (part,) = film.response
    assert isinstance(part, Media)
    return part


def _outcome(found: dict[str, dict[str, list[float]]]) -> Outcome:
    videodpo, before = found[WEIGHTED], found[BEFORE]
    omni = {setting: values[OMNI] for setting, values in found.items()}
    gain = over_seeds([a - b for a, b in zip(omni[WEIGHTED], omni[CONTROL], strict=True)])
    by_weight = over_seeds([a - b for a, b in zip(omni[WEIGHTED], omni[EQUAL], strict=True)])
    means = ", ".join(
        f"{setting} {over_seeds(values['quality']).value:.3f} / "
        f"{over_seeds(values['alignment']).value:.3f}"
        for setting, values in found.items()
    )
    return Outcome(
        [
            figure(setting, metric, values)
            for setting, metrics in found.items()
            for metric, values in metrics.items()
        ],
        surely_above(videodpo["quality"], before["quality"])
        and surely_above(videodpo["alignment"], before["alignment"])
        and surely_above(omni[WEIGHTED], omni[CONTROL]),
        f"Quality / alignment on unseen prompts: {means}.",
        f"OmniScore of VideoDPO less that of the control {gain.value:+.3f} [{gain.low:+.3f}, "
        f"{gain.high:+.3f}], less that with equal weights {by_weight.value:+.3f} "
        f"[{by_weight.low:+.3f}, {by_weight.high:+.3f}]. The objective is {SPEC}: "
        "DPO with an anchor, which the paper's has not.",
    )


if __name__ == "__main__":
    run(CLAIM, measure, seeds=3)
