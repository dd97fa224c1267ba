"""The rewards by name, and how they are written: `pick`, `hps(version='v2')`, `pick + 0.5*hps`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mmalign.data.cache import Cache
from mmalign.errors import BadSample, UserError
from mmalign.records import Preference
from mmalign.rewards.aesthetic import aesthetic
from mmalign.rewards.clip import clip
from mmalign.rewards.ensemble import Ensemble, How, calibrate
from mmalign.rewards.hps import hps
from mmalign.rewards.image_reward import image_reward
from mmalign.rewards.judged import judge
from mmalign.rewards.likeness import embeddings
from mmalign.rewards.pick import pick
from mmalign.rewards.rules import rule
from mmalign.rewards.scorer import Floats, Reward
from mmalign.rewards.vqa import vqa

REWARDS: dict[str, Callable[..., Reward]] = {
    "aesthetic": aesthetic,
    "clip": clip,
    "embeddings": embeddings,
    "hps": hps,
    "image_reward": image_reward,
    "judge": judge,
    "pick": pick,
    "rule": rule,
    "vqa": vqa,
}


def reward(
    spec: str,
    *,
    how: How = "zscore",
    labelled: Sequence[Preference] = (),
    cache: Cache | None = None,
) -> Reward:
    """Load the reward, or the ensemble of rewards, that a spec names.

    how: what brings several rewards to one scale. labelled: pairs whose better side is known, which
    "calibrated" learns the scales from. cache: where scores are kept.
    Raises UserError for what is no spec, and where there are no pairs to calibrate on.
    """
    terms = parse(spec)
    loaded = [_load(name, options, cache=cache) for _, name, options in terms]
    if len(terms) == 1 and terms[0][0] == 1:
        return loaded[0]
    weights = tuple(weight for weight, *_ in terms)
    if how != "calibrated":
        return Ensemble(tuple(loaded), weights, how)
    scales = tuple(calibrate(_margins(each, labelled)) for each in loaded)
    return Ensemble(tuple(loaded), weights, how, scales)


def _margins(scorer: Reward, labelled: Sequence[Preference]) -> Floats:
    """(n,) Of the labelled pairs that can be scored. Raises UserError where none can."""
    found = []
    for preference in labelled:
        try:
            better, worse = scorer([preference.chosen, preference.rejected])
        except BadSample:
            continue
        if np.isfinite(better - worse):
            found.append(better - worse)
    if not found:
        raise UserError(
            f"there are no labelled pairs to calibrate {scorer.name} on",
            hint="name a dataset of preferences whose candidates it can score",
        )
    return np.array(found)


def parse(spec: str) -> list[tuple[float, str, dict[str, Any]]]:
    """Weight, name and options of each reward in a spec, which is read and never evaluated."""
    try:
        return _terms(ast.parse(spec.strip(), mode="eval").body)
    except (SyntaxError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{spec!r} is not a reward: {error}",
            hint=f"write NAME or NAME(option=value), as in hps(version='v2'); there are: "
            f"{', '.join(REWARDS)}",
        ) from error


def _terms(node: ast.expr) -> list[tuple[float, str, dict[str, Any]]]:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _terms(left) + _terms(right)
        case ast.BinOp(left=ast.Constant(value=int() | float() as weight), op=ast.Mult()):
            # silenced: mypy loses the tuple's tail
            return [(weight * own, *rest) for own, *rest in _terms(node.right)]  # type: ignore[misc]
        case ast.Name(id=name):
            return [(1.0, name, {})]
        case ast.Call(func=ast.Name(id=name), args=[], keywords=keywords):
            return [(1.0, name, {str(k.arg): ast.literal_eval(k.value) for k in keywords})]
    raise ValueError(f"{ast.unparse(node)} is no name with named options")


def _load(name: str, options: Mapping[str, Any], *, cache: Cache | None) -> Reward:
    if name not in REWARDS:
        raise UserError(f"there is no reward {name!r}", hint=f"there are: {', '.join(REWARDS)}")
    load = REWARDS[name]
    known = [option for option in inspect.signature(load).parameters if option != "cache"]
    cached = {"cache": cache} if "cache" in inspect.signature(load).parameters else {}
    unknown = set(options) - set(known)
    if unknown and name != "rule":  # which takes the options of its rule
        raise UserError(
            f"{name} has no option {', '.join(sorted(unknown))}",
            hint=f"its options are: {', '.join(known)}",
        )
    return load(**options, **cached)
