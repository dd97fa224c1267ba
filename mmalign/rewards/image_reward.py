"""ImageReward v1: a BLIP that reads the prompt while it looks at the image. arXiv:2304.05977.

The published checkpoint has BLIP's own names; its weights are put into transformers' BLIP.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmalign.data.cache import Cache
from mmalign.errors import UserError
from mmalign.rewards.aesthetic import linear_stack
from mmalign.rewards.encoders import warn_cut
from mmalign.rewards.loading import device_of, fill, identity, read_weights, weights_file
from mmalign.rewards.scorer import Scorer

FILE = "ImageReward.pt"
MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072
"""Of the raw scores on the data it was trained on."""
LONGEST = 35
HEAD = 64
"""Width of an attention head in both towers."""
PREPROCESSING = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
RENAMED = (
    (r"^blip\.visual_encoder\.patch_embed\.proj\.", "vision.embeddings.patch_embedding."),
    (r"^blip\.visual_encoder\.pos_embed$", "vision.embeddings.position_embedding"),
    (r"^blip\.visual_encoder\.cls_token$", "vision.embeddings.class_embedding"),
    (r"^blip\.visual_encoder\.norm\.", "vision.post_layernorm."),
    (r"^blip\.visual_encoder\.blocks\.", "vision.encoder.layers."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"^blip\.text_encoder\.", "text."),
    (r"^mlp\.layers\.", "head."),
)
"""The checkpoint's names, and ours."""
UNUSED = r"\.position_ids$"


def image_reward(
    *,
    weights: str = "zai-org/ImageReward",
    tokenizer: str = "google-bert/bert-base-uncased",
    device: str | None = None,
    batch_size: int = 16,
    cache: Cache | None = None,
) -> Scorer:
    """About normally distributed, mean 0 and deviation 1, on the images it was made for.

    weights: Hub id, folder or file. tokenizer: Hub id or folder.
    """
    import open_clip
    from transformers import AutoTokenizer

    file = weights_file(weights, FILE)
    try:
        words = AutoTokenizer.from_pretrained(tokenizer)
    except (OSError, ValueError) as error:
        raise UserError(f"the tokenizer {tokenizer} cannot be loaded: {error}") from error
    net = reward_model(read_weights(file), str(file))
    where = device_of(device)
    net.to(where).eval().requires_grad_(False)
    size = net.vision.config.image_size
    transform = open_clip.image_transform(size, **PREPROCESSING, is_train=False)

    def score(images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        warn_cut("ImageReward", [len(ids) for ids in words(list(texts))["input_ids"]], LONGEST)
        tokens = words(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=LONGEST,
            return_tensors="pt",
        ).to(where)
        pixels = torch.stack([transform(image) for image in images]).to(where)
        return (net(pixels, tokens["input_ids"], tokens["attention_mask"]) - MEAN) / DEVIATION

    return Scorer(f"image_reward:{identity(str(file))}", score, batch_size, cache)


class RewardModel(nn.Module):
    """The text tower attends to all patches of the image; its first place is what is judged."""

    def __init__(self, vision: Any, text: Any) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.head = linear_stack(text.config.hidden_size)

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """(n,) raw scores."""
        seen = self.vision(pixel_values=pixels).last_hidden_state  # (n, patches + 1, d)
        read = self.text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state
        return self.head(read[:, 0].float())[:, 0]


def reward_model(weights: Mapping[str, Tensor], where: str) -> RewardModel:
    """The model of the size that the weights have. where: their file, for errors."""
    from transformers.models.blip.modeling_blip import BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    ours = {_renamed(name): tensor for name, tensor in weights.items()}
    ours = {name: t for name, t in ours.items() if not re.search(UNUSED, name)}
    try:
        vision, text = _configs(ours)
    except KeyError as error:
        raise UserError(f"{where} is no checkpoint of ImageReward: {error} is missing") from error
    model = RewardModel(BlipVisionModel(vision), BlipTextModel(text, add_pooling_layer=False))
    fill(model, ours, where)
    return model


def _renamed(name: str) -> str:
    for pattern, ours in RENAMED:
        name = re.sub(pattern, ours, name)
    return name


def _configs(weights: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Sizes that the weights tell of; what they do not tell is as it was published."""
    from transformers import BlipTextConfig, BlipVisionConfig

    def layers(prefix: str) -> int:
        found = [re.match(rf"{prefix}\.(\d+)\.", name) for name in weights]
        return 1 + max(int(match[1]) for match in found if match)

    width, _, patch, _ = weights["vision.embeddings.patch_embedding.weight"].shape
    places = weights["vision.embeddings.position_embedding"].shape[1] - 1
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(weights["vision.encoder.layers.0.mlp.fc1.bias"]),
        num_hidden_layers=layers("vision.encoder.layers"),
        num_attention_heads=width // HEAD,
        image_size=round(places**0.5) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    vocabulary, hidden = weights["text.embeddings.word_embeddings.weight"].shape
    text = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        encoder_hidden_size=width,
        intermediate_size=len(weights["text.encoder.layer.0.intermediate.dense.bias"]),
        num_hidden_layers=layers("text.encoder.layer"),
        num_attention_heads=hidden // HEAD,
        max_position_embeddings=len(weights["text.embeddings.position_embeddings.weight"]),
        is_decoder=True,  # has cross-attention; its mask looks both ways all the same
    )
    return vision, text
