"""Real photographs, as scikit-image and scikit-learn ship them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def _folder(package: str, inner: str) -> Path:
    spec = find_spec(package)
    assert spec is not None  # both are in the test extra
    assert spec.origin is not None
    return Path(spec.origin).parent / inner


SCIKIT_IMAGE = _folder("skimage", "data")
SCIKIT_LEARN = _folder("sklearn", "datasets/images")
PHOTOGRAPHS = (
    *(SCIKIT_IMAGE / name for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")),
    *(SCIKIT_LEARN / name for name in ("china.jpg", "flower.jpg")),
)
"""512x512, 451x300, 600x400, 640x427, 640x427 and 640x427 pixels."""
