"""A Wan of two million weights that films a coloured shape on its way.

Its classes and files are those of any Wan 2.1 pipeline in diffusers: UMT5 encoder, causal video
autoencoder, diffusion transformer, rectified flow. It has learnt from prompts of LENGTH tokens,
which the pipeline has to be told (max_sequence_length). Its checkpoint comes with mmalign
(`TINY_FILMER`); `python -m mmalign.playground.train_filmer FOLDER` has made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

from mmalign.playground.tiny_painter import END, PAD, UNKNOWN, word_tokenizer
from mmalign.playground.videos import (
    DIRECTIONS,
    FRAMES,
    SHADES,
    SHAPES,
    SIDE,
    Frames,
)

TINY_FILMER = Path(__file__).parent / "tiny-filmer"
"""The folder of the checkpoint that comes with mmalign."""

LENGTH = 5  # tokens of the longest prompt
CHANNELS = 8
WIDTH, LAYERS, HEADS = 128, 4, 4


def random_filmer() -> WanPipeline:
    """The pipeline before it has learned anything."""
    tokenizer = word_tokenizer([PAD, END, "moving", *SHADES, *SHAPES, *DIRECTIONS, UNKNOWN])
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer),
                d_model=WIDTH,
                d_kv=WIDTH // HEADS,
                d_ff=2 * WIDTH,
                num_layers=2,
                num_heads=HEADS,
                dropout_rate=0.0,
            )
        ),
        vae=AutoencoderKLWan(
            base_dim=12,
            z_dim=CHANNELS,
            dim_mult=[1, 2, 3],
            num_res_blocks=1,
            attn_scales=[],
            temperal_downsample=[False, True],
            scale_factor_temporal=2,
            scale_factor_spatial=4,
            latents_mean=[0.0] * CHANNELS,
            latents_std=[1.0] * CHANNELS,
        ),
        transformer=WanTransformer3DModel(
            patch_size=(1, 2, 2),
            num_attention_heads=HEADS,
            attention_head_dim=WIDTH // HEADS,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            text_dim=WIDTH,
            freq_dim=64,
            ffn_dim=2 * WIDTH,
            num_layers=LAYERS,
            cross_attn_norm=True,
            rope_max_seq_len=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


@torch.no_grad()
def filmed(pipe: WanPipeline, prompts: Sequence[str], *, steps: int = 12) -> list[Frames]:
    """A video to each prompt, without guidance."""
    pipe.set_progress_bar_config(disable=True)
    found = pipe(
        prompt=list(prompts),
        height=SIDE,
        width=SIDE,
        num_frames=FRAMES,
        num_inference_steps=steps,
        guidance_scale=1.0,
        max_sequence_length=LENGTH,
        output_type="np",
    ).frames
    return list((found * 255).round().clip(0, 255).astype(np.uint8))
