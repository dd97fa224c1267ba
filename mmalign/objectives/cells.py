"""Contrasts between any two cells: a cell is a candidate, as it is or in another view.

"chosen" is the first candidate, "rejected" the last, "candidate0", "candidate1" ... count from 0;
"chosen@crop" is the chosen response with its image seen under the view "crop". The table of VLM
losses, sum_i c_i sp(-(beta_i (D(a_i) - D(b_i)) - delta_i)), is a sum of `contrast` and `at` terms.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.objectives.options import NonNegative, Positive, Range, SpecError
from mmalign.objectives.scores import Batch, LogProbs, MissingInputError, Needs, Pair
from mmalign.objectives.tokens import weighted

CELL = re.compile(r"(chosen|rejected|candidate(?P<index>\d+))(@(?P<view>\w+))?")


def contrast(
    loss: Pair, *, better: str = "chosen", worse: str, held: bool = False
) -> Callable[[Batch], Tensor]:
    """A pairwise loss of two cells: contrast(dpo(), worse="chosen@crop") is mDPO's second term.

    held: no gradient flows through the worse cell, so that the term cannot be won by lowering it.
    """

    def contrasted(batch: Batch) -> Tensor:
        first, second = read(batch, better), read(batch, worse)
        if held:
            second = second.detach()
        ahead = torch.ones_like(first.policy)
        return loss(first.with_aux(grade=ahead), second.with_aux(grade=torch.zeros_like(ahead)))

    return contrasted


def contrast_needs(*, better: str = "chosen", worse: str, **_: object) -> Needs:
    return _needs(better, worse)


def at(loss: Callable[[LogProbs], Tensor], *, cell: str) -> Callable[[Batch], Tensor]:
    """An anchor on another cell than the chosen: at(chosen_anchor(), cell="candidate1")."""
    return lambda batch: loss(read(batch, cell))


def at_needs(*, cell: str) -> Needs:
    return _needs(cell)


def guided(
    loss: Pair, *, strength: float = 1.5, view: str = "no_image"
) -> Callable[[Batch], Tensor]:
    """V-DPO: the policy's log-probability is guided away from the view, the reference's is not.

    log pi -> g log pi - (g - 1) sg[log pi of the view], g = strength; 1 leaves the loss as it is.
    arXiv:2411.02712.
    """

    def away(response: LogProbs, plain: LogProbs) -> LogProbs:
        policy = strength * response.policy - (strength - 1) * plain.policy.detach()
        return replace(response, policy=policy)

    def guided_loss(batch: Batch) -> Tensor:
        cells = [(read(batch, cell), read(batch, f"{cell}@{view}")) for cell in PAIR]
        chosen, rejected = [away(response, plain) for response, plain in cells]
        return loss(chosen, rejected)

    return guided_loss


PAIR = ("chosen", "rejected")
FIRST_TWO = ("candidate0", "candidate1")


def guided_needs(*, view: str = "no_image", **_: object) -> Needs:
    return _needs(*(f"{cell}@{view}" for cell in PAIR))


def equal_margins(batch: Batch, *, view: str = "swapped") -> Tensor:
    """SymMPO's regulariser: (z1 - z2)^2 of the margins under each of two images. arXiv:2506.11712.

    z1 = D(candidate0) - D(candidate1@view), z2 = D(candidate1) - D(candidate0@view).
    """
    first, second = read(batch, "candidate0"), read(batch, "candidate1")
    first_seen, second_seen = read(batch, f"candidate0@{view}"), read(batch, f"candidate1@{view}")
    return ((first.ratio - second_seen.ratio) - (second.ratio - first_seen.ratio)) ** 2


def equal_margins_needs(*, view: str = "swapped") -> Needs:
    return Needs(reference=True) | _needs(*(f"{cell}@{view}" for cell in FIRST_TWO))


def distilled_margins(
    batch: Batch, *, beta: Positive = 0.1, single: str = "swapped", multi: str = "both"
) -> Tensor:
    """IC-VCO's distillation: what a context of both images tells apart, each image alone should.

    Cross-entropy of p = sigmoid(beta z) of the single image with the same of both images, without
    gradient, where the latter exceeds 1/2 and p; the mean over the roles where it does, else 0.
    Candidates as in `symmpo`. Views: under `single` the first two candidates exchange their images;
    under `multi` each sees both images and is asked about its own, under `multi`_swapped about the
    other's. arXiv:2605.31312.
    """

    def margins(own: str, other: str) -> Tensor:
        pairs = [(0, 1), (1, 0)]
        return torch.stack(
            [
                read(batch, f"candidate{i}{own}").ratio - read(batch, f"candidate{j}{other}").ratio
                for i, j in pairs
            ]
        )  # (2 b)

    alone = beta * margins("", f"@{single}")
    target = (beta * margins(f"@{multi}", f"@{multi}_swapped")).sigmoid().detach()
    active = (target > 0.5) & (alone.sigmoid() < target)
    loss = -target * logsigmoid(alone) - (1 - target) * logsigmoid(-alone)
    return torch.where(active, loss, 0.0).sum(0) / active.sum(0).clamp(min=1)


def distilled_margins_needs(*, single: str = "swapped", multi: str = "both", **_: object) -> Needs:
    views = (single, multi, f"{multi}_swapped")
    return Needs(reference=True) | _needs(*(f"{c}@{view}" for view in views for c in FIRST_TWO))


def chip(
    batch: Batch,
    *,
    beta: Positive = 0.5,
    tau: NonNegative = 0.1,
    view: str = "noise",
    token_weights: bool = False,
) -> Tensor:
    """CHiP: answers, images and tokens in one sigmoid. arXiv:2501.16629.

    sp(-beta {[D_w - D_l] + [D_w - D_w@view] - tau (K_l - sg[K_w])}), K as in `tdpo`. token_weights:
    edited tokens count by their weights in the data, not divided by their sum (published: 4 for
    LLaVA-1.6, 2 for Muffin).
    """
    change = weighted if token_weights else (lambda cell: cell)
    chosen, rejected = read(batch, "chosen"), read(batch, "rejected")
    better, worse, blurred = map(change, (chosen, rejected, read(batch, f"chosen@{view}")))
    contrasts = 2 * better.ratio - worse.ratio - blurred.ratio
    return -logsigmoid(beta * (contrasts - tau * (rejected.kl - chosen.kl.detach())))


def chip_needs(*, view: str = "noise", token_weights: bool = False, **_: object) -> Needs:
    return Needs(reference=True, divergence=True, tokens=token_weights) | _needs(f"chosen@{view}")


def p2_dpo(
    batch: Batch,
    *,
    beta: Positive = 0.1,
    calibration: NonNegative = 0.3,
    swing: Annotated[float, Range(least=0, most=0.5)] = 0.2,
    tau: Positive = 0.1,
    gain: str = "crop_gain",
    closer: str = "with_crop",
    degraded: str = "noise",
) -> Tensor:
    """P2-DPO: pairs about focus and about robustness, and how much a closer look should help.

    a {dpo(0, last) + calibration sp(-beta [(s_0@closer - s_0@degraded) - (r_last@closer -
    r_last@degraded)])} + (1 - a) dpo(1, 2), a = 1/2 + swing tanh((aux[gain] - 1) / tau).
    Candidates: the better answer of the focus pair, both of the robustness pair, the worse one of
    the focus pair. s and r: log-probabilities under policy and reference. gain: CLIP's score of the
    crop over that of the image. arXiv:2606.03376.
    """
    chosen, rejected = read(batch, "chosen"), read(batch, "rejected")
    focus = -logsigmoid(beta * (chosen.ratio - rejected.ratio))
    gained = read(batch, f"chosen@{closer}").policy - read(batch, f"chosen@{degraded}").policy
    expected = (
        read(batch, f"rejected@{closer}").reference - read(batch, f"rejected@{degraded}").reference
    )
    calibrated = -logsigmoid(beta * (gained - expected))
    first, second = read(batch, "candidate1"), read(batch, "candidate2")
    robust = -logsigmoid(beta * (first.ratio - second.ratio))
    share = 0.5 + swing * torch.tanh((chosen.number(gain) - 1) / tau)
    return share * (focus + calibration * calibrated) + (1 - share) * robust


def p2_dpo_needs(
    *, gain: str = "crop_gain", closer: str = "with_crop", degraded: str = "noise", **_: object
) -> Needs:
    cells = (f"{cell}@{view}" for cell in PAIR for view in (closer, degraded))
    return Needs(reference=True, aux=frozenset({gain})) | _needs(*cells)


def read(batch: Batch, cell: str) -> LogProbs:
    """The log-probabilities (b,) of a cell, with the numbers of its preference."""
    match = _parsed(cell)
    width = batch.grades.shape[1]
    index = torch.zeros(len(batch.grades), dtype=torch.long, device=batch.grades.device)
    if match["index"]:
        index = index + int(match["index"])
    elif cell.startswith("rejected"):
        index = batch.present.sum(1) - 1
    if match["index"] and int(match["index"]) >= width:
        raise MissingInputError(f"there is no {cell!r}: preferences here have {width} candidates")
    source = batch.candidates
    if view := match["view"]:
        if view not in batch.views:
            have = ", ".join(sorted(batch.views)) or "none"
            raise MissingInputError(f"the cell {cell!r} needs the view {view!r}; there are: {have}")
        source = replace(batch.views[view], aux=batch.candidates.aux)
    rows = torch.arange(len(index), device=index.device)
    return source[rows, index]


def _needs(*cells: str) -> Needs:
    views = {cell: _parsed(cell)["view"] for cell in cells}
    seen = frozenset(cell for cell, view in views.items() if view)
    return Needs(views=frozenset(views[cell] for cell in seen), cells=seen)


def _parsed(cell: str) -> re.Match[str]:
    match = CELL.fullmatch(cell)
    if match is None:
        raise SpecError(
            f"{cell!r} is not a cell; cells are 'chosen', 'rejected', 'candidate0', 'candidate1' "
            "..., each alone or with a view as in 'chosen@crop'"
        )
    return match
