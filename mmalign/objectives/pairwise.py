"""Objectives of a chosen and a rejected response: one function each, (b,) in, (b,) out.

Notation of the docstrings: s and r are the summed log-probabilities under policy and reference,
D = s - r (`ratio`), h = D_w - D_l, sp(z) = log(1 + e^z) = -log sigmoid(-z). Unless an option or the
docstring says otherwise, log-probabilities are sums over the response, not means.
Denoisers: D is -0.5 times the difference of mean squared errors, so that published values of beta
(2000 to 5000) are typed as published.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from mmalign.objectives.options import FlipRate, NonNegative, Positive, Range
from mmalign.objectives.scores import LogProbs, Needs, gap


def margin(chosen: LogProbs, rejected: LogProbs) -> Tensor:
    """h = D_w - D_l."""
    return chosen.ratio - rejected.ratio


# ---- functions of the margin h alone


def dpo(chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """-log sigmoid(beta h); log 2 where policy and reference agree. arXiv:2305.18290, eq. 7."""
    return -logsigmoid(beta * margin(chosen, rejected))


def cdpo(
    chosen: LogProbs,
    rejected: LogProbs,
    *,
    beta: Positive = 0.1,
    label_smoothing: FlipRate = 0.1,
) -> Tensor:
    """Conservative DPO: cross-entropy with the label 1 - eps; eps = label_smoothing.

    sp(-beta h) + eps beta h. The margin that it aims at is finite: beta h = log((1-eps)/eps).
    The same as smooth(dpo(...), rate=eps). E. Mitchell, "A note on DPO with noisy preferences".
    """
    z = beta * margin(chosen, rejected)
    return -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)


def interpolated_dpo(
    chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.1, gamma: NonNegative = 1.0
) -> Tensor:
    """DPO with gamma times the reference: sp(-beta [(s_w - s_l) - gamma (r_w - r_l)]).

    gamma = 1 is DPO, gamma = 0 the reference-free loss, other values lie between and beyond.
    """
    reference = chosen.reference - rejected.reference
    return -logsigmoid(beta * (chosen.policy - rejected.policy - gamma * reference))


def ipo(chosen: LogProbs, rejected: LogProbs, *, tau: Positive, average: bool) -> Tensor:
    """Squared distance of the margin from 1/(2 tau). arXiv:2310.12036, eq. 17.

    average: with False h is the difference of summed log-ratios (the paper's formula); with True of
        log-ratios per token (TRL, HALOs, LLaMA-Factory: there tau is called beta, so that
        ipo(beta=0.1) is taken as ipo(tau=0.1, average=True)). Values of tau do not carry over
        between the two, hence average has no default.
    """
    h = chosen.mean_ratio - rejected.mean_ratio if average else margin(chosen, rejected)
    return (h - 1 / (2 * tau)) ** 2


def hinge(chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """max(0, 1 - beta h): stop pushing once the margin reaches 1/beta. RSO, arXiv:2309.06657."""
    return torch.relu(1 - beta * margin(chosen, rejected))


def exo(
    chosen: LogProbs,
    rejected: LogProbs,
    *,
    beta: Positive = 0.1,
    label_smoothing: Annotated[float, Range(above=0, below=0.5)] = 1e-3,
) -> Tensor:
    """KL of (sigmoid(m), sigmoid(-m)) from (1-eps, eps), m = beta h. arXiv:2402.00856, eq. 16.

    Zero at m = log((1-eps)/eps), eps = label_smoothing.
    """
    m = beta * margin(chosen, rejected)
    towards = m.sigmoid() * (logsigmoid(m) - math.log1p(-label_smoothing))
    away = (-m).sigmoid() * (logsigmoid(-m) - math.log(label_smoothing))
    return towards + away


def discopop(
    chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.05, tau: Positive = 0.05
) -> Tensor:
    """(1 - sigmoid(m/tau)) sp(-m) + sigmoid(m/tau) e^-m, m = beta h. arXiv:2406.08414, eq. 5.

    Found by a language model; neither convex nor monotone near 0.
    """
    m = beta * margin(chosen, rejected)
    # e^-m overflows where its weight vanishes, so the product is formed in logarithms.
    return -(-m / tau).sigmoid() * logsigmoid(m) + (logsigmoid(m / tau) - m).exp()


def f_dpo(
    chosen: LogProbs,
    rejected: LogProbs,
    *,
    beta: Positive = 0.1,
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl",
    alpha: Positive = 0.5,
) -> Tensor:
    """DPO for another divergence from the reference: sp(-beta (g(D_w) - g(D_l))). arXiv:2309.16240.

    g(D) is D for reverse_kl (DPO), -e^-D for forward_kl, log sigmoid(D) for js, and
    (e^((alpha-1) D) - 1)/(alpha-1) for alpha, which tends to D as alpha tends to 1. Exponents are
    clamped at 80, so that float32 does not overflow.
    """

    def g(ratio: Tensor) -> Tensor:
        match divergence:
            case "forward_kl":
                return -(-ratio).clamp(max=80).exp()
            case "js":
                return logsigmoid(ratio)
            case "alpha" if alpha != 1:
                return torch.expm1(((alpha - 1) * ratio).clamp(max=80)) / (alpha - 1)
        return ratio

    return -logsigmoid(beta * (g(chosen.ratio) - g(rejected.ratio)))


# ---- the margin with an offset


def dpop(
    chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.3, penalty: NonNegative = 50.0
) -> Tensor:
    """DPO-positive: sp(-beta (h - penalty max(0, -D_w))): the chosen must not become less likely.

    arXiv:2402.13228; `penalty` is the paper's lambda.
    """
    return -logsigmoid(beta * (margin(chosen, rejected) - penalty * torch.relu(-chosen.ratio)))


def r_dpo(
    chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.1, alpha: NonNegative = 0.01
) -> Tensor:
    """DPO with a price on length: sp(-(beta h + alpha (|y_w| - |y_l|))). arXiv:2403.19159.

    With this sign a chosen response that is longer earns a smaller push.
    """
    longer = chosen.length - rejected.length
    return -logsigmoid(beta * margin(chosen, rejected) + alpha * longer)


def odpo(
    chosen: LogProbs,
    rejected: LogProbs,
    *,
    beta: Positive = 0.1,
    alpha: NonNegative = 1.0,
    scale: Literal["log", "linear"] = "log",
    offset: str = "grade",
) -> Tensor:
    """DPO with an offset that grows with the gap between the two: sp(-(beta h - delta)).

    delta = alpha log(gap), or alpha gap with scale="linear". offset: where the gap comes from,
    "grade" for the difference of the grades or the name of a number in the preferences' aux.
    arXiv:2402.10571.
    """
    ahead = gap(chosen, rejected, offset)
    if scale == "log":
        tiny = torch.finfo(ahead.dtype).tiny
        ahead = ahead.sign() * ahead.abs().clamp(min=tiny).log()
    return -logsigmoid(beta * margin(chosen, rejected) - alpha * ahead)


def odpo_needs(*, offset: str = "grade", **_: object) -> Needs:
    return Needs(reference=True, aux=frozenset({offset}) - {"grade"})


# ---- means over the response, and no reference


def ln_dpo(chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 5.0) -> Tensor:
    """DPO of log-ratios per token: sp(-beta (D_w/|y_w| - D_l/|y_l|)). arXiv:2407.15229.

    beta is about |y| times that of dpo; Tulu 3 uses 5.
    """
    return -logsigmoid(beta * (chosen.mean_ratio - rejected.mean_ratio))


def simpo(
    chosen: LogProbs,
    rejected: LogProbs,
    *,
    beta: Positive = 2.0,
    gamma: float = 0.5,
    alpha: float = 0.0,
    link: Literal["logistic", "hinge"] = "logistic",
) -> Tensor:
    """sp(-(beta (R_w - R_l) - gamma)), R = mean log-probability per token. arXiv:2405.14734.

    gamma: target margin; instead of it gamma_beta_ratio=gamma/beta may be given, as in the authors'
        code. alpha: AlphaPO (arXiv:2501.03884) with R = (1 - P^-alpha)/alpha, P = e^mean; it tends
        to the mean as alpha tends to 0. link: "hinge" for max(0, 1 - (beta (R_w - R_l) - gamma)).
    """

    def reward(response: LogProbs) -> Tensor:
        mean = response.mean_policy
        return -torch.expm1((-alpha * mean).clamp(max=80)) / alpha if alpha else mean

    z = beta * (reward(chosen) - reward(rejected)) - gamma
    return torch.relu(1 - z) if link == "hinge" else -logsigmoid(z)


def contrastive(
    chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.1, average: bool = False
) -> Tensor:
    """DPO without a reference, half of CPO: sp(-beta (s_w - s_l)). arXiv:2401.08417.

    average: use means per token instead of sums. Sums favour short responses.
    """
    if average:
        return -logsigmoid(beta * (chosen.mean_policy - rejected.mean_policy))
    return -logsigmoid(beta * (chosen.policy - rejected.policy))


def slic(chosen: LogProbs, rejected: LogProbs, *, delta: Positive = 1.0) -> Tensor:
    """max(0, delta - (s_w - s_l)), without a reference. SLiC-HF, arXiv:2305.10425.

    The paper adds a regulariser: slic(delta=1) + 0.1*nll(reduction="sum").
    """
    return torch.relu(delta - (chosen.policy - rejected.policy))


def odds_ratio(chosen: LogProbs, rejected: LogProbs) -> Tensor:
    """ORPO's penalty: sp of minus the log odds ratio, log P/(1-P) of the mean. arXiv:2403.07691."""
    return -logsigmoid(chosen.log_odds - rejected.log_odds)


def denoising_odds(
    chosen: LogProbs,
    rejected: LogProbs,
    *,
    snr: Positive = 0.5,
    scale: Positive = 1000.0,
) -> Tensor:
    """MaPO's margin for denoisers: sp(-scale (f(e_w) - f(e_l))), f(e) = snr e / (e^(snr e) - 1).

    e is the mean squared error, -2 times the log-probability; scale is the number of training
    timesteps. arXiv:2406.06424, whose code has snr = 0.5.
    """

    def f(response: LogProbs) -> Tensor:
        x = (-2 * snr * response.policy).clamp(max=80)
        tiny = x.abs() < 1e-4
        series = 1 - x / 2 + x**2 / 12  # x / expm1(x) up to x^4
        return torch.where(tiny, series, x / torch.expm1(torch.where(tiny, 1.0, x)))

    return -logsigmoid(scale * (f(chosen) - f(rejected)))


# ---- absolute terms: chosen and rejected count each for itself


def nca(chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.01) -> Tensor:
    """sp(-beta D_w) + sp(beta D_w)/2 + sp(beta D_l)/2. arXiv:2402.05369.

    The chosen reward has a finite optimum, beta D_w = log 2.
    """
    better, worse = beta * chosen.ratio, beta * rejected.ratio
    return -logsigmoid(better) - 0.5 * logsigmoid(-better) - 0.5 * logsigmoid(-worse)


def sppo(chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 1e-3) -> Tensor:
    """(D_w - 1/(2 beta))^2 + (D_l + 1/(2 beta))^2: hard labels. arXiv:2405.00675, eq. 4.7.

    The authors' code has half of this sum.
    """
    target = 1 / (2 * beta)
    return (chosen.ratio - target) ** 2 + (rejected.ratio + target) ** 2


def apo_zero(chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """sigmoid(-beta D_w) + sigmoid(beta D_l): chosen up, rejected down. arXiv:2408.06266, eq. 7."""
    return (-beta * chosen.ratio).sigmoid() + (beta * rejected.ratio).sigmoid()


def apo_down(chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """sigmoid(beta D_w) + sigmoid(-beta h): both down, rejected further. arXiv:2408.06266, eq. 8.

    For data whose chosen responses are worse than what the model gives already.
    """
    return (beta * chosen.ratio).sigmoid() + (-beta * margin(chosen, rejected)).sigmoid()


# ---- with the divergence of whole predictions


def tdpo(
    chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.1, alpha: NonNegative = 0.5
) -> Tensor:
    """Token-level DPO: sp(-beta (h - alpha (K_l - sg[K_w]))). arXiv:2404.11999, its second form.

    K: KL(reference || policy) summed over the response's tokens, under their own prefixes; that of
    the chosen response carries no gradient.
    """
    further = rejected.kl - chosen.kl.detach()
    return -logsigmoid(beta * (margin(chosen, rejected) - alpha * further))


def dspo(chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 1e-3) -> Tensor:
    """Direct score preference optimisation: the mean of ||(p - t) - u (p - r)||^2 over the chosen.

    p, r, t: predictions of policy and reference, and the target; u = beta (1 - sigmoid(beta h)).
    The rejected image counts through u alone. For denoisers. ICLR 2025, openreview xyfb9HHvMe; the
    form of its code for Stable Diffusion 1.5, where gradients flow through u too. Scores are the
    noise up to a factor: models that predict v or a velocity take errors of the noise
    (--weighting epsilon) to be trained on the same loss.
    """
    push = beta * (-beta * margin(chosen, rejected)).sigmoid()
    error, reference, apart = -2 * chosen.policy, -2 * chosen.reference, 2 * chosen.kl
    # <p - t, p - r> from the three squares.
    return error - push * (error + apart - reference) + push**2 * apart


# ---- over the whole batch: sorted, so that row i of the result is not preference i


def aot(chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.01) -> Tensor:
    """Stochastic dominance over the reference: s_w - s_l and r_w - r_l are sorted, then compared.

    sp(-beta (sort(s_w - s_l) - sort(r_w - r_l))). arXiv:2406.05882. Sorted within one micro-batch,
    in rising order; a batch of one is DPO.
    """
    policy = (chosen.policy - rejected.policy).sort().values
    reference = (chosen.reference - rejected.reference).sort().values
    return -logsigmoid(beta * (policy - reference))


def aot_unpaired(chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.01) -> Tensor:
    """Stochastic dominance of chosen over rejected: sp(-beta (sort(D_w) - sort(D_l))).

    arXiv:2406.05882. Which rejected response belongs to which chosen one does not matter.
    """
    return -logsigmoid(beta * (chosen.ratio.sort().values - rejected.ratio.sort().values))
