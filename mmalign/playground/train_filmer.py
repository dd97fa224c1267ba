"""How the tiny filmer was made: `python -m mmalign.playground.train_filmer FOLDER`.

Autoencoder first, then text encoder and transformer together, from videos with captions of careless
annotators, so that it often films something else than was asked for.
"""

from __future__ import annotations

import copy
import math
import random
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from torch import Tensor, nn

from mmalign.files import whole_folder
from mmalign.playground.tiny_filmer import CHANNELS, LENGTH, random_filmer
from mmalign.playground.train_painter import batches, follow
from mmalign.playground.videos import careless_caption, film, motions
from mmalign.training.seeds import derive

VIDEOS = 4_000
CARELESSNESS = 0.5  # how often an annotator gets a word wrong
EMPTY = 0.1  # share of captions that are left out, so that guidance works
AUTOENCODER_STEPS, DENOISER_STEPS = 1600, 2500
AUTOENCODER_BATCH = 6


def train(folder: Path, *, seed: int = 0) -> None:
    """Train a filmer into `folder`, which takes a quarter of an hour of one core."""
    with whole_folder(folder) as partial, torch.random.fork_rng():
        torch.manual_seed(derive(seed, "tiny filmer"))
        pixels, captions = _videos(seed)
        pipe = random_filmer()
        _train_autoencoder(pipe.vae, pixels)
        latents = _latents(pipe.vae, pixels)
        _train_denoiser(pipe, latents, captions)
        pipe.to(dtype=torch.float16)
        pipe.save_pretrained(partial)


def _videos(seed: int) -> tuple[Tensor, list[str]]:
    """(n 3 f h w) in -1 .. 1, and what annotators wrote about them."""
    hand = random.Random(f"tiny filmer {seed}")
    asked = motions("train", seed=seed)
    videos, captions = [], []
    for _ in range(VIDEOS):
        motion = hand.choice(asked)
        videos.append(torch.from_numpy(film(motion, hand)))
        captions.append(careless_caption(motion, hand, carelessness=CARELESSNESS).text)
    return torch.stack(videos).permute(0, 4, 1, 2, 3).float() / 127.5 - 1, captions


def _train_autoencoder(vae: AutoencoderKLWan, pixels: Tensor) -> None:
    """Starts with a small spread, so that reconstruction is learnt at once.

    Goes past `encode` and `decode`, which cut values off, gradients too, and take a video in parts.
    """
    with torch.no_grad():
        vae.quant_conv.weight[CHANNELS:] = 0.0
        vae.quant_conv.bias[CHANNELS:] = 2 * math.log(0.1)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=0.0)
    steps = batches(
        "autoencoder", len(pixels), AUTOENCODER_STEPS, optimizer, size=AUTOENCODER_BATCH
    )
    for _, picked in steps:
        mean, log_variance = vae.quant_conv(vae.encoder(pixels[picked])).chunk(2, dim=1)
        latent = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        drawn = vae.decoder(vae.post_quant_conv(latent))
        spread = (mean.square() + log_variance.exp() - log_variance - 1).mean() / 2
        (F.mse_loss(drawn, pixels[picked]) + 1e-4 * spread).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)


@torch.no_grad()
def _latents(vae: AutoencoderKLWan, pixels: Tensor) -> Tensor:
    """(n c f h w) standardised; the autoencoder is told how."""
    found = torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(100)])
    mean, std = found.mean((0, 2, 3, 4)), found.std((0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
    return (found - mean.view(1, -1, 1, 1, 1)) / std.view(1, -1, 1, 1, 1)


def _train_denoiser(pipe: Any, latents: Tensor, captions: list[str]) -> None:
    """Rectified flow, more often where there is much noise, which is where the words decide."""
    told, nothing = _words(pipe, captions), _words(pipe, [""])
    networks = nn.ModuleList([pipe.transformer, pipe.text_encoder]).train()
    average = copy.deepcopy(networks)
    optimizer = torch.optim.AdamW(
        networks.parameters(), lr=1.5e-3, betas=(0.9, 0.99), weight_decay=0.01
    )
    for step, picked in batches("denoiser", len(latents), DENOISER_STEPS, optimizer):
        clean = latents[picked]
        words = torch.where(torch.rand(len(picked), 1) < EMPTY, nothing, told[picked])
        noise = torch.randn_like(clean)
        sigma = 1 - torch.rand(len(picked)) ** 1.5
        wide = sigma.view(-1, 1, 1, 1, 1)
        mask = (words != pipe.tokenizer.pad_token_id).long()
        states = pipe.text_encoder(words, attention_mask=mask).last_hidden_state
        found = pipe.transformer(
            (1 - wide) * clean + wide * noise,
            timestep=1000 * sigma,
            encoder_hidden_states=states * mask[..., None],  # as the pipeline fills up
        ).sample
        F.mse_loss(found, noise - clean).backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        follow(average, networks, step)
    networks.load_state_dict(average.state_dict())


def _words(pipe: Any, texts: list[str]) -> Tensor:
    found = pipe.tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")
    ids: Tensor = found.input_ids
    return ids


if __name__ == "__main__":
    train(Path(sys.argv[1]))
