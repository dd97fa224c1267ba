"""Writing models: every file appears complete, and dropout is published as it was."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmalign.adapters.dropouts import set_options


def write_weights(lm: Any, folder: Path, dropouts: Mapping[str, float]) -> None:
    """All weights as `from_pretrained` reads them. dropouts: what the configuration said before
    dropout was switched off."""
    try:
        set_options(lm.config, dropouts)
        lm.save_pretrained(folder)
    finally:
        set_options(lm.config, dict.fromkeys(dropouts, 0.0))


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Files appear in `folder` one by one, each complete."""
    folder.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=folder, prefix=".save.partial-"))
    try:
        write(draft)
        for file in sorted(draft.rglob("*")):
            if file.is_file():
                target = folder / file.relative_to(draft)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    finally:
        shutil.rmtree(draft)
