"""`load_vision_language`: an image-text-to-text model from the hub or a folder, ready to align."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from mmalign.adapters.autoregressive import causal_lm, examine
from mmalign.adapters.lora import Lora, add_lora, load_lora
from mmalign.adapters.text.loading import PRECISIONS, template_of, unavailable, without_dropout
from mmalign.adapters.vision_language.adapter import VisionLanguageAdapter
from mmalign.adapters.vision_language.collate import VisionLanguageCollator
from mmalign.adapters.vision_language.examination import examine_with_images
from mmalign.adapters.vision_language.families import FAMILIES, NOT_HERE, Family
from mmalign.adapters.vision_language.feature_cache import FeatureCache
from mmalign.adapters.vision_language.features import backbone, vision_parts
from mmalign.adapters.vision_language.processing import Processing
from mmalign.errors import UserError

TOWERS = ("vision_tower", "vision_model", "visual")
PROJECTORS = ("multi_modal_projector", "connector")


def load_vision_language(
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
    trust_remote_code: bool = False,
    train_projector: bool = False,
    train_vision: bool = False,
    feature_cache: str | Path | None = None,
    video_frames: int = 8,
    trained: bool = True,
) -> VisionLanguageAdapter:
    """Load an image-text-to-text model with its processor.

    model: hub id or folder. adapter, lora, precision, device, chat_template, truncate: as in
        `load_text`. A fresh LoRA goes into the language model.
    max_length: tokens that prompt and response may have together, image tokens included; what the
        model's positions allow by default.
    train_projector, train_vision: train these parts as well; they get a LoRA where the language
        model has one, and are frozen by default. A tower that holds its projector (Qwen-VL) is
        trained with it.
    trained: a model that only answers is held in `precision`, whereas weights that are trained are
        float32.
    feature_cache: folder in which what a frozen tower makes of each image is kept.
    video_frames: evenly spaced frames that a video counts as, each of them an image.
    Raises UserError for what cannot be found or loaded, and for options that make no sense.
    """
    if adapter is not None and lora is not None:
        raise UserError(
            "both adapter= and lora= are given",
            hint="adapter= trains an existing LoRA on, lora= trains a fresh one: choose one",
        )
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}", hint=f"there are {sorted(PRECISIONS)}")
    if video_frames < 1:
        raise UserError("video_frames must be 1 at least", hint="8 is the default")
    dtype = PRECISIONS[precision]
    frozen = adapter is not None or lora is not None or not trained
    held = dtype if frozen else torch.float32
    path = Path(model).expanduser()
    source = str(path.resolve()) if path.is_dir() else str(model)
    try:
        kind = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code).model_type
        if kind in NOT_HERE:
            raise UserError(
                f"models of the kind {kind} cannot be aligned here: {NOT_HERE[kind]}",
                hint="docs/vision-language-models.md lists the families that can",
            )
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=trust_remote_code)
        lm, dropouts = without_dropout(
            AutoModelForImageTextToText, source, held, trust_remote_code=trust_remote_code
        )
    except UserError:
        raise  # it is a ValueError, and says what it has to say
    except ImportError as error:
        raise UserError(f"{source} needs a package that is not installed: {error}") from error
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise unavailable("vision-language model", source, error) from error
    if getattr(processor, "image_token", None) is None:
        raise UserError(
            f"{type(processor).__name__} does not say which token stands for an image",
            hint="use a model whose images are tokens among the text, such as LLaVA or Qwen-VL",
        )
    template = processor.chat_template if chat_template is None else template_of(chat_template)
    processor.chat_template = processor.tokenizer.chat_template = template
    lm.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    text = lm.config.get_text_config()
    if max_length is None:
        max_length = getattr(text, "max_position_embeddings", None)
    abilities = examine(lm)
    family = FAMILIES.get(type(processor).__name__, Family(together="one"))
    collator = VisionLanguageCollator(
        Processing(processor, family, lm.config.image_token_id, video_frames=video_frames),
        max_length=max_length,
        truncate=truncate,
        packed=abilities.packed,
        multimodal=hasattr(backbone(lm), "get_rope_index"),
        ticks=getattr(lm.config.vision_config, "tokens_per_second", None),
    )
    bare = VisionLanguageAdapter(lm, collator, abilities, precision=dtype, dropouts=dropouts)
    abilities = examine_with_images(bare)
    if gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    parts = _trained_parts(lm, projector=train_projector, vision=train_vision)
    policy = _policy(lm, adapter, lora, parts).train()
    if not trained:
        policy.requires_grad_(False)
    vision = vision_parts(causal_lm(policy))
    seen_alike = not any(parameter.requires_grad for parameter in vision.parameters())
    if feature_cache is not None:
        if not seen_alike:
            raise UserError(
                "feature_cache= keeps what the vision tower sees, and the tower or its projector "
                "is trained",
                hint="leave out feature_cache=, or train the language model only",
            )
        collator.features = FeatureCache.of(
            Path(feature_cache), causal_lm(policy), processor, precision
        )
    return replace(bare, policy=policy, abilities=abilities, frozen_vision=seen_alike)


def _policy(
    lm: Any,
    adapter: str | Path | None,
    lora: Lora | Mapping[str, Any] | None,
    parts: list[str],
) -> nn.Module:
    """The model with the parts that are trained: under LoRA, or by their own weights."""
    if adapter is not None:
        return load_lora(lm, Path(adapter))
    if lora is not None:
        options = Lora.of(lora)
        return add_lora(lm, replace(options, targets=_targets(lm, parts, options.targets)))
    head = lm.get_output_embeddings()
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_(any(f".{part}." in f".{name}" for part in parts))
    head.requires_grad_(True)
    return lm


def _targets(lm: Any, parts: list[str], chosen: str | tuple[str, ...]) -> tuple[str, ...]:
    """Full names of the chosen linear layers in the parts that are trained, without the head: a
    tower may have layers of the same name. Raises UserError where there is none."""
    head = lm.get_output_embeddings()
    found = tuple(
        name
        for name, module in lm.named_modules()
        if isinstance(module, nn.Linear)
        and module is not head
        and any(f".{part}." in f".{name}." for part in parts)
        and (chosen == "all-linear" or any(f".{name}".endswith(f".{each}") for each in chosen))
    )
    if not found:
        raise UserError(
            f"no linear layer in {' or '.join(parts)} is called {chosen!r}",
            hint="name layers as in q_proj,v_proj, or take all-linear",
        )
    return found


def _trained_parts(lm: Any, *, projector: bool, vision: bool) -> list[str]:
    """Names of the model's parts. Raises UserError where one that is asked for is not found."""
    inner = backbone(lm)
    names = {name for name, _ in inner.named_children()}
    found = ["language_model" if "language_model" in names else "text_model"]
    for wanted, known, what in (
        (projector, PROJECTORS, "train_projector"),
        (vision, TOWERS, "train_vision"),
    ):
        if wanted:
            present = [name for name in known if name in names]
            if not present:
                raise UserError(
                    f"{type(lm).__name__} has no part of its own for {what}=True",
                    hint=f"its parts are {sorted(names)}; a tower may hold its projector: "
                    "train_vision=True",
                )
            found += present
    return found
