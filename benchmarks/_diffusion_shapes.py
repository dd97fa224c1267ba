"""Diffusers pipelines of published sizes with random weights, and of a quarter of their width."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers as d
import torch
import transformers as t
from tokenizers import Tokenizer, models, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,."


@dataclass(frozen=True)
class Shape:
    """make: the pipeline on the current default device and type. resolution: pixels."""

    make: Callable[[], Any]
    resolution: int


def make_pipeline(shape: str, precision: str, folder: Path) -> None:
    """Write a pipeline with random weights."""
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, precision))
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        pipe = SHAPES[shape].make()
    pipe.save_pretrained(folder)


def clip_tokenizer() -> Any:
    names = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merges = Path(folder, "vocab.json"), Path(folder, "merges.txt")
        vocabulary.write_text(json.dumps({name: i for i, name in enumerate(names)}))
        merges.write_text("#version: 0.2\n")
        return t.CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)


def letter_tokenizer() -> Any:
    scores = [(name, -float(i)) for i, name in enumerate(["<pad>", "</s>", "<unk>", *LETTERS, "▁"])]
    core = Tokenizer(models.Unigram(scores, unk_id=2))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return t.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=256,
    )


def clip(cls: Any, width: int, layers: int, heads: int) -> Any:
    return cls(
        t.CLIPTextConfig(
            vocab_size=49408,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=width,
            max_position_embeddings=77,
        )
    )


def vae(width: int, channels: int, **options: Any) -> Any:
    return d.AutoencoderKL(
        block_out_channels=(width, 2 * width, 4 * width, 4 * width),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=channels,
        **options,
    )


def sd15(scale: int = 1) -> Any:
    """Stable Diffusion 1.5; `scale` divides all widths, which keeps the parts' proportions."""
    wide = 320 // scale
    unet = d.UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(wide, 2 * wide, 4 * wide, 4 * wide),
        cross_attention_dim=768 // scale,
        attention_head_dim=8,
        norm_num_groups=32 if scale == 1 else 16,
    )
    return d.StableDiffusionPipeline(
        vae=vae(128 // scale, 4),
        text_encoder=clip(t.CLIPTextModel, 768 // scale, 12, 12 // scale),
        tokenizer=clip_tokenizer(),
        unet=unet,
        scheduler=d.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl() -> Any:
    """Stable Diffusion XL."""
    unet = d.UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + 1280,
    )
    return d.StableDiffusionXLPipeline(
        vae=vae(128, 4, scaling_factor=0.13025),
        text_encoder=clip(t.CLIPTextModel, 768, 12, 12),
        text_encoder_2=clip(t.CLIPTextModelWithProjection, 1280, 32, 20),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet,
        scheduler=d.DDPMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
    )


def sd3_medium() -> Any:
    """Stable Diffusion 3 medium, with T5-XXL."""
    transformer = d.SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        attention_head_dim=64,
        num_attention_heads=24,
        joint_attention_dim=4096,
        caption_projection_dim=1536,
        pooled_projection_dim=2048,
        in_channels=16,
        out_channels=16,
        pos_embed_max_size=192,
    )
    t5 = t.T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        feed_forward_proj="gated-gelu",
    )
    bare = {"use_quant_conv": False, "use_post_quant_conv": False}
    return d.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=d.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(128, 16, shift_factor=0.0609, scaling_factor=1.5305, **bare),
        text_encoder=clip(t.CLIPTextModelWithProjection, 768, 12, 12),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip(t.CLIPTextModelWithProjection, 1280, 32, 20),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t.T5EncoderModel(t5),
        tokenizer_3=letter_tokenizer(),
    )


SHAPES = {
    "sd15": Shape(sd15, 512),
    # at 256 pixels the VAE weighs as much beside the UNet as at full width and 512 pixels
    "sd15-quarter": Shape(lambda: sd15(4), 256),
    "sdxl": Shape(sdxl, 1024),
    "sd3-medium": Shape(sd3_medium, 1024),
}
