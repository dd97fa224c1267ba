"""`load_text`: a causal language model from the hub, a folder or a GGUF file, ready to align."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from mmalign.adapters.autoregressive import examine
from mmalign.adapters.dropouts import dropouts_of, set_options
from mmalign.adapters.lora import Lora, add_lora, load_lora
from mmalign.adapters.text.adapter import TextAdapter
from mmalign.adapters.text.collate import TextCollator
from mmalign.adapters.text.gguf import converted
from mmalign.errors import UserError

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_text(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    lora: Lora | Mapping[str, Any] | None = None,
    precision: str = "float32",
    device: str | torch.device | None = None,
    chat_template: str | Path | None = None,
    max_length: int | None = None,
    truncate: bool = False,
    gradient_checkpointing: bool = False,
    attention: str | None = None,
    trust_remote_code: bool = False,
) -> TextAdapter:
    """Load a causal language model with its tokenizer.

    model: hub id, folder, or GGUF file (converted once into `cache_folder()`).
    adapter: folder of a peft adapter to train on; the reference is the model with this adapter.
    lora: options of a fresh LoRA (r, alpha, dropout, targets, init); the reference is the model
        without it. With neither, all weights are trained.
    precision: "float32", "bfloat16" or "float16" arithmetic. Frozen weights are held in it, weights
        that are trained in float32.
    device: the first GPU if there is one, else the CPU.
    chat_template: a Jinja template, or a file with one, in place of the tokenizer's own.
    max_length: tokens that prompt and response may have together; what the model's positions allow
        by default. Longer samples are refused or, with truncate, lose the end of the response.
    attention: transformers' name of an attention implementation ("sdpa" where possible).
    Raises UserError for what cannot be found or loaded, and for options that make no sense.
    """
    if adapter is not None and lora is not None:
        raise UserError(
            "both adapter= and lora= are given",
            hint="adapter= trains an existing LoRA on, lora= trains a fresh one: choose one",
        )
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}", hint=f"there are {sorted(PRECISIONS)}")
    frozen = adapter is not None or lora is not None
    dtype = PRECISIONS[precision]
    source = _source(model)
    tokenizer = _tokenizer(source, chat_template, trust_remote_code)
    lm, dropouts = _model(
        source, dtype if frozen else torch.float32, attention, trust_remote_code=trust_remote_code
    )
    lm.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    abilities = examine(lm)
    if gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy: nn.Module = lm
    if adapter is not None:
        policy = load_lora(lm, Path(adapter))
    elif lora is not None:
        policy = add_lora(lm, Lora.of(lora))
    if max_length is None:
        max_length = getattr(lm.config, "max_position_embeddings", None)
    collator = TextCollator(
        tokenizer, max_length=max_length, truncate=truncate, packed=abilities.packed
    )
    return TextAdapter(policy.train(), collator, abilities, dtype, dropouts)


def _source(model: str | Path) -> str:
    """A hub id as it is, a folder with its full path (which saved adapters name as their base)."""
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(
                f"the model {path} is a file", hint="pass a hub id, a folder, or a .gguf file"
            )
        return str(converted(path))
    return str(path.resolve()) if path.is_dir() else str(model)


def _tokenizer(
    source: str, chat_template: str | Path | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise unavailable("tokenizer", source, error) from error
    if chat_template is not None:
        tokenizer.chat_template = template_of(chat_template)
    return tokenizer


def template_of(chat_template: str | Path) -> str:
    """A Jinja template given as such or as a file. Raises UserError for what is neither."""
    text = str(chat_template)
    looks_like_file = "{" not in text
    if looks_like_file and not Path(text).is_file():
        raise UserError(
            f"chat_template is {text!r}, which is neither a template nor a file",
            hint="a template contains {{ ... }} or {% ... %}",
        )
    return Path(text).read_text() if looks_like_file else text


def _model(
    source: str, dtype: torch.dtype, attention: str | None, *, trust_remote_code: bool
) -> tuple[Any, dict[str, float]]:
    chosen = {"attn_implementation": attention} if attention else {}
    try:
        return without_dropout(
            AutoModelForCausalLM, source, dtype, trust_remote_code=trust_remote_code, **chosen
        )
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise unavailable("model", source, error) from error


def without_dropout(
    auto: Any, source: str, dtype: torch.dtype, *, trust_remote_code: bool, **options: Any
) -> tuple[Any, dict[str, float]]:
    """The model without dropout, and the dropout probabilities that it was published with.

    Policy and reference must agree, and a reference is computed without dropout.
    auto: the class of transformers that knows models of this kind.
    """
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    dropouts = dropouts_of(config)
    set_options(config, dict.fromkeys(dropouts, 0.0))
    lm = auto.from_pretrained(
        source, config=config, dtype=dtype, trust_remote_code=trust_remote_code, **options
    )
    for module in lm.modules():  # models of remote code may not read them from the configuration
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return lm, dropouts


def unavailable(what: str, source: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    if Path(source).is_dir():
        return UserError(
            f"the folder {source} holds no {what} that transformers can load: {reason}",
            hint="it should hold what save_pretrained writes: config.json, *.safetensors, "
            "tokenizer.json",
        )
    return UserError(
        f"there is no {what} {source!r}: no such folder or .gguf file here, and the hub did not "
        f"give it ({reason})",
        hint="check the name; log in for gated models (hf auth login); without a network, fetch "
        f"it elsewhere (hf download {source} --local-dir DIR) and pass DIR",
    )
