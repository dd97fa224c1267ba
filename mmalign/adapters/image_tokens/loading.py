"""`load_image_tokens`: an autoregressive image generator from hub or folder, ready to align."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError
from torch import nn
from transformers import AutoConfig, AutoProcessor

from mmalign.adapters.autoregressive import shares_prompts
from mmalign.adapters.image_tokens.adapter import ImageTokenAdapter
from mmalign.adapters.image_tokens.collate import ImageTokenCollator, PlanRole
from mmalign.adapters.image_tokens.families import FAMILIES
from mmalign.adapters.image_tokens.family import DECODER, Family, Layout
from mmalign.adapters.image_tokens.pictures import Pixels
from mmalign.adapters.lora import Lora, add_lora, load_lora
from mmalign.adapters.text.loading import PRECISIONS, unavailable
from mmalign.errors import UserError
from mmalign.reference import weights_digest

_PART = "vision_language_encoder"


def load_image_tokens(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    lora: Lora | Mapping[str, Any] | None = None,
    precision: str = "float32",
    device: str | torch.device | None = None,
    resolution: int | tuple[int, int] | None = None,
    plan: PlanRole = "score",
    guidance: float = 1.0,
    decoder: str | Path | None = None,
    decoder_steps: int = 50,
    max_length: int | None = None,
    gradient_checkpointing: bool = False,
) -> ImageTokenAdapter:
    """Load Janus, Janus-Pro, Emu3, Chameleon or GLM-Image with its processor. No remote code.

    Args:
        model: Hub id or folder.
        adapter: Folder of a peft adapter to train on; the reference is the model with it.
        lora: Options of a fresh LoRA (r, alpha, dropout, targets, init) on the decoder; the
            reference is the model without it. With neither, all weights are trained but those of
            the image tokenizer and of the parts that read images.
        precision: "float32", "bfloat16" or "float16" arithmetic. Frozen weights are held in it,
            what is trained and the image tokenizer in float32.
        device: The first GPU if there is one, else the CPU.
        resolution: Pixels of a square's side, or (height, width); the model's own by default.
        plan: Whether words before the image in a response are scored with it, or are only what it
            was drawn from.
        guidance: Of the log-probabilities: other than 1, they are those of logits u + guidance
            (c - u), with gradient through both, at twice the cost.
        decoder: What draws codes where the model's folder has nothing that does: a JanusVQVAE for a
            Chameleon, a pipeline of diffusers for a GLM-Image without its own.
        decoder_steps: Denoising steps of a GLM-Image's decoder.
        max_length: Tokens that prompt and response may have; what the positions allow by default.

    Raises:
        UserError: What cannot be found or loaded, and options that make no sense.
    """
    if adapter is not None and lora is not None:
        raise UserError(
            "both adapter= and lora= are given",
            hint="adapter= trains an existing LoRA on, lora= trains a fresh one: choose one",
        )
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}", hint=f"there are {sorted(PRECISIONS)}")
    path = Path(model).expanduser()
    source = str(path.resolve()) if path.is_dir() else str(model)
    frozen = adapter is not None or lora is not None
    dtype = PRECISIONS[precision]
    lm, processor, family, dropouts, pipeline = _loaded(source, dtype if frozen else torch.float32)
    family.check_guidance(guidance)
    if family.decoder is not None:
        drawer = family.decoder(pipeline if decoder is None else str(decoder), decoder_steps, dtype)
        if drawer is not None:
            setattr(lm, DECODER, drawer)
    elif decoder is not None:
        raise UserError("this model decodes its images itself", hint="leave decoder out")
    for part in family.frozen:
        if hasattr(lm, part.split(".")[0]):
            lm.get_submodule(part).float().requires_grad_(False)
    lm.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    packed = shares_prompts(lm)
    if gradient_checkpointing:
        lm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy: nn.Module = lm
    if adapter is not None:
        policy = load_lora(lm, Path(adapter))
    elif lora is not None:
        policy = add_lora(lm, _on_decoder(Lora.of(lora), lm, family))
    grid = family.grid(
        lm, processor, (resolution, resolution) if isinstance(resolution, int) else resolution
    )
    layout = Layout(
        grid,
        first_code=lm.config.get_text_config().vocab_size,
        codes=family.codes(lm),
        row_end=family.row_end(lm),
        codec=_codec(lm, family),
        preview=family.preview(grid) if family.preview else None,
    )
    if max_length is None:
        max_length = lm.config.get_text_config().max_position_embeddings
    collator = ImageTokenCollator(
        processor, family, layout, family.opening(processor, grid),
        max_length=max_length, packed=packed, plan=plan, guidance=guidance,
    )  # fmt: skip
    pixels = Pixels.of(processor.image_processor)
    return ImageTokenAdapter(policy.train(), family, collator, pixels, packed, dtype, dropouts)


def _loaded(
    source: str, dtype: torch.dtype
) -> tuple[Any, Any, Family, dict[str, dict[str, float]], str | None]:
    """Model without dropout, processor, family, the dropout that the model was published with, and
    the pipeline that it is a part of, if any.

    Policy and reference must agree, and a reference is computed without dropout.
    """
    try:
        config, part = _config(source)
        if config.model_type not in FAMILIES:
            raise UserError(
                f"{source} is a {config.model_type!r} model, which does not draw token by token",
                hint=f"there are {', '.join(FAMILIES)}; diffusion models: mmalign align-diffusion",
            )
        family = FAMILIES[config.model_type]
        dropouts = _silenced(config)
        lm = family.model.from_pretrained(source, subfolder=part, config=config, dtype=dtype)
        processor = AutoProcessor.from_pretrained(source, subfolder=part and "processor")
    except UserError:
        raise
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise unavailable("image generator", source, error) from error
    return lm, processor, family, dropouts, source if part else None


def _config(source: str) -> tuple[Any, str]:
    """The configuration, and the subfolder it lies in: GLM-Image is published as a part of a
    pipeline of diffusers."""
    try:
        return AutoConfig.from_pretrained(source), ""
    except (OSError, ValueError) as error:
        try:
            return AutoConfig.from_pretrained(source, subfolder=_PART), _PART
        except (OSError, ValueError):
            raise error from None


def _codec(lm: Any, family: Family) -> str:
    """Digest of the image tokenizer."""
    parts = [weights_digest(lm.get_submodule(part)) for part in family.tokenizer]
    return "".join(digest[: 32 // len(parts)] for digest in parts)


def _silenced(config: Any) -> dict[str, dict[str, float]]:
    """Sets all dropout to 0 and says, by sub-configuration ("" is the whole), what there was."""
    found: dict[str, dict[str, float]] = {}
    for where in ("", *config.sub_configs):
        part = getattr(config, where) if where else config
        values = {
            name: value
            for name, value in vars(part).items()
            if "drop" in name and isinstance(value, float) and value > 0
        }
        for name in values:
            setattr(part, name, 0.0)
        if values:
            found[where] = values
    return found


def _on_decoder(lora: Lora, lm: Any, family: Family) -> Lora:
    """ "all-linear" means those of the decoder: what reads images and what tokenizes them stays."""
    if lora.targets != "all-linear":
        return lora
    root = family.language_model
    inside = lm.get_submodule(root).named_modules(prefix=root)
    frozen = tuple(f"{part}." for part in family.frozen)
    names = [
        name
        for name, module in inside
        if isinstance(module, nn.Linear) and not name.startswith(frozen)
    ]
    return replace(lora, targets=tuple(names))
