"""Building on a Ray cluster: chunks become tasks, and their results come back in order.

The inputs are read, and the dataset is written, where the command runs; in between any node may
build. What comes out is what local processes make, byte for byte. Files that records name have to
be readable on all nodes, and mmalign installed there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from mmalign.data_builders.engine import Builder, Chunk, Result, run_chunk
from mmalign.errors import UserError

AHEAD = 2
"""Chunks under way for each processor of the cluster."""


def ray_results(
    builder: Builder, chunks: Iterator[Chunk], workers: int
) -> Iterator[tuple[Chunk, Result]]:
    """What comes of each chunk, in order.

    workers: tasks at the same time; 0 uses all processors. Joins the cluster that RAY_ADDRESS
    names, or the one that runs on this machine, or starts one here.
    Raises UserError when Ray is not installed, or when a chunk's worker dies time and again.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "building on a cluster needs Ray", hint="pip install 'mmalign[ray]'"
        ) from error
    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    task = ray.remote(run_chunk)
    shared = ray.put(builder)
    most = workers or AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[tuple[Chunk, Any]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, task.remote(shared, chunk)))
            if len(waiting) >= most:
                first, reference = waiting.popleft()
                yield first, ray.get(reference)
        while waiting:
            first, reference = waiting.popleft()
            yield first, ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.WorkerCrashedError as error:
        raise UserError(
            "a worker of the cluster died, perhaps for want of memory",
            hint="run the same again to go on; fewer --workers need less memory.",
        ) from error
    finally:
        for _, reference in waiting:
            ray.cancel(reference)
