"""What a frozen tower makes of each image, kept on disk, so that it looks at none of them twice.

One safetensors file for each image. Its name is a hash of all that the features follow from:
the weights of tower and projector, the processor's settings, the precision and the image's bytes.
Several processes may read and write the same folder.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from mmalign.adapters.vision_language.features import Encoded, vision_parts
from mmalign.files import whole_file
from mmalign.reference import weights_digest


@dataclass(frozen=True)
class FeatureCache:
    """Travels to data workers, which read; the adapter writes. scope: what all images share."""

    folder: Path
    scope: str

    @classmethod
    def of(cls, folder: Path, lm: PreTrainedModel, processor: Any, precision: str) -> FeatureCache:
        """For the images of a model whose tower and projector stay as they are now."""
        text = lm.config.get_text_config().to_dict()
        config = {key: value for key, value in lm.config.to_dict().items() if value != text}
        known = {
            "weights": weights_digest(vision_parts(lm)),
            "model": [type(lm).__name__, config],
            "processor": processor.to_dict(),
            "precision": precision,
            "versions": [importlib.metadata.version(name) for name in ("torch", "transformers")],
        }
        stated = json.dumps(known, sort_keys=True, default=str)
        return cls(Path(folder), hashlib.sha256(stated.encode()).hexdigest())

    def find(self, name: str) -> Encoded | None:
        """Features of the image called `name`, None where there are none yet."""
        path = self._path(name)
        return load_file(path) if path.exists() else None

    def store(self, name: str, encoded: Encoded) -> None:
        tensors = {key: value.detach().cpu().contiguous() for key, value in encoded.items()}
        with whole_file(self._path(name)) as partial:
            save_file(tensors, partial)

    def _path(self, name: str) -> Path:
        place = hashlib.sha256(f"{self.scope}\n{name}".encode()).hexdigest()
        return self.folder / place[:2] / f"{place}.safetensors"
