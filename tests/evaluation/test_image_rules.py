"""GenEval's rules, win rates and diversity, on values that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mmalign.errors import UserError
from mmalign.evaluation.images.detectors import COLOURS, Seen, cut_out, with_colours
from mmalign.evaluation.images.diversity import diversity
from mmalign.evaluation.images.geneval import Found, judge, relations, scores
from mmalign.evaluation.images.prompts import ImagePrompt, read_prompts
from mmalign.evaluation.images.scoring import Floats, by_category, over_prompts, score, wins
from mmalign.evaluation.intervals import wilson
from mmalign.media import open_image, png
from mmalign.records import Sample
from mmalign.rewards.encoders import Encoder
from mmalign.rewards.ensemble import Ensemble


def clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def wanted(tag: str, *include: dict[str, Any], exclude: tuple[dict[str, Any], ...] = ()) -> dict:
    return {"tag": tag, "include": list(include), "exclude": list(exclude)}


def found(name: str, x: float = 0, y: float = 0, score: float = 0.95, colour: str = "") -> Found:
    return Found(name, score, (x, y, x + 40, y + 40), colour or None)


def test_relation_of_two_boxes_as_worked_out_by_hand() -> None:
    a, b = (10.0, 40.0, 50.0, 80.0), (60.0, 42.0, 110.0, 90.0)
    assert relations(a, b) == {"left of"}
    assert relations(b, a) == {"right of"}
    assert relations(a, a) == set()


def test_a_diagonal_is_two_relations() -> None:
    assert relations((0, 0, 10, 10), (100, 100, 110, 110)) == {"left of", "above"}


@pytest.mark.parametrize(
    ("there", "asked", "right"),
    [
        ([found("dog")], wanted("single_object", clause("dog")), True),
        ([found("dog", score=0.2)], wanted("single_object", clause("dog")), False),
        ([found("dog")], wanted("two_object", clause("dog"), clause("cat")), False),
        ([found("dog", score=0.8)] * 2, wanted("counting", clause("dog", 2)), False),
        (
            [found("dog"), found("dog"), found("dog")],
            wanted("counting", clause("dog", 2), exclude=(clause("dog", 3),)),
            False,
        ),
        ([found("dog", colour="red")], wanted("colors", clause("dog", color="red")), True),
        ([found("dog", colour="blue")], wanted("colors", clause("dog", color="red")), False),
        (
            [found("dog"), found("cat", x=100)],
            wanted("position", clause("cat"), clause("dog", position=["left of", 0])),
            True,
        ),
        (
            [found("dog", x=100), found("cat")],
            wanted("position", clause("cat"), clause("dog", position=["left of", 0])),
            False,
        ),
        ([found("mouse")], wanted("single_object", clause("computer mouse")), True),
    ],
)
def test_verdicts(there: list[Found], asked: dict, right: bool) -> None:
    verdict = judge(there, asked)
    assert verdict.right is right
    assert bool(verdict.fault) is not right


def test_only_the_surest_objects_are_looked_at() -> None:
    sure, doubtful = found("dog", colour="blue"), found("dog", score=0.5, colour="red")
    assert not judge([doubtful, sure], wanted("colors", clause("dog", color="red"))).right


def test_the_score_is_the_mean_over_tasks_and_not_over_prompts() -> None:
    """Accuracies and numbers of prompts of the published benchmark; its mean is 0.5133."""
    tasks = {
        "single_object": (80, 0.98), "two_object": (99, 0.50), "counting": (80, 0.45),
        "colors": (94, 0.85), "position": (100, 0.10), "color_attr": (100, 0.20),
    }  # fmt: skip
    shares = [share for count, share in tasks.values() for _ in range(count)]
    names = [task for task, (count, _) in tasks.items() for _ in range(count)]
    assert scores(shares, names)["GenEval"].value == pytest.approx(0.5133333333)
    assert np.mean(shares) == pytest.approx(0.4951175407)


def test_ties_count_one_half_and_exchanging_models_gives_the_rest() -> None:
    after = np.array([[1.0]] * 5 + [[0.0]] * 3 + [[2.0]] * 2)
    before = np.array([[0.0]] * 5 + [[1.0]] * 3 + [[2.0]] * 2)
    rate = over_prompts(wins(after, before)).value
    assert rate == pytest.approx(0.6)
    assert over_prompts(wins(before, after)).value == pytest.approx(1 - rate)
    assert over_prompts(wins(after, after)).value == 0.5


def test_images_without_a_score_count_for_neither_model() -> None:
    won = wins(np.array([[1.0, np.nan], [0.0, 3.0]]), np.array([[0.0, 5.0], [1.0, 1.0]]))
    assert over_prompts(won).value == pytest.approx((1 + 0.5) / 2)


def test_an_ensemble_compares_the_images_of_both_models() -> None:
    """Alone, one image of a prompt is as good as all images of the prompt: a tie everywhere."""

    @dataclass(frozen=True)
    class Darkness:
        name: str

        def __call__(self, samples: Sequence[Sample]) -> Floats:
            return np.array(
                [-open_image(m).getpixel((0, 0))[0] for s in samples for m in s.response]
            )

    both = Ensemble((Darkness("one"), Darkness("other")), (1.0, 0.5))
    prompts = [ImagePrompt(str(i), f"p{i}", "") for i in range(3)]
    drawn = {
        stage: {p.id: [png(Image.new("RGB", (4, 4), (shade, 0, 0)))] for p in prompts}
        for stage, shade in (("before", 200), ("after", 50))
    }
    found = score(prompts, drawn, both, "both")
    assert wins(found["after"], found["before"]).tolist() == [[1.0]] * 3


def test_wilson_of_the_published_win_rate() -> None:
    found = wilson(0.7 * 1632, 1632)
    assert found.low == pytest.approx(0.677318, abs=1e-6)
    assert found.high == pytest.approx(0.721742, abs=1e-6)


def test_categories_are_figures_of_their_own() -> None:
    prompts = [ImagePrompt(str(i), "p", "ab"[i % 2]) for i in range(4)]
    values = np.array([[0.0], [1.0], [0.0], [0.5]])
    measured = {name: e.value for name, e in by_category("clip", values, prompts).items()}
    assert measured == {"clip": 0.375, "clip: a": 0.0, "clip: b": 0.75}


def test_diversity_is_the_mean_angle_between_images_of_a_prompt() -> None:
    points = {10: [1.0, 0.0], 200: [0.0, 1.0], 90: [0.6, 0.8]}

    def images(shown: Any) -> torch.Tensor:
        return torch.tensor([points[image.getpixel((0, 0))[0]] for image in shown])

    def flat(grey: int) -> Any:
        return png(Image.new("RGB", (4, 4), (grey, grey, grey)))

    encoder = Encoder("by hand", images, lambda said: torch.zeros(len(said), 2), 1.0)
    prompts = [ImagePrompt("a", "a"), ImagePrompt("b", "b")]
    drawn = {"a": [flat(10), flat(200), flat(90)], "b": [flat(10)] * 3}
    spread = (1 - 0.0 + 1 - 0.6 + 1 - 0.8) / 3
    assert diversity(prompts, drawn, encoder).value == pytest.approx(spread / 2)


def test_the_colour_is_the_likeliest_of_ten_for_the_object_on_grey() -> None:
    image = Image.new("RGB", (20, 20), "blue")
    image.paste("red", (5, 5, 15, 15))
    mask = torch.zeros(20, 20, dtype=torch.bool)
    mask[5:15, 5:15] = True
    box = (4.0, 4.0, 16.0, 16.0)
    seen = Seen(Found("dog", 0.9, box), mask)
    assert cut_out(image, seen).getpixel((0, 0)) == (0x99, 0x99, 0x99)
    assert cut_out(image, seen).getpixel((5, 5)) == (255, 0, 0)

    def images(shown: Any) -> torch.Tensor:
        assert shown[0].size == (12, 12)
        return torch.eye(10)[[COLOURS.index("red")]]

    def texts(said: Any) -> torch.Tensor:
        assert any("dog" in text for text in said)
        return torch.eye(10)[[next(i for i, c in enumerate(COLOURS) if c in t) for t in said]]

    (named,) = with_colours(image, [seen], Encoder("by hand", images, texts, 1.0))
    assert named.colour == "red"


def test_prompts_of_every_published_file(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("a dog\n\na cat\n")
    (tmp_path / "PartiPrompts.tsv").write_text(
        "Prompt\tCategory\tChallenge\tNote\na red cube\tAbstract\tBasic\t\n"
    )
    (tmp_path / "drawbench.csv").write_text('Prompts,Category\n"a horse, riding",Conflicting\n')
    (tmp_path / "anime.json").write_text('["a girl", "a boy"]')
    (tmp_path / "metadata.jsonl").write_text('{"tag": "counting", "prompt": "two dogs"}\n')
    read = {prompt.id: (prompt.text, prompt.category) for prompt in read_prompts([tmp_path])}
    assert read == {
        "own-00000": ("a dog", "own"),
        "own-00001": ("a cat", "own"),
        "PartiPrompts-00000": ("a red cube", "Abstract"),
        "drawbench-00000": ("a horse, riding", "Conflicting"),
        "anime-00000": ("a girl", "anime"),
        "anime-00001": ("a boy", "anime"),
        "metadata-00000": ("two dogs", "counting"),
    }


@pytest.mark.parametrize(
    ("name", "text", "word"),
    [
        ("a.tsv", "Words\tCategory\nx\ty\n", "row 0"),
        ("a.json", '{"prompt": "x"}', "list"),
        ("a.jsonl", "{", "JSON"),
        ("a.md", "x", ".txt"),
        ("a.txt", "\n", "no prompt"),
    ],
)
def test_files_that_are_no_prompts(tmp_path: Path, name: str, text: str, word: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as error:
        read_prompts([tmp_path / name])
    assert word in f"{error.value} {error.value.hint}"
