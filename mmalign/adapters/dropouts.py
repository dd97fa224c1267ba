"""Dropout probabilities in a model's configuration: found, and set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def dropouts_of(config: Any) -> dict[str, float]:
    """Those that are not 0; those of parts (towers, language models) have dotted names."""
    found = {
        name: value
        for name, value in vars(config).items()
        if "drop" in name and isinstance(value, float) and value > 0
    }
    for part in config.sub_configs:
        if (inner := getattr(config, part, None)) is not None:
            found |= {f"{part}.{name}": value for name, value in dropouts_of(inner).items()}
    return found


def set_options(config: Any, values: Mapping[str, float]) -> None:
    """Set options by the names that `dropouts_of` gives."""
    for dotted, value in values.items():
        *parts, name = dotted.split(".")
        owner = config
        for part in parts:
            owner = getattr(owner, part)
        setattr(owner, name, value)
