"""Tiny random-weight image generators with their real processors, written and read as real ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from tiny_models import SPECIAL, tokenizer
from tiny_vision_parts import AXES
from transformers import JanusVQVAE, JanusVQVAEConfig, PreTrainedTokenizerFast

CODES = 24
WIDE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "attention_dropout": 0.1,
}
VQ = {
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "latent_channels": 16,
    "double_latent": False,
}
JANUS_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{{ c.text }}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
GLM_IMAGE_TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
    "{% else %}<|dit_token_24|><image><|dit_token_25|>{% endif %}{% endfor %}{% endfor %}"
)


def save_image_model(folder: Path, family: str) -> Path:
    """A model folder with processor, as `from_pretrained` reads it. The same weights every time."""
    torch.manual_seed(0)
    model, processor = MAKERS[family]()
    with torch.no_grad():  # spread enough that pictures differ from one another
        for name, weight in model.named_parameters():
            if "quantize.embedding" in name:
                weight.normal_()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_decoder(folder: Path) -> Path:
    """The image decoder that transformers' Chameleon lacks."""
    torch.manual_seed(0)
    config = JanusVQVAEConfig(
        **VQ, embed_dim=8, num_embeddings=CODES, num_patches=4, projection_dim=32
    )
    JanusVQVAE(config).save_pretrained(folder)
    return folder


def save_pipeline(folder: Path) -> Path:
    """GLM-Image whole, as it is published: generator and diffusion decoder."""
    torch.manual_seed(0)
    model, processor = _glm_image()
    blocks = 4
    diffusers.GlmImagePipeline(
        tokenizer=transformers.ByT5Tokenizer(),
        processor=processor,
        text_encoder=transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=384, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2
            )
        ),
        vision_language_encoder=model,
        vae=diffusers.AutoencoderKL(
            block_out_channels=(4, 8, 8, 8), norm_num_groups=4, latent_channels=4,
            down_block_types=["DownEncoderBlock2D"] * blocks,
            up_block_types=["UpDecoderBlock2D"] * blocks,
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ),
        transformer=diffusers.GlmImageTransformer2DModel(
            in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
            num_attention_heads=2, text_embed_dim=16, time_embed_dim=16, condition_dim=8,
            prior_vq_quantizer_codebook_size=CODES,
        ),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def _words(more: Mapping[str, str], others: list[str], template: str | None) -> Any:
    """The tokenizer of `tiny_models` with names for special tokens, and further tokens."""
    core = tokenizer(None).backend_tokenizer
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens=dict(more),
    )
    made.add_special_tokens({"additional_special_tokens": [*SPECIAL[3:], *others]})
    made.chat_template = template
    return made


