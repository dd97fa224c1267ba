"""Autoregressive image generators: Janus, Emu3, Chameleon and GLM-Image as mmalign sees them."""

from mmalign.adapters.image_tokens.adapter import ImageTokenAdapter
from mmalign.adapters.image_tokens.collate import ImageTokenCollator
from mmalign.adapters.image_tokens.loading import load_image_tokens

__all__ = ["ImageTokenAdapter", "ImageTokenCollator", "load_image_tokens"]
