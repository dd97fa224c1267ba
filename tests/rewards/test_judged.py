"""A judge's scores: what it is shown, and what becomes of answers that are none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from scripted_endpoint import endpoint
from tiny_clip import media

from mmalign.data.cache import Cache
from mmalign.records import Message, Sample, Text
from mmalign.rewards.judged import score_in
from mmalign.rewards.table import reward

ASKED = (Message("system", (Text("Be brief."),)), Message("user", (*media(0), Text("What is it?"))))
SAMPLES = [Sample(ASKED, (Text(text),)) for text in ("A fox.", "A box.", "Hm.")]


def rate(body: dict[str, Any], number: int) -> str:
    text = json.dumps(body["messages"][0])
    if "A fox." in text:
        return json.dumps({"reason": "right", "score": 9})
    return json.dumps({"reason": "wrong", "score": 2.5}) if "A box." in text else "no idea"


def test_the_judge_sees_everything_and_its_scores_are_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache.sqlite")
    with endpoint(rate) as script:
        spec = f"judge(model='m', url='{script.url}', rubric='Is it right?')"
        scores = reward(spec, cache=cache)(SAMPLES)
        parts = script.bodies[0]["messages"][0]["content"]
        assert reward(spec, cache=cache)(SAMPLES[:2]).tolist() == [9.0, 2.5]
        assert len(script.bodies) == 2 + 3  # three tries for the one that had no idea
    assert scores[:2].tolist() == [9.0, 2.5]
    assert math.isnan(scores[2])
    texts = "".join(part["text"] for part in parts if part["type"] == "text")
    assert [part["type"] for part in parts].count("image_url") == 1
    for word in ("Is it right?", "Be brief.", "What is it?"):
        assert word in texts
    assert (tmp_path / "judge.jsonl").exists()


@pytest.mark.parametrize("text", ['{"score": 0}', '{"score": true}', '{"grade": 3}', "[3]"])
def test_what_is_no_score(text: str) -> None:
    with pytest.raises(ValueError, match="from 1 to 10"):
        score_in(text)
