"""Distances between many embeddings: to the k-th nearest other one, and the entropy they tell of.

Up to `EXACT_UP_TO` points all distances are computed. Beyond, points are sorted into cells, and
each is compared with those in the cells nearest to it, cell after cell: all work is products of
matrices, and little besides the points themselves is held in memory.

Axes: p points, d dimensions, c cells, k neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.errors import UserError

Floats = NDArray[np.floating[Any]]
Points = NDArray[np.float32]
Places = NDArray[np.int64]

EXACT_UP_TO = 60_000
"""Points up to which all distances are computed; beyond, those to points in the nearest cells only,
which may take a farther neighbour for the k-th, never a nearer one."""
DIRECTIONS = 64
"""In which cells are told apart."""
CELL = 256
"""Points in a cell, on average."""
FULLEST = 4096
"""Points of a cell that are looked at, should more points than these be alike."""
CELLS_LOOKED_AT = 16
ROUNDS = 5
"""Times that the cells' centres are moved to their points."""
TRAINED_ON = 32
"""Points for each cell from which the centres are learnt."""
BLOCK = 2048


def kth_distances(points: Floats, k: int, *, seed: int = 0) -> Points:
    """(p,) Euclidean distance of each point to its k-th nearest other point.

    points: (p d), in memory or mapped from a file. Points at the same place are each other's
        neighbours, at distance 0. seed: of the cells, where there are so many points.
    Raises UserError when there are no k other points, or faiss is not installed.
    """
    count = len(points)
    if not 1 <= k < count:
        raise UserError(
            f"{count} points have no {k}-th nearest other one",
            hint="give more different prompts, or a smaller k",
        )
    if count <= EXACT_UP_TO:
        nearest = _among_all(points, np.arange(count), k + 1)  # a point finds itself, too
    else:
        nearest = _among_cells(points, k + 1, np.random.default_rng(seed))
    found = np.empty(count, np.float32)
    for some in _blocks(np.arange(count)):
        # Anew, by differences: products round off what little distance there may be.
        away = _taken(points, nearest[some]) - _taken(points, some)[:, None]  # (b k+1 d)
        found[some] = np.sort(np.linalg.norm(away, axis=-1))[:, k]
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


def _among_all(points: Floats, queries: Places, k: int) -> Places:
    """(q k) The nearest of all points, itself included, to each at the places `queries` (q,)."""
    faiss, everything = _faiss(), np.ascontiguousarray(points, np.float32)
    found = [faiss.knn(everything[some], everything, k)[1] for some in _blocks(queries)]
    return np.concatenate(found) if found else np.empty((0, k), np.int64)


def _among_cells(points: Floats, k: int, draws: np.random.Generator) -> Places:
    """(p k) For each point the nearest that lie in the cells nearest to it."""
    faiss, count = _faiss(), len(points)
    cells = _cells(points, max(1, count // CELL), draws)
    nearest = np.full((count, k), -1, np.int64)
    squared = np.full((count, k), np.inf, np.float32)
    last = int(cells.max())
    for members, queries in zip(_by_cell(cells[:, :1], last), _by_cell(cells, last), strict=True):
        members = members[:: len(members) // FULLEST + 1]
        if not len(members):
            continue
        own, places = faiss.knn(
            _taken(points, queries), _taken(points, members), min(k, len(members))
        )
        both = np.concatenate([squared[queries], own], axis=1)
        best = np.argsort(both, axis=1, kind="stable")[:, :k]
        squared[queries] = np.take_along_axis(both, best, axis=1)
        both = np.concatenate([nearest[queries], members[places]], axis=1)
        nearest[queries] = np.take_along_axis(both, best, axis=1)
    lonely = np.flatnonzero(nearest[:, -1] < 0)  # fewer than k points in their cells
    nearest[lonely] = _among_all(points, lonely, k)
    return nearest


def _cells(points: Floats, count: int, draws: np.random.Generator) -> NDArray[np.int32]:
    """(p l) Of each point the cells to look at, the nearest first, its own.

    Cells are told apart by the directions in which the points differ most.
    """
    some = min(len(points), TRAINED_ON * count)
    sample = _taken(points, np.sort(draws.choice(len(points), some, replace=False)))
    _, directions = np.linalg.eigh(np.cov(sample, rowvar=False))  # the longest is last
    basis = np.ascontiguousarray(directions[:, -DIRECTIONS:], np.float32)
    centres = _centres(sample @ basis, count, draws)
    looked_at = min(CELLS_LOOKED_AT, count)
    cells = np.empty((len(points), looked_at), np.int32)
    for block in _blocks(np.arange(len(points))):
        cells[block] = _faiss().knn(_taken(points, block) @ basis, centres, looked_at)[1]
    return cells


def _centres(sample: Points, cells: int, draws: np.random.Generator) -> Points:
    """(c d) Where the cells lie: k-means, with centres brought out to where their points are.

    The mean of many points lies nearer to the middle than they do, in many dimensions so much
    nearer that the cells with most points would be near to every point.
    """
    middle = sample.mean(axis=0)
    out = np.linalg.norm(sample - middle, axis=1)
    centres = sample[draws.choice(len(sample), cells, replace=False)]
    for _ in range(ROUNDS):
        own = _faiss().knn(sample, centres, 1)[1][:, 0]
        sizes = np.bincount(own, minlength=cells)
        sums = np.zeros_like(centres)
        np.add.at(sums, own, sample)
        full = sizes > 0  # the others stay where they are
        ways = sums[full] / sizes[full, None] - middle
        lengths = np.linalg.norm(ways, axis=1, keepdims=True)
        wanted = (np.bincount(own, out, cells)[full] / sizes[full])[:, None]
        centres[full] = middle + ways * (wanted / np.maximum(lengths, 1e-12))
    return centres


def _by_cell(cells: NDArray[np.int32], last: int) -> Iterator[Places]:
    """For each cell up to the last the points that name it, in their order."""
    order = np.argsort(cells, axis=None, kind="stable")
    bounds = np.searchsorted(cells.ravel()[order], np.arange(last + 2))
    order //= cells.shape[1]
    return (order[start:end] for start, end in pairwise(bounds))


def _taken(points: Floats, places: Places) -> Points:
    return np.asarray(points[places], dtype=np.float32, order="C")


def _blocks(places: Places) -> Iterator[Places]:
    return (places[start : start + BLOCK] for start in range(0, len(places), BLOCK))


def _faiss() -> ModuleType:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "nearest neighbours need faiss", hint="pip install 'mmalign[fifa]'"
        ) from error
    return faiss