def _janus() -> tuple[Any, Any]:
    from transformers.models.janus.image_processing_pil_janus import JanusImageProcessorPil

    names = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    words = _words(names, [], None)
    config = transformers.JanusConfig(
        text_config={
            "model_type": "llama", **WIDE, "vocab_size": len(words), "bos_token_id": 0,
            "eos_token_id": 1, "pad_token_id": 2,
        },
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
            "patch_size": 2, "mlp_ratio": 2, "projection_dim": 32, "num_image_tokens": 16,
        },
        vq_config={
            **VQ, "embed_dim": 8, "num_embeddings": CODES, "num_patches": 4,
            "projection_dim": 32, "image_token_embed_dim": 32,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = transformers.JanusForConditionalGeneration(config)
    model.generation_config.bos_token_id, model.generation_config.pad_token_id = 0, 2
    model.generation_config.generation_kwargs = {
        "boi_token_id": words.convert_tokens_to_ids("<boi>")
    }
    pictures = JanusImageProcessorPil(size={"height": 8, "width": 8}, min_size=2)
    processor = transformers.JanusProcessor(
        pictures, words, chat_template=JANUS_TEMPLATE, num_image_tokens=16
    )
    return model, processor


def _emu3() -> tuple[Any, Any]:
    names = {
        "image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>",
        "image_wrapper_token": "<img>", "eof_token": "<eof>",
    }  # fmt: skip
    codes = [f"<|visual token {code:06}|>" for code in range(CODES)]
    words = _words(names, ["<|extra_200|>", *codes], None)
    ids = {
        token: words.convert_tokens_to_ids(token) for token in ["<image>", "<|extra_200|>", *codes]
    }
    config = transformers.Emu3Config(
        text_config={
            **WIDE, "vocab_size": len(words), "bos_token_id": 0, "eos_token_id": 1,
            "pad_token_id": 2,
        },
        vq_config={
            **VQ, "embed_dim": 4, "codebook_size": CODES, "latent_channels": 4,
            "attn_resolutions": [], "hidden_size": 32, "num_attention_heads": 1,
            "temporal_downsample_factor": 1,
        },
        vocabulary_map=ids,
    )  # fmt: skip
    model = transformers.Emu3ForConditionalGeneration(config)
    pictures = transformers.Emu3ImageProcessor(min_pixels=16, max_pixels=4096, spatial_factor=2)
    processor = transformers.Emu3Processor(pictures, words)
    processor.image_area = 64  # 4 x 4 codes of 2 x 2 pixels
    return model, processor


def _chameleon() -> tuple[Any, Any]:
    from transformers.models.chameleon.image_processing_pil_chameleon import (
        ChameleonImageProcessorPil,
    )

    letters = {str(digit): chr(ord("A") + digit) for digit in range(10)}
    codes = [f"IMGIMG{''.join(letters[d] for d in str(code))}Z" for code in range(CODES)]
    names = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    words = _words(names, codes, None)
    ids = {token: words.convert_tokens_to_ids(token) for token in ["<image>", *codes]}
    config = transformers.ChameleonConfig(
        **WIDE, vocab_size=len(words), bos_token_id=0, eos_token_id=1, pad_token_id=2,
        vq_config={**VQ, "embed_dim": 8, "num_embeddings": CODES, "resolution": 8},
        vocabulary_map=ids,
    )  # fmt: skip
    model = transformers.ChameleonForConditionalGeneration(config)
    pictures = ChameleonImageProcessorPil(
        size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}
    )
    return model, transformers.ChameleonProcessor(pictures, words, image_seq_length=16)


def _glm_image() -> tuple[Any, Any]:
    from transformers.models.glm_image.image_processing_pil_glm_image import (
        GlmImageImageProcessorPil,
    )

    codes = [f"<|dit_token_{number}|>" for number in range(CODES + 2)]
    begin, end = codes[CODES:]
    names = {"image_token": "<image>", "grid_bos_token": "<sop>", "grid_eos_token": "<eop>"}
    words = tokenizer(None, first=codes, bos_token=begin, eos_token=end, extra_special_tokens=names)
    words.chat_template = GLM_IMAGE_TEMPLATE
    config = transformers.GlmImageConfig(
        text_config={
            **WIDE, "vocab_size": len(words), "eos_token_id": CODES + 1,
            "pad_token_id": words.pad_token_id, "vision_vocab_size": CODES + 8,
            "max_position_embeddings": 1024, "rope_parameters": dict(AXES),
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "num_heads": 2, "image_size": 64, "patch_size": 16,
            "intermediate_size": 48, "initializer_range": 0.2,
        },
        vq_config={"embed_dim": 8, "num_embeddings": CODES, "latent_channels": 32},
        image_token_id=words.convert_tokens_to_ids("<image>"),
        image_start_token_id=CODES, image_end_token_id=CODES + 1,
    )  # fmt: skip
    model = transformers.GlmImageForConditionalGeneration(config)
    pictures = GlmImageImageProcessorPil(
        patch_size=16, merge_size=1, temporal_patch_size=1,
        size={"shortest_edge": 64 * 64, "longest_edge": 2048 * 2048},
    )  # fmt: skip
    return model, transformers.GlmImageProcessor(pictures, words, words.chat_template)


MAKERS = {"janus": _janus, "emu3": _emu3, "chameleon": _chameleon, "glm_image": _glm_image}
