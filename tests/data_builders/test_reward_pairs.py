"""Best against worst of several samples: which pairs are made, and what is remembered of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
from tiny_clip import save_open_clip
from tiny_image_models import save_image_model
from tiny_models import save_model
from tiny_vision_language import picture, save_family

from mmalign import cli
from mmalign.data import open_dataset
from mmalign.data_builders import sampling
from mmalign.data_builders.reward_pairs import Prompt, build
from mmalign.records import PLAIN, Media, Message, Sample, Text, media_of, text_of

PROMPTS = [(Message(PLAIN, (Text(text),)),) for text in ("one", "two", "three")]


class Counting:
    """Answers the number of the draw within its prompt, and remembers how it was asked."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        self.options: dict[str, Any] = {}

    def sample(
        self, prompts: Sequence[Prompt], seeds: Sequence[int], **options: Any
    ) -> list[Sample]:
        self.seeds, self.options = list(seeds), options
        answers = [prompts[:i].count(prompt) for i, prompt in enumerate(prompts)]
        return [Sample(p, (Text(str(a)),)) for p, a in zip(prompts, answers, strict=True)]


def number(index: int, answer: Sample) -> float:
    """Later draws are better; the second prompt's are all the same."""
    return 0.0 if index == 1 else float(text_of(answer.response))


def test_the_best_is_preferred_to_the_worst_and_ties_make_no_pair() -> None:
    made = list(build(PROMPTS, Counting(), number, samples=4))
    assert [text_of(p.chosen.prompt[0].parts) for p in made] == ["one", "three"]
    for preference in made:
        assert text_of(preference.chosen.response) == "3"
        assert text_of(preference.rejected.response) == "0"
        assert preference.aux["margin"] == 3.0
        assert preference.source.details["rewards"] == [0.0, 1.0, 2.0, 3.0]


def test_margins_and_bests_that_are_too_small_make_no_pair() -> None:
    assert not list(build(PROMPTS, Counting(), number, samples=4, least_margin=3.0))
    assert not list(build(PROMPTS, Counting(), number, samples=4, least_best=3.5))
    assert len(list(build(PROMPTS, Counting(), number, samples=4, least_best=3.0))) == 2


def test_every_draw_has_its_own_seed_and_options_reach_the_sampler() -> None:
    first, again, other = Counting(), Counting(), Counting()
    list(build(PROMPTS, first, number, samples=4, temperature=0.5))
    list(build(PROMPTS, again, number, samples=4))
    list(build(PROMPTS, other, number, samples=4, seed=1))
    assert len(set(first.seeds)) == 12
    assert first.options == {"temperature": 0.5}
    assert first.seeds == again.seeds != other.seeds


WORDS = "rule(name='word_count', least=40, least_words=0)"


def command(source: Path, out: Path, **options: str) -> list[str]:
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    return ["build", "reward-pairs", str(source), "--out", str(out), *flags]


def lines(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("Name three colours.\n\nWhat is the capital of France?\n")
    return path


def test_a_language_model_and_a_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = save_model(tmp_path / "model", "llama")
    options = {
        "model": str(model),
        "reward": WORDS,
        "samples": "3",
        "max-new-tokens": "24",
        "cache": str(tmp_path / "kept"),
    }
    assert cli.main([*command(lines(tmp_path), tmp_path / "out", **options), "--chat"]) == 0
    made = list(open_dataset(tmp_path / "out"))
    assert [text_of(p.chosen.prompt[0].parts) for p in made] == [
        "Name three colours.",
        "What is the capital of France?",
    ]
    for preference in made:
        rewards = preference.source.details["rewards"]
        assert preference.aux["margin"] == pytest.approx(max(rewards) - min(rewards))
        assert preference.chosen.prompt[0].role == "user"
        assert preference.source.models[0].startswith("model@")

    def unloaded(model: sampling.SampledModel) -> sampling.Sampler:
        raise AssertionError("the samples are in the cache")

    monkeypatch.setattr("mmalign.data_builders.reward_pairs.load", unloaded)
    again = command(lines(tmp_path), tmp_path / "again", **{**options, "rule": "list"})
    assert cli.main([*again, "--chat"]) == 0
    listed = list(open_dataset(tmp_path / "again"))
    assert [p.chosen for p in listed] == [p.chosen for p in made]
    assert all(len(p.candidates) >= 2 for p in listed)


def test_an_ensemble_calibrated_on_labelled_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = tmp_path / "labelled.jsonl"
    texts = {"long": "One two three four five six seven.", "short": "One two three."}
    rows = [("long", "short")] * 3 + [("short", "long")]
    labelled.write_text(
        "".join(
            json.dumps({"prompt": f"{n}?", "chosen": texts[a], "rejected": texts[b]}) + "\n"
            for n, (a, b) in enumerate(rows)
        )
    )
    options = {"model": str(save_model(tmp_path / "model", "llama")), "samples": "3"}
    options |= {"max-new-tokens": "24", "reward": f"{WORDS} + {WORDS}", "how": "calibrated"}
    words = [*command(lines(tmp_path), tmp_path / "out", **options), "--chat"]
    assert cli.main(words) != 0
    assert "--calibrated-on" in capsys.readouterr().err
    assert cli.main([*words, "--calibrated-on", str(labelled)]) == 0
    for preference in open_dataset(tmp_path / "out"):
        assert preference.source.models[1].startswith("calibrated[")


def test_a_vision_language_model_on_a_folder_of_images(tmp_path: Path) -> None:
    model = save_family(tmp_path / "model", "llava")
    (tmp_path / "images").mkdir()
    for seed in range(2):
        (tmp_path / f"images/{seed}.png").write_bytes(picture(seed).content)
    (tmp_path / "images/broken.png").write_bytes(b"no image")
    options = {"model": str(model), "modality": "vlm", "reward": WORDS, "max-new-tokens": "16"}
    assert cli.main(command(tmp_path / "images", tmp_path / "out", **options)) == 0
    made = list(open_dataset(tmp_path / "out"))
    assert [media_of(p.chosen.prompt)[0].digest for p in made] == [
        picture(seed).digest for seed in range(2)
    ]
    (refused,) = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert json.loads(refused)["row"] == 2


@pytest.mark.parametrize("modality", ["image", "image-tokens"])
def test_models_that_draw_and_a_reward_that_looks(tmp_path: Path, modality: str) -> None:
    if modality == "image":
        model = tmp_path / "model"
        tiny_pipelines.stable_diffusion().save_pretrained(model)
        options = {"steps": "2", "height": "16", "width": "16"}
    else:
        model, options = save_image_model(tmp_path / "model", "janus"), {"plan-tokens": "4"}
    scorer = save_open_clip(tmp_path / "clip")
    options |= {"model": str(model), "modality": modality, "samples": "2"}
    options |= {"reward": f"clip(model='{scorer}', pretrained=None)"}
    assert cli.main(command(lines(tmp_path), tmp_path / "out", **options)) == 0
    for preference in open_dataset(tmp_path / "out"):
        *plan, picture = preference.chosen.response
        assert isinstance(picture, Media)
        assert all(isinstance(part, Text) for part in plan)
        assert len(plan) == (modality == "image-tokens")
        assert preference.aux["margin"] > 0


def test_options_that_a_model_has_not_are_the_users_to_mend(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_model(tmp_path / "model", "llama")
    options = {"model": str(model), "reward": WORDS, "steps": "4"}
    assert cli.main(command(lines(tmp_path), tmp_path / "out", **options)) == cli.USER
    assert "steps" in capsys.readouterr().err
