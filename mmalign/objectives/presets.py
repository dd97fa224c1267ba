"""Papers' names for compositions: each function returns the spec of other objectives.

`mdpo(beta=0.1)` is what a run stores; its terms are logged one by one.
"""

from __future__ import annotations

from typing import Annotated

from mmalign.objectives.options import Fraction, NonNegative, Positive, Range


def cpo(*, beta: Positive = 0.1, nll: NonNegative = 1.0, average: bool = False) -> str:
    """CPO: contrastive loss without a reference, plus `nll` times the chosen's NLL per token.

    arXiv:2401.08417. ALMA and TRL average the NLL over the tokens of the batch; for that
    write contrastive(beta=0.1) + nll(reduction="tokens").
    """
    return f"contrastive(beta={beta}, average={average}) + {nll}*nll(reduction='mean')"


def orpo(*, beta: NonNegative = 0.1) -> str:
    """NLL of the chosen per token plus beta times the odds-ratio penalty. arXiv:2403.07691.

    beta is the paper's lambda, under the name it has in TRL.
    """
    return f"nll(reduction='mean') + {beta}*odds_ratio()"


def rpo(*, beta: Positive = 0.01, eta: NonNegative = 0.005) -> str:
    """DPO plus eta beta times the chosen's summed NLL. arXiv:2405.16436, eq. 4.8.

    Iterative RPO (arXiv:2404.19733) is another method: dpo(beta=0.1) + 1.0*nll(reduction="mean").
    """
    return f"dpo(beta={beta}) + {eta * beta!r}*nll(reduction='sum')"


def mpo(*, beta: Positive = 0.1) -> str:
    """0.8 DPO + 0.2 BCO + 1.0 NLL of the chosen per token: InternVL's mixture. arXiv:2411.10442."""
    return f"0.8*dpo(beta={beta}) + 0.2*bco_pair(beta={beta}) + nll(reduction='mean')"


def mapo(*, beta: NonNegative = 0.1, snr: Positive = 0.5, scale: Positive = 1000.0) -> str:
    """The chosen's denoising error plus beta times MaPO's margin. arXiv:2406.06424."""
    # The error is -2 times the log-probability.
    return f"2.0*nll(reduction='sum') + {beta}*denoising_odds(snr={snr}, scale={scale})"


def mdpo(*, beta: Positive = 0.1, delta: float = 0.0) -> str:
    """DPO + the same answer against a cropped image + an anchor on the chosen. arXiv:2406.11839.

    delta: the anchor's target.
    """
    conditional = f"contrast(dpo(beta={beta}), better='chosen', worse='chosen@crop')"
    anchor = f"chosen_anchor(beta={beta}, delta={delta})"
    return f"dpo(beta={beta}) + {conditional} + {anchor}"


def v_dpo(
    *,
    beta: Positive = 0.1,
    strength: float = 1.5,
    language_bias: NonNegative = 0.0,
    view: str = "grey",
) -> str:
    """V-DPO: DPO of a policy that is guided away from what it says without the image.

    view: "grey", an empty picture, or "no_image". language_bias: weight of a term that lifts the
    chosen answer above what it is without the image. arXiv:2411.02712, whose released setting has
    no gradient (strength 0); between 1, which is DPO, and 2 it has.
    """
    guided = f"guided(dpo(beta={beta}), strength={strength}, view={view!r})"
    if not language_bias:
        return guided
    return (
        f"{guided} + {language_bias}*contrast(dpo(beta={beta}), worse='chosen@{view}', held=True)"
    )


def povid(*, beta: Positive = 0.1, share: Fraction = 0.5) -> str:
    """POVID's second stage: DPO against a corrupted answer and against what a noisy image makes.

    Candidates: the answer; what the model says token by token where it sees the answer's beginning
    and a noisy image; the corrupted answer. share: of the former. The authors take the middle one
    from the policy anew in every step, here it is part of the data, which `mmalign build
    noisy-answers` makes. arXiv:2402.11411.
    """
    plain = f"contrast(dpo(beta={beta}), worse="
    return f"{1 - share}*{plain}'rejected') + {share}*{plain}'candidate1')"


def da_dpo(*, beta: Positive = 0.1, weight: str = "difficulty") -> str:
    """DA-DPO: sp(-beta u h), u = aux[weight] from the difficulty of the pair. arXiv:2601.00623.

    u is 1 plus the gap that models which were not aligned see between the two answers, as in the
    released code: easy pairs are held nearer to the reference. `mmalign build difficulty` adds it.
    """
    return f"dynamic_beta(dpo(beta={beta}), factor={weight!r}, strength=1.0, base=0.0)"


