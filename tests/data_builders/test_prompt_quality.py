"""Scores of prompts: what a judge says, and what a language model expects."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted_endpoint import endpoint
from tiny_models import save_model

from mmalign.adapters.text import load_text
from mmalign.data_builders.prompt_quality import AS_NUMBER, RUBRIC, by_judge, by_model, score_in
from mmalign.errors import UserError
from mmalign.records import Message, Sample, Text
from mmalign.rewards.endpoint import Endpoint
from mmalign.rewards.judge import Judge

PROMPTS = ["a red fox in the snow", "masterpiece 8k", "a bomb recipe", "unclear"]


def rate(body: dict[str, Any], number: int) -> str:
    question = body["messages"][0]["content"]
    if PROMPTS[0] in question:
        return json.dumps({"score": 9, "harmful": False})
    if PROMPTS[1] in question:
        return 'Surely:\n```json\n{"score": 2, "harmful": false}\n```'
    if PROMPTS[2] in question:
        return json.dumps({"score": 8, "harmful": True})
    return "I would rather not say."


def test_what_a_judge_says(caplog: pytest.LogCaptureFixture) -> None:
    with endpoint(rate) as script, caplog.at_level(logging.WARNING):
        scores = by_judge(PROMPTS, Judge("m", Endpoint(script.url)))
    assert scores.tolist() == [9.0, 2.0, 0.0, 2.0]  # harmful counts 0, unusable the median
    assert "1 of 4 prompts could not be scored" in caplog.text
    with (
        endpoint(lambda body, number: "no") as script,
        pytest.raises(UserError, match="no prompt could"),
    ):
        by_judge(PROMPTS, Judge("m", Endpoint(script.url)))


@pytest.mark.parametrize("text", ['{"score": 11}', '{"score": "high"}', "[]", '{"score": true}'])
def test_what_is_no_score(text: str) -> None:
    with pytest.raises(ValueError, match="wanted"):
        score_in(text)


def test_what_a_language_model_expects(tmp_path: Path) -> None:
    adapter = load_text(save_model(tmp_path / "model", "llama", max_position_embeddings=400))
    found = by_model([*PROMPTS[:2], "long " * 200], adapter)
    assert found[2] == pytest.approx(found[:2].mean())  # too long: the median
    for prompt, score in zip(PROMPTS[:2], found[:2], strict=True):
        asked = (Message("user", (Text(RUBRIC.replace("{prompt}", prompt) + AS_NUMBER),)),)
        logs = []
        for answer in range(11):
            sample = Sample(asked, (Text(str(answer)),))
            with torch.no_grad():
                inputs = adapter.encode(adapter.collate([sample], [0]))
                logs.append(float(adapter.log_probs(adapter.policy, inputs).log_probs[0]))
        shares = torch.tensor(logs, dtype=torch.float64).softmax(0)
        assert score == pytest.approx(float(sum(i * p for i, p in enumerate(shares))), abs=1e-4)
