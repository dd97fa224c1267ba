"""What the quickstarts share: stages that are timed and go on where they stopped, and the control.

A stage is "before", "after" or "control"; the control is fine-tuning on the chosen answers, with
the same data, steps and settings, which shows what the comparison with rejected answers adds.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table
from transformers.utils import logging as transformers_logging

from mmalign.adapters.protocol import Adapter
from mmalign.evaluation.intervals import Interval
from mmalign.files import whole_file
from mmalign.objectives import objective
from mmalign.records import Preference, thumb
from mmalign.training.align import align
from mmalign.training.log import console
from mmalign.training.options import ReferenceKind, TrainingOptions

A = TypeVar("A", bound=Adapter)

Measured = dict[str, dict[str, Interval]]
"""Stage -> metric -> figure."""


def hush() -> None:
    """Spare whoever looks for the first time what transformers tells its own developers (names
    that will change) and a progress bar for each of the many small models that are loaded."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


class Clock:
    """Seconds per stage, kept in a file so that a resumed run counts what was done before."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began
        with whole_file(self.file) as partial:
            partial.write_text(json.dumps(self.seconds))


def kept_texts(file: Path, make: Callable[[], list[str]]) -> list[str]:
    """Texts that are made once and read from their file afterwards."""
    if not file.exists():
        with whole_file(file) as partial:
            partial.write_text(json.dumps(make(), indent=1, ensure_ascii=False))
    texts: list[str] = json.loads(file.read_text())
    return texts


def aligned_and_control(
    fresh: Callable[[], A],
    pairs: Sequence[Preference],
    spec: str,
    control: str,
    training: TrainingOptions,
    out: Path,
    clock: Clock,
    *,
    reference: ReferenceKind = "auto",
) -> Iterator[tuple[str, str, Path, A]]:
    """Train one model on the pairs and one on their chosen answers alone.

    fresh: loads a model that starts the same each time. spec, control: the two objectives.
    Yields stage, objective, folder and trained model, one after the other.
    """
    chosen = [thumb(pair.chosen, up=True) for pair in pairs]
    for stage, folder, loss, data in (
        ("after", out / "aligned", spec, pairs),
        ("control", out / "control", control, chosen),
    ):
        console.print(f"{stage}: {training.steps} steps of {loss}")
        with clock(f"training {stage}"):
            policy = fresh()
            align(policy, data, (), objective(loss), training, folder, reference=reference)
        yield stage, loss, folder, policy


def comparison(measured: Mapping[str, Mapping[str, Interval]], title: str) -> Table:
    """The figures of every stage, for the terminal."""
    table = Table(title=title)
    table.add_column("")
    for stage in measured:
        table.add_column(stage, justify="right")
    for metric in measured["before"]:
        cells = [measured[stage][metric] for stage in measured]
        table.add_row(metric, *(f"{c.value:.3f} ({c.low:.3f} to {c.high:.3f})" for c in cells))
    return table


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings within settings, one a line."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        flat |= {f"{name}: {key}" if key else name: each for key, each in inner.items()}
    return flat
