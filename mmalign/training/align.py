"""From an adapter and preferences to an aligned adapter with figures from before and after.

What every alignment pipeline has in common; `loop.train` is the part of it that trains.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from accelerate import Accelerator
from torch import Tensor

from mmalign.adapters.lora import has_lora
from mmalign.adapters.protocol import Adapter
from mmalign.errors import UserError
from mmalign.objectives import Objective
from mmalign.records import Preference
from mmalign.reference import (
    AdapterOff,
    AsItIs,
    Cached,
    FrozenCopy,
    Reference,
    SyncedCopy,
    weights_digest,
)
from mmalign.training.batches import Plan, Remake, Steps
from mmalign.training.callbacks import Callback
from mmalign.training.evaluate import held_out_figures
from mmalign.training.loop import count_steps, plan_of, train
from mmalign.training.options import ReferenceKind, TrainingOptions
from mmalign.training.precompute import precompute
from mmalign.training.run import TrainingResult, forget, start
from mmalign.training.step import Scorer


@dataclass
class Alignment:
    """What came of it: figures (m,) of each held-out preference before and after training (empty
    without held-out data), the result of training, seconds per stage, and the reference of those
    figures, which is the model before training (None for objectives without one)."""

    before: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    result: TrainingResult | None = None
    main_process: bool = True
    seconds: dict[str, float] = field(default_factory=dict)
    reference: Reference | None = None


def align(
    adapter: Adapter,
    data: Sequence[Preference] | Iterable[Preference | ValueError],
    held_out: Sequence[Preference],
    objective: Objective,
    options: TrainingOptions,
    out: Path,
    *,
    reference: ReferenceKind = "auto",
    resume: bool = True,
    settings: dict[str, Any] | None = None,
    accelerator: Accelerator | None = None,
    callbacks: Callable[[Reference | None], Sequence[Callback]] = lambda _: (),
    compared: Sequence[Preference] = (),
    remake: Remake | None = None,
) -> Alignment:
    """Align `adapter.policy` in place and measure held-out preferences before and after.

    Args:
        reference: "adapter-off" needs LoRA; "copy" keeps all weights twice; "cache" computes the
            reference once, on disk, before training. "auto" is adapter-off for LoRA, else a copy.
            Where `options.sync_reference_every` lets it move, training compares with a further
            copy of the trained weights, and the figures before and after still with this one.
        resume: Go on with a run under `out`; False removes what it left and starts anew.
        settings: Anything else that must be the same for a stopped run to be continued.
        callbacks: Given the reference, what looks on after every step; see `Callback`.
        compared: Further preferences that the reference will be asked about after training.
        remake: Makes the records of every step anew, held-out ones not; see `batches.Remake`.
    """
    if remake is not None and reference == "cache":
        raise UserError(
            "answers that are made while training have no reference computed beforehand",
            hint="use --reference auto",
        )
    accelerator = accelerator or start(options, out)
    if not resume:
        forget(out, accelerator)
    adapter.policy.to(accelerator.device)
    plan = plan_of(adapter, objective, options, accelerator)
    done = Alignment(main_process=accelerator.is_main_process)
    with _timed(done, "reference"):
        passes = _passes(data, plan, options)
        asked = (held_out, compared)
        told = _reference(adapter, data, asked, objective, plan, out, reference, passes)
        done.reference = told
        moving = _moving(adapter, objective, options, reference)

    def measure() -> dict[str, Tensor]:
        if not len(held_out):
            return {}
        return held_out_figures(adapter, Scorer(adapter), held_out, objective, told, plan)

    with _timed(done, "before"):
        done.before = measure()
    with _timed(done, "training"):
        done.result = train(
            adapter,
            data,
            objective,
            options,
            out,
            reference=moving or told,
            held_out=held_out,
            settings={**(settings or {}), "reference": reference},
            accelerator=accelerator,
            callbacks=callbacks(told),
            remake=remake,
        )
    with _timed(done, "after"):
        done.after = measure()
    return done


def _reference(
    adapter: Adapter,
    data: Sequence[Preference] | Iterable[Preference | ValueError],
    asked: Sequence[Sequence[Preference]],
    objective: Objective,
    plan: Plan,
    out: Path,
    kind: ReferenceKind,
    passes: float,
) -> Reference | None:
    """None for objectives that compare with no reference: nothing is loaded or computed then."""
    if not objective.needs.reference:
        return None
    lora = has_lora(adapter.policy)
    if kind == "cache" and objective.needs.divergence:
        raise UserError(
            f"{objective.spec} compares whole predictions with the reference's, which a cache does "
            "not hold",
            hint="use --reference auto",
        )
    match kind:
        case "auto":
            return AdapterOff(adapter) if lora else FrozenCopy.of(adapter)
        case "adapter-off":
            if not lora:
                raise UserError(
                    "all weights are trained, so there is no adapter to switch off",
                    hint="use --reference copy, or cache to save the memory of a copy",
                )
            return AdapterOff(adapter)
        case "copy":
            return FrozenCopy.of(adapter)
        case "cache":
            return _cache(adapter, data, asked, plan, out, lora, passes)
    raise UserError(f"no reference {kind!r}; there are {', '.join(get_args(ReferenceKind))}")


def _moving(
    adapter: Adapter, objective: Objective, options: TrainingOptions, kind: ReferenceKind
) -> SyncedCopy | None:
    """The reference that training moves, if it does."""
    if not options.sync_reference_every:
        return None
    if not objective.needs.reference:
        raise UserError(
            f"{objective.spec} compares with no reference, so there is none to move",
            hint="leave sync_reference_every at 0",
        )
    if kind == "cache":
        raise UserError(
            "a reference that moves cannot be computed beforehand",
            hint="use --reference auto, or leave sync_reference_every at 0",
        )
    return SyncedCopy.of(adapter)


def _cache(
    adapter: Adapter,
    data: Sequence[Preference] | Iterable[Preference | ValueError],
    asked: Sequence[Sequence[Preference]],
    plan: Plan,
    out: Path,
    lora: bool,
    passes: float,
) -> Cached:
    """A cache that knows what is `asked` about besides and, unless it is a stream, the training
    data.

    What it does not know is asked of the model with the adapter off; when all weights are trained
    there is no such model any more, so that everything must be known beforehand.
    """
    if not lora and (plan.needs.views or not isinstance(data, Sequence)):
        raise UserError(
            "a cache cannot know streamed data, or other views of the data, beforehand",
            hint="use --reference copy",
        )
    if not lora and plan.strata > 1:
        raise UserError(
            "a cache cannot know timesteps that depend on a record's place in its step",
            hint="use --reference copy, train a LoRA, or leave strata out of the timestep law",
        )
    if not lora and adapter.seeded and passes > 1 and not plan.noise_cycle:
        raise UserError(
            f"{passes:.2g} passes over the data draw new timesteps and noise each, which a cache "
            "made before training cannot know",
            hint="use --reference copy, train a LoRA, train for one epoch, or let the noises "
            "repeat (--noise-cycle 1)",
        )
    digest = weights_digest(adapter.policy, trained=not lora)
    scope = f"{digest} {adapter.fingerprint}"
    start: Reference = AdapterOff(adapter) if lora else AsItIs(adapter)
    cached = Cached(out / "reference.sqlite", scope, start, seeded=adapter.seeded)
    turns = max(1, min(plan.noise_cycle, math.ceil(passes)))
    for known, count in ((data, turns), *((each, 1) for each in asked)):
        if plan.strata > 1:
            continue  # seeds depend on the order of the steps: each is asked for in its turn
        if isinstance(known, Sequence) and len(known):
            precompute(cached, adapter, known, plan, passes=count)
    cached.inner = AdapterOff(adapter) if lora else None
    return cached


def _passes(data: Any, plan: Plan, options: TrainingOptions) -> float:
    """How often training goes over the data; a stream counts as once."""
    if not isinstance(data, Sequence):
        return 1.0
    return count_steps(data, plan, options) / Steps(data, plan).per_epoch


@contextmanager
def _timed(done: Alignment, stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    done.seconds[stage] = time.perf_counter() - began
