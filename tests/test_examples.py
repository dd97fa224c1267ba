"""Examples run: MIA-DPO and BDHS from pictures to figures, by commands alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_pairs_of_pictures_and_a_model_alone(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "vlm_pairs.py"), "--out", str(tmp_path)]
    subprocess.run([*command, "--pictures", "16", "--steps", "2"], check=True)
    for trained in ("mia/dpo", "mia/control", "bdhs/dpo", "bdhs/control"):
        for folder in (tmp_path / trained, tmp_path / trained / "ranking"):
            metrics = json.loads((folder / "metrics.json").read_text())
            assert set(metrics["before"]) <= set(metrics["after"])
            assert (folder / "report.html").exists()
