"""The playground's LLaVA for claims: pairs of its captions, training, likelihoods of texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from _claim import Options

from mmalign.adapters.autoregressive import evaluating
from mmalign.adapters.vision_language import VisionLanguageAdapter, load_vision_language
from mmalign.data_builders.reward_pairs import build
from mmalign.files import whole_file
from mmalign.objectives import objective
from mmalign.pipelines.quickstart_vlm import RECIPE
from mmalign.playground.captioning import MOST_TOKENS, merit
from mmalign.playground.scenes import Scene, ask
from mmalign.playground.vision_language import TINY_LLAVA
from mmalign.records import Preference, Sample, Text, text_of
from mmalign.training.align import align
from mmalign.training.seeds import derive

Figures = dict[str, dict[str, float]]
"""Method -> metric -> value."""


def fresh(seed: int, source: Path = TINY_LLAVA) -> VisionLanguageAdapter:
    """The playground's model, or one that was trained from it, with a new LoRA."""
    torch.manual_seed(derive(seed, "lora"))
    return load_vision_language(source, lora={"r": RECIPE.lora_rank})


def own_pairs(shown: Sequence[Scene], seed: int) -> list[Preference]:
    """Best against worst of the model's own captions, as in the quickstart."""
    made = build(
        [ask(scene) for scene in shown],
        fresh(seed),
        lambda index, sample: merit(text_of(sample.response), shown[index]),
        samples=RECIPE.samples,
        seed=seed,
        max_new_tokens=MOST_TOKENS,
        batch_size=100,
    )
    return list(made)


def trained(
    spec: str,
    data: Sequence[Preference],
    *,
    seed: int,
    steps: int,
    source: Path = TINY_LLAVA,
    export: Path | None = None,
) -> VisionLanguageAdapter:
    """A model trained on the data with the quickstart's options. export: folder for the whole
    model, if it is wanted."""
    policy = fresh(seed, source)
    training = replace(RECIPE.training, steps=steps, seed=seed, save_every=0)
    with TemporaryDirectory() as folder:
        align(policy, data, (), objective(spec), training, Path(folder))
    if export is not None:
        policy.export_merged(export)
    return policy


def kept(options: Options, name: str, seed: int, make: Callable[[], Figures]) -> Figures:
    """What was measured with one seed, kept in a file so that a stopped script goes on."""
    if options.quick:
        return make()
    file = Path("runs/claims") / name / f"seed-{seed}.json"
    if not file.exists():
        found = make()
        with whole_file(file) as partial:
            partial.write_text(json.dumps(found, indent=1))
    read: Figures = json.loads(file.read_text())
    return read


def captioned(scene: Scene, text: str) -> Sample:
    """A scene with what is said of it."""
    return Sample(ask(scene), (Text(text),))


def log_probs(
    policy: VisionLanguageAdapter, samples: Sequence[Sample], *, batch: int = 100
) -> torch.Tensor:
    """(n,) log-probabilities of the responses, in nats."""
    found = []
    with evaluating(policy.policy), torch.no_grad():
        for start in range(0, len(samples), batch):
            inputs = policy.encode(policy.collate(samples[start : start + batch]))
            found.append(policy.log_probs(policy.policy, inputs).log_probs)
    return torch.cat(found)
