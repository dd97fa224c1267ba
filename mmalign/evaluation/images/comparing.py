"""Which of two images a judge prefers, without knowing which model drew it or which comes first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmalign.evaluation.images.drawing import Drawn
from mmalign.evaluation.images.prompts import ImagePrompt
from mmalign.evaluation.images.scoring import Floats
from mmalign.records import Media, Message, Text
from mmalign.rewards.judge import Judge, json_in
from mmalign.training.log import progress

QUESTION = """Two images were drawn for this prompt: {prompt}

Which one would a person prefer who asked for it? Look at how well it shows what the prompt says, \
then at how well it is drawn. Answer with JSON alone, as in {{"reason": "one sentence", \
"better": "first"}}; "better" is "first", "second", or "tie" where neither is better."""

VOTES = {"first": 1.0, "tie": 0.5, "second": 0.0}
SCHEMA = {
    "type": "object",
    "properties": {
        "reason": {"type": "string"},
        "better": {"type": "string", "enum": list(VOTES)},
    },
    "required": ["reason", "better"],
    "additionalProperties": False,
}


def judged_wins(
    prompts: Sequence[ImagePrompt], after: Drawn, before: Drawn, judge: Judge
) -> Floats:
    """(n k) How often the image after is preferred: each pair is shown in both orders, and the two
    votes (1, 1/2 for a tie, 0) are averaged, so that a judge who always takes the first image gives
    1/2. nan where the judge gave no usable answer."""
    pairs = [
        (prompt.text, new, old)
        for prompt in prompts
        for new, old in zip(after[prompt.id], before[prompt.id], strict=True)
    ]
    asked = [_shown(text, *order) for text, new, old in pairs for order in ((new, old), (old, new))]
    with progress("judge", total=len(asked)) as advance:
        votes = judge.ask_all(
            asked, _vote, schema=SCHEMA, progress=lambda done, _: advance(to=done)
        )
    heard = np.array([vote if isinstance(vote, float) else np.nan for vote in votes])
    shown_first, shown_second = heard[::2], 1 - heard[1::2]
    return ((shown_first + shown_second) / 2).reshape(len(prompts), -1)


def _shown(prompt: str, first: Media, second: Media) -> tuple[Message, ...]:
    return (Message("user", (Text(QUESTION.format(prompt=prompt)), first, second)),)


def _vote(text: str) -> float:
    found = json_in(text)
    better = str(found.get("better", "")).lower() if isinstance(found, dict) else ""
    if better not in VOTES:
        raise ValueError(f'"better" must be one of {", ".join(VOTES)}')
    return VOTES[better]
