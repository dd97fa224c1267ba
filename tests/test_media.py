"""Whatever people call an image is opened as they see it, or refused with the reason."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmalign import media as media_file
from mmalign.errors import BadSample
from mmalign.media import animation, extent, frames, open_image, png
from mmalign.records import Media

RED, GREEN = (200, 30, 40), (10, 120, 60)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> Media:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Media("image", data=buffer.getvalue())


def palette() -> Image.Image:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *GREEN])
    return image


@pytest.mark.parametrize(
    ("media", "expected"),
    [
        (saved(Image.new("RGB", (4, 4), RED)), RED),
        (saved(palette()), RED),
        (saved(palette(), transparency=0), (255, 255, 255)),
        (saved(Image.new("RGBA", (4, 4), (*RED, 0))), (255, 255, 255)),
        (saved(Image.new("I;16", (4, 4), 0x8040)), (0x80,) * 3),
        (saved(Image.new("1", (4, 4), 1)), (255,) * 3),
        (
            saved(
                Image.new("RGB", (4, 4), RED),
                "GIF",
                save_all=True,
                append_images=[Image.new("RGB", (4, 4), GREEN)],
            ),
            RED,
        ),
    ],
    ids=["rgb", "palette", "transparent palette", "transparent", "16 bit", "1 bit", "animated"],
)
def test_every_kind_becomes_rgb(media: Media, expected: tuple[int, int, int]) -> None:
    image = open_image(media)
    assert image.mode == "RGB"
    assert image.getpixel((1, 1)) == expected


def test_cmyk_is_converted() -> None:
    image = open_image(saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    found = image.getpixel((8, 8))
    assert isinstance(found, tuple)
    assert found[0] > 200
    assert max(found[1:]) < 60


def test_images_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # was held on its side
    image = Image.fromarray(np.zeros((10, 30, 3), np.uint8))
    assert open_image(saved(image, "JPEG", exif=exif)).size == (10, 30)


def test_what_is_no_whole_image_is_refused_with_the_reason(tmp_path: Path) -> None:
    whole = saved(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG").content
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    cases = {
        "cannot be read": [
            Media("image", path=str(tmp_path / "empty.jpg")),
            Media("image", path=str(tmp_path / "text.jpg")),
            Media("image", data=whole[: len(whole) // 2]),
        ],
        "does not exist": [Media("image", path=str(tmp_path / "none.jpg"))],
        "an image is needed": [Media("video", data=whole)],
    }
    for words, refused in cases.items():
        for media in refused:
            with pytest.raises(BadSample, match=words):
                open_image(media)


def test_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_file, "MAX_PIXELS", 100)
    with pytest.raises(BadSample, match="scale it down"):
        open_image(saved(Image.new("L", (20, 20))))


def test_png_loses_nothing() -> None:
    image = Image.effect_noise((9, 7), 50).convert("RGB")
    assert open_image(png(image)).tobytes() == image.tobytes()


@pytest.mark.parametrize("same", [(), (1,), (3,), (1, 2, 3, 4)], ids=str)
def test_frames_that_are_alike_are_all_there(same: tuple[int, ...]) -> None:
    """same: frames that equal the one before."""
    shown = [Image.new("RGB", (8, 8), (40 * n, 0, 0)) for n in range(5)]
    for number in same:
        shown[number] = shown[number - 1]
    media = animation(shown, fps=8)
    assert extent(media).frames == 5
    assert [f.getpixel((0, 0)) for f in frames(media, 5)] == [f.getpixel((0, 0)) for f in shown]
