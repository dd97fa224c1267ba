"""VAE and text encoders: what policy and reference share, computed once and kept on disk.

Each medium and each prompt goes through its encoder alone, so that the result depends on nothing
else, and is stored under a hash of its content and of the encoder's weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mmalign.adapters.diffusion.cache import Store, key_of
from mmalign.adapters.diffusion.collate import Part, Row
from mmalign.adapters.diffusion.family import Family, embed
from mmalign.adapters.diffusion.noise import Moments
from mmalign.errors import UserError
from mmalign.reference import weights_digest

TEXT_PARTS = ("text_encoder", "text_encoder_2", "text_encoder_3")
ENCODERS = ("vae", *TEXT_PARTS)


@dataclass
class Encoders:
    """The parts of a pipeline that turn media and prompts into what the denoiser is given.

    calls: how often VAE and text encoders ran. released: they wait on the host and do not run.
    """

    pipe: Any
    family: Family
    text_options: Mapping[str, Any]
    store: Store | None
    calls: dict[str, int] = field(default_factory=lambda: {"media": 0, "text": 0})
    released: bool = False

    def moments(self, part: Part) -> list[Moments]:
        """VAE moments of each row, on the CPU, float32."""
        found: dict[str, dict[str, Tensor]] = {}
        for row in part.rows:
            if row.media_key not in found:
                found[row.media_key] = row.moments or self._encode_media(row)
        rows = [found[row.media_key] for row in part.rows]
        return [Moments(row["mean"], row.get("std")) for row in rows]

    def texts(self, part: Part) -> list[dict[str, Tensor]]:
        """Text embeddings of each row, on the CPU."""
        found: dict[str, dict[str, Tensor]] = {}
        for row in part.rows:
            if row.text_key not in found:
                found[row.text_key] = row.text or self._encode_text(row)
        return [found[row.text_key] for row in part.rows]

    def _encode_media(self, row: Row) -> dict[str, Tensor]:
        if self.released:
            raise _released("the VAE")
        assert row.pixels is not None  # the collator gives pixels where it has no moments
        self.calls["media"] += 1
        vae = self.pipe.vae
        pixels = row.pixels.to(vae.device).to(vae.dtype) / 127.5 - 1
        moments = self.family.moments(vae, pixels.transpose(0, 1)[None])  # (1 3 f h w)
        tensors = {"mean": moments.mean.float().cpu()}
        if moments.std is not None:
            tensors["std"] = moments.std.float().cpu()
        if self.store is not None:
            self.store.write(row.media_key, tensors)
        return tensors

    def _encode_text(self, row: Row) -> dict[str, Tensor]:
        if self.released:
            raise _released("the text encoder")
        self.calls["text"] += 1
        device = self.pipe.text_encoder.device
        found = embed(self.family, self.pipe, row.prompt, self.text_options, device)
        tensors = {name: tensor.cpu() for name, tensor in found.items()}
        if self.store is not None:
            self.store.write(row.text_key, tensors)
        return tensors

    @cached_property
    def scopes(self) -> tuple[str, str]:
        """Hashes of all that VAE moments and text embeddings depend on besides media and prompt.

        Reads all weights, which takes seconds for large text encoders.
        """
        return _scopes(self.pipe, self.text_options)

    def release(self) -> None:
        """Move VAE and text encoders to the host: from now on everything must be in the store."""
        if self.store is None:
            raise UserError(
                "without a cache the encoders are needed in every step",
                hint="load_diffusion(..., cache=FOLDER) keeps what they compute",
            )
        self.released = True
        self._move(torch.device("cpu"))

    @contextmanager
    def fetched(self, device: torch.device) -> Iterator[None]:
        """Inside, released encoders are on this device."""
        if self.released:
            self._move(device)
        try:
            yield
        finally:
            if self.released:
                self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        for name in ENCODERS:
            if (part := self.pipe.components.get(name)) is not None:
                part.to(device)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _scopes(pipe: Any, text_options: Mapping[str, Any]) -> tuple[str, str]:
    text: list[Any] = [sorted((k, repr(v)) for k, v in text_options.items()), type(pipe).__name__]
    for name, part in sorted(pipe.components.items()):
        if name.startswith("text_encoder") and isinstance(part, nn.Module):
            text.append([name, str(part.dtype), weights_digest(part)])
        if name.startswith("tokenizer") and part is not None:
            text.append([name, part.model_max_length, sorted(part.get_vocab().items())])
    vae = [type(pipe.vae).__name__, str(pipe.vae.dtype), weights_digest(pipe.vae)]
    return key_of("media", vae), key_of("text", text)


def stacked_moments(moments: list[Moments], seeds: list[int | None]) -> Tensor:
    """(n c ...) raw latents: means, or samples where there is a seed."""
    return torch.stack([m.draw(seed) for m, seed in zip(moments, seeds, strict=True)])


def _released(what: str) -> UserError:
    return UserError(
        f"{what} was released, and the cache lacks something",
        hint="run over all data once before release_encoders(), or do not call it",
    )
