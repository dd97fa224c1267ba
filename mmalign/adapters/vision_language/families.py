"""The families of vision-language models: what differs between them beyond their own processors."""

from __future__ import annotations

from dataclasses import dataclass

from mmalign.adapters.vision_language import layouts
from mmalign.adapters.vision_language.layouts import Layout


@dataclass(frozen=True)
class Family:
    """layout: which part of an image each of its tokens stands for."""

    layout: Layout


FAMILIES: dict[str, Family] = {
    "llava": Family(layouts.llava),
    "qwen2_vl": Family(layouts.qwen),
    "qwen2_5_vl": Family(layouts.qwen),
}
"""By model type. Their results are tested against the library's own; others may need more than is
passed here (masks that look both ways within an image, say), which no check at loading would
show."""
