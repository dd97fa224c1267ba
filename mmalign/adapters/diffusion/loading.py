"""`load_diffusion`: a diffusers pipeline from the hub or a folder, ready to align."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from huggingface_hub.errors import HfHubHTTPError
from torch import nn

from mmalign.adapters.diffusion.adapter import DiffusionAdapter
from mmalign.adapters.diffusion.buckets import Buckets, Resolution, buckets_of
from mmalign.adapters.diffusion.cache import Store
from mmalign.adapters.diffusion.collate import DiffusionCollator
from mmalign.adapters.diffusion.encoding import Encoders
from mmalign.adapters.diffusion.families import family_of
from mmalign.adapters.diffusion.family import Family, Options, text_options
from mmalign.adapters.diffusion.lora import add_lora, load_lora
from mmalign.adapters.diffusion.targets import (
    BETA_SCHEDULES,
    WEIGHTINGS,
    Process,
    Weighting,
    process_of,
    weighting_of,
)
from mmalign.adapters.diffusion.timesteps import TimestepLaw, law_of
from mmalign.adapters.diffusion.video_families import Experts
from mmalign.adapters.lora import Lora
from mmalign.errors import UserError
from mmalign.media import FrameChoice

PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def load_diffusion(
    model: str | Path | DiffusionPipeline,
    *,
    adapter: str | Path | None = None,
    lora: Lora | Mapping[str, Any] | None = None,
    precision: str = "float32",
    device: str | torch.device | None = None,
    resolution: Resolution | None = None,
    frames: int | Sequence[int] | None = None,
    frame_choice: FrameChoice = "consecutive",
    timestep_law: str | TimestepLaw | None = None,
    draws: int = 1,
    weighting: str | Weighting = "constant",
    beta_schedule: str | Weighting = "constant",
    prompt_dropout: float = 0.0,
    latents: Literal["mean", "sample"] = "mean",
    prediction: str | None = None,
    guidance: float = 3.5,
    frame_rate: float = 25.0,
    text: Mapping[str, Any] | None = None,
    experts: Literal["both", "high", "low"] = "both",
    cache: str | Path | None = None,
    gradient_checkpointing: bool = False,
    variant: str | None = None,
    revision: str | None = None,
) -> DiffusionAdapter:
    """Load a text-to-image or text-to-video pipeline. Only safetensors, and no remote code.

    Log-probabilities are -0.5 x mean squared error, so betas are those of Diffusion-DPO: 2000 to
    5000. See `adapter` (the module) for the convention and `conventions` for those of other codes.

    Args:
        model: Hub id, folder that `save_pretrained` wrote, or a pipeline in memory, which is
            changed in place and keeps its weights' types.
        adapter: Folder or file of a LoRA in diffusers' format to train on; the reference is the
            model with this LoRA.
        lora: Options of a fresh LoRA (r, alpha, dropout, targets, init); the reference is the model
            without it. Targets are the family's attention layers unless given. With neither, all
            weights of the denoiser are trained.
        precision: "float32", "bfloat16" or "float16" arithmetic. Frozen weights are held in it,
            trained weights, the VAE, the denoiser's last layer and the error in float32.
        device: The first GPU if there is one, else the CPU. With several processes, each one's own.
        resolution: Side of a square, (height, width), or several of these to choose from by aspect
            ratio (see `buckets.aspect_sides`). What the model was trained at, where it says so.
        frames: Of a video; several counts to choose from by length. Needed for video models.
        frame_choice: Which frames of a longer video: "consecutive" or "uniform".
        timestep_law: See `timesteps`; "uniform" for variance-preserving models and
            "logit_normal" for rectified flow by default.
        draws: Timesteps and noises per row, one in each equal part of the law; a log-probability
            is their mean, at that many times the cost.
        weighting: What an error at a timestep counts, one of `targets.WEIGHTINGS`, "min_snr(5)" or
            a function of (process, steps). Policy and reference are weighted alike.
        beta_schedule: How beta depends on the timestep, one of `targets.BETA_SCHEDULES` or a
            function. Both multiply the log-probability, hence beta; they are apart because one says
            which error counts and the other how tightly the policy is held.
        prompt_dropout: Share of preferences whose prompt is left empty, so that guidance keeps
            working. Diffusion-DPO takes 0.2 for Stable Diffusion 1.5, 0 for SDXL-Turbo.
        latents: The VAE's mean (less variance), or a sample that follows from the seed, as the
            published runs took.
        prediction: "epsilon", "v_prediction" or "sample", where the scheduler does not say it.
        guidance: Value given to guidance-distilled models (Flux-dev, HunyuanVideo).
        frame_rate: Given to models that ask for it (LTX).
        text: Options of the text encoding, for instance {"max_sequence_length": 256}.
        experts: Which of Wan 2.2's two denoisers is trained, and thereby on which timesteps.
        cache: Folder where VAE moments and text embeddings are kept between steps and runs.
        variant, revision: Of the files on the hub.

    Raises:
        UserError: What cannot be found or loaded, and options that make no sense.
    """
    dtype, chosen = _checked(adapter, lora, precision, prompt_dropout, draws, latents)
    trains_all = adapter is None and lora is None
    pipe = _pipeline(model, torch.float32 if trains_all else dtype, dtype, variant, revision)
    family = family_of(pipe)
    pipe.to(torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
    names, boundary = _experts(pipe, family, experts)
    law = _law(timestep_law or family.law, experts, boundary)
    for name in names:
        _prepare(getattr(pipe, name), family, chosen, adapter, name, gradient_checkpointing)
    policy = _policy(pipe, names, boundary)
    options = Options(guidance=guidance, frame_rate=frame_rate, text=dict(text or {}))
    settings = text_options(pipe, options.text)
    process = Process("flow") if family.flow else process_of(pipe.scheduler, prediction)
    store = None if cache is None else Store(Path(cache))
    encoders = Encoders(pipe, family, settings, store)
    # without a cache its keys serve within one batch only, and nothing needs to be hashed
    media_scope, text_scope = ("", "") if store is None else encoders.scopes
    latent, patch = family.pixels(pipe)
    found = DiffusionAdapter(
        policy=policy.train(),
        pipe=pipe,
        family=family,
        collator=DiffusionCollator(
            buckets=_buckets(pipe, family, resolution, frames, latent * patch),
            video=family.video,
            latent=latent,
            frame_stride=family.frame_stride(pipe),
            media_scope=media_scope,
            text_scope=text_scope,
            frame_choice=frame_choice,
            prompt_dropout=prompt_dropout,
            draws=draws,
            store=store,
        ),
        encoders=encoders,
        process=process,
        normalise=family.normaliser(pipe.vae),
        law=law,
        weighting=weighting_of(weighting, WEIGHTINGS),
        beta_schedule=weighting_of(beta_schedule, BETA_SCHEDULES),
        options=options,
        latents=latents,
        precision=dtype,
        shift=_shift(pipe, patch),
        denoisers=names,
    )
    found.weighting(process, process.settle(torch.tensor([0.5])))  # complains before training does
    found.beta_schedule(process, process.settle(torch.tensor([0.5])))
    return found


def _checked(
    adapter: Any, lora: Any, precision: str, dropout: float, draws: int, latents: str
) -> tuple[torch.dtype, Lora | None]:
    if adapter is not None and lora is not None:
        raise UserError(
            "both adapter= and lora= are given",
            hint="adapter= trains an existing LoRA on, lora= trains a fresh one: choose one",
        )
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}", hint=f"there are {sorted(PRECISIONS)}")
    if not 0 <= dropout <= 1:
        raise UserError(f"prompt_dropout is {dropout}", hint="a share, 0 to 1")
    if draws < 1:
        raise UserError(f"draws is {draws}", hint="1 or more timesteps per row")
    if latents not in ("mean", "sample"):
        raise UserError(f"latents is {latents!r}", hint="'mean' or 'sample'")
    if lora is None:
        return PRECISIONS[precision], None
    if isinstance(lora, Lora):
        return PRECISIONS[precision], lora
    return PRECISIONS[precision], Lora.of({"targets": (), **lora})


def _pipeline(
    model: str | Path | DiffusionPipeline,
    denoiser: torch.dtype,
    rest: torch.dtype,
    variant: str | None,
    revision: str | None,
) -> Any:
    """The pipeline with frozen, silent parts: no gradient, no dropout."""
    if isinstance(model, DiffusionPipeline):
        pipe: Any = model
    else:
        path = Path(model).expanduser()
        source = str(path.resolve()) if path.is_dir() else str(model)
        kinds = {"unet": denoiser, "transformer": denoiser, "transformer_2": denoiser}
        try:
            pipe = DiffusionPipeline.from_pretrained(
                source,
                dtype={**kinds, "vae": torch.float32, "default": rest},
                use_safetensors=True,
                variant=variant,
                revision=revision,
            )
        # AttributeError: model_index.json names a class that this diffusers does not have
        except (OSError, HfHubHTTPError, ValueError, AttributeError) as error:
            raise _unavailable(source, error) from error
    if "safety_checker" in pipe.components:  # it would replace pictures by black ones
        pipe.register_modules(safety_checker=None)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
            for module in part.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
    return pipe


def _prepare(
    denoiser: Any,
    family: Family,
    lora: Lora | None,
    adapter: str | Path | None,
    name: str,
    gradient_checkpointing: bool,
) -> None:
    """Says which weights are trained: those of a fresh LoRA, of an existing one, or all."""
    if adapter is not None:
        folder = Path(adapter) / name if name.endswith("_2") else Path(adapter)
        load_lora(denoiser, folder, name.removesuffix("_2"))
    elif lora is not None:
        targets = lora.targets or family.targets
        add_lora(denoiser, Lora(lora.r, lora.alpha, lora.dropout, targets, lora.init))
    else:
        denoiser.requires_grad_(True).float()
    if gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()


def _experts(pipe: Any, family: Family, which: str) -> tuple[tuple[str, ...], float | None]:
    """Names of the denoisers that are trained, and the sigma where two of them meet."""
    boundary = pipe.config.get("boundary_ratio") if "transformer_2" in pipe.components else None
    if boundary is None or pipe.transformer_2 is None:
        if which != "both":
            raise UserError(
                f"experts is {which!r}, but this model has one denoiser",
                hint="leave experts out; it is for Wan 2.2",
            )
        return (family.denoiser,), None
    names = {"both": ("transformer", "transformer_2"), "high": ("transformer",)}
    if which not in ("both", "high", "low"):
        raise UserError(f"experts is {which!r}", hint="'both', 'high' or 'low'")
    return names.get(which, ("transformer_2",)), float(boundary)


def _law(spec: str | TimestepLaw, experts: str, boundary: float | None) -> TimestepLaw:
    """The timestep law, kept to the times of the expert that is trained."""
    law = law_of(spec)
    if boundary is None or experts == "both":
        return law
    low, high = (boundary, law.high) if experts == "high" else (law.low, boundary)
    settings = {**vars(law), "low": max(low, law.low), "high": min(high, law.high)}
    return TimestepLaw(**settings)


def _policy(pipe: Any, names: tuple[str, ...], boundary: float | None) -> nn.Module:
    if boundary is None or len(names) == 1:
        return getattr(pipe, names[0])
    return Experts(pipe.transformer, pipe.transformer_2, boundary)


def _buckets(
    pipe: Any,
    family: Family,
    resolution: Resolution | None,
    frames: int | Sequence[int] | None,
    multiple: int,
) -> Buckets:
    if family.video and frames is None:
        raise UserError(
            "a video model needs to know how many frames it is to see",
            hint="for instance frames=17",
        )
    if not family.video and frames is not None:
        raise UserError("an image model takes no frames", hint="leave frames out")
    if resolution is None:
        side = getattr(pipe, family.denoiser).config.get("sample_size")
        if not isinstance(side, int):
            raise UserError(
                f"{type(pipe).__name__} does not say at which resolution it was trained",
                hint="give resolution=1024 or resolution=(480, 832)",
            )
        resolution = side * family.pixels(pipe)[0]
    return buckets_of(
        resolution, frames or 1, multiple=multiple, frame_stride=family.frame_stride(pipe)
    )


def _shift(pipe: Any, patch: int) -> Callable[[int], float] | None:
    """By how much the pipeline shifts its sigmas when it samples, by latent positions."""
    config = pipe.scheduler.config
    if not config.get("use_dynamic_shifting"):
        fixed = config.get("shift") or config.get("flow_shift")
        return None if fixed is None else lambda positions: float(fixed)
    first, last = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (last - first)

    def shift(positions: int) -> float:
        return math.exp(config.base_shift + slope * (positions / patch**2 - first))

    return shift


def _unavailable(source: str, error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0]
    if Path(source).is_dir():
        return UserError(
            f"the folder {source} holds no pipeline that diffusers can load: {reason}",
            hint="it should hold what save_pretrained writes: model_index.json and folders with "
            "*.safetensors; weights in other formats are not read",
        )
    return UserError(
        f"there is no pipeline {source!r}: no such folder here, and the hub did not give it "
        f"({reason})",
        hint="check the name; log in for gated models (hf auth login); without a network, fetch "
        f"it elsewhere (hf download {source} --local-dir DIR) and pass DIR",
    )
