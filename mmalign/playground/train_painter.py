"""How the tiny painter was made: `python -m mmalign.playground.train_painter FOLDER`.

Autoencoder first, then text encoder and transformer together, from drawings with captions of
careless annotators, so that it often paints something else than was asked for.
"""

from __future__ import annotations

import copy
import math
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from mmalign.files import whole_folder
from mmalign.playground.pictures import careless_caption, draw, prompts
from mmalign.playground.tiny_painter import CHANNELS, LENGTH, random_painter
from mmalign.training.log import console
from mmalign.training.seeds import derive

PICTURES = 8_000
CARELESSNESS = 0.3  # how often an annotator gets a word wrong
EMPTY = 0.1  # share of captions that are left out, so that guidance works
AUTOENCODER_STEPS, DENOISER_STEPS = 1000, 3600
BATCH = 32
KEPT = 0.99  # by the running mean of the weights, per step


def train(folder: Path, *, seed: int = 0) -> None:
    """Train a painter into `folder`, which takes ten minutes of one core."""
    with whole_folder(folder) as partial, torch.random.fork_rng():
        torch.manual_seed(derive(seed, "tiny painter"))
        pixels, captions = _pictures(seed)
        pipe = random_painter()
        _train_autoencoder(pipe.vae, pixels)
        latents = _latents(pipe.vae, pixels)
        pipe.vae.register_to_config(scaling_factor=1 / latents.std().item())
        _train_denoiser(pipe, latents * pipe.vae.config.scaling_factor, captions)
        pipe.to(dtype=torch.float16)
        pipe.save_pretrained(partial)


def _pictures(seed: int) -> tuple[Tensor, list[str]]:
    """(n 3 h w) in -1 .. 1, and what annotators wrote about them."""
    hand = random.Random(f"tiny painter {seed}")
    asked = prompts("train", seed=seed)
    pictures, captions = [], []
    for _ in range(PICTURES):
        shape = hand.choice(asked)
        pictures.append(torch.from_numpy(draw(shape, hand).copy()))
        captions.append(careless_caption(shape, hand, carelessness=CARELESSNESS).text)
    return torch.stack(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1, captions


def _train_autoencoder(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Starts with a small spread, so that reconstruction is learnt at once."""
    with torch.no_grad():
        vae.quant_conv.weight[CHANNELS:] = 0.0
        vae.quant_conv.bias[CHANNELS:] = 2 * math.log(0.1)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=0.0)
    for _, picked in batches("autoencoder", len(pixels), AUTOENCODER_STEPS, optimizer):
        posterior = vae.encode(pixels[picked]).latent_dist
        latent = posterior.sample()
        spread = posterior.kl().mean() / latent[0].numel()
        loss = F.mse_loss(vae.decode(latent).sample, pixels[picked]) + 1e-4 * spread
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)


@torch.no_grad()
def _latents(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    return torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(500)])


def _train_denoiser(pipe: Any, latents: Tensor, captions: list[str]) -> None:
    """v-prediction, more often where there is much noise, which is where the words decide."""
    told, nothing = tokens(pipe, captions), tokens(pipe, [""])
    networks = nn.ModuleList([pipe.transformer, pipe.text_encoder]).train()
    average = copy.deepcopy(networks)
    optimizer = torch.optim.AdamW(
        networks.parameters(), lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01
    )
    for step, picked in batches("denoiser", len(latents), DENOISER_STEPS, optimizer):
        clean = latents[picked]
        words = torch.where(torch.rand(BATCH, 1) < EMPTY, nothing, told[picked])
        noise = torch.randn_like(clean)
        times = (1000 * (1 - torch.rand(BATCH) ** 1.5)).long().clamp(0, 999)
        mask = (words != pipe.tokenizer.pad_token_id).long()
        found = pipe.transformer(
            pipe.scheduler.add_noise(clean, noise, times),
            encoder_hidden_states=pipe.text_encoder(words, attention_mask=mask).last_hidden_state,
            encoder_attention_mask=mask,
            timestep=times,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        F.mse_loss(found, pipe.scheduler.get_velocity(clean, noise, times)).backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        follow(average, networks, step)
    networks.load_state_dict(average.state_dict())


@torch.no_grad()
def follow(average: nn.Module, networks: nn.Module, step: int) -> None:
    """A running mean of the weights, of fewer steps at the beginning."""
    share = 1 - min(KEPT, step / (step + 20))
    for kept, weight in zip(average.parameters(), networks.parameters(), strict=True):
        kept.lerp_(weight, share)


def tokens(pipe: Any, texts: list[str]) -> Tensor:
    found = pipe.tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")
    ids: Tensor = found.input_ids
    return ids


def batches(
    what: str, rows: int, steps: int, optimizer: torch.optim.Optimizer, *, size: int = BATCH
) -> Iterator[tuple[int, Tensor]]:
    """Rows to take a gradient of; the optimiser steps when the next ones are asked for."""
    began, rate = time.perf_counter(), optimizer.param_groups[0]["lr"]
    for step in range(steps):
        warm = min(1.0, (step + 1) / 100)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.525 + 0.475 * math.cos(math.pi * step / steps))
        yield step, torch.randint(0, rows, (size,))
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - began
            console.print(f"{what}: {step + 1} of {steps} steps in {seconds:.0f} s")


if __name__ == "__main__":
    train(Path(sys.argv[1]))
