"""Which preferences a model's likelihoods are judged on, as groups of options for the suites."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mmalign.adapters.loading import Modality
from mmalign.data.opening import open_dataset, parse_columns
from mmalign.errors import UserError
from mmalign.records import Preference


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """Which model judges the pairs, and which one it is compared with.

    Args:
        model: Hub id or folder of the model.
        adapter: Folder of a LoRA on the model; the reference is then the model without it.
        reference: The model before alignment, where it is not the one without its adapter.
        modality: What it makes: text, vlm (text about images), image or video (denoisers), or
            image-tokens; auto is text, or vlm where the prompts hold images.
        precision: Arithmetic and weights.
        draws: Timesteps and noises that a denoiser's likelihoods are averaged over.
    """

    model: str
    adapter: str | None = None
    reference: str | None = None
    modality: Modality | Literal["auto"] = "auto"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    draws: int = 10


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Which pairs.

    Args:
        data: Folder, file or hub id of a dataset of preferences, best kept out of training.
        split: Split of a hub dataset.
        columns: Columns that go by other names, as in chosen=better rejected=worse.
        limit: Take so many pairs only, the first ones.
        micro_batch: Elements that go through the model at once.
        seed: Of the timesteps and noise of denoisers.
    """

    data: str
    split: str | None = None
    columns: list[str] | None = None
    limit: int | None = 500
    micro_batch: int = 8192
    seed: int = 0


def read_pairs(options: PairOptions) -> list[Preference]:
    """Preferences with a better and a worse candidate. Raises UserError where there are none."""
    columns = parse_columns(options.columns)
    stream = open_dataset(options.data, split=options.split, columns=columns, streaming=True)
    kept: list[Preference] = []
    for _, record in stream.checked():
        if isinstance(record, Preference) and record.grades[0] > record.grades[-1]:
            kept.append(record)
        if len(kept) == options.limit:
            break
    if not kept:
        raise UserError(
            f"{options.data} holds no preference with a better and a worse response",
            hint="`mmalign inspect` shows what is in it",
        )
    return kept
