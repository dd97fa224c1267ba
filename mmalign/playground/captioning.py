"""Captions of scenes: asked of a vision-language model, and judged against what was drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmalign.adapters.vision_language import VisionLanguageAdapter
from mmalign.evaluation.hallucination.chair import Chair, chair
from mmalign.playground.scenes import Scene, ask, mentioned
from mmalign.records import text_of

MOST_TOKENS = 48  # of a caption; one that names seven things has as many


def describe(
    policy: VisionLanguageAdapter,
    shown: Sequence[Scene],
    *,
    batch_size: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """The likeliest caption of every scene. progress: called with how many are done, and of how
    many."""
    samples = policy.sample(
        [ask(scene) for scene in shown],
        range(len(shown)),  # seeds, of which greedy decoding takes no notice
        max_new_tokens=MOST_TOKENS,
        temperature=0.0,
        batch_size=batch_size,
        merge=True,
        progress=progress,
    )
    return [text_of(sample.response) for sample in samples]


def judge(captions: Sequence[str], shown: Sequence[Scene]) -> Chair:
    """CHAIR's counts, which are exact here."""
    return chair([mentioned(text) for text in captions], [scene.present for scene in shown])


def merit(caption: str, scene: Scene) -> float:
    """Things named rightly, less those that are not there or named twice, per thing in the scene:
    1 at best."""
    named, there = mentioned(caption), set(scene.present)
    right = len(there.intersection(named))
    return (right - (len(named) - right)) / len(there)
