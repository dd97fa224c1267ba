"""Complete checkpoints that are there whole or not at all.

A checkpoint holds the trained weights, the optimiser's moments, the objective's state, and a small
JSON of where training stands. Everything else (order of the data, learning rate, dropout, noise) is
a function of the step's number. No pickle: tensors are in safetensors.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from mmalign.files import clear_partials, whole_folder
from mmalign.objectives import Objective

AVERAGE = "average.safetensors"


@dataclass(frozen=True)
class Position:
    """Where training stands after `step` optimiser steps.

    refused: records that could not be used so far.
    best_step, best_value: the best evaluation so far, if there was one; larger is better.
    settings: everything that must be the same for the run to go on.
    """

    step: int
    refused: int
    best_step: int | None
    best_value: float | None
    settings: dict[str, object]


def save(
    folder: Path,
    position: Position,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    *,
    reference: Mapping[str, Tensor] | None = None,
    average: Mapping[str, Tensor] | None = None,
    write: bool = True,
) -> Path:
    """Write `folder/step-...`. All processes call it (sharded weights are gathered); one has
    `write`. reference: weights of one that moves with the policy. average: a running mean of the
    weights. Raises OSError (disk full ...) and leaves earlier checkpoints as they were."""
    weights = {name: _whole(weight) for name, weight in trained(policy).items()}
    mean = {name: _whole(weight) for name, weight in (average or {}).items()}
    moments = {
        f"{name}|{key}": _whole(torch.as_tensor(value))
        for name, weight in trained(policy).items()
        for key, value in optimizer.state[weight].items()
    }
    path = folder / f"step-{position.step:08d}"
    if not write:
        return path
    with whole_folder(path) as partial:
        _save_tensors(weights, partial / "weights.safetensors")
        _save_tensors(moments, partial / "optimizer.safetensors")
        _save_tensors(objective.state_dict(), partial / "objective.safetensors")
        if mean:
            _save_tensors(mean, partial / AVERAGE)
        if reference:
            _save_tensors(reference, partial / "reference.safetensors")
        (partial / "position.json").write_text(json.dumps(asdict(position), indent=1))
    return path


def load(
    path: Path, policy: nn.Module, optimizer: torch.optim.Optimizer, objective: Objective
) -> None:
    """Put weights, moments and objective state back."""
    load_weights(path, policy)
    moments = load_file(path / "optimizer.safetensors")
    weights = trained(policy)
    for place, value in moments.items():
        name, key = place.rsplit("|", 1)
        weight = weights[name]
        if key == "step":  # a tensor on the CPU, or of the 8-bit optimiser an integer
            optimizer.state[weight][key] = value if value.is_floating_point() else value.item()
        else:
            optimizer.state[weight][key] = _like(value, weight).to(weight.device)
    objective.load_state_dict(load_file(path / "objective.safetensors"))


def reference_weights(path: Path) -> dict[str, Tensor]:
    """Weights of the reference, where it moves with the policy."""
    return load_file(path / "reference.safetensors")


def read_position(path: Path) -> Position:
    """Where training stood when the checkpoint was written."""
    return Position(**json.loads((path / "position.json").read_text()))


def load_average(path: Path, policy: nn.Module) -> dict[str, Tensor]:
    """The running mean of the weights, laid out as they are."""
    saved, weights = load_file(path / AVERAGE), trained(policy)
    return {n: _like(saved[n].to(weight.device), weight) for n, weight in weights.items()}


def load_weights(path: Path, policy: nn.Module, *, average: bool = False) -> None:
    """Put the trained weights of a checkpoint, or their running mean, into the policy."""
    saved = load_file(path / (AVERAGE if average else "weights.safetensors"))
    weights = trained(policy)
    if saved.keys() != weights.keys():
        raise ValueError(
            f"{path} was saved by a run that trained other weights "
            f"(for example {sorted(saved.keys() ^ weights.keys())[0]}): choose another --out"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(_like(saved[name].to(weight.device), weight))


def latest(folder: Path) -> Path | None:
    """The newest checkpoint, if there is one. Clears away half-written ones."""
    clear_partials(folder)
    return max(folder.glob("step-*"), default=None)


def prune(folder: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and the best one."""
    for path in sorted(folder.glob("step-*"))[: -max(1, keep)]:
        if best_step is None or path.name != f"step-{best_step:08d}":
            shutil.rmtree(path)


def trained(policy: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that are trained, by name."""
    return {name: p for name, p in policy.named_parameters() if p.requires_grad}


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().cpu().contiguous()


def _like(value: Tensor, weight: Tensor) -> Tensor:
    """`value` sharded as `weight` is, if it is."""
    if isinstance(weight, DTensor) and value.shape == weight.shape:
        return distribute_tensor(value, weight.device_mesh, weight.placements)
    return value


def _save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
