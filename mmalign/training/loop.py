"""The training loop: it exists once, for every modality and objective."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from mmalign.adapters.protocol import Adapter
from mmalign.data.dataset import row_in_files
from mmalign.errors import UserError
from mmalign.objectives import Objective
from mmalign.records import Media, Preference
from mmalign.reference import Reference, SyncedCopy
from mmalign.training.batches import MicroBatch, Plan, Remake, Step, Steps, StreamedSteps
from mmalign.training.callbacks import Callback
from mmalign.training.evaluate import held_out_figures
from mmalign.training.log import log_pictures, progress
from mmalign.training.options import TrainingOptions
from mmalign.training.run import Run, TrainingResult, begin, restore_best, result_of, save, start
from mmalign.training.schedule import learning_rate
from mmalign.training.seeds import derive
from mmalign.training.step import Averages, preference_step, step_baselines


def train(
    adapter: Adapter,
    data: Sequence[Preference] | Iterable[Preference | ValueError],
    objective: Objective,
    options: TrainingOptions,
    out: Path,
    *,
    reference: Reference | None = None,
    held_out: Sequence[Preference] = (),
    settings: dict[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    callbacks: Sequence[Callback] = (),
    remake: Remake | None = None,
) -> TrainingResult:
    """Align `adapter.policy` in place.

    A run that was stopped at any moment and is started again with the same arguments goes on from
    its last checkpoint under `out`; on a CPU it ends with the same bits.

    Args:
        data: Preferences by index, or a stream of them (then `options.steps` is needed).
        reference: Needed by objectives whose `needs.reference` is true.
        held_out: Preferences for evaluation and the choice of the best checkpoint.
        settings: Anything else that must be the same for a run to be continued.
        callbacks: Look on after every step; see `Callback`.
        remake: Makes the records of every step anew; see `Remake`.

    Raises:
        UserError: `out` holds a run with other settings, the loss is not finite, the disk is full,
            or too many records cannot be used.
    """
    accelerator = accelerator or start(options, out)
    if objective.needs.reference and reference is None:
        raise UserError(f"{objective.spec} compares with a reference, and none was given")
    if options.sync_reference_every and not isinstance(reference, SyncedCopy):
        raise UserError(
            "only a synced copy of the policy can follow it as a reference",
            hint="use reference.SyncedCopy.of(adapter), or leave sync_reference_every at 0",
        )
    if remake is not None and (options.workers or not isinstance(data, Sequence)):
        raise UserError(
            "records that the policy makes anew before each step can neither be read ahead nor "
            "streamed",
            hint="use --workers 0, and no --streaming",
        )
    plan = plan_of(adapter, objective, options, accelerator)
    steps = count_steps(data, plan, options)
    run = begin(
        adapter, objective, reference, options, steps, out, settings or {}, accelerator, callbacks
    )
    run.row_of = partial(row_in_files, data)
    began = time.perf_counter()
    if run.step < run.steps:
        _all_steps(run, _loader(data, plan, run, remake), held_out, plan)
    restore_best(run)
    return result_of(run, seconds=time.perf_counter() - began)


def plan_of(
    adapter: Adapter, objective: Objective, options: TrainingOptions, accelerator: Accelerator
) -> Plan:
    """How this process's share of the records becomes steps."""
    return Plan(
        collate=adapter.collate,
        size=adapter.size,
        needs=objective.needs,
        batch_size=options.batch_size,
        budget=options.micro_batch,
        seed=options.seed,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        noise_cycle=options.noise_cycle,
        strata=adapter.strata,
    )


def count_steps(data: Any, plan: Plan, options: TrainingOptions) -> int:
    """Optimiser steps of the whole run."""
    if options.steps is not None:
        return options.steps
    if not isinstance(data, Sequence):
        raise UserError("a stream has no end that could be counted: say how many steps to train")
    return max(1, round(Steps(data, plan).per_epoch * options.epochs))


def _loader(data: Any, plan: Plan, run: Run, remake: Remake | None) -> DataLoader[Step]:
    workers = run.options.workers
    shared: dict[str, Any] = {"batch_size": None, "num_workers": workers}
    if workers:
        shared["prefetch_factor"] = 2
    if isinstance(data, Sequence):
        return DataLoader(Steps(data, plan, remake), sampler=range(run.step, run.steps), **shared)
    buffer = run.options.shuffle_buffer
    stream = StreamedSteps(data, plan, start=run.step, stop=run.steps, buffer=buffer)
    return DataLoader(stream, **shared)


def _all_steps(run: Run, steps: Iterable[Step], held_out: Sequence[Preference], plan: Plan) -> None:
    options = run.options
    run.adapter.policy.train()
    show = run.accelerator.is_main_process
    with progress("training", total=run.steps, done=run.step, show=show) as advance:
        for step in steps:
            began = time.perf_counter()
            row = _one_step(run, step)
            run.step = step.number + 1
            if isinstance(run.reference, SyncedCopy) and _due(
                run.step, options.sync_reference_every
            ):
                run.reference.sync(options.sync_reference_share)
            row |= {"step": run.step, "epoch": step.epoch, "seconds": time.perf_counter() - began}
            last = run.step == run.steps
            if len(held_out) and (last or _due(run.step, options.eval_every)):
                with run.as_left():
                    row |= _evaluate(run, held_out, plan)
            row |= _looked_on(run, row)
            _log(run, row)
            if last or _due(run.step, options.save_every) or run.best_step == run.step:
                save(run)
            advance(f"loss {row['loss']:.4f}  accuracy {row.get('reward_accuracy', math.nan):.2f}")


