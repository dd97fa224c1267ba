"""What one family of denoisers has to say for itself, and the arithmetic that families share.

A family is one entry of the table in `families.py`. Latents are (n c h w) for images and
(n c f h w) for video, normalised as the denoiser sees them; a family's `predict` hides packing,
frame order, scaled timesteps and added conditions. Axes: n rows, s text positions.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from diffusers.utils import is_bs4_available, is_ftfy_available
from torch import Tensor, nn

from mmalign.adapters.diffusion.noise import Moments
from mmalign.errors import UserError

logger = logging.getLogger("mmalign")

Text = Mapping[str, Tensor]
"""What a prompt became, one row of it or n rows: "embeds" (n s d), and where a family has them
"mask" (n s) and "pooled" (n d)."""

Geometry = Mapping[str, Any]
"""What all rows of one bucket share: rotary tables, sizes, the guidance that is embedded."""

Normalise = Callable[[Tensor], Tensor]
"""Raw latents (n ...) of the VAE to those that the denoiser sees."""

Predict = Callable[[nn.Module, Tensor, Tensor, Text, Geometry], Tensor]
"""Denoiser, noisy latents (n ...), steps (n,), text and geometry to a prediction (n ...).

Steps are training timesteps (integers) for variance-preserving families, sigma for flow.
"""


@dataclass(frozen=True)
class Family:
    """pipelines: names of the diffusers classes. denoiser: their attribute that is trained.

    flow: rectified flow, else variance-preserving. video: takes videos, else images.
    text: names of what `encode_prompt` returns, by position. text_arguments: for `encode_prompt`.
    predict: see `Predict`. geometry: pipeline, latent shape (c ...) and options to `Geometry`.
    normaliser: VAE to the function from raw latents to what the denoiser sees; it keeps no VAE.
    head: the denoiser's last layer, whose output is kept in float32.
    targets: where a LoRA goes by default. pixels: the side of one latent in pixels, and of one
    patch in latents. frame_stride: see `buckets_of`.
    moments: VAE and pixels (1 3 f h w) in -1 .. 1 to `Moments`.
    law: timestep law by default. call: arguments of the pipeline's `__call__`.
    zero_empty: whether an empty prompt stands for zeros where the pipeline's settings say so.
    """

    pipelines: tuple[str, ...]
    predict: Predict
    normaliser: Callable[[Any], Normalise]
    pixels: Callable[[Any], tuple[int, int]]
    denoiser: Literal["unet", "transformer"] = "transformer"
    flow: bool = True
    video: bool = False
    text: tuple[str | None, ...] = ("embeds",)
    text_arguments: Mapping[str, Any] = field(default_factory=dict)
    geometry: Callable[[Any, tuple[int, ...], Options], Geometry] = lambda pipe, shape, options: {}
    head: str = "proj_out"
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    frame_stride: Callable[[Any], int] = lambda pipe: 1
    moments: Callable[[Any, Tensor], Moments] = lambda vae, pixels: image_moments(vae, pixels)
    law: str = "logit_normal"
    call: Mapping[str, Any] = field(default_factory=dict)
    zero_empty: bool = False


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `load_diffusion` was told about conditions.

    guidance: value given to guidance-distilled models. frame_rate: of videos.
    text: options of the pipeline's text encoding (max_sequence_length, clip_skip ...).
    """

    guidance: float = 3.5
    frame_rate: float = 25.0
    text: Mapping[str, Any] = field(default_factory=dict)


TEXT_OPTIONS = (
    "max_sequence_length",
    "clip_skip",
    "clean_caption",
    "complex_human_instruction",
    "prompt_template",
    "text_encoder_out_layers",
)


