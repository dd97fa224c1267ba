"""The diffusion adapter: log-probabilities, sampling and saving of image and video denoisers.

log-probability = -0.5 x (mean squared error over all elements of the latent), at a timestep and
noise that follow from the row's seed. A preference's rows carry one seed, so chosen and rejected
share both. This is the convention in which Diffusion-DPO's betas of 2000 to 5000 are published:
beta (log-ratio of chosen - log-ratio of rejected) = -beta/2 [(e_w - e_w,ref) - (e_l - e_l,ref)].
`conventions` converts other codes' betas. arXiv:2311.12908, eq. 14; arXiv:2501.13918 for flow.

Axes: n rows, k draws of timestep and noise per row.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from mmalign.adapters.diffusion import lora
from mmalign.adapters.diffusion.collate import DiffusionCollator, Part
from mmalign.adapters.diffusion.encoding import Encoders, stacked_moments
from mmalign.adapters.diffusion.family import Family, Normalise, Options, stacked
from mmalign.adapters.diffusion.noise import noise, uniform
from mmalign.adapters.diffusion.sampling import Progress, sample_media
from mmalign.adapters.diffusion.saving import save_denoisers, save_pipeline
from mmalign.adapters.diffusion.targets import Process, Weighting
from mmalign.adapters.diffusion.timesteps import TimestepLaw
from mmalign.adapters.protocol import DIVERGENCE, PREDICTIONS, Inputs, Scored
from mmalign.errors import UserError
from mmalign.records import Message, Sample

_VERSIONS = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Problem:
    """Noisy latents of one bucket and what is known about them, for policy and reference alike.

    noisy, target: (n*k c ...). step: (n*k,). weight: (n*k,) what the log-probability is multiplied
    by. text, geometry: see `family`.
    """

    noisy: Tensor
    target: Tensor
    step: Tensor
    weight: Tensor
    text: dict[str, Tensor]
    geometry: dict[str, Any]


@dataclass
class DiffusionAdapter:
    """A denoiser as mmalign sees it; `load_diffusion` makes one.

    policy: the denoiser, with a LoRA in it or not. pipe: the diffusers pipeline around it.
    shift: what a timestep law's shift "resolution" stands for, by latent tokens of a bucket.
    heads: the last layers of models that have been asked.
    """

    policy: nn.Module
    pipe: Any
    family: Family
    collator: DiffusionCollator
    encoders: Encoders
    process: Process
    normalise: Normalise
    law: TimestepLaw
    weighting: Weighting
    beta_schedule: Weighting
    options: Options
    latents: Literal["mean", "sample"]
    precision: torch.dtype
    shift: Callable[[int], float] | None
    denoisers: tuple[str, ...]
    heads: WeakKeyDictionary[nn.Module, list[nn.Module]] = field(
        default_factory=WeakKeyDictionary, repr=False
    )
    seeded = True

    @property
    def strata(self) -> int:
        return self.law.strata

    @property
    def device(self) -> torch.device:
        return next(self.policy.parameters()).device

    @property
    def size(self) -> Callable[[Sequence[Sample]], int]:
        """Latent positions (frames x height x width) that these samples cost."""
        return self.collator.size

    @property
    def collate(self) -> DiffusionCollator:
        """Called with samples and seeds. Not a method, so that what is sent to data workers holds
        no model."""
        return self.collator

    @property
    def fingerprint(self) -> str:
        """Hash of all but the denoiser's weights that log-probabilities depend on."""
        grid = torch.linspace(0.001, 0.999, 97, dtype=torch.float64)
        steps = self.process.settle(grid)
        parts = {
            "pipeline": type(self.pipe).__name__,
            "denoisers": [self._config(name) for name in self.denoisers],
            "encoders": self.encoders.scopes,
            "law": repr(self.law),
            "weights": (
                self.weighting(self.process, steps) * self.beta_schedule(self.process, steps)
            ).tolist(),
            "process": [self.process.prediction, [x.tolist() for x in self.process.scales(steps)]],
            "buckets": repr(self.collator.buckets),
            "collator": [
                self.collator.frame_choice,
                self.collator.prompt_dropout,
                self.collator.draws,
            ],
            "options": repr(self.options),
            "latents": self.latents,
            "precision": str(self.precision),
            "versions": {name: importlib.metadata.version(name) for name in _VERSIONS},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def encode(self, inputs: Inputs) -> Inputs:
        """Latents, text embeddings, timesteps and noise: all that policy and reference share."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            problems = [self._problem(part) for part in inputs["parts"]]
        places = [place for part in inputs["parts"] for place in part.places]
        order = torch.tensor(places).argsort().to(self.device)
        return {"problems": problems, "order": order}

    def log_probs(self, model: nn.Module, inputs: Inputs, stats: Collection[str] = ()) -> Scored:
        """-0.5 x mean squared error x weight, (n,) float32; lengths are 1 and there are no tokens.

        One forward per bucket, with all its rows and draws in it.
        """
        if unknown := set(stats) - {PREDICTIONS, DIVERGENCE}:
            raise ValueError(f"denoisers have no tokens, and no figures {sorted(unknown)} of them")
        problems, order = inputs["problems"], inputs["order"]
        predictions = [self.predict(model, problem) for problem in problems]
        parts = [
            self._log_probs(p.target, found, p)
            for found, p in zip(predictions, problems, strict=True)
        ]
        divergence = None
        if DIVERGENCE in stats:
            others = zip(inputs[PREDICTIONS], predictions, problems, strict=True)
            divergence = -torch.cat([self._log_probs(*each) for each in others])[order]
        log_probs = torch.cat(parts)[order]
        return Scored(
            log_probs,
            torch.ones_like(log_probs),
            predictions=predictions if PREDICTIONS in stats else None,
            divergence=divergence,
        )

    def predict(self, model: nn.Module, problem: Problem) -> Tensor:
        """(n*k c ...) float32: what `model` makes of the noisy latents."""
        mixed = self.precision != torch.float32
        autocast = torch.autocast(self.device.type, dtype=self.precision, enabled=mixed)
        with autocast, _in_float32(self._heads_of(model) if mixed else []):
            return self.family.predict(
                model, problem.noisy, problem.step, problem.text, problem.geometry
            ).float()

    def reference_mode(self) -> AbstractContextManager[None]:
        """Inside, `policy` is the denoiser as it was loaded. Raises ValueError without LoRA."""
        return lora.reference_mode(self.policy)

    def fill_cache(self, group: Sequence[Sample]) -> None:
        """Put the VAE moments and text embeddings of one preference's samples into the cache.

        Raises UserError without a cache, BadSample for what cannot be used.
        """
        if self.collator.store is None:
            raise UserError("there is no cache to fill", hint="load_diffusion(..., cache=FOLDER)")
        collate = replace(self.collator, prompt_dropout=0.0)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for part in collate(group, [0] * len(group))["parts"]:
                self.encoders.moments(part)
                self.encoders.texts(part)
                if self.collator.prompt_dropout:
                    self.encoders.texts(replace(part, rows=(collate.without_prompt(part.rows[0]),)))

    def release_encoders(self) -> None:
        """Take VAE and text encoders out of the accelerator's memory. Raises UserError without a
        cache.

        To be called when the cache holds all media and prompts. They wait in the host's memory;
        sampling fetches them, and puts them back.
        """
        self.encoders.release()

    def sample(
        self,
        prompts: Sequence[tuple[Message, ...]],
        seeds: Sequence[int],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        fps: float = 8.0,
        batch_size: int = 8,
        progress: Progress | None = None,
        **options: Any,
    ) -> list[Sample]:
        """One image or video to each prompt, by the pipeline with the policy in it.

        Each row has a generator of its own, seeded with its seed. Equal calls give equal pixels;
        what a row's batch-mates may change is rounding, and with batch_size=1 nothing.
        steps, guidance: of the pipeline by default. height, width, frames: of the first bucket.
        options: further arguments of the pipeline's `__call__`.
        """
        buckets = self.collator.buckets
        asked = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "height": height or buckets.sides[0][0],
            "width": width or buckets.sides[0][1],
            "num_frames": (frames or buckets.frames[-1]) if self.family.video else None,
        }
        call = {
            **{name: value for name, value in asked.items() if value is not None},
            **self.family.call,
            **self.encoders.text_options,
            **options,
        }
        texts = [self.collator.prompt_of(prompt) for prompt in prompts]
        mixed = self.precision != torch.float32
        autocast = torch.autocast(self.device.type, dtype=self.precision, enabled=mixed)
        with autocast, self.encoders.fetched(self.device):
            media = sample_media(
                self.pipe,
                texts,
                list(seeds),
                call,
                fps=fps,
                batch_size=batch_size,
                progress=progress,
            )
        return [Sample(prompt, (found,)) for prompt, found in zip(prompts, media, strict=True)]

    def save(self, folder: Path) -> None:
        """The LoRA as `pipeline.load_lora_weights(folder)` reads it, or the whole denoiser as its
        class's `from_pretrained(folder, subfolder="unet")` (or "transformer") does."""
        save_denoisers(self.pipe, self.denoisers, Path(folder))

    def export_pipeline(self, folder: Path) -> None:
        """The whole pipeline with the LoRA folded in, as plain diffusers reads it."""
        save_pipeline(self.pipe, self.denoisers, Path(folder))

    def _problem(self, part: Part) -> Problem:
        seeds = [row.seed for row in part.rows]
        draws = self.collator.draws
        sampled = self.latents == "sample"
        raw = stacked_moments(
            self.encoders.moments(part), [seed if sampled else None for seed in seeds]
        )
        clean = self.normalise(raw.to(self.device)).repeat_interleave(draws, dim=0)
        shape = tuple(clean.shape[1:])
        step = self._steps(seeds, shape)
        noises = torch.stack([noise(s, shape, draw=d) for s in seeds for d in range(draws)])
        noises = noises.to(self.device)
        weight = self.weighting(self.process, step) * self.beta_schedule(self.process, step)
        text = stacked(self.encoders.texts(part))
        geometry = self.family.geometry(self.pipe, shape, self.options)
        return Problem(
            noisy=self.process.add_noise(clean, noises, step),
            target=self.process.target(clean, noises, step),
            step=(step.float() if self.process.flow else step).to(self.device),
            weight=weight.float().to(self.device),
            text={
                name: tensor.to(self.device).repeat_interleave(draws, dim=0)
                for name, tensor in text.items()
            },
            geometry={name: _moved(value, self.device) for name, value in geometry.items()},
        )

    def _steps(self, seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """(n*k,) on the CPU; float64 sigmas, or integer timesteps."""
        draws, strata = self.collator.draws, self.law.strata
        numbers = [
            uniform(seed, draw=draw, draws=draws, strata=strata)
            for seed in seeds
            for draw in range(draws)
        ]
        tokens = shape[-1] * shape[-2] * (shape[-3] if self.family.video else 1)
        shift = None if self.shift is None else self.shift(tokens)
        return self.process.settle(self.law.times(torch.tensor(numbers), shift=shift))

    def _heads_of(self, model: nn.Module) -> list[nn.Module]:
        """Looked for once: going through all modules costs as much as a small layer."""
        if model not in self.heads:
            self.heads[model] = [
                layer
                for denoiser in model.modules()
                if isinstance(denoiser, ModelMixin)
                for name, layer in denoiser.named_modules()
                if fnmatch(name, self.family.head)
            ]
        return self.heads[model]

    def _log_probs(self, target: Tensor, prediction: Tensor, problem: Problem) -> Tensor:
        """(n,) -0.5 x mean squared error x weight, the mean over the draws of a row."""
        with torch.autocast(self.device.type, enabled=False):
            error = (prediction - target).square().flatten(1).mean(1)
            return (-0.5 * problem.weight * error).view(-1, self.collator.draws).mean(1)

    def _config(self, name: str) -> dict[str, Any]:
        # Where the model lies and what wrote it does not change what it computes.
        config = getattr(self.pipe, name).config
        return {key: value for key, value in config.items() if not key.startswith("_")}


@contextmanager
def _in_float32(heads: Sequence[nn.Module]) -> Iterator[None]:
    """Inside, these layers, the last of a denoiser, compute in float32.

    A prediction in bfloat16 has three significant digits, and the difference between policy and
    reference, which beta multiplies by thousands, lies in the fourth and beyond.
    """
    hooks = [head.register_forward_hook(_again_in_float32) for head in heads]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _again_in_float32(layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> Tensor:
    bare = _Bare(layer)
    weights = {name: weight.float() for name, weight in bare.named_parameters()}
    with torch.autocast(output.device.type, enabled=False):
        inputs = tuple(argument.float() for argument in arguments)
        return torch.func.functional_call(bare, weights, inputs)


class _Bare(nn.Module):
    """A layer without its hooks."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer.forward(x)


def _moved(value: Any, device: torch.device) -> Any:
    match value:
        case Tensor():
            return value.to(device)
        case tuple():
            return tuple(_moved(item, device) for item in value)
    return value