def _one_step(run: Run, step: Step) -> dict[str, Any]:
    """One optimiser step over this process's micro-batches."""
    torch.manual_seed(derive(run.options.seed, "step", step.number, run.accelerator.process_index))
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(step.number, run.steps, run.options)
    _note_refused(run, step)
    mine = sum(len(micro.ids) for micro in step.micro_batches)
    count = run.total(torch.tensor(float(mine), device=run.accelerator.device)).item()
    baselines = step_baselines(
        run.adapter, run.scorer, step.micro_batches, run.objective, run.reference, run.gather
    )
    averages = Averages()
    last = len(step.micro_batches) - 1
    for i, micro in enumerate(step.micro_batches):
        with _exchanged(run, i == last):
            losses, figures = preference_step(
                run.adapter, run.scorer, micro, run.objective, run.reference, baselines
            )
            _check_finite(losses, micro, step, run)
            # DDP averages gradients over processes; the loss is a mean over all preferences
            run.accelerator.backward(losses.sum() * (run.accelerator.num_processes / count))
        averages.add(figures)
    norm = _clip(run)
    run.optimizer.step()
    run.optimizer.zero_grad()
    if run.average is not None:
        run.average.update(run.adapter.policy, step.number + 1)
    run.objective.finish_step(run.total)
    return {
        **averages.means(run.total),
        **{name: value.float().mean().item() for name, value in run.objective.figures().items()},
        "learning_rate": run.optimizer.param_groups[0]["lr"],
        "grad_norm": norm,
        "preferences": int(count),
        "elements": sum(micro.elements for micro in step.micro_batches),
        "refused": run.refused,
    }


def _exchanged(run: Run, last: bool) -> AbstractContextManager[Any]:
    """Processes exchange the gradients of several micro-batches once, with the last."""
    return nullcontext() if last else run.accelerator.no_sync(run.scorer)


def _clip(run: Run) -> float:
    limit = run.options.max_grad_norm or math.inf
    weights = [weight for group in run.optimizer.param_groups for weight in group["params"]]
    return float(run.accelerator.clip_grad_norm_(weights, limit))


def _check_finite(losses: Tensor, micro: MicroBatch, step: Step, run: Run) -> None:
    if torch.isfinite(losses).all():
        return
    bad = [micro.ids[i] for i in torch.nonzero(~torch.isfinite(losses)).flatten().tolist()]
    raise UserError(
        f"the loss of {len(bad)} preferences is not finite in step {step.number + 1} "
        f"(ids {', '.join(bad[:3])})",
        hint="a smaller learning rate or beta, or --precision float32, usually helps; "
        f"the last good checkpoint is under {run.out / 'checkpoints'}",
    )


FEW = 8
"""Unusable records that never stop training, so that one in the first step does not."""


def _note_refused(run: Run, step: Step) -> None:
    """Count and write down records that could not be used; stop when they are too many."""
    here = torch.tensor(float(len(step.refused)), device=run.accelerator.device)
    run.refused += int(run.total(here).item())
    for record in step.refused:
        row = run.row_of(record.row)
        run.refusals.write({"step": step.number, "row": row, "reason": record.reason})
    seen = (step.number + 1) * run.options.batch_size
    if run.refused > max(FEW, run.options.max_refused * seen):
        reasons = sorted({record.reason for record in step.refused})
        raise UserError(
            f"{run.refused} of the first {seen} records cannot be used: {'; '.join(reasons[:3])}",
            hint="mend the data, or allow more with max_refused",
        )


def _evaluate(run: Run, held_out: Sequence[Preference], plan: Plan) -> dict[str, float]:
    """Metrics of the held-out preferences, and whether they are the best so far."""
    figures = held_out_figures(
        run.adapter, run.scorer, held_out, run.objective, run.reference, plan
    )
    means = {name: values.nanmean().item() for name, values in figures.items()}
    name = run.options.best_metric
    if name not in means:
        raise UserError(f"no held-out metric {name!r}; there are {', '.join(sorted(means))}")
    value = -means[name] if name.startswith("loss") else means[name]
    if run.best_value is None or value > run.best_value:
        run.best_step, run.best_value = run.step, value
    return {f"held_out/{name}": value for name, value in means.items()}


def _looked_on(run: Run, row: dict[str, Any]) -> dict[str, Any]:
    """What the callbacks found. One that stops the run is the last."""
    found: dict[str, Any] = {}
    for callback in run.callbacks:
        try:
            found |= callback(run.step, row, run.as_left)
        except UserError:
            _log(run, row)
            save(run)
            raise
    return found


def _log(run: Run, row: dict[str, Any]) -> None:
    pictures = {name: value for name, value in row.items() if isinstance(value, Media)}
    row = {name: value for name, value in row.items() if name not in pictures}
    if run.accelerator.is_main_process:
        run.metrics.write(row)
        log_pictures(run.accelerator, pictures, run.step)
    if run.options.trackers:
        figures = {key: value for key, value in row.items() if isinstance(value, float | int)}
        run.accelerator.log(figures, step=run.step)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
