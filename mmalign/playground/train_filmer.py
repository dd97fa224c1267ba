"""How the tiny filmer was made: `python -m mmalign.playground.train_filmer FOLDER`.

The autoencoder first, then text encoder and transformer together, from videos of the prompts to
train on, and for so short a time that the filmer often films something else than was asked for:
combinations of words that it knows more often than not, others in about half of the cases.

The checkpoint that comes along has had these steps on these videos, from a form of the script that
drew its random numbers in another order.
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
from diffusers import AutoencoderKLWan, WanPipeline
from torch import Tensor, nn

from mmalign.files import whole_folder
from mmalign.playground.tiny_filmer import CHANNELS, LENGTH, filmed, random_filmer
from mmalign.playground.train_painter import batches, follow
from mmalign.playground.videos import Motion, film, motions, seen
from mmalign.training.log import console
from mmalign.training.seeds import derive

VIDEOS = 6_000
EMPTY = 0.1  # share of captions that are left out, so that guidance works
AUTOENCODER_STEPS, AUTOENCODER_BATCH = 1600, 6
DENOISER_STEPS, DENOISER_BATCH = 4000, 16
MATRIX_RATE, RATE = 1e-2, 1.5e-3  # learning rates of Muon and of AdamW
LOOK_EVERY, LOOKS = 500, 8  # steps between looks at what it films, and videos of each prompt


def train(folder: Path, *, seed: int = 0) -> None:
    """Train a filmer into `folder`, which takes a quarter of an hour of one core.

    The autoencoder is kept in FOLDER-vae, so that a training that was stopped goes on from there.
    """
    shown, pixels = _videos(seed)
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, "tiny filmer"))
        pipe = random_filmer()
        pipe.register_modules(vae=_kept(folder.with_name(f"{folder.name}-vae"), pipe.vae, pixels))
        _train_denoiser(pipe, _latents(pipe.vae, pixels), shown)
    with whole_folder(folder) as whole:
        pipe.to(dtype=torch.float16).save_pretrained(whole)


def _kept(folder: Path, vae: AutoencoderKLWan, pixels: Tensor) -> AutoencoderKLWan:
    """The autoencoder of the folder, where it is put after training unless it is there."""
    if folder.exists():
        return AutoencoderKLWan.from_pretrained(folder)
    _train_autoencoder(vae, pixels)
    with whole_folder(folder) as whole:
        vae.save_pretrained(whole)
    return vae


def _videos(seed: int) -> tuple[list[Motion], Tensor]:
    """What videos show, and the videos, (n 3 f h w) in -1 .. 1."""
    hand = random.Random(f"tiny filmer {seed}")
    shown = hand.choices(motions("train", seed=seed), k=VIDEOS)
    drawn = torch.stack([torch.from_numpy(film(motion, hand)) for motion in shown])
    return shown, drawn.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def _train_autoencoder(vae: AutoencoderKLWan, pixels: Tensor) -> None:
    """Starts with a small spread, so that reconstruction is learnt at once."""
    with torch.no_grad():
        vae.quant_conv.weight[CHANNELS:] = 0.0
        vae.quant_conv.bias[CHANNELS:] = 2 * math.log(0.1)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=3e-3, weight_decay=0.0)
    steps = batches(
        "autoencoder", len(pixels), AUTOENCODER_STEPS, optimizer, size=AUTOENCODER_BATCH
    )
    for _, picked in steps:
        posterior = vae.encode(pixels[picked]).latent_dist
        latent = posterior.sample()
        spread = posterior.kl().mean() / latent[0].numel()
        loss = F.mse_loss(vae.decode(latent).sample, pixels[picked]) + 1e-4 * spread
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    found = _encoded(vae, pixels)
    mean, std = found.mean((0, 2, 3, 4)), found.std((0, 2, 3, 4))
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())


@torch.no_grad()
def _encoded(vae: AutoencoderKLWan, pixels: Tensor) -> Tensor:
    return torch.cat([vae.encode(part).latent_dist.mean for part in pixels.split(100)])


def _latents(vae: AutoencoderKLWan, pixels: Tensor) -> Tensor:
    """(n c f h w) standardised as the pipeline expects it."""
    mean, std = (
        torch.tensor(each).view(1, -1, 1, 1, 1)
        for each in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (_encoded(vae, pixels) - mean) / std


def _train_denoiser(pipe: WanPipeline, latents: Tensor, captions: list[Motion]) -> None:
    """Rectified flow, more often where there is much noise, which is where the words decide.

    Muon for the matrices: in 250 steps of 32 videos it came to an error of 0.46 on other videos
    where AdamW alone came to 0.57.
    """
    told, nothing = _words(pipe, [caption.text for caption in captions]), _words(pipe, [""])
    networks = nn.ModuleList([pipe.transformer, pipe.text_encoder]).train()
    average = copy.deepcopy(networks).eval()
    optimizers = _optimizers(pipe.transformer.blocks, pipe.text_encoder.encoder, networks)
    laws = [torch.optim.lr_scheduler.LambdaLR(each, _warm_up_then_cosine) for each in optimizers]
    for step in range(DENOISER_STEPS):
        picked = torch.randint(0, len(latents), (DENOISER_BATCH,))
        words = torch.where(torch.rand(DENOISER_BATCH, 1) < EMPTY, nothing, told[picked])
        _flow_loss(pipe, latents[picked], words).backward()
        nn.utils.clip_grad_norm_(networks.parameters(), 1.0)
        for optimizer, law in zip(optimizers, laws, strict=True):
            optimizer.step()
            law.step()
        networks.zero_grad()
        follow(average, networks, step)
        if (step + 1) % LOOK_EVERY == 0:
            _look(pipe, average, f"denoiser, {step + 1} of {DENOISER_STEPS} steps")
    networks.load_state_dict(average.state_dict())


def _flow_loss(pipe: WanPipeline, clean: Tensor, words: Tensor) -> Tensor:
    noise = torch.randn_like(clean)
    sigma = 1 - torch.rand(len(clean)) ** 1.5
    wide = sigma.view(-1, 1, 1, 1, 1)
    mask = (words != pipe.tokenizer.pad_token_id).long()
    states = pipe.text_encoder(words, attention_mask=mask).last_hidden_state
    found = pipe.transformer(
        (1 - wide) * clean + wide * noise,
        timestep=1000 * sigma,
        encoder_hidden_states=states * mask[..., None],  # as the pipeline fills up
    ).sample
    return F.mse_loss(found, noise - clean)


def _optimizers(*trained: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the linear layers of all but the last module, AdamW for what else the last holds."""
    *deep, whole = trained
    matrices = [
        layer.weight for part in deep for layer in part.modules() if isinstance(layer, nn.Linear)
    ]
    known = {id(weight) for weight in matrices}
    others = [weight for weight in whole.parameters() if id(weight) not in known]
    return [
        torch.optim.Muon(
            matrices, lr=MATRIX_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0),
    ]


