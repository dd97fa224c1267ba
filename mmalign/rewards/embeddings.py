"""Texts as points: sentence embeddings, of length 1, whose inner products tell likeness.

Axes: n texts, d dimensions.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from mmalign.data.cache import Cache, key_of
from mmalign.errors import UserError
from mmalign.rewards.loading import device_of, identity

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
POOLING = "1_Pooling/config.json"
LONGEST = 512

Points = NDArray[np.float32]


@dataclass(frozen=True)
class Embedder:
    """Texts to (n d) points of length 1.

    model: the points of as many texts as batch_size says.
    """

    name: str
    model: Callable[[Sequence[str]], Tensor]
    batch_size: int = 64
    cache: Cache | None = None

    def __call__(self, texts: Sequence[str]) -> Points:
        """(n d). Equal texts are computed once."""
        distinct = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        known = list(distinct)
        # Texts of one length make batches without padding.
        order = sorted(range(len(known)), key=lambda place: len(known[place]))
        points: Points | None = None
        for start in range(0, len(order), self.batch_size):
            some = order[start : start + self.batch_size]
            batch = np.stack(self._batch([known[i] for i in some]))
            if points is None:
                points = np.empty((len(known), batch.shape[1]), np.float32)
            points[some] = batch
        if points is None:
            raise ValueError("there are no texts to embed")
        return points if len(known) == len(texts) else points[[distinct[text] for text in texts]]

    def _batch(self, texts: Sequence[str]) -> list[Points]:
        def compute(places: list[int]) -> list[str]:
            with torch.no_grad():
                found = self.model([texts[place] for place in places]).float().cpu().numpy()
            return [base64.b64encode(point.tobytes()).decode() for point in found]

        if self.cache is None:
            values = compute(list(range(len(texts))))
        else:
            values = self.cache.through([key_of(self.name, text) for text in texts], compute)
        return [np.frombuffer(base64.b64decode(value), np.float32) for value in values]


def load_embedder(
    model: str = MINILM,
    *,
    device: str | None = None,
    batch_size: int = 64,
    cache: Cache | None = None,
) -> Embedder:
    """A text encoder of transformers, pooled as sentence-transformers would.

    model: Hub id or folder. Its first token or the mean of all is taken, as its pooling file says;
        the mean where it has none.
    Raises UserError for what cannot be loaded, and for other kinds of pooling.
    """
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
        net = AutoModel.from_pretrained(model, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise UserError(
            f"transformers cannot load the text encoder {model}: {error}",
            hint="check the name and the network, or give a folder.",
        ) from error
    first = _takes_first(model)
    where = device_of(device)
    net = net.to(where).eval().requires_grad_(False)
    longest = min(tokenizer.model_max_length, LONGEST)

    def points(texts: Sequence[str]) -> Tensor:
        tokens = tokenizer(
            list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(where)
        states = net(**tokens).last_hidden_state  # (n, t, d)
        if first:
            return normalize(states[:, 0], dim=-1)
        mask = tokens["attention_mask"][..., None]
        return normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    return Embedder(f"embedder:{identity(model)}", points, batch_size, cache)


def _takes_first(model: str) -> bool:
    """Whether a sentence is its first token. Raises UserError for what is neither that nor mean."""
    path = Path(model) / POOLING
    if not Path(model).exists():
        try:
            path = Path(hf_hub_download(model, POOLING))
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return False
    if not path.is_file():
        return False
    modes = {name for name, on in json.loads(path.read_text()).items() if on is True}
    chosen = {name for name in modes if name.startswith("pooling_mode_")}
    if chosen == {"pooling_mode_cls_token"}:
        return True
    if chosen - {"pooling_mode_mean_tokens"}:
        raise UserError(f"{model} pools by {', '.join(sorted(chosen))}: mean and first are known")
    return False
