"""FiFA: keep the few pairs with a clear margin, a good prompt, and prompts unlike one another.

Each pair gets an importance, margin + alpha * quality + gamma * log distance to the k-th nearest
other prompt, and the most important are kept. arXiv:2410.10166. Weights and normalisation are not
published word for word; here they are options. Axes: n pairs, p different prompts, d dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mmalign.data.cache import Cache
from mmalign.data_builders.command import as_command
from mmalign.data_builders.expert import RECORD, OptionalJudge
from mmalign.data_builders.importance import Diversity, Selection, Table, Weights, select
from mmalign.data_builders.neighbours import Floats
from mmalign.data_builders.prompt_quality import by_judge, by_model, rubric_hash
from mmalign.errors import BadSample, UserError
from mmalign.files import whole_file
from mmalign.records import Preference, text_of
from mmalign.rewards.embeddings import MINILM, load_embedder
from mmalign.rewards.scorer import Reward
from mmalign.rewards.table import reward as load_reward

Margin = Literal["abs", "signed"]

CHUNK = 256
"""Pairs whose candidates a reward is given at once."""
DEFAULTS = Weights()
NO_JUDGE = OptionalJudge()


def build(
    preferences: Sequence[Preference],
    *,
    embed: Callable[[Sequence[str]], Floats],
    margins_of: Callable[[Sequence[Preference]], Floats] | None = None,
    quality_of: Callable[[Sequence[str]], Sequence[float] | Floats] | None = None,
    keep: float = 0.005,
    margin: Margin = "abs",
    on_disagree: Literal["keep", "drop"] = "keep",
    weights: Weights = DEFAULTS,
    diversity: Diversity = "full-set",
    least_quality: float | None = None,
    max_per_prompt: int | None = None,
    seed: int = 0,
    notes: Mapping[str, Any] | None = None,
    scores: Path | None = None,
) -> Iterator[Preference]:
    """The most important preferences, in their order in the data, with their scores as notes.

    For embedders and rewards in memory; the command is `fifa`, which explains the other options.
    preferences: all are read once to be scored, and those that are kept once more; only numbers
        and the different prompts are held in memory. embed: prompts to points (p d). margins_of:
        how far the reward sees chosen ahead of rejected, (n,); by default the number "margin" that
        comes with the data. quality_of: prompts to their quality; without it, none counts.
    notes: where rewards, embedder and rubric came from.
    Raises UserError when a preference has no margin, or nothing is left to choose from.
    """
    table, prompts = _scored(preferences, margins_of)
    if quality_of is not None:
        table = Table(table.margin, np.asarray(quality_of(prompts))[table.prompt], table.prompt)
    count = max(1, round(keep * len(table.margin))) if keep < 1 else int(keep)
    agreeing = table.margin >= 0
    sized = np.abs(table.margin) if margin == "abs" else table.margin
    may = np.flatnonzero(agreeing) if on_disagree == "drop" else np.arange(len(sized))
    if not len(may):
        raise UserError("no pair is left to choose from", hint="use --on-disagree keep")
    chosen = select(
        Table(sized[may], table.quality[may], table.prompt[may]),
        embed(prompts) if weights.gamma else np.zeros((len(prompts), 1)),
        count,
        weights=weights,
        diversity=diversity,
        least_quality=least_quality,
        max_per_prompt=max_per_prompt,
        seed=seed,
    )
    if scores is not None:
        _write_scores(scores, may, chosen)
    for i in np.flatnonzero(chosen.selected):
        row = int(may[i])
        yield preferences[row].derived(
            "fifa",
            margin=float(table.margin[row]),
            quality=float(chosen.quality[i]),
            diversity=float(chosen.diversity[i]),
            importance=float(chosen.importance[i]),
            **(notes or {}),
        )


def _scored(
    preferences: Iterable[Preference],
    margins_of: Callable[[Sequence[Preference]], Floats] | None,
) -> tuple[Table, list[str]]:
    """Margins and prompts of all pairs; quality is 0 as yet."""
    known: dict[str, int] = {}
    margins: list[float] = []
    places: list[int] = []
    stream = iter(preferences)
    while some := list(islice(stream, CHUNK)):
        for preference in some:
            text = "\n".join(text_of(message.parts) for message in preference.chosen.prompt)
            places.append(known.setdefault(text, len(known)))
        if margins_of is not None:
            margins += margins_of(some).tolist()
            continue
        for preference in some:
            if "margin" not in preference.aux:
                raise UserError(
                    f"record {len(margins)} has no margin in its aux",
                    hint="name a reward to score the candidates with, or build the data with one",
                )
            margins.append(float(preference.aux["margin"]))
    if not margins:
        raise UserError("there are no preferences to choose from")
    places_of = np.asarray(places, np.int64)
    return Table(np.asarray(margins), np.zeros(len(margins)), places_of), list(known)


def _write_scores(path: Path, rows: NDArray[np.int64], found: Selection) -> None:
    """All pairs that could be chosen, kept or not, as a table."""
    columns = {field.name: getattr(found, field.name) for field in fields(found)}
    with whole_file(path) as partial:
        pq.write_table(pa.table({"row": rows, **columns}), partial)


def fifa(
    preferences: Sequence[Preference],
    *,
    reward: str | None = None,
    embedder: str = MINILM,
    quality: OptionalJudge = NO_JUDGE,
    quality_model: str | None = None,
    keep: float = 0.005,
    margin: Margin = "abs",
    on_disagree: Literal["keep", "drop"] = "keep",
    diversity: Diversity = "full-set",
    least_quality: float | None = None,
    max_per_prompt: int | None = None,
    weights: Weights = DEFAULTS,
    scores: Path | None = None,
    cache: Path | None = None,
    seed: int = 0,
) -> Iterator[Preference]:
    """Keep the few pairs with a clear margin, a good prompt, and prompts unlike one another.

    A pair's importance is mu margin + alpha quality + gamma log distance to the k-th nearest other
    prompt. arXiv:2410.10166. Without a judge or a quality model, quality does not count.

    Selection:
        keep: Share of the pairs to keep if below 1, else their number.
        margin: Its size (abs), or with its sign, in which a reward that disagrees with the data
            counts against the pair.
        on_disagree: Whether pairs that the reward orders the other way may be kept at all.
        diversity: full-set measures a prompt's distance to all others, as published; greedy takes
            pair after pair, and measures to those already taken.
        least_quality: Pairs of prompts below it are never kept.
        max_per_prompt: Pairs of one prompt at most.
        seed: Of the index that finds neighbours among many prompts.

    Scores:
        reward: What the margin is measured with, as in --reward pick; by default the number that
            comes with the data.
        embedder: Text encoder for the distances between prompts: Hub id or folder.
        quality_model: Hub id or folder of a language model that rates prompts, in place of a judge.
        scores: Parquet file for the scores of all pairs, kept or not.
        cache: Folder where rewards, embeddings and judgements are kept; by default .cache beside
            the dataset.

    Examples:
        mmalign build fifa pick-a-pic --reward pick --keep 5000 --out selected
        mmalign build fifa pairs --keep 0.01 --judge gpt-4o-mini --least-quality 5 --out selected
    """
    kept = None if cache is None else Cache(cache / "cache.sqlite")
    scorer = None if reward is None else load_reward(reward, cache=kept)
    embed = load_embedder(embedder, cache=kept) if weights.gamma else None
    rate = _rating(quality, quality_model, cache)
    notes = {
        "reward": scorer.name if scorer else None,
        "embedder": embed.name if embed else None,
        "quality_of": (quality.judge or quality_model) if rate else None,
        "rubric": rubric_hash() if rate else None,
        "weights": asdict(weights),
    }
    yield from build(
        preferences,
        embed=embed or (lambda prompts: np.zeros((len(prompts), 1))),
        margins_of=None if scorer is None else partial(margins, scorer),
        quality_of=rate,
        keep=keep,
        margin=margin,
        on_disagree=on_disagree,
        weights=weights,
        diversity=diversity,
        least_quality=least_quality,
        max_per_prompt=max_per_prompt,
        seed=seed,
        notes=notes,
        scores=scores,
    )


def margins(reward: Reward, preferences: Sequence[Preference]) -> NDArray[np.float64]:
    """(n,) How far the reward sees each chosen candidate ahead of the rejected one.

    Raises UserError where a candidate cannot be scored.
    """
    samples = [s for p in preferences for s in (p.chosen, p.rejected)]
    try:
        found = reward(samples).reshape(-1, 2)
    except BadSample as error:
        raise UserError(
            f"{reward.name} cannot score the preferences: {error}",
            hint="`mmalign convert` leaves out records with broken images",
        ) from error
    return found[:, 0] - found[:, 1]


def _rating(
    quality: OptionalJudge, model: str | None, cache: Path | None
) -> Callable[[Sequence[str]], NDArray[np.float64]] | None:
    if quality.judge and model is not None:
        raise UserError("prompts are rated by a judge or by a model", hint="give one of them")
    if quality.judge:
        judge = quality.open((cache or Path()) / RECORD)
        return lambda prompts: by_judge(prompts, judge)
    if model is None:
        return None
    from mmalign.adapters.text import load_text

    adapter = load_text(model)
    return lambda prompts: by_model(prompts, adapter)


command = as_command("fifa", fifa)
