"""Distances between many embeddings: to the k-th nearest other one, and the entropy they tell of.

Axes: p points, d dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import UserError

Floats = NDArray[np.floating[Any]]

EXACT_UP_TO = 60_000
"""Points up to which all distances are computed; beyond, an inverted index looks at the nearest
cells only, which may take a farther neighbour for the k-th, never a nearer one."""
CELLS_LOOKED_AT = 8
BLOCK = 4096


def kth_distances(points: Floats, k: int, *, seed: int = 0) -> NDArray[np.float32]:
    """(p,) Euclidean distance of each point to its k-th nearest other point.

    points: (p d). Points at the same place are each other's neighbours, at distance 0.
    Raises UserError when there are no k other points, or faiss is not installed.
    """
    count = len(points)
    if not 1 <= k < count:
        raise UserError(
            f"{count} points have no {k}-th nearest other one",
            hint="give more different prompts, or a smaller k",
        )
    index = _index(np.ascontiguousarray(points, dtype=np.float32), seed)
    found = np.empty(count, np.float32)
    for start in range(0, count, BLOCK):
        block = np.ascontiguousarray(points[start : start + BLOCK], dtype=np.float32)
        squared, _ = index.search(block, k + 1)  # a point finds itself first
        found[start : start + BLOCK] = np.sqrt(np.maximum(squared[:, k], 0))
    return found


def entropy(distances: Floats, dimensions: int, k: int) -> float:
    """Kozachenko and Leonenko's estimate, in nats, from the distances (p,) to k-th neighbours.

    -inf where two points coincide. Singh et al., Am. J. Math. Manag. Sci. 23 (2003).
    """
    count, d = len(distances), dimensions
    ball = 0.5 * d * math.log(math.pi) - math.lgamma(0.5 * d + 1)
    with np.errstate(divide="ignore"):
        logs = np.log(distances.astype(np.float64))
    return float(math.log(count) + d * logs.mean() + ball - _digamma(k))


def _digamma(k: int) -> float:
    """psi(k) for a whole number."""
    return -np.euler_gamma + sum(1 / i for i in range(1, k))


def _index(points: NDArray[np.float32], seed: int) -> Any:
    """An index of faiss that holds the points."""
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "nearest neighbours need faiss", hint="pip install 'mmalign[fifa]'"
        ) from error

    count, d = points.shape
    index: Any  # faiss's classes share their methods, but no type
    if count <= EXACT_UP_TO:
        index = faiss.IndexFlatL2(d)
    else:
        cells = int(2 ** round(math.log2(4 * math.sqrt(count))))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(d), d, cells)
        index.cp.seed, index.nprobe = seed, CELLS_LOOKED_AT
        draws = np.random.default_rng(seed)
        index.train(points[draws.choice(count, min(count, 40 * cells), replace=False)])
    index.add(points)
    return index
