"""The vision-language adapter: any image-text-to-text model of transformers."""

from mmalign.adapters.vision_language.adapter import VisionLanguageAdapter
from mmalign.adapters.vision_language.collate import VisionLanguageCollator
from mmalign.adapters.vision_language.layouts import ImageSpan
from mmalign.adapters.vision_language.loading import load_vision_language

__all__ = ["ImageSpan", "VisionLanguageAdapter", "VisionLanguageCollator", "load_vision_language"]
