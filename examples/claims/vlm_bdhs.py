"""BDHS: answers that the model completes nearly blind are what it should learn to reject.

The playground's LLaVA names companions that are not there. True captions of a few scenes are set
against its own completions of them, made with about one of nine image tokens in sight; the control
learns from the same captions alone, or sees them against captions of other scenes.
"""

from __future__ import annotations

from collections.abc import Sequence

from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _vision import VisionLanguageAdapter, captioned, fresh, kept, trained

from mmalign.data_builders.bdhs import Blinding, Completing, rejected_answers
from mmalign.data_builders.likeness import by_words
from mmalign.playground.captioning import MOST_TOKENS, describe, judge
from mmalign.playground.scenes import Scene, caption, mentioned, scenes
from mmalign.records import Preference, Sample, Text, pair, text_of

CLAIM = Claim(
    "vlm_bdhs",
    "DPO on true captions against the model's own nearly blind completions of them lowers CHAIR_i "
    "below fine-tuning on the same captions, with recall not lower than before.",
    "arXiv:2407.02477",
    "Fine-tuning on the chosen captions alone, and DPO against captions of other scenes; same "
    "captions, steps, anchor and initial weights.",
)
ANCHORED = 'dpo(beta=0.2) + nll(reduction="mean")'
METHODS = {"nll": 'nll(reduction="mean")', "dpo, other scenes": ANCHORED, "dpo, bdhs": ANCHORED}
HALLUCINATED, RECALL = "CHAIR_i", "recall"


def measure(options: Options) -> Outcome:
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(options.seeds):
        figures = kept(options, CLAIM.name, seed, lambda seed=seed: one_seed(seed, options.quick))
        for method, values in figures.items():
            for metric, value in values.items():
                found.setdefault((method, metric), []).append(value)
    chair = {method: found[method, HALLUCINATED] for method in ("before", *METHODS)}
    recall = {method: found[method, RECALL] for method in ("before", *METHODS)}
    not_below = [
        method for method in chair if method != "dpo, bdhs"
        and not surely_above(chair[method], chair["dpo, bdhs"])
    ]  # fmt: skip
    lost = surely_above(recall["before"], recall["dpo, bdhs"])
    reasons = []
    if not_below:
        reasons.append(
            f"CHAIR_i not surely below that of {', '.join(not_below)}. The chosen captions are the "
            "exact truth here, so that imitating them already teaches all there is to learn, while "
            "what the model writes with one token in sight is wrong in plainer ways than its own "
            "captions: the contrast is soon won and teaches little."
        )
    reasons += ["Recall fell."] if lost else []
    shown = ", ".join(
        f"{method} {over_seeds(values).value:.1%} (recall {over_seeds(recall[method]).value:.1%})"
        for method, values in chair.items()
    )
    return Outcome(
        [figure(method, metric, values) for (method, metric), values in found.items()],
        not not_below and not lost,
        f"CHAIR_i: {shown}.",
        " ".join(reasons),
    )


def one_seed(seed: int, quick: bool) -> dict[str, dict[str, float]]:
    pictures, held_out, steps = (24, 12, 2) if quick else (256, 300, 16)
    shown = scenes("apart", pictures, seed=f"bdhs {seed}")
    unseen = scenes("apart", held_out, seed=f"bdhs unseen {seed}")
    chosen = [captioned(scene, caption(scene.present)) for scene in shown]
    blind = against(chosen, completed(chosen, seed))
    others = against(chosen, [text_of(sample.response) for sample in (*chosen[1:], chosen[0])])
    data = {"nll": blind, "dpo, other scenes": others, "dpo, bdhs": blind}
    found = {"before": figures_of(fresh(seed), unseen)}
    found["completions"] = hallucinated(shown, [text_of(p.rejected.response) for p in blind])
    for method, spec in METHODS.items():
        policy = trained(spec, data[method], seed=seed, steps=steps)
        found[method] = figures_of(policy, unseen)
    return found


def completed(chosen: Sequence[Sample], seed: int) -> list[str]:
    """What the model before training makes of the captions' beginnings."""
    made = rejected_answers(
        fresh(seed),
        chosen,
        [1000 * seed + number for number in range(len(chosen))],
        by_words,
        blinding=Blinding(expected_visible=1),
        completing=Completing(sentence_tokens=MOST_TOKENS, answer_tokens=MOST_TOKENS),
        batch_size=64,
    )
    return [each.text for each in made]


def against(chosen: Sequence[Sample], texts: Sequence[str]) -> list[Preference]:
    return [
        pair(sample, Sample(sample.prompt, (Text(text),)))
        for sample, text in zip(chosen, texts, strict=True)
    ]


def figures_of(policy: VisionLanguageAdapter, unseen: Sequence[Scene]) -> dict[str, float]:
    return hallucinated(unseen, describe(policy, unseen))


def hallucinated(shown: Sequence[Scene], texts: Sequence[str]) -> dict[str, float]:
    figures = judge(texts, shown).figures()
    named = sum(len(mentioned(text)) for text in texts) / len(texts)
    return {
        HALLUCINATED: figures["chair_i"].value,
        RECALL: figures["recall"].value,
        "things named": named,
    }


if __name__ == "__main__":
    run(CLAIM, measure, seeds=3)
