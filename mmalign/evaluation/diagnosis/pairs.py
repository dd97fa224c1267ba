"""What held-out pairs say about an aligned model, in words: ranking and displacement."""

from __future__ import annotations

from mmalign.evaluation.diagnosis.case import LEVEL, MOVED, STIFF, Finding, surely_below_0
from mmalign.evaluation.diagnosis.course import PRICE
from mmalign.evaluation.diagnostics.displacement import displacement
from mmalign.evaluation.diagnostics.ranking import difficulty, flips, largest_flip, ranking_accuracy
from mmalign.evaluation.intervals import wilson
from mmalign.objectives.scores import LogProbs

UNANIMOUS = 0.999
"""Raters' share at which a preference counts as certain, by the paper's bound."""

OUT_OF_REACH = 0.05
"""Share of pairs beyond which it matters that the objective cannot rank them."""


def ranking_findings(chosen: LogProbs, rejected: LogProbs, *, beta: float) -> list[Finding]:
    """Of pairs (b,) with a reference: what ranking by likelihood can and cannot show."""
    found = []
    n = len(chosen.policy)
    reach = largest_flip(UNANIMOUS, beta=beta)
    far = int((difficulty(chosen, rejected) > reach).sum())
    if wilson(far, n, level=LEVEL).low > OUT_OF_REACH:
        found.append(
            Finding(
                "pairs out of reach",
                "warning",
                f"of {far / n:.0%} of the pairs the reference prefers the rejected response by "
                f"more than {reach:.3g} nats, which at beta {beta:g} even the exact optimum of "
                "certain labels does not turn",
                "a smaller beta; fine-tune on the chosen responses first; or pairs that the model "
                "wrote itself, whose likelihoods are closer",
            )
        )
    ranked = wilson(float(ranking_accuracy(chosen, rejected).sum()), n, level=LEVEL)
    rewarded = wilson(int((chosen.ratio > rejected.ratio).sum()), n, level=LEVEL)
    table = flips(chosen, rejected)
    wrong = table.corrected + table.stayed_wrong
    if rewarded.low > ranked.high and wrong:
        found.append(
            Finding(
                "rewards without ranking",
                "note",
                f"{rewarded.value:.0%} of the pairs have the higher reward on their chosen "
                f"response, yet only {ranked.value:.0%} the higher likelihood: of {wrong} pairs "
                f"that the reference ranks wrongly, training corrected {table.corrected}",
                "usual after DPO, and no fault by itself: judge what the model writes, and read "
                "reward accuracy as progress on the loss, not as ranking",
            )
        )
    if (
        table.spoiled > table.corrected
        and wilson(table.spoiled, table.spoiled + table.corrected, level=LEVEL).low > 0.5
    ):
        found.append(
            Finding(
                "ranking got worse",
                "error",
                f"training spoiled the order of {table.spoiled} pairs and corrected "
                f"{table.corrected}",
                "look for exchanged labels, or for pairs unlike those that were trained on",
            )
        )
    return found


def displacement_findings(chosen: LogProbs, rejected: LogProbs) -> list[Finding]:
    """Of pairs (b,) with a reference: whether margins were bought with the chosen's likelihood."""
    moved = displacement(chosen, rejected)
    scale = float(chosen.reference.abs().mean())
    lost = -moved.chosen
    if moved.margin <= 0 or lost <= STIFF * scale or lost < PRICE[0] * moved.margin:
        return []
    if not surely_below_0(chosen.ratio.tolist()):
        return []
    return [
        Finding(
            "likelihood displacement",
            "error" if moved.price > PRICE[1] and lost > MOVED * scale else "warning",
            f"the chosen responses lost {lost:.3g} nats of {scale:.3g} while the margin grew to "
            f"{moved.margin:.3g}: {moved.price:.2g} nats per nat of margin; both responses became "
            f"less likely in {moved.displaced:.0%} of the pairs",
            "train with an anchor on the chosen (+ 0.2*nll(), rpo, dpop, chosen_anchor), a smaller "
            "learning rate, or pairs that differ in more than a few words",
        )
    ]
