"""A tiny text encoder with random weights, as sentence-transformers lays one out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tiny_models import tokenizer


def save_text_encoder(folder: Path, *, first: bool = False) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=432,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.4,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer(None, model_max_length=64).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    modes = {"pooling_mode_cls_token": first, "pooling_mode_mean_tokens": not first}
    (folder / "1_Pooling/config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, **modes})
    )
    return folder
