"""OPA-DPO: corrections of a model's own answers teach more than another's better answers.

An expert sees every scene rightly. It either corrects the model's caption, changing no more than it
must, or writes a caption of its own, which is as true but has another wording and order, so that
the model would hardly ever say it. The rejected captions are the model's own in both cases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from _claim import Claim, Options, Outcome, figure, over_seeds, run, surely_above
from _vision import Figures, VisionLanguageAdapter, captioned, fresh, kept, trained

from mmalign.evaluation.hallucination.chair import Chair
from mmalign.playground.captioning import MOST_TOKENS, describe, judge
from mmalign.playground.scenes import Scene, ask, caption, mentioned, scenes
from mmalign.records import Preference, Sample, Span, Text, pair, text_of, thumb
from mmalign.training.seeds import derive

CLAIM = Claim(
    "vlm_opa_dpo",
    "DPO on corrections of the model's own captions (on-policy) beats DPO on as many captions by "
    "the expert (off-policy), and so does OPA-DPO, which learns from both.",
    "arXiv:2501.09695",
    "The same rejected captions, number of pairs, steps and initial weights; fine-tuning on the "
    "chosen captions of either kind; the expert's captions after fine-tuning on them.",
)
NET = "named rightly less wrongly"
DPO = "dpo(beta=0.1) + chosen_anchor(beta=0.1)"
NLL = 'nll(reduction="mean")'


def measure(options: Options) -> Outcome:
    pictures, held_out, steps = (60, 12, (1, 1)) if options.quick else (400, 300, (10, 25))
    found: dict[tuple[str, str], list[float]] = {}
    for seed in range(options.seeds):
        one = partial(figures_of, pictures, held_out, steps, seed)
        for method, figures in kept(options, CLAIM.name, seed, one).items():
            for metric, value in figures.items():
                found.setdefault((method, metric), []).append(value)
    net = {method: values for (method, metric), values in found.items() if metric == NET}
    doubts = [
        f"{better} is not surely above {worse}"
        for better in ("on-policy, DPO", "OPA-DPO")
        for worse in (
            "off-policy, DPO",
            "off-policy, fine-tuned first, DPO",
            "on-policy, NLL",  # the control: corrections help without a comparison, too
        )
        if not surely_above(net[better], net[worse])
    ]
    words = ", ".join(
        f"{method} {over_seeds(found[method, 'chair_i']).value:.1%} / "
        f"{over_seeds(found[method, 'recall']).value:.0%}"
        for method in net
    )
    reason = "" if not doubts else f"In things {NET}, {'; '.join(doubts)}. "
    if not surely_above(net["OPA-DPO"], net["on-policy, DPO"]):
        reason += (
            "OPA-DPO is not surely better than DPO on the corrections alone; in so few steps, "
            "fine-tuning on the expert's captions costs recall. "
        )
    reason += (
        "At first this was judged by CHAIR_i, and claimed that OPA-DPO beats DPO on the corrections"
        " too; that did not hold, and CHAIR_i says nothing of a model that hardly speaks any more."
    )
    return Outcome(
        [figure(method, metric, values) for (method, metric), values in found.items()],
        not doubts,
        f"CHAIR_i / recall: {words}.",
        reason,
    )


def figures_of(pictures: int, held_out: int, steps: tuple[int, int], seed: int) -> Figures:
    """CHAIR's figures of every model of one seed, on scenes that none has seen."""
    unseen = scenes("apart", held_out, seed=f"opa unseen {seed}")
    wrong = hallucinated(scenes("apart", pictures, seed=f"opa pairs {seed}"), seed)
    return {
        method: figures_from(judge(describe(policy, unseen), unseen))
        for method, policy in models(wrong, steps, seed)
    }


def figures_from(counted: Chair) -> dict[str, float]:
    net = (counted.recalled.sum() - counted.hallucinated.sum()) / counted.present.sum()
    return {NET: float(net)} | {name: each.value for name, each in counted.figures().items()}


