"""The scripts under examples/claims run, and their page is made from their records."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

CLAIMS = Path(__file__).parents[1] / "examples" / "claims"
SCRIPTS = sorted(path.stem for path in CLAIMS.glob("[!_]*.py"))


@pytest.fixture
def claim(monkeypatch):
    monkeypatch.syspath_prepend(str(CLAIMS))
    import _claim

    return _claim


def test_the_page_is_made_from_the_records(claim):
    page = (CLAIMS / "README.md").read_text(encoding="utf-8")
    assert page == claim.readme(), "run python examples/claims/_claim.py"


def test_every_script_has_a_record_of_a_whole_run():
    for name in SCRIPTS:
        record = json.loads((CLAIMS / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert record["name"] == name
        assert not record["quick"]


def test_intervals_over_seeds_are_students(claim):
    value, low, high = claim.over_seeds([1.0, 2.0, 3.0])  # t(2) = 4.303, s / sqrt 3 = 0.57735
    assert (value, high - value, value - low) == pytest.approx((2.0, 2.48434, 2.48434), abs=1e-4)
    assert math.isnan(claim.over_seeds([1.0]).low)


def test_a_difference_counts_seed_by_seed(claim):
    assert claim.surely_above([1.0, 5.0, 9.0], [0.9, 4.9, 8.9])
    assert not claim.surely_above([1.0, 5.0, 9.0], [0.9, 5.5, 8.9])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_run(name, tmp_path):
    done = subprocess.run(
        [sys.executable, CLAIMS / f"{name}.py", "--quick", "--out", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Verdict" in done.stdout
    assert json.loads((tmp_path / f"{name}.json").read_text())["quick"]
