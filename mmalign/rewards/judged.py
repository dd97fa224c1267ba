"""A judge's score as a reward: a model behind an endpoint is shown a rubric, and gives a number.

Single scores of judges are coarse and drift with the wording; where two answers are to be compared,
`mmalign evaluate win-rate` asks for both orders.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmalign.data.cache import Cache
from mmalign.errors import BadSample, UserError
from mmalign.records import Message, Part, Sample, Text
from mmalign.rewards.endpoint import Endpoint
from mmalign.rewards.judge import Judge, json_in
from mmalign.rewards.scorer import Floats

RUBRIC = """Rate the response to the request from 1 (useless or wrong) to 10 (cannot be better).
Count against it what is not true, what is not in the image, what was not asked for, and what is
missing."""
FORM = 'Answer with JSON alone: {"reason": "a few words", "score": 1 to 10}'
LEAST, MOST = 1, 10
SCHEMA = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "score": {"type": "number"}},
    "required": ["reason", "score"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Judged:
    """Scores of a judge, from 1 to 10; nan where it gave no usable one."""

    judge: Judge
    rubric: str

    @property
    def name(self) -> str:
        wording = hashlib.sha256(f"{self.rubric}{FORM}".encode()).hexdigest()[:12]
        return f"judge:{self.judge.model}:{wording}"

    def __call__(self, samples: Sequence[Sample]) -> Floats:
        """(n,)"""
        asked = [question(sample, self.rubric) for sample in samples]
        found = self.judge.ask_all(asked, score_in, schema=SCHEMA)
        return np.array([np.nan if isinstance(each, BadSample) else each for each in found])


def judge(
    *,
    model: str,
    url: str = "https://api.openai.com/v1",
    key: str = "OPENAI_API_KEY",
    rubric: str = RUBRIC,
    tokens: int = 256,
    at_once: int = 8,
    per_minute: float | None = None,
    budget: int | None = None,
    cache: Cache | None = None,
) -> Judged:
    """The score that the judge `model` gives by a rubric; the other options are `JudgeOptions`'.

    key: name of the environment variable that holds the endpoint's key.
    cache: beside it, in judge.jsonl, stands what was asked and answered, which is not asked again.
    """
    if not rubric.strip():
        raise UserError("the rubric is empty", hint="say what is good and what is bad")
    # One process writes the file; workers ask for themselves.
    alone = multiprocessing.parent_process() is None
    asked = Judge(
        model,
        Endpoint(url, key=os.environ.get(key), per_minute=per_minute),
        record=cache.path.parent / "judge.jsonl" if cache is not None and alone else None,
        max_tokens=tokens,
        at_once=at_once,
        budget=budget,
    )
    return Judged(asked, rubric)


def question(sample: Sample, rubric: str) -> tuple[Message, ...]:
    """What the judge is shown: rubric, request with its images, response."""
    parts: list[Part] = [Text(f"{rubric}\n\nThe request:\n")]
    for message in sample.prompt:
        parts += message.parts
    parts += [Text("\n\nThe response:\n"), *sample.response, Text(f"\n\n{FORM}")]
    return (Message("user", tuple(parts)),)


def score_in(text: str) -> float:
    """The score in a judge's answer. Raises ValueError where there is none from 1 to 10."""
    found: Any = json_in(text)
    score = found.get("score") if isinstance(found, dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float) or not LEAST <= score <= MOST:
        raise ValueError(f"a score from {LEAST} to {MOST} is wanted, and there is {score!r}")
    return float(score)
