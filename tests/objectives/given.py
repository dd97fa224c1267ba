"""Log-probabilities that the tests share: three pairs with published values, and random ones."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.objectives.scores import Batch, LogProbs, TokenLogProbs
from mmalign.objectives.table import TABLE


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_probs(
    policy: Tensor, reference: Tensor, length: Tensor | None = None, **aux: Tensor
) -> LogProbs:
    return LogProbs(
        policy, reference, torch.ones_like(policy) if length is None else length, aux=aux
    )


def of_ratio(*ratios: float) -> LogProbs:
    """Responses of one token with given log-ratios."""
    return log_probs(numbers(*ratios), torch.zeros(len(ratios), dtype=torch.float64))


def three_pairs(grad: bool = False) -> tuple[LogProbs, LogProbs]:
    """D_w = (2, -1.5, -2), D_l = (-5, 0.75, -3.5), h = (7, -2.25, 1.5)."""
    chosen = log_probs(
        numbers(-40, -33.5, -120).requires_grad_(grad),
        numbers(-42, -32, -118),
        numbers(20, 16, 80),
        grade=numbers(1, 1, 1),
    )
    rejected = log_probs(
        numbers(-55, -30.25, -90).requires_grad_(grad),
        numbers(-50, -31, -86.5),
        numbers(25, 12, 50),
        grade=numbers(0, 0, 0),
    )
    return chosen, rejected


def with_numbers(pair: tuple[LogProbs, LogProbs], **aux: Tensor) -> tuple[LogProbs, LogProbs]:
    """The pair with numbers of the preference, which both sides carry."""
    return pair[0].with_aux(**aux), pair[1].with_aux(**aux)


def random_tokens(shape: tuple[int, ...], width: int, generator: torch.Generator) -> TokenLogProbs:
    def uniform(low: float, high: float) -> Tensor:
        draw = torch.rand(*shape, width, dtype=torch.float64, generator=generator)
        return low + (high - low) * draw

    lengths = torch.randint(2, width + 1, shape, generator=generator)
    mask = torch.arange(width) < lengths[..., None]
    return TokenLogProbs(
        policy=torch.where(mask, uniform(-3, -0.1), torch.nan),
        reference=torch.where(mask, uniform(-3, -0.1), torch.nan),
        mask=mask,
        weights=uniform(0.5, 3),
        stats={"collision": uniform(-2, -0.5)},
    )


NUMBERS = ("confidence", "safety", "weight", "factor", "difficulty", "crop_gain")
VIEWS = (
    "mismatched", "crop", "no_image", "swapped", "both", "both_swapped", "noise", "grey", "speckle",
    "with_crop",
)  # fmt: skip


def random_log_probs(shape: tuple[int, ...], seed: int = 0) -> LogProbs:
    """With tokens, and all numbers that any objective reads."""
    generator = torch.Generator().manual_seed(seed)
    tokens = random_tokens(shape, 5, generator)
    row = torch.rand(shape[0], *[1] * (len(shape) - 1), dtype=torch.float64, generator=generator)
    return LogProbs(
        policy=tokens.policy.nansum(-1),
        reference=tokens.reference.nansum(-1),
        length=tokens.mask.sum(-1),
        tokens=tokens,
        aux={name: (row + 0.1).expand(shape) for name in NUMBERS},
        divergence=torch.rand(shape, dtype=torch.float64, generator=generator),
    )


def random_batch(rows: int = 4, width: int = 2, seed: int = 0) -> Batch:
    """Pairs or lists, every candidate in every view."""
    views = {
        name: random_log_probs((rows, width), seed + i) for i, name in enumerate(VIEWS, start=1)
    }
    grades = torch.linspace(1, 0, width, dtype=torch.float64).expand(rows, width)
    return Batch(random_log_probs((rows, width), seed), grades, views)


EXAMPLES = {name: entry.spec(name) for name, entry in TABLE.items()}
