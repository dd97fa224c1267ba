"""What training, references and builders may ask of a model of any modality.

An adapter knows samples: a prompt with a response. Preferences it never sees. Rows that share their
prompt are its chance to compute that prompt once. Axes: n rows, t response elements.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from mmalign.errors import BadSample
from mmalign.records import Message, Sample

__all__ = ["Adapter", "BadSample", "Inputs", "Scored", "TokenScores"]

Inputs = dict[str, Any]
"""One batch for one call of the model: tensors by name, and whatever else the adapter needs."""


PREDICTIONS = "predictions"
"""The figure to ask a model for when another one's divergence from it is wanted."""
DIVERGENCE = "divergence"
"""The figure that needs `inputs[PREDICTIONS]`, what the first model answered for the same batch."""


@dataclass(frozen=True)
class TokenScores:
    """Per response element, padded at the end: log_probs (n t) in nats, mask (n t), weights (n t),
    and the figures that were asked for by name (n t)."""

    log_probs: Tensor
    mask: Tensor
    weights: Tensor
    stats: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Scored:
    """What one model thinks of n samples: float32 sums over response elements (n,), in nats, and
    the number of elements (n,). `tokens` is None where a response has no elements (denoisers).

    predictions: everything the model expected, in the adapter's own form, where it was asked for.
    divergence: KL(first || this model) in nats, summed over elements (n,), with gradient; for
    denoisers, whose prediction is the mean of a Gaussian, half the mean squared difference.
    """

    log_probs: Tensor
    lengths: Tensor
    tokens: TokenScores | None = None
    predictions: Any = None
    divergence: Tensor | None = None


class Adapter(Protocol):
    """One modality's side of mmalign. Every method's rows come in the order of its arguments."""

    policy: nn.Module
    seeded: bool
    """Whether log-probabilities depend on the seed (denoisers) or not (autoregressive models)."""

    @property
    def strata(self) -> int:
        """Into how many equal parts of its randomness the adapter sorts seeds, by `seed % strata`.
        The rows of a step are then spread over them; 1 where there is nothing to spread."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hash of everything but the weights that log-probabilities depend on: tokenizer, template,
        truncation, precision ... Caches put it into their keys."""
        ...

    def size(self, samples: Sequence[Sample]) -> int:
        """Elements that one row group of these samples costs (tokens, latent pixels): what
        micro-batches are filled by. The samples belong to one preference."""
        ...

    def collate(self, samples: Sequence[Sample], seeds: Sequence[int]) -> Inputs:
        """Tokenise, open media, find shared prompts, pack; on the CPU, possibly in a worker.

        seeds: one per sample; all randomness of `log_probs` follows from it.
        Raises BadSample, naming what is wrong, for a sample that this model cannot take.
        """
        ...

    def encode(self, inputs: Inputs) -> Inputs:
        """Move to the device and compute, without gradient, what policy and reference share."""
        ...

    def log_probs(self, model: nn.Module, inputs: Inputs, stats: Collection[str] = ()) -> Scored:
        """Log-probability of each sample's response given its prompt, by one call of the model.

        stats: figures wanted beside it, `PREDICTIONS` and `DIVERGENCE` among them.
        """
        ...

    def reference_mode(self) -> AbstractContextManager[None]:
        """While active, `policy` answers as it did when it was loaded. Raises ValueError when all
        weights are trained, because then only a frozen copy can."""
        ...

    def sample(
        self, prompts: Sequence[tuple[Message, ...]], seeds: Sequence[int], **options: Any
    ) -> list[Sample]:
        """One response of the policy to each prompt; equal seeds give equal responses."""
        ...

    def save(self, folder: Path) -> None:
        """Write the policy (or its LoRA) in the format that the model's own library reads."""
        ...
