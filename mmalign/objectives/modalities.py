"""Which objective runs on models of which modality: the table in docs/modalities.md.

    python -m mmalign.objectives.modalities docs/modalities.md

It follows from what an objective needs. A test takes every cell through a training step.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmalign.objectives.combine import objective
from mmalign.objectives.scores import BASELINES
from mmalign.objectives.table import TABLE


@dataclass(frozen=True)
class Modality:
    """tokens: responses have elements. images: prompts hold images, which views can alter."""

    tokens: bool
    images: bool


MODALITIES: dict[str, Modality] = {
    "text": Modality(tokens=True, images=False),
    "vision-language": Modality(tokens=True, images=True),
    "diffusion": Modality(tokens=False, images=False),
    "video": Modality(tokens=False, images=False),
    "image tokens": Modality(tokens=True, images=False),
}


def obstacle(name: str, modality: str) -> str:
    """Why an objective cannot run there; nothing where it can."""
    kind, needs = MODALITIES[modality], objective(TABLE[name].spec(name)).needs
    if (needs.tokens or needs.stats) and not kind.tokens:
        return "no tokens"
    if needs.views - BASELINES and not kind.images:
        return "no image in the prompt"
    return ""


def markdown() -> str:
    """The text of docs/modalities.md."""
    rows = [
        [f"`{entry.spec(name)}`", *(obstacle(name, modality) or "✓" for modality in MODALITIES)]
        for name, entry in TABLE.items()
    ]
    lines = [
        HEAD,
        f"| objective | {' | '.join(MODALITIES)} |",
        "|---" * (1 + len(MODALITIES)) + "|",
    ]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows]) + "\n"


HEAD = """# Objectives and modalities

This page is written by `python -m mmalign.objectives.modalities docs/modalities.md`; do not edit
it. Every cell is a test (tests/training/test_modalities.py): a ✓ is an optimiser step's forward and
backward pass through a tiny model with finite, non-zero gradients; anything else is an error that
says what is missing.

Denoisers have one log-probability for a whole image, -0.5 times its mean squared error, and no
tokens. Views alter the images of a prompt. `denoising_odds`, `mapo` and `dspo` read the
log-probability as such an error; they run on other models too, without a meaning there. Betas are
those of texts: denoisers want some thousand times more.
"""


if __name__ == "__main__":
    import sys
    from pathlib import Path

    Path(sys.argv[1]).write_text(markdown(), encoding="utf-8")
