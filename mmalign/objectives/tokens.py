"""Objectives that look at single tokens, changes of score for any objective, and token rewards.

A change of score takes log-probabilities and returns others: `averaged(plackett_luce())` ranks by
means per token, `weighted(dpo(), average=True)` counts marked tokens more.
Axes: b preferences, t tokens, v vocabulary; `...` is b or b k.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Annotated

import torch
from torch import Tensor

from mmalign.objectives.options import Fraction, Positive, Range
from mmalign.objectives.pairwise import dpo
from mmalign.objectives.scores import LogProbs, Pair

# ---- changes of score


def weighted(response: LogProbs, *, average: bool = False) -> LogProbs:
    """Each token counts by its weight in the data, under policy and reference alike.

    average: divide by the sum of the weights (RLHF-V, arXiv:2312.00849), else only sum.
    """
    tokens = response.elements
    weights = torch.where(tokens.mask.bool(), tokens.weights, 0.0)
    total = weights.sum(-1)
    scale = 1 / total.clamp(min=torch.finfo(total.dtype).tiny) if average else 1.0
    return replace(
        response,
        policy=_sum(tokens.policy, weights) * scale,
        reference=_sum(tokens.reference, weights) * scale,
        length=torch.ones_like(total) if average else total,
    )


def averaged(response: LogProbs) -> LogProbs:
    """Means per token in the place of sums, under policy and reference alike; length becomes 1."""
    length = response.length.clamp(min=1)
    return replace(
        response,
        policy=response.policy / length,
        reference=response.reference / length,
        length=torch.ones_like(response.length),
    )


def reference_free(response: LogProbs) -> LogProbs:
    """The policy's log-probabilities in the place of log-ratios: no reference is computed.

    As CPO does with DPO's loss (arXiv:2401.08417): reference_free(dpo()) is contrastive(), and
    reference_free(ipo(beta=0.1)) what TRL's CPO calls "ipo".
    """
    tokens = response.tokens
    if tokens is not None:
        tokens = replace(tokens, reference=torch.zeros_like(tokens.policy))
    return replace(response, reference=torch.zeros_like(response.policy), tokens=tokens)


def clipped(
    response: LogProbs, *, epsilon: Annotated[float, Range(above=0, below=1)] = 0.1
) -> LogProbs:
    """pi/ref clipped to [1 - epsilon, 1 + epsilon], outside of which there is no gradient.

    D3PO (arXiv:2311.13231) and SPO (arXiv:2406.04314), where a response is one denoising step.
    """
    ratio = response.ratio.clamp(math.log1p(-epsilon), math.log1p(epsilon))
    return replace(response, policy=response.reference + ratio)


# ---- objectives


def critical_token_dpo(chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 1.0) -> Tensor:
    """DPO whose rejected tokens are weighted by how critical they are. arXiv:2411.19943.

    sp(-beta (sum_t delta_w,t - sum_t a_t delta_l,t)), a_t the weights in the data of the rejected
    response: 1 - s_t with s_t of `contrastive_scores`; the chosen side is plain DPO.
    """
    return dpo(chosen, weighted(rejected), beta=beta)


def ld_dpo(
    chosen: LogProbs, rejected: LogProbs, *, beta: Positive = 0.1, alpha: Fraction = 0.5
) -> Tensor:
    """DPO that counts tokens beyond the shorter of the two responses alpha. arXiv:2409.06411.

    Applied to policy and reference alike; alpha = 1 is DPO.
    """
    shorter = torch.minimum(chosen.length, rejected.length)
    return dpo(_tapered(chosen, shorter, alpha), _tapered(rejected, shorter, alpha), beta=beta)


def _tapered(response: LogProbs, length: Tensor, alpha: float) -> LogProbs:
    tokens = response.elements
    mask = tokens.mask.bool()
    position = mask.cumsum(-1)  # (b t), from 1
    taper = torch.full_like(tokens.policy, alpha)
    weights = torch.where(position <= length[..., None], 1.0, taper) * mask
    policy, reference = _sum(tokens.policy, weights), _sum(tokens.reference, weights)
    return replace(response, policy=policy, reference=reference)


def wpo(loss: Pair, *, clamp: bool = True) -> Pair:
    """Weigh each pair by how likely the policy would have written it. arXiv:2406.11827, eq. 2.

    loss W(y_w) W(y_l), W(y) = exp(mean_t [log pi(y_t) - log sum_v pi(v)^2]), without gradient; the
    token figure "collision" is that last logarithm. clamp: the product is at most 1, as in the
    authors' code.
    """

    def reweighted(chosen: LogProbs, rejected: LogProbs) -> Tensor:
        weight = (_on_policy(chosen) + _on_policy(rejected)).exp()
        return loss(chosen, rejected) * (weight.clamp(max=1) if clamp else weight)

    return reweighted


def _on_policy(response: LogProbs) -> Tensor:
    tokens = response.elements
    mask = tokens.mask.bool()
    aligned = (tokens.policy - tokens.stat("collision")).detach()
    return torch.where(mask, aligned, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def _sum(log_probs: Tensor, weights: Tensor) -> Tensor:
    """(... t) -> (...); tokens of weight 0 may be anything, nan included."""
    return torch.where(weights != 0, weights * log_probs, 0.0).sum(-1)


# ---- a language model as a Q-function: arXiv:2404.12358


def token_rewards(response: LogProbs, *, beta: Positive = 0.1) -> Tensor:
    """(... t) beta log pi/ref of each token, 0 outside the response; sums to beta times the ratio.

    They are advantages, not rewards (eq. 10): what a token adds may show at an earlier one.
    """
    return beta * response.elements.ratio


def step_sums(values: Tensor, steps: Tensor, count: int) -> Tensor:
    """(... t) token values summed over steps -> (... count); steps (... t) from 0, -1 for none."""
    kept = torch.where(steps >= 0, values, 0.0)
    sums = values.new_zeros(*values.shape[:-1], count)
    return sums.scatter_add(-1, steps.clamp(min=0), kept)


def step_weights(importance: Tensor, steps: Tensor) -> Tensor:
    """Token weights (... t) with which `weighted(..., average=True)` is TPO's step score.

    sum_k a_k m_k / sum_k a_k with m_k the mean log-ratio of step k and a_k = importance (... k):
    1 + c_k in the repository of arXiv:2410.12854, c_k the cosine similarity with the same step of
    the best response; 1 - c_k emphasises what differs. steps (... t) from 0, -1 for no step.
    """
    ones = torch.ones_like(steps, dtype=importance.dtype)
    lengths = step_sums(ones, steps, importance.shape[-1]).clamp(min=1)
    per_token = (importance / lengths).gather(-1, steps.clamp(min=0))
    return torch.where(steps >= 0, per_token, 0.0)


def values_from_logits(logits: Tensor, *, beta: Positive = 0.1) -> Tensor:
    """(... v) -> (...) V = beta logsumexp(Q/beta), Q = beta logits; up to a constant per state."""
    return beta * logits.logsumexp(-1)


def contrastive_scores(
    positive: Tensor, negative: Tensor, tokens: Tensor, *, strength: float = 1.0
) -> Tensor:
    """s_t, (b t): probability of each token under P_p^(1+b) P_n^-b, b = strength. Low is critical.

    positive, negative: (b t v) logits at each token of models tuned on right and on wrong traces.
    arXiv:2411.19943. The weights of `critical_token_dpo` are 1 - s_t.
    """
    contrast = (1 + strength) * positive.log_softmax(-1) - strength * negative.log_softmax(-1)
    return contrast.softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
