"""How long FiFA's selection takes and how much memory it needs, given margins and embeddings.

    python benchmarks/fifa_selection.py --pairs 1000000 --prompts 59000 --dimensions 768

Pick-a-Pic v2 has 851,293 pairs of 58,960 different prompts. Embeddings are drawn around a few
thousand centres, as those of real prompts lie, and are read from a file that is mapped into memory.
With more than `neighbours.EXACT_UP_TO` prompts only the nearest cells are looked at; the share of
distances that are right is then measured on a thousand prompts.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from mmalign.data_builders import neighbours
from mmalign.data_builders.importance import Table, Weights, select
from mmalign.playground.speed import matmul_rate


def embeddings(path: Path, prompts: int, dimensions: int) -> np.ndarray:
    """Unit vectors around 2,000 centres, written to a file block by block."""
    draws = np.random.default_rng(0)
    centres = draws.normal(size=(2000, dimensions)).astype(np.float32)
    shape = (prompts, dimensions)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start in range(0, prompts, 10_000):
        block = out[start : start + 10_000]
        block[:] = centres[draws.integers(2000, size=len(block))]
        block += 0.7 * draws.normal(size=block.shape).astype(np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    out.flush()
    return np.load(path, mmap_mode="r")


def recall(points: np.ndarray, k: int) -> float:
    """Share of a thousand prompts whose distance is found exactly."""
    found = neighbours.kth_distances(points, k)
    some = np.random.default_rng(1).choice(len(points), 1000, replace=False)
    queries = np.asarray(points[some])
    nearest = np.full((len(some), k + 1), np.inf, np.float32)
    for start in range(0, len(points), 50_000):
        block = np.asarray(points[start : start + 50_000])
        squared = np.maximum(2 - 2 * queries @ block.T, 0)  # unit vectors
        both = np.concatenate([nearest, squared], axis=1)
        nearest = np.partition(both, k, axis=1)[:, : k + 1]
    exact = np.sqrt(np.sort(nearest, axis=1)[:, k])
    return float(np.mean(found[some] <= exact + 1e-3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--prompts", type=int, default=59_000)
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--keep", type=int, default=5000)
    parser.add_argument("--diversity", choices=["full-set", "greedy"], default="full-set")
    args = parser.parse_args()
    draws = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        points = embeddings(Path(folder) / "prompts.npy", args.prompts, args.dimensions)
        table = Table(
            np.abs(draws.normal(size=args.pairs)),
            draws.integers(0, 11, size=args.pairs).astype(float),
            draws.integers(0, args.prompts, size=args.pairs),
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = time.perf_counter(), time.process_time()
        found = select(
            table,
            points,
            args.keep,
            weights=Weights(normalise="zscore"),
            diversity=args.diversity,
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"{args.pairs:,} pairs of {args.prompts:,} prompts in {args.dimensions} dimensions")
        print(f"kept {found.selected.sum():,} ({args.diversity})")
        print(f"{wall:.0f} s, {cpu:.0f} s of processor time, {more / 1024:.0f} MB more memory")
        print(f"matrix products on this machine: {matmul_rate():.0f} GFLOP/s")
        if args.prompts > neighbours.EXACT_UP_TO:
            print(f"distances that are exact: {recall(points, 1):.1%}")


if __name__ == "__main__":
    main()
