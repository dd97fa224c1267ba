"""Wrappers for labels that are not to be trusted blindly, around any pairwise objective.

A wrapper takes a loss of (chosen, rejected) and returns one; the loss of the flipped pair is the
same function with its arguments swapped.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.objectives.options import Count, FlipRate, NonNegative, Positive, Range, SpecError
from mmalign.objectives.scores import LogProbs, Needs, Pair, gap
from mmalign.objectives.state import Stateful, Total

FEWEST, MOST = 1e-3, 1 - 1e-3  # a reliability of exactly 1 would never move again


def robust(loss: Pair, *, flip_rate: FlipRate) -> Pair:
    """Unbiased under independent flips with probability flip_rate < 1/2. arXiv:2403.00409, eq. 12.

    ((1 - eps) loss(w, l) - eps loss(l, w)) / (1 - 2 eps). May be negative and has no lower bound:
    do not stop on its value.
    """

    def corrected(chosen: LogProbs, rejected: LogProbs) -> Tensor:
        straight, flipped = loss(chosen, rejected), loss(rejected, chosen)
        return ((1 - flip_rate) * straight - flip_rate * flipped) / (1 - 2 * flip_rate)

    return corrected


def smooth(loss: Pair, *, rate: FlipRate) -> Pair:
    """Label smoothing: (1 - rate) loss(w, l) + rate loss(l, w). Around dpo it is cdpo."""

    def smoothed(chosen: LogProbs, rejected: LogProbs) -> Tensor:
        return (1 - rate) * loss(chosen, rejected) + rate * loss(rejected, chosen)

    return smoothed


def soft(loss: Pair, *, confidence: str = "confidence") -> Pair:
    """Soft labels: q loss(w, l) + (1 - q) loss(l, w), q = aux[confidence] of each preference.

    q is the probability that the label is right, for instance the share of annotators who agreed.
    """

    def softened(chosen: LogProbs, rejected: LogProbs) -> Tensor:
        q = chosen.number(confidence)
        return q * loss(chosen, rejected) + (1 - q) * loss(rejected, chosen)

    return softened


def soft_needs(*, confidence: str = "confidence") -> Needs:
    return Needs(aux=frozenset({confidence}))


def importance(loss: Pair, *, weight: str = "weight") -> Pair:
    """aux[weight] loss(w, l): each preference counts as much as the data say, e.g. for quality."""
    return lambda chosen, rejected: chosen.number(weight) * loss(chosen, rejected)


def importance_needs(*, weight: str = "weight") -> Needs:
    return Needs(aux=frozenset({weight}))


def dynamic_beta(
    loss: Pair, *, factor: str = "factor", strength: NonNegative = 0.1, base: NonNegative = 1.0
) -> Pair:
    """A beta for each preference: log-ratios count max(base + strength aux[factor], 0.01) times.

    MM-DPO's beta (1 + w f), whose factor comes from the margin of a reward; arXiv:2502.10391.
    With base 0 and strength 1 it is DA-DPO's beta u; arXiv:2601.00623.
    """

    def scaled(chosen: LogProbs, rejected: LogProbs) -> Tensor:
        times = (base + strength * chosen.number(factor)).clamp(min=0.01)
        return loss(_times(chosen, times), _times(rejected, times))

    return scaled


def _times(response: LogProbs, times: Tensor) -> LogProbs:
    policy, reference = response.policy * times, response.reference * times
    return replace(response, policy=policy, reference=reference)


def dynamic_beta_needs(*, factor: str = "factor", **_: object) -> Needs:
    return Needs(aux=frozenset({factor}))


def multi_objective(
    loss: Pair,
    *,
    weight: Annotated[float, Range(least=0.05, most=1)],
    margins: str,
    beta: Positive = 0.1,
) -> Pair:
    """MODPO: preferences of one objective, known margins of the others. arXiv:2310.03708.

    Every log-ratio margin h becomes (h - sum_i w_i dR_i / beta) / weight, so that around
    dpo(beta=b) with the same beta the loss is sp(-(b h - sum_i w_i dR_i) / weight).

    weight: of the objective whose preferences are trained on. margins: numbers of aux, each how far
    the chosen response is ahead by another reward; "safety" counts 1 - weight, several are written
    "0.3*safety + 0.2*brevity". beta: that of the wrapped loss, the unit of the margins.
    """
    shares = margin_weights(margins, 1 - weight)

    def combined(chosen: LogProbs, rejected: LogProbs) -> Tensor:
        offset = torch.zeros_like(chosen.policy)
        for name, share in shares.items():
            offset = offset + share * gap(chosen, rejected, name)
        half = offset / (2 * beta * weight)
        return loss(_shifted(chosen, weight, -half), _shifted(rejected, weight, half))

    return combined


def _shifted(response: LogProbs, weight: float, shift: Tensor) -> LogProbs:
    policy, reference = response.policy / weight + shift, response.reference / weight
    return replace(response, policy=policy, reference=reference)


def margin_weights(margins: str, remaining: float) -> dict[str, float]:
    """{"safety": 0.3, "brevity": 0.2} of "0.3*safety + 0.2*brevity"; a lone name gets what remains.

    Raises SpecError where the text is neither.
    """
    if margins.isidentifier():
        return {margins: remaining}
    terms = [re.fullmatch(r"\s*([\d.]+)\s*\*\s*(\w+)\s*", part) for part in margins.split("+")]
    if not all(terms):
        raise SpecError(
            f"multi_objective(margins=...) is a name of aux or a sum such as "
            f"'0.3*safety + 0.2*brevity', not {margins!r}"
        )
    return {term[2]: float(term[1]) for term in terms if term}


def multi_objective_needs(*, weight: float, margins: str, **_: object) -> Needs:
    return Needs(aux=frozenset(margin_weights(margins, 1 - weight)) - {"grade"})


class Em(Stateful):
    """LCPO / RE-PO: whether a label is right is latent; EM finds how far each annotator is right.

    z = loss(l, w) - loss(w, l) is the model's log-odds for the label, logit w = z + logit(eta_k)
    the posterior, and the loss the cross-entropy of sigmoid(z) with w. After each step the
    reliability eta_k of every annotator that occurred moves to the mean of its w.
    arXiv:2509.24159.

    eta: where all reliabilities start, above 1/2. ema: how far they move per step. annotators: with
    more than 1, aux["annotator"] says whose label it is, 0 ... annotators-1. warmup: steps during
    which w = eta (label smoothing), against a start whose preferences are inverted.
    """

    STATE = ("reliability", "steps")

    def __init__(
        self,
        loss: Pair,
        *,
        eta: Annotated[float, Range(above=0.5, below=1)] = 0.9,
        ema: Annotated[float, Range(least=0, most=1)] = 0.1,
        annotators: Count = 1,
        warmup: Annotated[int, Range(least=0)] = 0,
    ) -> None:
        self.loss, self.ema, self.warmup = loss, ema, warmup
        self.reliability = torch.full((annotators,), eta, dtype=torch.float64)  # (annotators,)
        self.steps = torch.zeros((), dtype=torch.float64)
        self._seen = torch.zeros(2, annotators)  # sums of w and numbers of labels since last step
        self._posterior = torch.zeros(0)

    def __call__(self, chosen: LogProbs, rejected: LogProbs) -> Tensor:
        z = self.loss(rejected, chosen) - self.loss(chosen, rejected)
        who = self._annotators(chosen, z)
        eta = self.reliability.to(z).clamp(FEWEST, MOST)[who]
        w = posterior(z, eta)
        self._note(w, who)
        return soft_label(z, eta if self.steps < self.warmup else w)

    def _annotators(self, chosen: LogProbs, z: Tensor) -> Tensor:
        count = len(self.reliability)
        if count == 1:
            return torch.zeros_like(z, dtype=torch.long)
        who = chosen.number("annotator").long()
        if who.numel() and (int(who.min()) < 0 or int(who.max()) >= count):
            raise ValueError(
                f"em(annotators={count}) expects aux['annotator'] from 0 to {count - 1}, "
                f"but the batch has {int(who.min())} to {int(who.max())}"
            )
        return who

    def _note(self, w: Tensor, who: Tensor) -> None:
        self._posterior = w
        if self.recording:
            both = torch.stack([w, torch.ones_like(w)])
            self._seen = self._seen.to(w).index_add(1, who, both)

    def finish_step(self, total: Total) -> None:
        sums, counts = total(self._seen).to(self.reliability).unbind()
        moved = (1 - self.ema) * self.reliability + self.ema * sums / counts.clamp(min=1)
        self.reliability = torch.where(counts > 0, moved, self.reliability)
        self.steps = self.steps + 1
        self._seen = torch.zeros_like(self._seen)
        if bool((self.reliability < 0.5).any()):
            worst = self.reliability.argmin().item()
            warnings.warn(
                f"em: annotator {worst} is judged right in {self.reliability.min():.0%} of cases; "
                "below 50% its labels are trained on reversed (try warmup=..., or a larger eta)",
                stacklevel=2,
            )

    def figures(self) -> dict[str, Tensor]:
        """reliability (annotators,), and the posterior (b,) of the last micro-batch."""
        return {"reliability": self.reliability.clone(), "posterior": self._posterior}


def em_needs(*, annotators: int = 1, **_: object) -> Needs:
    return Needs(aux=frozenset({"annotator"} if annotators > 1 else ()))


def posterior(z: Tensor, reliability: Tensor) -> Tensor:
    """Probability that a label is right, of the model's log-odds z and whose label it is."""
    return (z.detach() + reliability.logit()).sigmoid()


def soft_label(z: Tensor, q: Tensor) -> Tensor:
    """Cross-entropy of sigmoid(z) with the probability q."""
    return -q * logsigmoid(z) - (1 - q) * logsigmoid(-z)
