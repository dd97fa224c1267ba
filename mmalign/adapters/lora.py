"""LoRA on any transformers or diffusers model, and the reference that comes with it for nothing.

The reference is the model as it was loaded: under a fresh LoRA the model without it, under an
adapter that is trained further a frozen second copy of that adapter, named "reference".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from mmalign.errors import UserError

REFERENCE = "reference"
TRAINED = "default"


@dataclass(frozen=True)
class Lora:
    """r: rank. alpha: the update is scaled by alpha / r; 2 r by default. dropout: of the input of
    the update, which makes the first step cost slightly more than log 2 where it is not 0 and the
    update is not fresh. targets: module names, or "all-linear" for all linear layers but the head.
    init: peft's `init_lora_weights` (True: the update starts at 0)."""

    r: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "all-linear"
    init: bool | str = True

    @classmethod
    def of(cls, options: Lora | Mapping[str, Any]) -> Lora:
        """From options by name. Raises UserError for one that does not exist."""
        if isinstance(options, Lora):
            return options
        unknown = sorted(set(options) - set(cls.__dataclass_fields__))
        if unknown:
            raise UserError(
                f"LoRA has no option {unknown[0]!r}",
                hint=f"there are {list(cls.__dataclass_fields__)}",
            )
        return cls(**options)


def add_lora(model: nn.Module, lora: Lora, *, task: str | None = "CAUSAL_LM") -> PeftModel:
    """`model` with a fresh LoRA; only the LoRA is trained, in float32."""
    config = LoraConfig(
        r=lora.r,
        lora_alpha=2 * lora.r if lora.alpha is None else lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets if isinstance(lora.targets, str) else list(lora.targets),
        init_lora_weights=lora.init,
        exclude_modules=_excluded(model) if lora.targets == "all-linear" else None,
        task_type=task,
    )
    with warnings.catch_warnings():  # peft asks transformers by a name that it will lose
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpointing", category=FutureWarning
        )
        return get_peft_model(model, config)


def _excluded(model: Any) -> list[str] | None:
    """Linear layers whose weights a fused kernel of the model reads itself, past any LoRA."""
    fused = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
    kind = getattr(getattr(model, "config", None), "model_type", None)
    return ["out_proj", "conv1d"] if kind in fused else None


def load_lora(model: nn.Module, folder: Path) -> PeftModel:
    """`model` with the adapter in `folder`, to be trained on, and its frozen copy as reference.

    The adapter's dropout is switched off, so that policy and reference start out equal.
    Raises UserError when the folder holds no adapter.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{folder} holds no peft adapter",
            hint="adapter= is a folder with adapter_config.json and adapter_model.safetensors",
        )
    policy = PeftModel.from_pretrained(model, folder, adapter_name=TRAINED, is_trainable=True)
    policy.load_adapter(folder, adapter_name=REFERENCE, is_trainable=False)
    policy.set_adapter(TRAINED)
    for layer in _layers(policy):
        for dropout in getattr(layer, "lora_dropout", {}).values():
            if isinstance(dropout, nn.Dropout):
                dropout.p = 0.0
    return policy


@contextmanager
def reference_mode(policy: nn.Module) -> Iterator[None]:
    """Inside, `policy` computes what the model computed as it was loaded.

    Raises ValueError for a model without LoRA: its reference has to be a copy made before training.
    """
    if not isinstance(policy, PeftModel):
        raise ValueError(
            "a fully fine-tuned model cannot turn back into its reference: "
            "keep a frozen copy of it, or train a LoRA"
        )
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    try:
        if REFERENCE in policy.peft_config:
            policy.set_adapter(REFERENCE, inference_mode=True)
        else:
            policy.base_model.disable_adapter_layers()
        yield
    finally:
        if REFERENCE in policy.peft_config:
            policy.set_adapter(TRAINED)
        else:
            policy.base_model.enable_adapter_layers()
        # peft marks every parameter of the adapter as trained again: leave it as it was found.
        kept = set(trained)
        for name, parameter in policy.named_parameters():
            parameter.requires_grad_(name in kept)


@contextmanager
def merged(policy: nn.Module) -> Iterator[None]:
    """Inside, the active LoRA is folded into the weights, which makes sampling quicker.

    Afterwards the weights are the very tensors that they were before, not the result of a
    subtraction. Models without LoRA are left alone. In half precision the folded weights are
    rounded, so that the distribution is slightly another one.
    Raises UserError for adapters that are not a plain sum (DoRA ...).
    """
    swapped: list[tuple[nn.Parameter, torch.Tensor]] = []
    layers = [layer for layer in _layers(policy) if not layer.disable_adapters]
    if any(layer.lora_variant for layer in layers):
        raise UserError("only plain LoRA can be folded in", hint="sample with merge=False")
    try:
        for layer in layers:
            weight = layer.get_base_layer().weight
            swapped.append((weight, weight.data))
            with torch.no_grad():
                delta = sum(layer.get_delta_weight(name) for name in layer.active_adapters)
                weight.data = (weight.data.float() + delta.float()).to(weight.dtype)
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
        for weight, data in swapped:
            weight.data = data


def has_lora(policy: nn.Module) -> bool:
    """Whether there is a LoRA to switch off. Frozen parts, such as a vision tower, are none."""
    return bool(_layers(policy))


def _layers(policy: nn.Module) -> list[Any]:
    return [module for module in policy.modules() if isinstance(module, LoraLayer)]
