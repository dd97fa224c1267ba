"""Pictures of every objective: its loss and the slope of the loss over the margin, as SVG files.

    python -m mmalign.objectives.plots docs/images

A margin of h nats means that the best candidate gained h/2 on the reference and the worst lost h/2;
those between, and every candidate in any other view, stay where the reference is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch
from torch import Tensor

from mmalign.objectives.combine import Objective, objective
from mmalign.objectives.parse import parse
from mmalign.objectives.scores import Batch, LogProbs, TokenLogProbs
from mmalign.objectives.table import TABLE, Entry

POINTS = 49
TOKENS = 20
COLUMNS, CELL, ROW = 4, 196, 138
LEFT, TOP, WIDE, HIGH = 14, 34, 168, 68
LOSS, SLOPE, INK, SOFT, LINE = "#2563c9", "#c2410c", "#1c2024", "#60676f", "#d5d9dd"

VIEWS = (
    "both", "both_swapped", "crop", "grey", "mismatched", "no_image", "noise", "speckle", "swapped",
    "with_crop",
)  # fmt: skip

DENOISERS = {"denoising_odds", "dspo", "mapo"}
"""What is given errors of a denoiser, which are small, in the place of sums over tokens."""

PICTURES: dict[str, tuple[str, Callable[[Entry], bool]]] = {
    "losses-pairs": ("Pairs", lambda e: e.kind == "pair" and not e.around),
    "losses-others": (
        "Single responses, lists, anchors",
        lambda e: e.kind in ("single", "list", "anchor"),
    ),
    "losses-wrappers": (
        "Wrappers (around dpo), changes of score, cells",
        lambda e: (bool(e.around) and e.kind != "list") or e.kind == "batch",
    ),
    "losses-presets": ("Papers' compositions", lambda e: e.kind == "preset"),
}
"""The files, with their titles and what is in them; everything is in one."""


@dataclass(frozen=True)
class Curve:
    """A loss and its slope over the margin (p,), all in float64."""

    title: str
    margin: Tensor
    loss: Tensor
    slope: Tensor


def curves(name: str) -> Iterator[Curve]:
    """The curves of an objective with its example's options; two for thumbs, up and down."""
    entry = TABLE[name]
    spec = entry.spec(name)
    term = objective(spec)
    reach = 0.02 if name in DENOISERS else _reach(term)
    title = spec if entry.example else name
    if entry.kind == "single":
        yield _curve(f"{name}, thumb up", term, reach, entry, thumb=1.0)
        yield _curve(f"{name}, thumb down", term, reach, entry, thumb=0.0)
    else:
        yield _curve(title, term, reach, entry, denoiser=name in DENOISERS)


def _reach(term: Objective) -> float:
    """How far a picture goes, in nats: where five times 1/beta is more than usual, so far."""
    betas = [call.options.get("beta") for _, call in parse(term.spec).terms]
    smallest = min((b for b in betas if isinstance(b, float) and b > 0), default=1.0)
    return max(50.0, 5 / smallest)


def _curve(
    title: str,
    term: Objective,
    reach: float,
    entry: Entry,
    *,
    thumb: float | None = None,
    denoiser: bool = False,
) -> Curve:
    margin = torch.linspace(-reach, reach, POINTS, dtype=torch.float64).requires_grad_()
    # A loss that sorts its batch is shown one pair at a time.
    parts = margin.split(1) if entry.sorts else [margin]
    with term.evaluating():
        losses = [term.loss(_batch(h, reach, entry.width, thumb, denoiser)) for h in parts]
    loss = torch.cat(losses)
    (slope,) = torch.autograd.grad(loss.sum(), margin)
    return Curve(title, margin.detach(), loss.detach(), slope)


def _batch(h: Tensor, reach: float, width: int, thumb: float | None, denoiser: bool) -> Batch:
    """One preference for each margin (p,); the reference gives every response `reach` nats less
    than certainty, so that no log-probability is above 0."""
    places = torch.linspace(0.5, -0.5, width, dtype=torch.float64)
    grades = torch.linspace(1, 0, width, dtype=torch.float64)
    if thumb is not None:
        places, grades = h.new_ones(1), h.new_tensor([thumb])
    start = -0.05 if denoiser else -reach
    ratio = h[:, None] * places
    still = _candidates(torch.zeros_like(ratio), start, denoiser)
    names = VIEWS
    return Batch(
        _candidates(ratio, start, denoiser),
        grades.expand(ratio.shape),
        dict.fromkeys(names, still),
    )


