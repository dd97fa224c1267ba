"""The tiny filmer: what comes with mmalign films, and its training goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline

from mmalign.playground import train_filmer
from mmalign.playground.tiny_filmer import TINY_FILMER, filmed, random_filmer
from mmalign.playground.videos import FRAMES, SIDE


def test_the_filmer_that_comes_along_is_small_and_films_as_many_frames_as_it_learnt_from() -> None:
    assert sum(file.stat().st_size for file in TINY_FILMER.rglob("*") if file.is_file()) < 8e6
    pipe = WanPipeline.from_pretrained(TINY_FILMER, dtype=torch.float32)
    (film,) = filmed(pipe, ["red circle moving left"], steps=1)
    assert film.shape == (FRAMES, SIDE, SIDE, 3)


def test_latents_are_those_that_the_pipeline_decodes() -> None:
    torch.manual_seed(0)
    vae = random_filmer().vae
    vae.register_to_config(latents_mean=[0.5] * 8, latents_std=[2.0] * 8)
    pixels = torch.rand(2, 3, FRAMES, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        found = train_filmer._latents(vae, pixels)
        wanted = (vae.encode(pixels).latent_dist.mode() - 0.5) / 2
    assert found.shape == (2, 8, 3, 8, 8)
    torch.testing.assert_close(found, wanted)


@pytest.mark.slow
def test_a_training_that_was_stopped_keeps_its_autoencoder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AUTOENCODER_STEPS", "DENOISER_STEPS"):
        monkeypatch.setattr(train_filmer, name, 1)
    monkeypatch.setattr(train_filmer, "VIDEOS", 8)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(train_filmer, "_train_denoiser", stopped)
        with pytest.raises(KeyboardInterrupt):
            train_filmer.train(tmp_path / "filmer")
    assert not (tmp_path / "filmer").exists()
    monkeypatch.setattr(train_filmer, "_train_autoencoder", stopped)
    train_filmer.train(tmp_path / "filmer")
    assert WanPipeline.from_pretrained(tmp_path / "filmer").vae.config.z_dim == 8
