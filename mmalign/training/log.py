"""Where a run's figures go: one JSON line per step, trackers, and a progress bar."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mmalign.files import whole_file
from mmalign.media import open_image
from mmalign.records import Media

console = Console(stderr=True)


class JsonLines:
    """A file of JSON lines that grows row by row; figures that are not finite become null."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, row: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({key: _finite(value) for key, value in row.items()})
        with self.path.open("a") as file:
            file.write(line + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The whole rows; a line that a killed process left unfinished is passed over."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().split("\n")[:-1]]

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop all other rows: what a killed run wrote after its last checkpoint."""
        if not self.path.exists():
            return
        kept = [row for row in self.rows() if wanted(row)]
        with whole_file(self.path) as partial:
            partial.write_text("".join(json.dumps(row) + "\n" for row in kept))


PICTURE_TRACKERS = ("tensorboard", "wandb")


def log_pictures(accelerator: Accelerator, pictures: Mapping[str, Media], step: int) -> None:
    """Send pictures to those trackers that show some. Raises BadSample for what is no picture."""
    for tracker in accelerator.trackers:
        if pictures and tracker.name in PICTURE_TRACKERS:
            arrays = {name: np.asarray(open_image(one))[None] for name, one in pictures.items()}
            tracker.log_images(arrays, step=step)


@contextmanager
def progress(
    title: str, *, total: int, done: int = 0, show: bool = True
) -> Iterator[Callable[..., None]]:
    """A bar with counts and remaining time.

    Yields `advance(figures="", *, to=None)`, which moves it by one, or to a count, and may show a
    few figures beside it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, disable=not show) as bar:
        task = bar.add_task(title, total=total, completed=done, figures="")

        def advance(figures: str = "", *, to: int | None = None) -> None:
            if to is None:
                bar.update(task, advance=1, figures=figures)
            else:
                bar.update(task, completed=to, figures=figures)

        yield advance


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
