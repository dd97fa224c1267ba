"""The table of families, by transformers' model type."""

from __future__ import annotations

from collections.abc import Mapping

from mmalign.adapters.image_tokens.chameleon import CHAMELEON
from mmalign.adapters.image_tokens.emu3 import EMU3
from mmalign.adapters.image_tokens.family import Family
from mmalign.adapters.image_tokens.glm_image import GLM_IMAGE
from mmalign.adapters.image_tokens.janus import JANUS

FAMILIES: Mapping[str, Family] = {
    "chameleon": CHAMELEON,
    "emu3": EMU3,
    "glm_image": GLM_IMAGE,
    "janus": JANUS,
}