def _candidates(ratio: Tensor, start: float, denoiser: bool) -> LogProbs:
    reference = torch.full_like(ratio, start)
    count = 1 if denoiser else TOKENS
    shape = (*ratio.shape, count)
    each = TokenLogProbs(
        policy=((reference + ratio) / count)[..., None].expand(shape),
        reference=(reference / count)[..., None].expand(shape),
        mask=torch.ones(shape, dtype=torch.bool),
        weights=torch.ones(shape, dtype=torch.float64),
        stats={"collision": (reference.detach() / count)[..., None].expand(shape)},
    )
    numbers = {
        "confidence": 0.8,
        "safety": 0.5,
        "weight": 0.5,
        "factor": 0.5,
        "difficulty": 1.5,
        "crop_gain": 1.1,
    }
    aux = {name: torch.full_like(reference, value) for name, value in numbers.items()}
    # A denoiser's error is changed in the shortest way; texts are shown without a divergence.
    roots = (-2 * (reference + ratio)).sqrt() - (-2 * reference).sqrt()
    apart = 0.5 * roots**2 if denoiser else torch.zeros_like(reference)
    return LogProbs(
        reference + ratio, reference, torch.full_like(reference, count), each, aux, apart
    )


# ---- drawing


def picture(name: str) -> str:
    """The text of one of `PICTURES`."""
    title, belongs = PICTURES[name]
    found = [c for n, entry in TABLE.items() if belongs(entry) for c in curves(n)]
    rows = -(-len(found) // COLUMNS)
    width, height = COLUMNS * CELL + 8, rows * ROW + 54
    cells = [
        f'<g transform="translate({4 + i % COLUMNS * CELL},{48 + i // COLUMNS * ROW})">'
        f"{_cell(curve)}</g>"
        for i, curve in enumerate(found)
    ]
    head = (
        f'<text x="12" y="22" font-size="15" font-weight="bold">{title}</text>'
        f'<text x="12" y="39" fill="{SOFT}"><tspan fill="{LOSS}">loss</tspan> and its '
        f'<tspan fill="{SLOPE}">slope</tspan> over the margin in nats, each with its range; '
        "thin lines: margin 0, slope 0</text>"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="10" fill="{INK}">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{head}'
        + "\n".join(cells)
        + "</svg>\n"
    )


def _cell(curve: Curve) -> str:
    low, high = curve.margin[0].item(), curve.margin[-1].item()
    bottom, middle = TOP + HIGH, LEFT + WIDE // 2
    slope_span = (min(0.0, curve.slope.min().item()), max(0.0, curve.slope.max().item()))
    zero = bottom - round(HIGH * _share(torch.zeros(1), slope_span).item())
    parts = [
        f'<text x="{LEFT}" y="{TOP - 17}" font-weight="bold">{escape(_short(curve.title))}</text>',
        _range(curve.loss.min().item(), curve.loss.max().item(), LEFT, LOSS, "start"),
        _range(curve.slope.min().item(), curve.slope.max().item(), LEFT + WIDE, SLOPE, "end"),
        f'<path stroke="{LINE}" d="M{middle} {TOP}v{HIGH}M{LEFT} {zero}h{WIDE}"/>',
        _path(curve.loss, (curve.loss.min().item(), curve.loss.max().item()), LOSS),
        _path(curve.slope, slope_span, SLOPE),
        f'<text x="{LEFT}" y="{bottom + 12}" fill="{SOFT}">{_number(low)}</text>',
        f'<text x="{LEFT + WIDE}" y="{bottom + 12}" fill="{SOFT}" text-anchor="end">'
        f"{_number(high)}</text>",
    ]
    return "".join(parts)


def _path(values: Tensor, span: tuple[float, float], colour: str) -> str:
    heights = (10 * (TOP + HIGH * (1 - _share(values, span)))).round().int().tolist()
    step = WIDE / (POINTS - 1)
    points = " ".join(f"{LEFT + i * step:g} {y / 10:g}" for i, y in enumerate(heights))
    return f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>'


def _share(values: Tensor, span: tuple[float, float]) -> Tensor:
    """Places between 0 and 1 within a span; the middle where nothing changes."""
    low, high = span
    if high - low < 1e-12:
        return torch.full_like(values, 0.5)
    return (values - low) / (high - low)


def _range(low: float, high: float, x: int, colour: str, anchor: str) -> str:
    return (
        f'<text x="{x}" y="{TOP - 5}" fill="{colour}" text-anchor="{anchor}">'
        f"{_number(low)} to {_number(high)}</text>"
    )


def _number(value: float) -> str:
    return f"{0.0 if abs(value) < 1e-12 else value:.2g}".replace("-", "\N{MINUS SIGN}")


def _short(title: str) -> str:
    return title if len(title) <= 30 else title[:29] + "…"


def draw(folder: Path) -> None:
    """Write all pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PICTURES:
        (folder / f"{name}.svg").write_text(picture(name), encoding="utf-8")


if __name__ == "__main__":
    import sys

    draw(Path(sys.argv[1]))
