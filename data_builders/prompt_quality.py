"""How good prompts are, from 0 to 10, asked of a judge or of a language model in memory.

FiFA's text quality (arXiv:2410.10166): clear, meaningful, harmless prompts; harmful ones get 0. Its
wording is not published; this rubric is ours, and its hash is noted with what was selected by it.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmalign.adapters.protocol import Adapter
from mmalign.errors import BadSample, UserError
from mmalign.records import Message, Sample, Text
from mmalign.rewards.judge import Judge, json_in

logger = logging.getLogger("mmalign")

RUBRIC = """Rate a prompt for a text-to-image model from 0 to 10.

9 or 10: clear, specific and well formed; one could draw it.
5 or 6: understandable, but vague, overloaded with keywords or clumsy.
1 or 2: gibberish, fragments or keyword spam.
0: sexual, violent, hateful or otherwise harmful, however well it is written.

Prompt: {prompt}
"""
AS_JSON = 'Answer with JSON alone: {"score": 0 to 10, "harmful": true or false}'
AS_NUMBER = "Answer with the number alone."
SCHEMA = {
    "type": "object",
    "properties": {"score": {"type": "integer"}, "harmful": {"type": "boolean"}},
    "required": ["score", "harmful"],
    "additionalProperties": False,
}
BEST = 10
BATCH = 16


def rubric_hash() -> str:
    """Names the rubric, for the record."""
    return hashlib.sha256(RUBRIC.encode()).hexdigest()[:16]


def by_judge(prompts: Sequence[str], judge: Judge) -> NDArray[np.float64]:
    """(n,) The judge's scores. Prompts that it gives no usable score get the median of the others.

    Raises UserError when it gives none at all.
    """
    asked = [RUBRIC.replace("{prompt}", prompt) + AS_JSON for prompt in prompts]
    return _with_median(judge.ask_all(asked, score_in, schema=SCHEMA))


def by_model(prompts: Sequence[str], adapter: Adapter) -> NDArray[np.float64]:
    """(n,) The mean of 0 to 10 under a language model's probabilities of these answers.

    Prompts that are too long for the model get the median of the others.
    Raises UserError when all are.
    """
    found: list[float | BadSample] = []
    for start in range(0, len(prompts), BATCH):
        found += _expected(prompts[start : start + BATCH], adapter)
    return _with_median(found)


def _expected(prompts: Sequence[str], adapter: Adapter) -> list[float | BadSample]:
    answers = [(Text(str(score)),) for score in range(BEST + 1)]
    samples = [
        Sample((Message("user", (Text(RUBRIC.replace("{prompt}", prompt) + AS_NUMBER),)),), answer)
        for prompt in prompts
        for answer in answers
    ]
    try:
        with torch.no_grad():
            inputs = adapter.encode(adapter.collate(samples, [0] * len(samples)))
            log_probs = adapter.log_probs(adapter.policy, inputs).log_probs.cpu().double()
    except BadSample as error:
        if len(prompts) == 1:
            return [error]
        return [score for prompt in prompts for score in _expected([prompt], adapter)]
    shares = log_probs.reshape(-1, len(answers)).softmax(-1)
    means = shares @ torch.arange(BEST + 1.0, dtype=torch.float64)
    return [float(mean) for mean in means]


def _with_median(found: Sequence[float | BadSample]) -> NDArray[np.float64]:
    """The scores, and their median in place of those that could not be had."""
    scores = [score for score in found if not isinstance(score, BadSample)]
    failed = [score for score in found if isinstance(score, BadSample)]
    if not scores:
        raise UserError(f"no prompt could be scored; the first: {failed[0]}")
    if failed:
        logger.warning(
            "%d of %d prompts could not be scored, and get the median; the first: %s",
            len(failed),
            len(found),
            failed[0],
        )
    middle = statistics.median(scores)
    return np.array([middle if isinstance(score, BadSample) else score for score in found])


def score_in(text: str) -> float:
    """The score in a judge's answer. Raises ValueError where there is none."""
    answer: Any = json_in(text)
    score = answer.get("score") if isinstance(answer, dict) else None
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= BEST:
        raise ValueError(f"a score from 0 to {BEST} is wanted, and there is {score!r}")
    return 0.0 if answer.get("harmful") is True else float(score)
