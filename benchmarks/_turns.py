"""What benchmarks of training loops share: taking turns, seconds, peak memory, fresh processes.

`import` it before torch: it prepares the environment, which helps every library alike.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, ClassVar, NamedTuple

from mmalign import environment

PROCESS = "_MMALIGN_BENCHMARK"
if os.environ.get(PROCESS) != "memory":
    environment.prepare()  # helps both libraries, and has to come before torch
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402  # after the environment is prepared
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402  # likewise

CUDA = torch.cuda.is_available()


class Seconds(NamedTuple):
    """wall: that went by. processor: that this process was given of them, all threads together,
    which is the fairer measure where other programs want the same cores."""

    wall: float
    processor: float


class Stopped(BaseException):
    """Ends a training loop that is no longer needed."""


class Loop:
    """A training loop that stands still after every optimiser step until it is told to go on."""

    _by_thread: ClassVar[dict[int, Loop]] = {}

    def __init__(self, run: Callable[[], Any]) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._stop = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._all_of, args=(run,), daemon=True)
        self._thread.start()

    def _all_of(self, run: Callable[[], Any]) -> None:
        Loop._by_thread[threading.get_ident()] = self
        self._go.acquire()
        try:
            run()
        except Stopped:
            pass
        except BaseException as error:  # handed over to whoever called `step`
            self._error = error
        self._done.release()

    @staticmethod
    def pause(*_: Any) -> None:
        """Called in the loop's own thread when the optimiser has stepped."""
        loop = Loop._by_thread[threading.get_ident()]
        loop._done.release()
        loop._go.acquire()
        if loop._stop:
            raise Stopped

    def step(self) -> Seconds:
        """From the end of one optimiser step to the end of the next."""
        began, used = time.perf_counter(), time.process_time()
        self._go.release()
        self._done.acquire()
        if CUDA:
            torch.cuda.synchronize()
        if self._error is not None:
            raise self._error
        return Seconds(time.perf_counter() - began, time.process_time() - used)

    def close(self) -> None:
        self._stop = True
        self._go.release()
        self._thread.join()


def pause_after_steps() -> None:
    """From now on every optimiser's step ends with a pause of its loop."""
    register_optimizer_step_post_hook(Loop.pause)


def alternate(
    first: Callable[[], Seconds], second: Callable[[], Seconds], *, repeats: int
) -> tuple[list[Seconds], list[Seconds]]:
    """Both measured in turn; who begins changes every time."""
    seconds: dict[int, list[Seconds]] = {0: [], 1: []}
    for round_ in range(repeats):
        for which in (0, 1) if round_ % 2 == 0 else (1, 0):
            seconds[which].append((first, second)[which]())
    return seconds[0], seconds[1]


@contextmanager
def peak_growth() -> Iterator[list[int]]:
    """Most memory that was in use inside, less what was at the beginning, in bytes: allocated by
    torch on a GPU; the process's resident set, which Linux keeps the peak of, on a CPU."""
    found: list[int] = []
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield found
        found.append(torch.cuda.max_memory_allocated() - before)
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = _status("VmRSS")
    yield found
    found.append(_status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def matmul_rate(precision: str, size: int = 2048) -> float:
    """GFLOP/s of one large product, which says how much machine there was at that moment."""
    device = "cuda" if CUDA else "cpu"
    matrix = torch.randn(size, size, dtype=getattr(torch, precision), device=device)
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        matrix @ matrix
        if CUDA:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / median(seconds) / 1e9


def in_process(script: str, kind: str, given: Any) -> Any:
    """What `script --inside` prints last, as JSON, in a fresh process: accelerate keeps its
    precision for as long as one lives, and memory is counted for one library alone. What it says
    on stderr is shown if it fails."""
    command = [sys.executable, script, "--inside", json.dumps([kind, given])]
    environ = {**os.environ, PROCESS: kind}
    told = subprocess.run(command, env=environ, capture_output=True, text=True)
    if told.returncode:
        sys.exit(told.stderr)
    return json.loads(told.stdout.splitlines()[-1])


def answer(found: Any) -> None:
    """Print what `in_process` reads, and end: a loop that stands still does not end by itself."""
    print(json.dumps(found), flush=True)
    os._exit(0)


def environment_line(*names: str) -> str:
    """The device and the versions of the libraries called `names`."""
    from importlib.metadata import version

    device = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    return ", ".join([device, *(f"{name} {version(name)}" for name in names)])
