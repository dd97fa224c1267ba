"""A hash of all but the weights that an autoregressive model's log-probabilities depend on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from typing import Any

_VERSIONS = ("torch", "transformers", "tokenizers", "peft")


def fingerprint(lm: Any, tokenizer: Any, **parts: Any) -> str:
    """parts: what else matters, as JSON or as anything with a telling `str`."""
    config = lm.config.to_dict()
    # Where the model lies and what wrote it does not change what it computes.
    for name in ("_name_or_path", "transformers_version", "dtype"):
        config.pop(name, None)
    known = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "tokenizer": tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else "",
        "special": {name: str(t) for name, t in tokenizer.special_tokens_map.items()},
        "template": tokenizer.chat_template,
        "config": config,
        "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
    }
    text = json.dumps({**known, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
