"""The metrics that every objective shares, and the listing of objectives."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from objectives.given import log_probs, numbers, three_pairs

from mmalign.objectives import Batch, SpecError
from mmalign.objectives.listing import explain, markdown, objectives
from mmalign.objectives.metrics import metrics
from mmalign.objectives.scores import pair_batch
from mmalign.objectives.table import TABLE

ROOT = Path(__file__).parents[2]


def test_metrics_of_pairs() -> None:
    figures = metrics(pair_batch(*three_pairs(grad=True)))
    assert figures["reward_accuracy"].tolist() == [1, 0, 1]
    assert figures["ranking_accuracy"].tolist() == [1, 0, 0]
    assert figures["reward_margin"].tolist() == [7, -2.25, 1.5]
    assert figures["logp_margin"].tolist() == [15, -3.25, -30]
    assert figures["chosen_ratio"].tolist() == [2, -1.5, -2]
    assert figures["rejected_ratio"].tolist() == [-5, 0.75, -3.5]
    assert figures["chosen_logp"].tolist() == [-40, -33.5, -120]
    assert figures["rejected_length"].tolist() == [25, 12, 50]
    assert not any(figure.requires_grad for figure in figures.values())


def test_metrics_of_lists_thumbs_and_ties() -> None:
    nan = math.nan
    policy = numbers(3, 2, 1, 5, 0, 0, 4, 0, 0, 1, 1, 0, 1, 2, 3).view(5, 3)
    grades = numbers(2, 1, 0, 1, nan, nan, 0, nan, nan, 1, 0, nan, 1, 1, 0).view(5, 3)
    figures = metrics(Batch(log_probs(policy, policy * 0), grades))
    thumb_up, thumb_down = 1, 2
    accuracy = figures["reward_accuracy"]
    assert accuracy[[0, 3, 4]].tolist() == [1, 0.5, 0]
    assert accuracy[[thumb_up, thumb_down]].isnan().all()
    assert figures["chosen_logp"][thumb_up] == 5
    assert figures["rejected_logp"][thumb_up].isnan()
    assert figures["chosen_logp"][thumb_down].isnan()
    assert figures["rejected_logp"][thumb_down] == 4
    assert figures["reward_margin"][[0, 3, 4]].tolist() == [2, 0, -2]


def test_without_a_reference_there_is_no_reward() -> None:
    policy = numbers(1, 0)[None]
    figures = metrics(Batch(log_probs(policy, policy * math.nan), numbers(1, 0)[None]))
    assert figures["reward_accuracy"].isnan().all()
    assert figures["ranking_accuracy"].tolist() == [1]


def test_the_documentation_is_current() -> None:
    page = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    assert page == markdown(), "run python -m mmalign.objectives.listing docs/objectives.md"


def test_every_objective_explains_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # so that no formula is folded
    objectives()
    printed = capsys.readouterr().out
    for name in TABLE:
        assert name in printed
        text = explain(name)
        assert len(text.splitlines()) >= 5
        assert (TABLE[name].function.__doc__ or "").strip()
    assert "[logsumexp" in printed  # no markup of the terminal's
    objectives("simpo")
    assert "gamma: a number" in capsys.readouterr().out
    with pytest.raises(SpecError, match="did you mean 'simpo'"):
        objectives("simp")


def test_the_listing_is_read_without_torch() -> None:
    code = "import sys, mmalign.objectives.listing; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
