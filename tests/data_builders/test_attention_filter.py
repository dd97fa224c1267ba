"""Answers that look away are rejected before the known ones, and can be chosen again later."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_vision_language import picture, save_family

from mmalign import cli
from mmalign.data import open_dataset
from mmalign.data_builders.attention_filter import Noise, alone, build, noisy
from mmalign.data_builders.attention_limits import Limits, edits, why_not
from mmalign.data_builders.collage import build as collage
from mmalign.data_builders.engine import Refused
from mmalign.data_builders.looking import GRAIN, Look
from mmalign.data_builders.records import Record
from mmalign.errors import UserError
from mmalign.media import open_image
from mmalign.records import (
    Message,
    Preference,
    Provenance,
    Sample,
    Text,
    media_of,
    pair,
    text_of,
)

PROMPT = (Message("user", (Text("In Image1, what is it?"),)),)
LOOK = Look((0.2, 0.1), (4.0, 4.0), 0.1, 1.5, 4)


def answered(
    rejected: str = "It is a cat.",
    chosen: str = "A dog.",
    *,
    layout: str = "sequence",
    count: int = 2,
    look: Look = LOOK,
) -> Preference:
    details = {"layout": layout, "count": count, "target": 1, "look": asdict(look)}
    source = Provenance("attention-filter", details=details)
    return pair(Sample(PROMPT, (Text(chosen),)), Sample(PROMPT, (Text(rejected),)), source=source)


def reason(preference: Preference, share: float = 0.1, **limits: Any) -> str:
    look = Look.of(preference.source.details["look"])
    return why_not(preference, look, share, Limits(**limits))


def test_answers_that_look_at_the_right_image_make_no_pair() -> None:
    published = [
        ("sequence", 2, 0.8, True),  # at most
        ("sequence", 5, 0.6, True),
        ("sequence", 9, 0.6, True),
        ("grid", 2, 0.7, False),  # less than
        ("grid", 4, 0.5, False),
        ("grid", 9, 0.3, False),
        ("picture-in-picture", 2, 0.8, False),
    ]
    for layout, count, threshold, kept in published:
        preference = answered(layout=layout, count=count)
        assert (not reason(preference, threshold)) == kept
        assert not reason(preference, threshold - 1e-6)
        assert str(threshold) in reason(preference, threshold + 1e-6)
    assert reason(answered(), 0.75, thresholds=("sequence2=0.7", "sequence=0.9"))
    assert not reason(answered(count=3), 0.75, thresholds=("sequence2=0.7", "sequence=0.9"))
    assert reason(answered(count=4), 0.51, rule=2.0)
    assert not reason(answered(count=2), 0.79, rule=2.0)
    with pytest.raises(UserError, match="thresholds"):
        reason(answered(), thresholds=("collage=0.3",))


def test_two_means_of_attention_are_kept_or_not_by_the_threshold() -> None:
    look = replace(LOOK, masses=(0.003, 0.001), tokens=(1.0, 1.0))
    (kept,) = build([answered(look=look)])
    assert isinstance(kept, Preference)
    assert kept.source.details["ratio"] == pytest.approx(0.75)
    assert kept.source.details["attention"] == pytest.approx([0.003, 0.001])
    assert kept.aux["attention_ratio"] == pytest.approx(0.75)
    (dropped,) = build([answered(look=look)], limits=Limits(thresholds=("sequence=0.7",)))
    assert isinstance(dropped, Refused)


@pytest.mark.parametrize(
    ("probabilities", "kept"),
    [([0.95] * 10, False), ([0.90] * 10, True), ([0.99] * 9 + [0.3], True)],
)
def test_answers_without_a_doubt_make_no_pair(probabilities: list[float], kept: bool) -> None:
    perplexity = float(np.exp(-np.log(probabilities).mean()))
    preference = answered(look=replace(LOOK, perplexity=perplexity))
    assert (not reason(preference)) == kept
    assert "perplexity" in reason(preference, perplexity_max=1.05)


def test_answers_too_long_too_unequal_or_too_alike_make_no_pair() -> None:
    assert "known answer has 512" in reason(answered(chosen="x" * 512))
    assert "known answer" in reason(answered("A dog.", "A dog. "))
    assert "9 and 40 words" in reason(answered("it " * 40, "word " * 9))
    assert not reason(answered("it " * 40, "Yes"))
    long = "one two three four five six seven eight nine ten eleven"
    assert "alike" in reason(answered(long, long.replace("five", "six")))
    assert not reason(answered(long, long.replace("five six", "six")), min_edits=0.05)
    assert edits("kitten", "sitting") == 3
    assert edits("", "abc") == 3


def test_attention_on_no_image_is_refused_whatever_is_kept() -> None:
    nowhere = answered(look=replace(LOOK, masses=(0.0, 0.0)))
    (found,) = build([nowhere], keep="all")
    assert isinstance(found, Refused)
    assert "not lie on images" in found.reason


def test_without_answers_a_model_is_needed_and_other_data_are_refused() -> None:
    asked = next(iter(collage(records(), layouts=("grid",), cell=28)))
    with pytest.raises(UserError, match="no answers"):
        list(build([asked]))  # type: ignore[list-item]  # refused for what it is
    other = answered()
    (found,) = build([replace(other, source=Provenance())])
    assert isinstance(found, Refused)
    assert "as collage makes them" in found.reason


def records(count: int = 4) -> list[Record]:
    return [
        Record(image=picture(i, 60, 60), question="What is it?", answers=("It is noise.",))
        for i in range(count)
    ]


def test_noise_lies_on_the_cell_that_is_meant_and_never_wraps_round() -> None:
    (asked, *_) = collage(records(), layouts=("grid",), grids=("4",), cell=28, margin=4)
    assert isinstance(asked, Preference)
    clean = np.asarray(open_image(media_of(asked.chosen.prompt)[0])).astype(int)
    shown = np.asarray(open_image(media_of(noisy(asked, Noise(), 0))[0])).astype(int)
    x0, y0, x1, y1 = asked.source.details["boxes"][asked.source.details["target"] - 1]["box"]
    changed = (shown != clean).any(-1)
    assert changed[y0:y1, x0:x1].mean() > 0.9
    changed[y0:y1, x0:x1] = False
    assert not changed.any()
    everywhere = Noise(noise=("grid=5",), noise_on="all")
    slight = np.asarray(open_image(media_of(noisy(asked, everywhere, 0))[0])).astype(int)
    assert np.abs(slight - clean).max() < 40  # white stays nearly white
    assert (slight != clean).any(-1).mean() > 0.7
    assert noisy(asked, Noise(noise=("grid=0",)), 0) == asked.chosen.prompt


def test_the_image_alone_is_the_records_own() -> None:
    for asked in collage(records(), layouts=("grid", "sequence"), cell=60, image_format="png"):
        assert isinstance(asked, Preference)
        (message,) = alone(asked)
        details = asked.source.details
        (image,) = media_of((message,))
        own = next(
            r for r in records() if r.image.digest == details["images"][details["target"] - 1]
        )  # type: ignore[union-attr]  # texts
        assert (np.asarray(open_image(image)) == np.asarray(own.pixels())).all()
        assert text_of(message.parts) == "What is it?"


def test_collages_are_answered_measured_and_chosen_again(tmp_path: Path) -> None:
    model = str(save_family(tmp_path / "model", "llava"))
    rows = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        Image.fromarray(np.asarray(open_image(picture(number, 60, 60)))).save(path)
        rows.append({"image": str(path)} | ({"answer": "It is noise."} if number else {}))
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked, everything = tmp_path / "asked", tmp_path / "all"
    words = ["build", "collage", str(tmp_path / "rows.jsonl"), "--per-image", "3", "--cell", "28"]
    assert cli.main([*words, "--out", str(asked)]) == 0
    filtering = ["build", "attention-filter", "--model", model, "--max-new-tokens", "6"]
    limits = ["--thresholds", "sequence=0.5", "grid=0.5", "--perplexity-min", "1.5"]
    fresh = [*filtering, str(asked), "--min-edits", "0", "--cache", str(tmp_path / "cache")]
    assert cli.main([*fresh, "--keep", "all", "--out", str(everything)]) == 0
    assert cli.main([*fresh, *limits, "--out", str(tmp_path / "direct")]) == 0
    again = ["build", "attention-filter", str(everything), "--min-edits", "0", *limits]
    assert cli.main([*again, "--out", str(tmp_path / "again")]) == 0
    measured = list(open_dataset(everything))
    questions = list(open_dataset(asked))
    assert len(measured) == 12
    for question, made in zip(questions, measured, strict=True):
        details = made.source.details
        assert made.chosen.prompt == made.rejected.prompt == question.chosen.prompt
        assert len(details["attention"]) == details["count"]
        assert 0 <= details["ratio"] <= 1
        assert len(details["heat"]) == len(media_of(made.chosen.prompt))
        assert all(len(heat["values"]) == GRAIN**2 for heat in details["heat"])
        assert details["answer_by_model"] == (not question.chosen.response)
        assert text_of(made.chosen.response)
        assert made.source.models
    direct, chosen = (
        [(p.candidates, p.aux) for p in open_dataset(tmp_path / name)]
        for name in ("direct", "again")
    )
    assert direct == chosen
    assert 0 < len(direct) < 12
