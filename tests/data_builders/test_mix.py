"""Mixes hold what their weights say, nothing twice, no evaluation data, and split cleanly."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmalign import cli
from mmalign.data import open_dataset, write_store
from mmalign.data_builders.mix import build
from mmalign.data_builders.near_duplicates import (
    Nearby,
    fingerprint,
    near_pairs,
    perceptual_hash,
    runs,
)
from mmalign.errors import UserError
from mmalign.media import png
from mmalign.records import Media, Message, Preference, Sample, Text, media_of, pair, text_of


def picture(seed: int, side: int = 96) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image) -> Media:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=60)
    return Media("image", data=buffer.getvalue())


def seen(image: Media, question: str = "What is it?", answer: str = "A fox.") -> Preference:
    prompt = (Message("user", (image, Text(question))),)
    return pair(Sample(prompt, (Text(answer),)), Sample(prompt, (Text("No idea."),)))


def said(question: str, answer: str = "Yes.") -> Preference:
    prompt = (Message("user", (Text(question),)),)
    return pair(Sample(prompt, (Text(answer),)), Sample(prompt, (Text("No idea."),)))


def made(datasets: list[list[Preference]], **options: object) -> list[Preference]:
    found = list(build(datasets, **options))  # type: ignore[arg-type]  # options by name
    assert all(isinstance(each, Preference) for each in found)
    return [each for each in found if isinstance(each, Preference)]


def test_scaled_and_compressed_images_look_the_same_and_others_do_not() -> None:
    hashes = [perceptual_hash(picture(seed)) for seed in range(30)]
    for seed, own in enumerate(hashes):
        image = picture(seed)
        small = image.resize((50, 50), Image.Resampling.BILINEAR)
        with Image.open(io.BytesIO(jpeg(image).content)) as compressed:
            assert (perceptual_hash(compressed) ^ own).bit_count() <= 6
        assert (perceptual_hash(small) ^ own).bit_count() <= 6
    assert all((a ^ b).bit_count() > 8 for i, a in enumerate(hashes) for b in hashes[:i])


@given(
    st.lists(st.integers(0, 2**64 - 1), max_size=20),
    st.lists(st.integers(0, 63), max_size=8),
    st.integers(0, 8),
)
def test_nearby_finds_all_that_is_near(hashes: list[int], flips: list[int], distance: int) -> None:
    index = Nearby(distance)
    for hash_ in hashes:
        index.add(hash_)
    asked = hashes[0] if hashes else 0
    for bit in flips:
        asked ^= 1 << bit
    expected = {other for other in hashes if (other ^ asked).bit_count() <= distance}
    assert index.near(asked) == expected


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.integers(0, 8))
def test_all_pairs_that_are_near_are_found_at_once(hashes: list[int], distance: int) -> None:
    known = [hash_ ^ flip for hash_ in hashes for flip in (0, 3 << 40, 2**distance - 1)]
    found = near_pairs(np.array(known, np.uint64), distance)
    expected = {
        (i, j)
        for j, other in enumerate(known)
        for i, own in enumerate(known[:j])
        if (own ^ other).bit_count() <= distance
    }
    assert {(min(pair), max(pair)) for pair in found} == expected


def test_texts_are_compared_by_their_words() -> None:
    assert fingerprint("A  fox, red!") == fingerprint("a fox red")
    assert fingerprint("a fox") != fingerprint("a box")
    long = " ".join(map(str, range(20)))
    assert len(runs(long)) == 8
    assert runs("... " + long.upper()) == runs(long)
    assert not runs("?!")


def test_weights_are_shares_and_proportions() -> None:
    one = [said(f"one {i}") for i in range(40)]
    two = [said(f"two {i}") for i in range(10)]

    def counts(**options: object) -> Counter[str]:
        texts = [text_of(p.chosen.prompt[0].parts) for p in made([one, two], **options)]
        return Counter(text[:3] for text in texts)

    assert counts() == {"one": 40, "two": 10}
    assert counts(weights=[0.25, 2.0]) == {"one": 10, "two": 20}
    assert counts(weights=[1.0, 1.0], size=30) == {"one": 15, "two": 15}
    twice = Counter(p.id for p in made([two], weights=[1.5]))
    assert sorted(twice.values()) == [1] * 5 + [2] * 5
    assert made([one, two]) == made([one, two])
    assert made([one, two]) != made([one, two], seed=1)
    assert made([one, two], shuffle=False)[0].source.parents == (one[0].id,)
    with pytest.raises(UserError, match="2 datasets"):
        made([one, two], weights=[1.0])


def test_duplicates_say_the_same_about_what_looks_the_same() -> None:
    image, other = png(picture(0)), png(picture(1))
    first = [seen(image), seen(other), said("Is it?")]
    second = [
        seen(jpeg(picture(0))),  # the same to the eye
        seen(image, "What is it, please?"),  # another question
        seen(other, answer="a fox"),  # the same words
        said("is it"),
    ]
    kept = made([first, second], shuffle=False)
    assert [p.source.parents[0] for p in kept] == [p.id for p in [*first, second[1]]]
    assert len(made([first, second], duplicates="keep")) == 7


def test_evaluation_data_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    picture(3).resize((40, 40)).save(tmp_path / "images/a.png")
    (tmp_path / "prompts.txt").write_text("Name three colours.\n" + "so " * 20 + "end\n")
    data = [
        seen(png(picture(3)), "Anything?"),
        seen(png(picture(4)), "Name three colours."),
        said("name three COLOURS"),
        said("I say " + "so " * 13 + "what"),
        said("I say " + "so " * 12 + "what"),
    ]
    sets = [str(tmp_path / "images"), str(tmp_path / "prompts.txt")]
    kept = made([data], against=sets, shuffle=False)
    assert [p.source.parents[0] for p in kept] == [data[4].id]
    by_image = made([data], against=sets[:1], shuffle=False)
    assert len(by_image) == 4


def test_no_image_and_no_prompt_is_on_both_sides_of_a_split() -> None:
    data = [seen(png(picture(i % 25)), f"Question {i}?") for i in range(50)]
    data += [seen(jpeg(picture(i)), f"Again {i}?") for i in range(25)]
    data += [said(f"prompt {i % 10}", f"Answer {i}.") for i in range(30)]
    sides = {part: made([data], held_out=0.3, part=part) for part in ("train", "held-out")}
    assert sum(map(len, sides.values())) == len(data)
    assert len(sides["held-out"]) >= 10

    def keys(side: list[Preference]) -> set[str]:
        found = set()
        for preference in side:
            media = media_of(preference.chosen.prompt)
            if media:
                (number,) = [
                    i for i in range(25) if media[0] in (png(picture(i)), jpeg(picture(i)))
                ]
                found.add(f"image {number}")
            else:
                found.add(text_of(preference.chosen.prompt[0].parts))
        return found

    assert not keys(sides["train"]) & keys(sides["held-out"])


def test_the_command_names_the_image_that_cannot_be_opened(tmp_path: Path) -> None:
    write_store([seen(png(picture(i))) for i in range(3)], tmp_path / "a")
    write_store([seen(Media("image", data=b"no image")), said("Is it?")], tmp_path / "b")
    words = ["build", "mix", str(tmp_path / "a"), str(tmp_path / "b"), "--out"]
    assert cli.main([*words, str(tmp_path / "out")]) == 0
    assert len(open_dataset(tmp_path / "out")) == 4
    (line,) = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert f"{tmp_path / 'b'}: the image" in line
