"""A training run's state: how it begins or goes on, how it is saved, what it ends with."""

from __future__ import annotations

import errno
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from mmalign.adapters.protocol import Adapter
from mmalign.errors import UserError
from mmalign.objectives import Objective
from mmalign.reference import Reference, SyncedCopy
from mmalign.training import checkpoint
from mmalign.training.average import RunningMean, give
from mmalign.training.callbacks import Callback
from mmalign.training.log import JsonLines, console
from mmalign.training.options import TrainingOptions
from mmalign.training.step import Scorer

HARMLESS = {"workers", "trackers", "keep_checkpoints", "save_every", "max_refused", "epochs"}
"""Options that may differ when a run goes on: they do not change what it computes."""


@dataclass(frozen=True)
class TrainingResult:
    """What training came to.

    steps: done in all. best_step: whose weights the policy now has, if held-out data chose them.
    refused: records that could not be used; refused.jsonl says why. seconds: of the last start.
    """

    steps: int
    best_step: int | None
    refused: int
    seconds: float


@dataclass
class Run:
    """What a training run consists of. `step` counts finished optimiser steps; `best_value` is
    larger for better; `row_of` tells what a record's row in its file is."""

    accelerator: Accelerator
    adapter: Adapter
    scorer: nn.Module
    optimizer: torch.optim.Optimizer
    objective: Objective
    reference: Reference | None
    options: TrainingOptions
    steps: int
    out: Path
    settings: dict[str, Any]
    metrics: JsonLines
    refusals: JsonLines
    average: RunningMean | None = None
    callbacks: Sequence[Callback] = ()
    row_of: Callable[[int], int] = int
    step: int = 0
    refused: int = 0
    best_step: int | None = None
    best_value: float | None = None

    def as_left(self) -> AbstractContextManager[None]:
        """Inside, the policy has the weights that a run ending here would leave."""
        if self.average is None:
            return nullcontext()
        return self.average.in_place(self.adapter.policy)

    def total(self, tensor: Tensor) -> Tensor:
        """Sum over processes."""
        if self.accelerator.num_processes == 1:
            return tensor
        reduced: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return reduced

    def gather(self, rows: Tensor) -> Tensor:
        """The rows (m,) of all processes, which may have different numbers of them."""
        if self.accelerator.num_processes == 1:
            return rows
        padded = self.accelerator.pad_across_processes(rows, pad_index=math.nan)
        joined: Tensor = self.accelerator.gather(padded)
        return joined


def start(options: TrainingOptions, out: Path) -> Accelerator:
    """An accelerator with this run's trackers. Precision is the adapter's business.

    Raises UserError when a tracker is not installed.
    """
    for tracker in options.trackers:
        if find_spec(tracker) is None:
            raise UserError(
                f"the tracker {tracker} is not installed",
                hint=f"pip install 'mmalign[{tracker}]', or leave it out: metrics.jsonl has it all",
            )
    accelerator = Accelerator(log_with=list(options.trackers) or None, project_dir=str(out))
    if options.trackers:
        accelerator.init_trackers("mmalign")
    return accelerator


