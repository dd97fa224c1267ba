"""MIA-DPO: answers that look away from the picture that is meant are the ones to reject.

The playground's LLaVA of several pictures describes the fullest one, where annotators did, and it
names companions that are not there. Among its wrong answers, those with the least attention on the
picture that was asked about are set against the true ones, or as many drawn at random.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from functools import partial

from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _vision import Figures, VisionLanguageAdapter, fresh, kept, trained

from mmalign.data_builders import attention_filter, collage
from mmalign.data_builders.attention_limits import Limits
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.records import Record
from mmalign.playground.captioning import MOST_TOKENS
from mmalign.playground.scenes import DESCRIBE, Scene, caption, mentioned, scenes
from mmalign.playground.vision_language import TINY_LLAVA_ALBUMS
from mmalign.records import Preference, media_of, text_of

CLAIM = Claim(
    "vlm_mia_dpo",
    "DPO on wrong answers that attention selects makes a model answer more questions about one of "
    "several pictures rightly than DPO on as many wrong answers drawn at random.",
    "arXiv:2410.17637",
    "As many wrong answers to the same questions at random; fine-tuning on the chosen answers, of "
    "either selection; same steps and initial weights.",
)
NLL = 'nll(reduction="mean")'
PUBLISHED = f"dpo(beta=0.1) + 0.1*{NLL}"
ANCHORED = f"dpo(beta=0.2) + {NLL}"  # as all that is learned in the playground
METHODS = {
    f"{name}, {how}": spec
    for name, spec in {"nll": NLL, "published": PUBLISHED, "dpo": ANCHORED}.items()
    for how in ("random", "attention")
}
LOOKED_AWAY = Limits(rule=1.0, perplexity_min=1.0)
"""Less attention on the picture that is meant than evenly spread attention would give it."""
ANY = Limits(thresholds=("sequence=1.0",), perplexity_min=1.0)
"""All wrong answers that the other limits leave."""
RIGHT, MEANT = "answers right", "about the picture meant"
Judged = dict[str, Scene]
"""What pictures show, by the digests of their files."""


def measure(options: Options) -> Outcome:
    questions, held_out, steps = (60, 24, 1) if options.quick else (400, 300, 20)
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(options.seeds):
        one = partial(one_seed, questions, held_out, steps, seed)
        for method, figures in kept(options, CLAIM.name, seed, one).items():
            for metric, value in figures.items():
                found.setdefault((method, metric), []).append(value)
    right = {method: found[method, RIGHT] for method in ("before", *METHODS)}
    doubts = [
        method
        for method in ("before", "nll, random", "nll, attention", "dpo, random")
        if not surely_above(right["dpo, attention"], right[method])
    ]
    pure = {
        how: over_seeds(found[f"{how} pairs", "rejected about another picture"]).value
        for how in ("random", "attention")
    }
    reason = (
        f"Of the rejected answers, {pure['attention']:.0%} of those selected by attention and "
        f"{pure['random']:.0%} of those drawn at random are about another picture. "
    )
    if doubts:
        reason = (
            f"Not surely above {'; '.join(doubts)}. {reason}All methods come to about the same "
            "share of answers about the picture meant, fine-tuning included: true answers alone "
            "undo the habit of describing the fullest picture. With DPO fewer answers are exact, "
            "presumably since it lowers descriptions that would be true of another picture, and "
            "whose few words are needed elsewhere."
        )
    shown = ", ".join(
        f"{method} {over_seeds(values).value:.1%} "
        f"({over_seeds(found[method, MEANT]).value:.1%} about the picture meant)"
        for method, values in right.items()
    )
    return Outcome(
        [figure(method, metric, values) for (method, metric), values in found.items()],
        not doubts,
        f"Answers right: {shown}.",
        reason,
    )


def one_seed(questions: int, held_out: int, steps: int, seed: int) -> Figures:
    asked, shows = about_several(questions, f"mia {seed}", seed)
    unseen, of_unseen = about_several(held_out, f"mia unseen {seed}", seed)
    shows |= of_unseen
    measured = built(
        attention_filter.build(
            asked, model=str(TINY_LLAVA_ALBUMS), keep="all", limits=ANY, batch_size=50,
            max_new_tokens=MOST_TOKENS, seed=seed,
        )
    )  # fmt: skip
    wrong = built(attention_filter.build(measured, limits=ANY))
    selected = built(attention_filter.build(measured, limits=LOOKED_AWAY))
    drawn = random.Random(seed).sample(wrong, len(selected))
    pairs = {"random": drawn, "attention": selected}
    found = {"before": answered(fresh(seed, TINY_LLAVA_ALBUMS), unseen, shows)}
    for how, data in pairs.items():
        elsewhere = [not about_meant(text_of(p.rejected.response), p, shows) for p in data]
        found[f"{how} pairs"] = {
            "rejected about another picture": sum(elsewhere) / len(data),
            "pairs": float(len(data)),
        }
    for method, spec in METHODS.items():
        policy = trained(
            spec, pairs[method.split(", ")[1]], seed=seed, steps=steps, source=TINY_LLAVA_ALBUMS
        )
        found[method] = answered(policy, unseen, shows)
    return found


def about_several(count: int, name: str, seed: int) -> tuple[list[Preference], Judged]:
    """Questions about one of two or three pictures, with the true answer, and what is shown."""
    shown = scenes("apart", count, seed=name)
    records = [
        Record(scene.image(), question=DESCRIBE[0], answers=(caption(scene.present),))
        for scene in shown
    ]
    asked = collage.build(records, layouts=("sequence",), sequence=("2=1", "3=1"), seed=seed)
    return built(asked), {scene.image().digest: scene for scene in shown}


def built(found: Iterable[Preference | Refused]) -> list[Preference]:
    """What a builder did not refuse."""
    return [each for each in found if isinstance(each, Preference)]


def answered(
    policy: VisionLanguageAdapter, asked: Sequence[Preference], shows: Judged
) -> dict[str, float]:
    """Shares of a model's greedy answers that name exactly what the picture meant shows, and that
    fit no other picture better."""
    answers = policy.sample(
        [one.chosen.prompt for one in asked], range(len(asked)), max_new_tokens=MOST_TOKENS,
        temperature=0.0, batch_size=100, merge=True,
    )  # fmt: skip
    texts = [text_of(answer.response) for answer in answers]
    exact = [
        sorted(mentioned(text)) == sorted(mentioned(text_of(one.chosen.response)))
        for text, one in zip(texts, asked, strict=True)
    ]
    meant = [about_meant(text, one, shows) for text, one in zip(texts, asked, strict=True)]
    return {RIGHT: sum(exact) / len(exact), MEANT: sum(meant) / len(meant)}


def about_meant(text: str, asked: Preference, shows: Judged) -> bool:
    """Whether what is named fits the picture that is meant at least as well as any other."""
    named = set(mentioned(text))
    fits = [
        len(named.intersection(there)) / len(named.union(there))
        for there in (shows[media.digest].present for media in media_of(asked.chosen.prompt))
    ]
    return fits[asked.source.details["target"] - 1] == max(fits) > 0


if __name__ == "__main__":
    run(CLAIM, measure)