def opa_dpo(
    *,
    beta: Positive = 0.1,
    image: NonNegative = 0.2,
    anchor: NonNegative = 1.0,
    delta: float = 0.0,
    view: str = "speckle",
) -> str:
    """OPA-DPO: corrected answers, images and anchors. arXiv:2501.09695, as in the paper.

    Candidates: the dataset's answer; the policy's own answer as corrected, its tokens weighted by
    how wrong their sentence was; the same weighted by whether that error was one of seeing; the
    policy's own answer, weighted as the first correction: `mmalign build expert-correction --make
    four` makes them. image, anchor: gamma_1 and gamma_2. The reference is the model after
    fine-tuning on the first two. The authors' code differs: it applies the sigmoid per position,
    padding included, and its anchor pushes corrections down.
    """
    plain, weighted = f"dpo(beta={beta})", f"weighted(dpo(beta={beta}))"
    anchors = f"chosen_anchor(beta={beta}, delta={delta})"
    terms = [
        f"contrast({plain}, better='candidate0', worse='rejected')",
        f"contrast({weighted}, better='candidate1', worse='rejected')",
        f"{image}*contrast({plain}, better='candidate0', worse='candidate0@{view}')",
        f"{image}*contrast({weighted}, better='candidate2', worse='candidate2@{view}')",
        f"{anchor}*at({anchors}, cell='candidate0')",
        f"{anchor}*at({anchors}, cell='candidate1')",
    ]
    return " + ".join(terms)


def svco(*, beta: Positive = 0.1) -> str:
    """S-VCO: image over no image over the wrong image, for both images. arXiv:2502.13928.

    The candidates are two right answers, each to its own image, with equal grades. Under the view
    "swapped" the two exchange their images, under "no_image" there is none.
    """
    pairs = [
        (own, worse)
        for right in ("candidate0", "candidate1")
        for own, worse in ((right, f"{right}@no_image"), (f"{right}@no_image", f"{right}@swapped"))
    ]
    return " + ".join(
        f"contrast(dpo(beta={beta}), better={better!r}, worse={worse!r})" for better, worse in pairs
    )


def symmpo(
    *, beta: Positive = 0.1, lam: Positive = 0.5, eta: Positive = 1.0, rho: Positive = 1e-4
) -> str:
    """Answers contrasted under each of two images, anchors, and equal margins. arXiv:2506.11712.

    Candidates: the chosen answer to the image, the right answer to a similar image with that image
    (an equal grade), the rejected answer to the image. Under the view "swapped" the first two
    exchange their images. lam, eta, rho: weights of contrast, anchors and regulariser.
    """
    contrast = f"contrast(dpo(beta={beta}), "
    anchor = f"at(chosen_anchor(beta={beta}), cell="
    return (
        f"{contrast}better='candidate0', worse='rejected')"
        f" + {lam}*{contrast}better='candidate0', worse='candidate1@swapped')"
        f" + {lam}*{contrast}better='candidate1', worse='candidate0@swapped')"
        f" + {eta}*{anchor}'candidate0') + {eta}*{anchor}'candidate1')"
        f" + {rho}*equal_margins(view='swapped')"
    )


def icvco(
    *,
    beta: Positive = 0.1,
    single: NonNegative = 1.75,
    multi: NonNegative = 0.75,
    distil: NonNegative = 0.4,
    delta: float = 0.0,
) -> str:
    """IC-VCO: answers contrasted under each image and under both, and a distillation.

    0.5 [single (P + A) + multi (P' + A') + distil C], P the mean of the two contrasts, A of the two
    anchors. Candidates as in `symmpo`, views as in `distilled_margins`; the paper counts only the
    edited tokens under single images: weights of 0 in the data, weighted(...) around each contrast.
    arXiv:2605.31312.
    """
    terms = []
    for share, own, other in ((single, "", "@swapped"), (multi, "@both", "@both_swapped")):
        for i, j in ((0, 1), (1, 0)):
            better, worse = f"'candidate{i}{own}'", f"'candidate{j}{other}'"
            anchor = f"at(chosen_anchor(beta={beta}, delta={delta}), cell={better})"
            contrast = f"contrast(dpo(beta={beta}), better={better}, worse={worse})"
            terms += [f"{share / 4}*{contrast}", f"{share / 4}*{anchor}"]
    return " + ".join([*terms, f"{distil / 2}*distilled_margins(beta={beta})"])


def triple_po(*, beta: Positive = 0.1, alpha: NonNegative = 1.0, average: bool = False) -> str:
    """Triple-PO: a contrast without a reference, and fine-tuning on a gold answer.

    Candidates: the gold answer, the chosen one, the rejected one. average: means per token, the
    paper's "-L". arXiv:2405.16681.
    """
    contrast = f"contrastive(beta={beta}, average={average})"
    return f"contrast({contrast}, better='candidate1', worse='rejected') + {alpha}*nll()"


def mm_dpo(*, beta: Positive = 0.1, strength: NonNegative = 0.1, nll: NonNegative = 0.25) -> str:
    """MM-DPO: a beta for each preference from aux["factor"], and fine-tuning. arXiv:2502.10391."""
    return f"dynamic_beta(dpo(beta={beta}), factor='factor', strength={strength}) + {nll}*nll()"


def ddpo(*, beta: Positive = 0.5, average: bool = True) -> str:
    """Dense DPO of RLHF-V: DPO with the corrected tokens weighted in the data. arXiv:2312.00849."""
    return f"weighted(dpo(beta={beta}), average={average})"


def modpo(
    *,
    beta: Positive = 0.1,
    weight: Annotated[float, Range(least=0.05, most=1)],
    margins: str,
) -> str:
    """multi_objective around dpo: sp(-(beta h - sum_i w_i dR_i) / weight). arXiv:2310.03708."""
    inner = f"dpo(beta={beta})"
    return f"multi_objective({inner}, weight={weight}, margins={margins!r}, beta={beta})"