def _warm_up_then_cosine(step: int) -> float:
    return min(1.0, (step + 1) / 50) * (0.525 + 0.475 * math.cos(math.pi * step / DENOISER_STEPS))


def _words(pipe: Any, texts: list[str]) -> Tensor:
    found = pipe.tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")
    ids: Tensor = found.input_ids
    return ids


def _look(pipe: WanPipeline, average: nn.ModuleList, title: str) -> None:
    """Say how much of the prompts kept for tuning the running mean of the weights films."""
    transformer, text_encoder = average
    asked = motions("tuning") * LOOKS
    now = WanPipeline(
        tokenizer=pipe.tokenizer, vae=pipe.vae, scheduler=pipe.scheduler,
        transformer=transformer, text_encoder=text_encoder,
    )  # fmt: skip
    found = [seen(each) for each in filmed(now, [motion.text for motion in asked])]
    kept = {
        word: sum(
            each is not None and getattr(each, word) == getattr(motion, word)
            for each, motion in zip(found, asked, strict=True)
        )
        for word in ("colour", "kind", "direction")
    }
    all_of_it = sum(each == motion for each, motion in zip(found, asked, strict=True))
    words = ", ".join(f"{word} {count / len(asked):.0%}" for word, count in kept.items())
    console.print(
        f"{title}: {all_of_it / len(asked):.0%} of unseen prompts as asked ({words}), "
        f"{found.count(None) / len(asked):.0%} show no moving shape"
    )


if __name__ == "__main__":
    train(Path(sys.argv[1]))
