"""CLIP-like models as two functions, of images and of texts, from open_clip or transformers.

Axes: n images or texts, d dimensions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from mmalign.errors import UserError
from mmalign.rewards.loading import device_of, fill, identity

logger = logging.getLogger("mmalign")

OPEN_CLIP_CONFIG = "open_clip_config.json"


@dataclass(frozen=True)
class Encoder:
    """Images and texts as points on one sphere: (n d), of length 1. scale: exp(logit scale)."""

    name: str
    images: Callable[[Sequence[Image.Image]], Tensor]
    texts: Callable[[Sequence[str]], Tensor]
    scale: float

    def cosines(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """(n,) Between each image and its text. Equal texts are encoded once."""
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        points = self.texts(list(place))[[place[text] for text in texts]]
        return (self.images(images).float() * points.float()).sum(-1)


def load_encoder(model: str, pretrained: str | None, *, device: str | None = None) -> Encoder:
    """An architecture of open_clip with its tag or checkpoint; else a CLIP model of transformers.

    model: a name that open_clip knows, "hf-hub:owner/name", or a folder that open_clip wrote; or
        the Hub id or folder of a model and processor for transformers.
    """
    import open_clip  # slow to import

    folder = (Path(model) / OPEN_CLIP_CONFIG).is_file()
    if folder or pretrained is not None or model.startswith("hf-hub:"):
        return open_clip_encoder(model, pretrained, device=device)
    if model in open_clip.list_models():
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model))
        raise UserError(f"{model} needs pretrained=...", hint=f"a file of weights, or: {tags}")
    return transformers_encoder(model, device=device)


def open_clip_encoder(
    model: str,
    pretrained: str | None,
    *,
    weights: Mapping[str, Tensor] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> Encoder:
    """A model of open_clip, with its own preprocessing of images unless told otherwise.

    pretrained: a tag that open_clip knows for this architecture, or a file. weights: in place of
    pretrained. preprocessing: options of `open_clip.image_transform`.
    """
    import open_clip

    name = f"local-dir:{model}" if (Path(model) / OPEN_CLIP_CONFIG).is_file() else model
    # OpenAI's weights need another activation than the architectures of the same name.
    quick = bool((open_clip.get_pretrained_cfg(model, pretrained or "") or {}).get("quick_gelu"))
    try:
        net, _, transform = open_clip.create_model_and_transforms(
            name, pretrained, load_weights=weights is None, force_quick_gelu=quick
        )
        tokenizer = open_clip.get_tokenizer(name)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"open_clip cannot load {model} with {pretrained}: {error}") from error
    if weights is not None:
        fill(net, weights, model)
    if preprocessing is not None:
        transform = open_clip.image_transform(**preprocessing, is_train=False)
    where = device_of(device)
    net = net.to(where).eval().requires_grad_(False)

    def images(shown: Sequence[Image.Image]) -> Tensor:
        pixels = torch.stack([transform(image) for image in shown]).to(where)
        return net.encode_image(pixels, normalize=True)

    def texts(said: Sequence[str]) -> Tensor:
        if isinstance(tokenizer, open_clip.SimpleTokenizer):
            lengths = [len(tokenizer.encode(text)) + 2 for text in said]
            warn_cut(model, lengths, tokenizer.context_length)
        return net.encode_text(tokenizer(list(said)).to(where), normalize=True)

    known = identity(model) if pretrained is None else f"{model}/{identity(pretrained)}"
    return Encoder(f"open_clip/{known}", images, texts, float(net.logit_scale.exp()))


def transformers_encoder(
    model: str, processor: str | None = None, *, device: str | None = None
) -> Encoder:
    """A CLIP model of transformers. processor: its Hub id or folder, if not the model's own."""
    from transformers import AutoProcessor, CLIPModel

    try:
        net = CLIPModel.from_pretrained(model, dtype=torch.float32)
        # Resizing by Pillow is what the published scores were computed with.
        prepare: Any = AutoProcessor.from_pretrained(processor or model, backend="pil")
    except (OSError, ValueError) as error:
        raise UserError(
            f"transformers cannot load {model} with the processor {processor or model}: {error}",
            hint="check the names and the network, or give folders.",
        ) from error
    where = device_of(device)
    net = net.to(where).eval().requires_grad_(False)
    longest = net.config.text_config.max_position_embeddings

    def images(shown: Sequence[Image.Image]) -> Tensor:
        pixels = prepare(images=list(shown), return_tensors="pt")["pixel_values"].to(where)
        return normalize(net.get_image_features(pixel_values=pixels).pooler_output, dim=-1)

    def texts(said: Sequence[str]) -> Tensor:
        tokenizer = prepare.tokenizer
        warn_cut(model, [len(ids) for ids in tokenizer(list(said))["input_ids"]], longest)
        tokens = tokenizer(
            list(said),
            padding="max_length",
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        ).to(where)
        features = net.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        )
        return normalize(features.pooler_output, dim=-1)

    return Encoder(identity(model), images, texts, float(net.logit_scale.exp()))


def warn_cut(model: str, lengths: Sequence[int], longest: int) -> None:
    """Say that texts are longer than the model reads."""
    if over := sum(length > longest for length in lengths):
        logger.warning(
            "%d of %d texts have more than the %d tokens that %s reads, and are cut",
            over,
            len(lengths),
            longest,
            model,
        )
