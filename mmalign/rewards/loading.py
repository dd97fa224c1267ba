"""Finding the weights of reward models: a file, a folder, or a repository on the Hub.

Pickles are read as tensors only: no code in them runs.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor

from mmalign.errors import UserError

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def device_of(device: str | None) -> torch.device:
    """The named device; by default the first GPU if there is one, else the CPU."""
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def weights_file(source: str, name: str) -> Path:
    """A file of weights: `source` itself, or the file `name` in that folder or Hub repository.

    Raises UserError when it is not there.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        if (path / name).is_file():
            return path / name
        raise UserError(f"{path} holds no {name}", hint="give the file itself.")
    try:
        return Path(hf_hub_download(source, name))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{source} is no file or folder here, and the Hub does not give its {name}: {error}",
            hint="check the name and the network, or download the file and give its path.",
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, of a pickle without running its code; `state_dict` is unwrapped."""
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what the file's bytes happen to lead to
        raise UserError(f"{path} cannot be read as weights: {error}") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not isinstance(found, Mapping) or not all(isinstance(v, Tensor) for v in found.values()):
        raise UserError(f"{path} holds no weights by name")
    return {str(name): tensor for name, tensor in found.items()}


def fill(module: torch.nn.Module, weights: Mapping[str, Tensor], where: str) -> None:
    """Put the weights into the module. Raises UserError when names or shapes do not fit."""
    try:
        module.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise UserError(f"the weights in {where} are of another model: {error}") from error


def identity(source: str) -> str:
    """Names weights for provenance and caches: local ones by their content."""
    path = Path(source)
    if not path.exists():
        return source
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.suffix in WEIGHTS or file.name.endswith(("config.json", "index.json")):
            digest.update(_content(file, file.stat().st_size, file.stat().st_mtime_ns))
    return f"{path.name}@{digest.hexdigest()[:16]}"


@functools.lru_cache(maxsize=1024)
def _content(file: Path, size: int, changed: int) -> bytes:
    """Hash of a file, computed once while it does not change."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()
