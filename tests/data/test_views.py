"""Views change what they say, equally for equal images, and repeat themselves."""

from __future__ import annotations

import numpy as np
import pytest
from data import made
from PIL import Image

from mmalign.data.views import ALTERATIONS, VIEWS, signal_kept, view
from mmalign.media import open_image, png
from mmalign.records import Media, Preference, Sample, Text, media_of, pair, text_of


def photo(seed: int = 0) -> Media:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    return png(Image.fromarray(pixels))


def about(image: Media, good: str = "a", bad: str = "b") -> Preference:
    prompt = (made.user(image, "What?"),)
    return pair(Sample(prompt, (Text(good),)), Sample(prompt, (Text(bad),)))


def image_of(sample: Sample) -> np.ndarray:
    (media,) = media_of(sample.prompt)
    return np.asarray(open_image(media))


def other() -> Preference:
    return about(photo(1), "c", "d")


@pytest.mark.parametrize("name", sorted(ALTERATIONS))
def test_altered_images_keep_their_size_and_both_sides_share_them(name: str) -> None:
    plain = about(photo())
    chosen, rejected = view(name, plain, 3, other)
    assert image_of(chosen).shape == (48, 64, 3)
    assert not np.array_equal(image_of(chosen), image_of(plain.chosen))
    assert chosen.prompt == rejected.prompt
    assert (chosen.response, rejected.response) == ((Text("a"),), (Text("b"),))


def two_images() -> Preference:
    """Two right answers, each to its own image, and a wrong one to the first."""
    asked = [
        Sample((made.user(photo(i), "What?"),), (Text(answer),)) for i, answer in enumerate("ab")
    ]
    return Preference((*asked, Sample(asked[0].prompt, (Text("c"),))), (1.0, 1.0, 0.0))


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_equal_seeds_give_equal_views(name: str) -> None:
    assert view(name, two_images(), 3, other) == view(name, two_images(), 3, other)


@pytest.mark.parametrize("name", ["crop", "noise", "mask"])
def test_other_seeds_give_other_views(name: str) -> None:
    assert view(name, about(photo()), 3, other) != view(name, about(photo()), 4, other)


def test_a_crop_shows_a_part_of_the_image() -> None:
    ramp = np.zeros((100, 100, 3), np.uint8)
    ramp[..., 0] = np.arange(100)[None]
    shown = image_of(view("crop", about(png(Image.fromarray(ramp))), 0, other)[0])[..., 0]
    width = int(shown.max()) - int(shown.min())
    assert 5 < width < 60  # between the sides of a hundredth and of a fifth of the area


def test_noise_is_that_of_the_published_schedule() -> None:
    assert signal_kept(500) == pytest.approx(0.7474, abs=5e-5)
    assert signal_kept(1000) == pytest.approx(0.0815, abs=5e-5)
    flat = png(Image.new("RGB", (200, 200), (127, 127, 127)))
    noisy = image_of(view("noise", about(flat), 0, other)[0]).astype(float) / 127.5 - 1
    inner = noisy[np.abs(noisy) < 0.99]  # the rest is cut off at black and white
    # Standard deviation 0.5026, of a normal distribution cut off at two deviations.
    assert inner.std() == pytest.approx(0.5026 * 0.88, abs=0.01)


def test_a_mask_hides_three_quarters() -> None:
    white = png(Image.new("RGB", (140, 140), "white"))
    assert (image_of(view("mask", about(white), 0, other)[0]) == 127).mean() == 0.75


def test_speckles_give_three_tenths_of_the_pixels_the_mean_colour() -> None:
    before = np.asarray(open_image(photo()))
    after = image_of(view("speckle", about(photo()), 0, other)[0])
    hidden = (after == before.reshape(-1, 3).mean(0).round()).all(-1)
    assert hidden.mean() == pytest.approx(0.3, abs=0.03)
    assert (after[~hidden] == before[~hidden]).all()


def test_a_closer_look_stands_behind_the_image_and_both_sides_share_it() -> None:
    chosen, rejected = view("with_crop", about(photo()), 0, other)
    own, closer = media_of(chosen.prompt)
    assert own == photo()
    assert closer != own
    assert media_of(rejected.prompt) == (own, closer)


def test_images_leave_come_from_elsewhere_and_change_places() -> None:
    plain = about(photo())
    assert media_of(view("no_image", plain, 0, other)[0].prompt) == ()
    assert media_of(view("other_image", plain, 0, other)[1].prompt) == (photo(1),)
    shown = [media_of(sample.prompt)[0] for sample in view("swapped", two_images(), 0, other)]
    assert shown == [photo(1), photo(0), photo(0)]


def test_both_images_are_seen_together_and_asked_about_one_by_one() -> None:
    orders = set()
    for seed in range(8):
        own, other_own, rest = view("both", two_images(), seed, other)
        swapped, other_swapped, _ = view("both_swapped", two_images(), seed, other)
        # Contrasts are between answers in one context.
        assert own.prompt == other_swapped.prompt != other_own.prompt == swapped.prompt
        assert rest == two_images().rejected
        images = media_of(own.prompt)
        place = images.index(photo(0))
        assert set(images) == {photo(0), photo(1)}
        assert text_of(own.prompt[-1].parts).endswith(("first image.", "second image.")[place])
        orders.add(place)
    assert orders == {0, 1}


def test_mismatched_responses_answer_other_prompts() -> None:
    found = view("mismatched", about(photo()), 0, other)
    assert [sample.response for sample in found] == [(Text("c"),), (Text("d"),)]
    assert found[0].prompt == about(photo()).chosen.prompt


def test_what_cannot_be_viewed_says_so() -> None:
    with pytest.raises(ValueError, match="there is no view 'sepia'; there are: black"):
        view("sepia", about(photo()), 0, other)
    with pytest.raises(ValueError, match="this record's prompt has none"):
        view("crop", made.chat(), 0, other)
    prompt = (made.user(photo(), photo(1), "What?"),)
    four = pair(Sample(prompt, (Text("a"),)), Sample(prompt, (Text("b"),)))
    with pytest.raises(ValueError, match="2 with 4 images: two with one image each"):
        view("both", four, 0, other)
    with pytest.raises(ValueError, match="that one has none"):
        view("other_image", about(photo()), 0, made.chat)
