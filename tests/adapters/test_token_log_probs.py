"""Log-probabilities and statistics in chunks equal the plain ones, gradients included."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mmalign.adapters.token_log_probs import STATS, log_distributions, token_log_probs

POSITIONS, SIZE, VOCABULARY = 7, 5, 23


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, nn.Linear]:
    torch.manual_seed(0)
    hidden = torch.randn(POSITIONS, SIZE, requires_grad=True)
    return hidden, torch.randint(VOCABULARY, (POSITIONS,)), nn.Linear(SIZE, VOCABULARY)


def capped(head: nn.Linear) -> Callable[[Tensor], Tensor]:
    return lambda hidden: 3 * torch.tanh(head(hidden) / 3)


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("head_trained", [False, True])
def test_values_and_gradients_equal_plain_ones(
    problem: tuple[Tensor, Tensor, nn.Linear], rows: int, head_trained: bool
) -> None:
    hidden, targets, head = problem
    head.requires_grad_(head_trained)
    wanted = [hidden, *(head.parameters() if head_trained else ())]
    weight = torch.randn(POSITIONS)
    mine, _ = token_log_probs(
        hidden,
        targets,
        capped(head),
        vocabulary=VOCABULARY,
        head_trained=head_trained,
        budget=4 * VOCABULARY * rows,
    )
    plain = torch.log_softmax(capped(head)(hidden), -1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(mine, plain)
    gradients = (torch.autograd.grad((weight * x).sum(), wanted) for x in (mine, plain))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("head_trained", [False, True])
def test_the_divergence_from_another_model(
    problem: tuple[Tensor, Tensor, nn.Linear], rows: int, head_trained: bool
) -> None:
    hidden, targets, head = problem
    head.requires_grad_(head_trained)
    wanted = [hidden, *(head.parameters() if head_trained else ())]
    other = log_distributions(
        hidden + 1, capped(head), vocabulary=VOCABULARY, budget=4 * VOCABULARY * rows
    )
    mine, figures = token_log_probs(
        hidden, targets, capped(head), vocabulary=VOCABULARY, head_trained=head_trained,
        reference=other, stats=["entropy"], budget=4 * VOCABULARY * rows,
    )  # fmt: skip
    log_p = torch.log_softmax(capped(head)(hidden), -1)
    plain = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=other), torch.distributions.Categorical(logits=log_p)
    )
    torch.testing.assert_close(figures["divergence"], plain)
    both = (figures["divergence"] + 2 * mine, plain + 2 * log_p.gather(-1, targets[:, None])[:, 0])
    gradients = (torch.autograd.grad(x.square().sum(), wanted) for x in both)
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("head_trained", [False, True])
def test_statistics_equal_their_definitions(
    problem: tuple[Tensor, Tensor, nn.Linear], head_trained: bool
) -> None:
    hidden, targets, head = problem
    mine, stats = token_log_probs(
        hidden,
        targets,
        head,
        vocabulary=VOCABULARY,
        head_trained=head_trained,
        stats=STATS,
        budget=4 * VOCABULARY * 2,
    )
    with torch.no_grad():
        probs = torch.softmax(head(hidden).double(), -1)
    top = probs.sort(-1, descending=True).values[:, :10]
    expected = {
        "collision": (probs**2).sum(-1).log(),
        "entropy": -(probs * probs.log()).sum(-1),
        "highest": top[:, 0].log(),
        "top10_entropy": -(top * top.log()).sum(-1) / math.log(2),
        "top10_mass": top.sum(-1),
    }
    assert set(stats) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(stats[name].double(), value, rtol=1e-5, atol=1e-5)
    ours, theirs = (
        torch.autograd.grad(x.sum(), hidden)[0]
        for x in (mine, torch.log_softmax(head(hidden), -1).gather(-1, targets[:, None]))
    )
    torch.testing.assert_close(ours, theirs)  # asking for statistics changes no gradient


def test_tokens_that_are_ruled_out_leave_statistics_finite(
    problem: tuple[Tensor, Tensor, nn.Linear],
) -> None:
    hidden, targets, head = problem
    ruled_out = torch.zeros(VOCABULARY, dtype=torch.bool)
    ruled_out[3] = True
    _, stats = token_log_probs(
        hidden,
        targets.masked_fill(targets == 3, 4),
        lambda state: head(state).masked_fill(ruled_out, -torch.inf),
        vocabulary=VOCABULARY,
        head_trained=False,
        stats=STATS,
    )
    assert all(figure.isfinite().all() for figure in stats.values())


def test_no_chunk_exceeds_the_budget(problem: tuple[Tensor, Tensor, nn.Linear]) -> None:
    hidden, targets, head = problem
    seen: list[int] = []

    def tail(state: Tensor) -> Tensor:
        seen.append(len(state))
        return head(state)

    token_log_probs(
        hidden, targets, tail, vocabulary=VOCABULARY, head_trained=False, budget=8 * VOCABULARY
    )
    assert seen == [2, 2, 2, 1]


def test_unknown_statistic_is_named() -> None:
    nothing = torch.zeros(0, dtype=torch.long)
    with pytest.raises(ValueError, match="perplexity"):
        token_log_probs(
            torch.zeros(0, 2),
            nothing,
            lambda state: state,
            vocabulary=2,
            head_trained=False,
            stats=["perplexity"],
        )