def text_options(pipe: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `encode_prompt` as the pipeline itself uses them when it samples, or as chosen.

    The defaults of `encode_prompt` and of `__call__` differ in some pipelines; those of `__call__`
    are what the model was made for. Captions are cleaned only where the libraries for it are
    installed. Raises UserError for an option that the pipeline lacks, or that cannot be met.
    """
    encode = inspect.signature(pipe.encode_prompt).parameters
    call = inspect.signature(pipe.__call__).parameters
    shared = {name: call[name].default for name in TEXT_OPTIONS if name in encode and name in call}
    if unknown := sorted(set(chosen) - set(shared)):
        raise UserError(
            f"{type(pipe).__name__} encodes text without an option {unknown[0]!r}",
            hint=f"it has {sorted(shared)}",
        )
    found = {**shared, **chosen}
    if found.get("clean_caption") and not (is_bs4_available() and is_ftfy_available()):
        install = "pip install beautifulsoup4 ftfy"
        if chosen.get("clean_caption"):
            raise UserError("captions cannot be cleaned (clean_caption) here", hint=install)
        logger.warning("captions are taken as they are, not cleaned of markup: %s", install)
        found["clean_caption"] = False
    return found


def embed(
    family: Family, pipe: Any, prompt: str, options: Mapping[str, Any], device: torch.device
) -> dict[str, Tensor]:
    """Text embeddings of one prompt, without batch axis.

    Prompts are encoded one by one, so that a row does not depend on others being longer.
    """
    found = pipe.encode_prompt(prompt=[prompt], device=device, **family.text_arguments, **options)
    values = found if isinstance(found, tuple) else (found,)
    text = {
        name: value[0]
        for name, value in zip(family.text, values, strict=False)
        if name is not None and value is not None
    }
    if family.zero_empty and not prompt and pipe.config.get("force_zeros_for_empty_prompt"):
        return {name: torch.zeros_like(value) for name, value in text.items()}
    if "mask" in family.text:
        ones = torch.ones(len(text["embeds"]), dtype=torch.long, device=text["embeds"].device)
        text.setdefault("mask", ones)  # some pipelines leave out a mask that hides nothing
    return text


def stacked(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Texts of n rows together; shorter ones are padded with zeros at the end."""
    return {
        name: nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True)
        if name in ("embeds", "mask")
        else torch.stack([row[name] for row in rows])
        for name in rows[0]
    }


def image_moments(vae: Any, pixels: Tensor) -> Moments:
    """Of one image, pixels (1 3 1 h w): mean and deviation (c h w)."""
    return _moments(vae.encode(pixels[:, :, 0]))


def video_moments(vae: Any, pixels: Tensor) -> Moments:
    """Of one video, pixels (1 3 f h w): mean and deviation (c f h w)."""
    return _moments(vae.encode(pixels))


def frame_moments(vae: Any, pixels: Tensor) -> Moments:
    """Of one video under an image VAE, frame by frame: mean and deviation (c f h w)."""
    frames = [_moments(vae.encode(frame)) for frame in pixels.unbind(2)]
    means = torch.stack([m.mean for m in frames], dim=1)
    return Moments(means, torch.stack([m.std for m in frames if m.std is not None], dim=1))


def one_frame_moments(vae: Any, pixels: Tensor) -> Moments:
    """Of one image under a video VAE: mean and deviation (c h w)."""
    moments = video_moments(vae, pixels)
    return Moments(moments.mean[:, 0], None if moments.std is None else moments.std[:, 0])


def _moments(encoded: Any) -> Moments:
    if "latent_dist" in encoded:
        return Moments(encoded.latent_dist.mean[0], encoded.latent_dist.std[0])
    return Moments(encoded.latent[0], None)


def scaled(vae: Any) -> Normalise:
    """z scale: Stable Diffusion, SDXL, PixArt, Sana, CogVideoX, HunyuanVideo."""
    scale = vae.config.scaling_factor
    return lambda latents: latents * scale


def shifted(vae: Any) -> Normalise:
    """(z - shift) scale: Stable Diffusion 3, Flux, Z-Image."""
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    return lambda latents: (latents - shift) * scale


def standardised(vae: Any) -> Normalise:
    """(z - mean) / std by channel: Wan, Qwen-Image."""
    return by_channel(vae.config.latents_mean, vae.config.latents_std)


def by_channel(mean: Any, std: Any, scale: float = 1.0) -> Normalise:
    """(z - mean) scale / std by channel."""
    means, stds = torch.as_tensor(mean).clone().cpu(), torch.as_tensor(std).clone().cpu()

    def normalise(latents: Tensor) -> Tensor:
        shape = (-1, *(1,) * (latents.dim() - 2))
        return (latents - means.to(latents).view(shape)) * (scale / stds.to(latents).view(shape))

    return normalise


def packed(latents: Tensor) -> Tensor:
    """(n c h w) to (n h/2*w/2 4c): each 2 x 2 square becomes one token."""
    n, c, h, w = latents.shape
    squares = latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return squares.reshape(n, h // 2 * (w // 2), 4 * c)


def unpacked(tokens: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `packed`, to `shape` (n c h w)."""
    n, c, h, w = shape
    squares = tokens.view(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return squares.reshape(n, c, h, w)


def grid_ids(axes: int, height: int, width: int) -> Tensor:
    """(height*width axes): row and column of each token on axes 1 and 2, zeros elsewhere."""
    ids = torch.zeros(height, width, axes)
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)
    return ids.view(-1, axes)


def without_variance(prediction: Tensor, latents: Tensor) -> Tensor:
    """Denoisers that also predict a variance do so in further channels, which go unused."""
    return prediction[:, : latents.shape[1]]
