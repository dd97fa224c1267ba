"""Near-duplicates: perceptual hashes of images, fingerprints of texts, and finding what is near.

The hash is of the image's coarse shades: scaling, compression and small changes of colour leave
nearly all of its 64 bits as they are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
SIDE = 32
ROWS = 256
"""Hashes that are compared with others at once."""
RUN = 13
"""Words in a row that two texts share only if one has seen the other: GPT-3's rule."""


def perceptual_hash(image: Image.Image) -> int:
    """64 bits: which of the 8 x 8 lowest frequencies of the grey image lie above their median."""
    grey = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    low = _COSINES @ np.asarray(grey, np.float64) @ _COSINES.T
    bits = (low > np.median(low.ravel()[1:])).ravel()  # the first is the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def _cosines() -> np.ndarray:
    """(8 32) The lowest frequencies of the discrete cosine transform, without its scale."""
    frequency, place = np.arange(8)[:, None], np.arange(SIDE)
    return np.cos(np.pi * frequency * (2 * place + 1) / (2 * SIDE))


_COSINES = _cosines()


class Nearby:
    """Hashes that have been seen, in groups of those that differ in few bits.

    Of hashes that differ in at most `distance` bits, one of distance + 1 pieces is equal: only
    hashes that share a piece are compared.
    """

    def __init__(self, distance: int) -> None:
        self.distance = distance
        self._pieces = _pieces(distance)
        self._seen: dict[tuple[int, int], list[int]] = {}

    def add(self, hash_: int) -> None:
        """Remember a hash."""
        for key in self._keys(hash_):
            self._seen.setdefault(key, []).append(hash_)

    def near(self, hash_: int) -> set[int]:
        """The hashes seen before that differ in at most `distance` bits."""
        candidates = {other for key in self._keys(hash_) for other in self._seen.get(key, ())}
        return {other for other in candidates if (other ^ hash_).bit_count() <= self.distance}

    def _keys(self, hash_: int) -> Iterator[tuple[int, int]]:
        for number, (low, mask) in enumerate(self._pieces):
            yield number, (hash_ >> low) & mask


def near_pairs(hashes: NDArray[np.uint64], distance: int) -> Iterator[tuple[int, int]]:
    """Places (i, j) of all hashes that differ in at most `distance` bits, some of them repeatedly.

    As `Nearby`, of all hashes at once: those that share a piece are compared as whole arrays.
    """
    for low, mask in _pieces(distance):
        piece = (hashes >> np.uint64(low)) & np.uint64(mask)
        order = np.argsort(piece, kind="stable")
        edges = np.flatnonzero(np.diff(piece[order])) + 1
        for start, end in pairwise([0, *edges.tolist(), len(order)]):
            for first in range(start, end - 1, ROWS):
                rows, own = order[first : min(first + ROWS, end)], order[first:end]
                differ = _ONES[(hashes[rows, None] ^ hashes[own]).view(np.uint16)]
                bits = differ.reshape(len(rows), len(own), 4).sum(-1)
                for i, j in np.argwhere(np.triu(bits <= distance, 1)):
                    yield int(rows[i]), int(own[j])


def _pieces(distance: int) -> list[tuple[int, int]]:
    """Where each of distance + 1 pieces of a hash begins, and its mask."""
    edges = np.linspace(0, BITS, distance + 2).round().astype(int).tolist()
    return [(low, (1 << (high - low)) - 1) for low, high in pairwise(edges)]


_ONES = np.array([number.bit_count() for number in range(2**16)], np.uint8)


def plain(text: str) -> str:
    """The words of a text in lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def fingerprint(text: str) -> int:
    """A number that texts of the same words share."""
    return int.from_bytes(hashlib.sha256(plain(text).encode()).digest()[:8], "big")


def runs(text: str, length: int = RUN) -> set[int]:
    """Fingerprints of all runs of so many words; of a shorter text, of the whole."""
    words = plain(text).split()
    if len(words) <= length:
        return {fingerprint(text)} if words else set()
    return {fingerprint(" ".join(words[i : i + length])) for i in range(len(words) - length + 1)}