def models(
    wrong: Sequence[tuple[Scene, str]], steps: tuple[int, int], seed: int
) -> Iterator[tuple[str, VisionLanguageAdapter]]:
    """The model before, and trained in every way, by name of the way."""
    first, then = steps
    experts = [(scene, expert(scene)) for scene, _ in wrong]
    corrections = [(scene, corrected(scene, text)) for scene, text in wrong]
    yield "before", fresh(seed)
    for name, chosen in (("off-policy", experts), ("on-policy", corrections)):
        data = [pair(captioned(*a), captioned(*b)) for a, b in zip(chosen, wrong, strict=True)]
        liked = thumbs(chosen)
        yield f"{name}, NLL", trained(NLL, liked, seed=seed, steps=first + then)
        yield f"{name}, DPO", trained(DPO, data, seed=seed, steps=first + then)
        if name == "off-policy":
            yield f"{name}, fine-tuned first, DPO", twice(liked, DPO, data, steps, seed)
    both = thumbs([*experts, *corrections])
    whole = [preference(scene, text) for scene, text in wrong]
    yield "OPA-DPO", twice(both, "opa_dpo()", whole, steps, seed)


def twice(
    liked: Sequence[Preference],
    spec: str,
    data: Sequence[Preference],
    steps: tuple[int, int],
    seed: int,
) -> VisionLanguageAdapter:
    """Fine-tuned on what is liked, then trained by preferences with that model as reference."""
    with TemporaryDirectory() as folder:
        start = Path(folder) / "fine-tuned"
        trained(NLL, liked, seed=seed, steps=steps[0], export=start)
        return trained(spec, data, seed=seed, steps=steps[1], source=start)


def hallucinated(shown: Sequence[Scene], seed: int) -> list[tuple[Scene, str]]:
    """Scenes with a caption that the model drew and that names what is not there."""
    samples = fresh(seed).sample(
        [ask(scene) for scene in shown],
        [derive(seed, "opa", index) for index in range(len(shown))],
        max_new_tokens=MOST_TOKENS,
        batch_size=100,
    )
    said = [(scene, text_of(sample.response)) for scene, sample in zip(shown, samples, strict=True)]
    return [(scene, text) for scene, text in said if errors(scene, text)]


def errors(scene: Scene, text: str) -> int:
    """Things named that are not there."""
    return sum(name not in scene.present for name in mentioned(text))


def expert(scene: Scene) -> str:
    """What the expert writes unasked: all that is there, from the last to the first."""
    listed = caption(scene.present[::-1]).removeprefix("There is ")
    return f"In the image is {listed}"


def corrected(scene: Scene, text: str) -> str:
    """The caption without what is not there, and with what it missed at its end."""
    right = [name for name in dict.fromkeys(mentioned(text)) if name in scene.present]
    return caption([*right, *(name for name in scene.present if name not in right)])


def preference(scene: Scene, text: str) -> Preference:
    """OPA-DPO's candidates. The caption is one sentence with a score of 4 less its errors, all of
    which are errors of seeing: weights of 1 + (4 - score) / 2, and of 3."""
    weight = 1 + min(errors(scene, text), 3) / 2

    def weighted(words: str, factor: float) -> Sample:
        return Sample(ask(scene), (Text(words, (Span(0, len(words), factor),)),))

    correction = corrected(scene, text)
    candidates = (
        captioned(scene, expert(scene)),
        weighted(correction, weight),
        weighted(correction, 3.0),
        weighted(text, weight),
    )
    return Preference(candidates, (1.0, 1.0, 1.0, 0.0))


def thumbs(liked: Sequence[tuple[Scene, str]]) -> list[Preference]:
    return [thumb(captioned(scene, text), up=True) for scene, text in liked]


if __name__ == "__main__":
    run(CLAIM, measure)