def begin(
    adapter: Adapter,
    objective: Objective,
    reference: Reference | None,
    options: TrainingOptions,
    steps: int,
    out: Path,
    settings: dict[str, Any],
    accelerator: Accelerator,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """A run at its first step, or where its last checkpoint left it.

    Raises UserError when no weight is trained, when the optimiser is not to be had, or when `out`
    holds a run with other settings.
    """
    weights = [p for p in adapter.policy.parameters() if p.requires_grad]
    if not weights:
        raise UserError("no weight of the model is trained: choose LoRA or full training")
    if options.optimizer == "adamw-8bit" and accelerator.distributed_type == DistributedType.FSDP:
        raise UserError(
            "the optimiser adamw-8bit cannot keep moments of weights that FSDP has divided",
            hint="leave out --optimizer: divided moments are small already",
        )
    scorer, optimizer = accelerator.prepare(Scorer(adapter), _optimizer(weights, options))
    run = Run(
        accelerator=accelerator,
        adapter=adapter,
        scorer=scorer,
        optimizer=optimizer,
        objective=objective,
        reference=reference,
        options=options,
        steps=steps,
        out=out,
        settings={**settings, **_decisive(options), "objective": objective.spec, "steps": steps},
        metrics=JsonLines(out / "metrics.jsonl"),
        refusals=JsonLines(out / f"refused-{accelerator.process_index}.jsonl"),
        average=RunningMean(adapter.policy, options.average) if options.average else None,
        callbacks=callbacks,
    )
    if newest := checkpoint.latest(out / "checkpoints"):
        _go_on(run, newest)
    if accelerator.is_main_process:
        run.metrics.keep(lambda row: row["step"] <= run.step)
    run.refusals.keep(lambda row: row["step"] < run.step)
    accelerator.wait_for_everyone()
    return run


def forget(out: Path, accelerator: Accelerator) -> None:
    """Remove the checkpoints and figures of an earlier run under `out`."""
    if accelerator.is_main_process:
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        for file in (out / "metrics.jsonl", *out.glob("refused-*.jsonl")):
            file.unlink(missing_ok=True)
    accelerator.wait_for_everyone()


def save(run: Run) -> None:
    """Write a checkpoint. Raises UserError when the disk is full; earlier checkpoints stay."""
    position = checkpoint.Position(
        run.step, run.refused, run.best_step, run.best_value, run.settings
    )
    folder, main = run.out / "checkpoints", run.accelerator.is_main_process
    optimizer = run.optimizer.optimizer  # type: ignore[attr-defined]  # accelerate's wrapper
    try:
        checkpoint.save(
            folder, position, run.adapter.policy, optimizer, run.objective,
            reference=run.reference.state() if isinstance(run.reference, SyncedCopy) else None,
            average=run.average.weights if run.average else None, write=main,
        )  # fmt: skip
        if main:
            checkpoint.prune(folder, run.options.keep_checkpoints, run.best_step)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"the disk is full: the checkpoint of step {run.step} was not written",
            hint=f"make room under {run.out} and start the same command again: it goes on from "
            "the checkpoint before",
        ) from error
    run.accelerator.wait_for_everyone()


def restore_best(run: Run) -> None:
    """Give the policy the weights that did best on held-out data, if any were judged, or else the
    last ones; of either the running mean, if one is kept."""
    if run.best_step not in (None, run.step):
        path = run.out / "checkpoints" / f"step-{run.best_step:08d}"
        checkpoint.load_weights(path, run.adapter.policy, average=run.average is not None)
    elif run.average is not None:
        give(run.adapter.policy, run.average.weights)


def result_of(run: Run, *, seconds: float) -> TrainingResult:
    return TrainingResult(run.step, run.best_step, run.refused, seconds)


def _go_on(run: Run, newest: Path) -> None:
    position = checkpoint.read_position(newest)
    _check_same(position.settings, run.settings, run.out)
    optimizer = run.optimizer.optimizer  # type: ignore[attr-defined]  # accelerate's wrapper
    checkpoint.load(newest, run.adapter.policy, optimizer, run.objective)
    if run.average is not None:
        run.average.weights = checkpoint.load_average(newest, run.adapter.policy)
    if isinstance(run.reference, SyncedCopy):
        run.reference.load_state(checkpoint.reference_weights(newest))
    run.step, run.refused = position.step, position.refused
    run.best_step, run.best_value = position.best_step, position.best_value
    if run.accelerator.is_main_process and run.step < run.steps:
        console.print(f"Going on after step {run.step} of {run.steps} ({newest})")


def _optimizer(weights: list[nn.Parameter], options: TrainingOptions) -> torch.optim.Optimizer:
    groups = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": options.weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if options.optimizer == "adamw" else _adamw_8bit()
    return kind(
        [group for group in groups if group["params"]],
        lr=options.learning_rate,
        betas=options.adam_betas,
    )


def _adamw_8bit() -> Any:
    """AdamW whose moments are quantised block by block. arXiv:2110.02861."""
    if find_spec("bitsandbytes") is None:
        raise UserError(
            "the optimiser adamw-8bit needs bitsandbytes, which is not installed",
            hint="pip install 'mmalign[8bit]', or leave out --optimizer",
        )
    from bitsandbytes.optim.adamw import AdamW8bit

    return AdamW8bit


def _decisive(options: TrainingOptions) -> dict[str, Any]:
    """The options that change what a run computes."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(options).items()
        if name not in HARMLESS
    }


def _check_same(old: dict[str, Any], new: dict[str, Any], out: Path) -> None:
    changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    if changed:
        lines = ", ".join(f"{key}: {old.get(key)} before, {new.get(key)} now" for key in changed)
        raise UserError(
            f"{out} holds a run with other settings ({lines})",
            hint="choose another --out, or start anew in this one with --no-resume",
        )
