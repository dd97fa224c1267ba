"""Tiny random-weight models of many families, written and read as real ones are.

Weights are larger than a trained model's, so that attention matters and a leak between responses
shows in the first digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

CORPUS = [
    "What is the capital of France? The capital of France is Paris.",
    "Name three colours. Red, green and blue are three colours.",
    "the quick brown fox jumps over the lazy dog 0123456789",
    "user assistant system think think",
]

SPECIAL = ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|eot|>")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(
    template: str | None = CHATML, *, first: Sequence[str] = (), **options: Any
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of about 400 tokens, trained on the spot. first: special tokens
    that come before all others."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*first, *SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    options = {"eos_token": "</s>", "pad_token": "<pad>"} | options
    made = PreTrainedTokenizerFast(
        tokenizer_object=core, additional_special_tokens=["<|im_start|>", "<|im_end|>"], **options
    )
    made.chat_template = template
    return made


_COMMON = {
    "vocab_size": 416,  # padded beyond the tokenizer's, as real ones are
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
    "attention_dropout": 0.1,
}
_MIXED_LAYERS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_NO_GROUPS = {"num_key_value_heads": 4}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"tie_word_embeddings": True},  # SmolLM2 is one
    "qwen2": {},
    "qwen3": {},
    "gemma2": {**_MIXED_LAYERS, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0},
    "gemma3_text": {**_MIXED_LAYERS, "query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": 4},
    "phi3": {"resid_pdrop": 0.1, "embd_pdrop": 0.1},
    "gpt2": {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "attn_pdrop": 0.1,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
    },
    "gpt_neox": {"hidden_dropout": 0.1},
    "olmo2": {},
    "olmo3": _MIXED_LAYERS,
    "granite": {"logits_scaling": 3.0},
    "cohere2": {**_MIXED_LAYERS, "logit_scale": 0.5},
    "mamba": {"state_size": 4, "conv_kernel": 4, "expand": 2, "time_step_rank": 4},
}
"""By transformers' model type: what differs from the common small configuration."""

PLAIN_ROWS = {"mamba"}
"""Families that cannot share a prompt within a row."""
if Version(transformers.__version__) < Version("5.23"):
    # Seen in 5.17 and 5.20: Gemma 2's attention differs from ours by 2e-4. The check at loading
    # finds that, says so, and takes plain rows.
    PLAIN_ROWS.add("gemma2")


def family_config(family: str, **changes: Any) -> Any:
    options = {**_COMMON, **FAMILIES[family], **changes}
    if family == "gpt2":
        aliases = {"hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim"}
        options = {k: v for k, v in options.items() if k not in {*aliases, "num_key_value_heads"}}
    if family == "mamba":
        gone = {"num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size"}
        options = {k: v for k, v in options.items() if k not in gone}
    return AutoConfig.for_model(family, **options)


def save_model(
    folder: Path, family: str = "llama", *, template: str | None = CHATML, **changes: Any
) -> Path:
    """A model folder with tokenizer, as `from_pretrained` reads it. The same weights every time."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(family_config(family, **changes))
    model.save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder
