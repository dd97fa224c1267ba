"""Several rewards on one scale, and the scale that labels tell of."""

from __future__ import annotations

import numpy as np
import pytest

from mmalign.errors import UserError
from mmalign.records import Message, Sample, Text, pair
from mmalign.rewards.ensemble import Ensemble, calibrate, combine, rank, wins, zscore
from mmalign.rewards.table import parse, reward

NAN = float("nan")


def test_scales_within_a_group() -> None:
    scores = np.array([3.0, 1.0, 1.0, 7.0])
    assert zscore(scores) == pytest.approx([0.0, -0.8164965809, -0.8164965809, 1.6329931619])
    assert rank(scores).tolist() == [0.5, 0.0, 0.0, 1.0]
    assert wins(scores) == pytest.approx([2 / 3, 0.5 / 3, 0.5 / 3, 1.0])
    assert zscore(np.ones(3)).tolist() == [0.0, 0.0, 0.0]
    assert rank(np.ones(2)).tolist() == [0.5, 0.5]
    assert wins(np.ones(1)).tolist() == [0.5]


def test_no_reward_outweighs_another_by_its_unit() -> None:
    one, other = np.array([1.0, 2.0, 5.0, 4.0]), np.array([0.3, 0.1, 0.2, 0.9])
    groups = ["a", "a", "b", "b"]
    for how in ("zscore", "rank", "wins"):
        plain = combine(np.stack([one, other]), (1, 1), groups, how)
        scaled = combine(np.stack([1000 * one, other - 7]), (1, 1), groups, how)
        assert scaled == pytest.approx(plain)
    apart = combine(one[None], (2.0,), groups, "rank")
    assert apart.tolist() == [0.0, 2.0, 2.0, 0.0]


def test_what_could_not_be_scored_is_left_out_of_its_group() -> None:
    scores = np.array([[1.0, NAN, 3.0], [5.0, 6.0, 7.0]])
    found = combine(scores, (1, 1), ["a"] * 3, "rank")
    assert np.isnan(found[1])
    assert found[[0, 2]].tolist() == [0.0, 2.0]


def test_the_scale_is_the_one_that_labels_were_drawn_with() -> None:
    draws = np.random.default_rng(0)
    gaps = np.abs(draws.normal(size=40_000)) * 5
    right = draws.random(len(gaps)) < 1 / (1 + np.exp(-0.3 * gaps))
    assert calibrate(np.where(right, gaps, -gaps)) == pytest.approx(0.3, rel=0.05)
    with pytest.raises(UserError, match="always right"):
        calibrate(gaps)


def test_specs_name_ensembles() -> None:
    assert parse("pick + 0.5*hps(version='v2')") == [
        (1.0, "pick", {}),
        (0.5, "hps", {"version": "v2"}),
    ]
    rules = "rule(name='word_count', least=5, least_words=1)"
    short, long = (
        Sample((Message("user", (Text("Go on."),)),), (Text(text),))
        for text in ("One two three.", "One two three four five six.")
    )
    assert reward(rules)([short, long]).tolist() == [0.6, 1.0]
    both = reward(f"{rules} + 0.5*rule(name='excludes', word='six', least_words=1)", how="rank")
    assert isinstance(both, Ensemble)
    assert both([short, long]).tolist() == [0.5, 1.0]
    assert both.name.startswith("rank(1*rule:")
    with pytest.raises(UserError, match="scale for each"):
        Ensemble((), (), "calibrated")


def test_a_spec_is_calibrated_on_labelled_pairs() -> None:
    prompt = (Message("user", (Text("Go on."),)),)
    short, long = (
        Sample(prompt, (Text(text),)) for text in ("One two three.", "One two three four five six.")
    )
    labelled = [pair(long, short)] * 3 + [pair(short, long)]
    rules = "rule(name='word_count', least=5, least_words=1)"
    spec = f"{rules} + 2*rule(name='word_count', least=6, least_words=1)"
    both = reward(spec, how="calibrated", labelled=labelled)
    # three right of four: odds of 3, whatever the unit of the margins, 0.4 and 0.5
    assert both([long])[0] - both([short])[0] == pytest.approx((1 + 2) * np.log(3))
    with pytest.raises(UserError, match="no labelled pairs"):
        reward(spec, how="calibrated")
