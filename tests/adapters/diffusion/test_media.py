"""Media of any kind become pixels of the bucket's size, or are refused with the reason."""

from __future__ import annotations

import io
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_diffusion import adapter, picture, sample

from mmalign import media as media_file
from mmalign.adapters.diffusion.buckets import Buckets, aspect_sides, buckets_of
from mmalign.adapters.diffusion.media import Bucket, encoded, pixels
from mmalign.adapters.protocol import BadSample
from mmalign.errors import UserError
from mmalign.media import Extent, extent
from mmalign.records import PLAIN, Media, Message, Sample, Text


def as_media(image: Image.Image, format_: str = "PNG", **options: Any) -> Media:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return Media("image", data=buffer.getvalue())


def test_pixels_travel_unchanged() -> None:
    frames = torch.randint(0, 256, (5, 3, 16, 24), dtype=torch.uint8)
    assert torch.equal(pixels(encoded(frames[:1]), Bucket(16, 24)), frames[:1])
    assert torch.equal(pixels(encoded(frames), Bucket(16, 24, 5)), frames)
    assert extent(encoded(frames)) == Extent(16, 24, 5, fps=8.0)


def test_covers_the_bucket_and_crops_at_the_centre() -> None:
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255  # only the middle third is white
    (frame,) = pixels(as_media(Image.fromarray(image)), Bucket(20, 20))
    assert (frame == 255).all()
    (larger,) = pixels(as_media(Image.fromarray(image[:, 20:40])), Bucket(40, 40))
    assert larger.shape == (3, 40, 40)
    assert (larger == 255).all()


def test_exif_rotation_is_applied() -> None:
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :8] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise to be seen
    media = as_media(Image.fromarray(image), exif=exif)
    assert extent(media) == Extent(16, 8, 1)
    (frame,) = pixels(media, Bucket(16, 8))
    assert (frame[0, :8] == 255).all()
    assert (frame[0, 8:] == 0).all()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (8, 8), 200), (200, 200, 200)),
        (Image.new("1", (8, 8), 1), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (10, 20, 30, 0)), (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (10, 20, 30, 255)), (10, 20, 30)),
        (Image.new("LA", (8, 8), (7, 255)), (7, 7, 7)),
        (Image.new("RGB", (8, 8), (1, 2, 3)).quantize(), (1, 2, 3)),
        (Image.fromarray(np.full((8, 8), 200 << 8, np.uint16)), (200, 200, 200)),
    ],
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    (frame,) = pixels(as_media(image), Bucket(8, 8))
    assert torch.equal(
        frame, torch.tensor(expected, dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    )


def test_broken_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    whole = as_media(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    )
    jpeg = as_media(Image.new("RGB", (64, 64)), "JPEG")
    bad = {
        "truncated": Media("image", data=whole.content[:-3000]),
        "truncated jpeg": Media("image", data=jpeg.content[:-40]),
        "text": Media("image", data=b"this is no image"),
        "empty": Media("image", data=b""),
        "missing": Media("image", path=str(tmp_path / "none.png")),
    }
    for media in bad.values():
        with pytest.raises(BadSample, match=r"cannot be read|does not exist"):
            pixels(media, Bucket(8, 8))


def test_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        huge = as_media(Image.new("1", (20_000, 10_000)))
    for ask in (lambda: pixels(huge, Bucket(8, 8)), lambda: extent(huge)):
        with pytest.raises(BadSample, match="more than 89478485 pixels"):
            ask()
    monkeypatch.setattr(media_file, "MAX_PIXELS", 100)
    with pytest.raises(BadSample, match="scale it down"):
        pixels(as_media(Image.new("RGB", (11, 10))), Bucket(8, 8))


def test_frames_are_chosen_by_rule() -> None:
    frames = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(9, 3, 8, 8) * 20
    video = encoded(frames.contiguous())
    middle = pixels(video, Bucket(8, 8, 3))[:, 0, 0, 0] // 20
    spread = pixels(video, Bucket(8, 8, 3), choice="uniform")[:, 0, 0, 0] // 20
    assert middle.tolist() == [3, 4, 5]
    assert spread.tolist() == [0, 4, 8]
    with pytest.raises(BadSample, match="has 9 frames and 17 are needed"):
        pixels(video, Bucket(8, 8, 17))


def test_streams_without_pyav_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(media_file.importlib, "import_module", none)
    with pytest.raises(UserError, match="pip install av"):
        extent(Media("video", data=b"\x00\x00\x00\x18ftypmp42" + bytes(50)))


def test_streams_are_read_with_pyav() -> None:
    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        for level in range(9):
            image = Image.new("RGB", (32, 32), (level * 25,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    video = Media("video", data=buffer.getvalue())
    assert extent(video) == Extent(32, 32, 9, fps=8.0)
    found = pixels(video, Bucket(16, 16, 3), choice="uniform").float().mean((1, 2, 3))
    torch.testing.assert_close(found, torch.tensor([0.0, 100.0, 200.0]), rtol=0, atol=6)
    with pytest.raises(BadSample, match=r"cannot be read|ends early"):
        pixels(Media("video", data=buffer.getvalue()[:300]), Bucket(16, 16, 3))


def test_buckets() -> None:
    one = buckets_of(512, 1, multiple=8, frame_stride=1)
    assert one.one == Bucket(512, 512)
    sides = aspect_sides(64, multiple=8)
    assert (64, 64) in sides
    assert all(abs(h * w - 64 * 64) <= 8 * max(h, w) for h, w in sides)
    assert all(max(h / w, w / h) <= 2 for h, w in sides)
    several = buckets_of(sides, [5, 9], multiple=8, frame_stride=4)
    assert several.choose([Extent(100, 100, 12), Extent(30, 90, 9)]) == Bucket(64, 64, 9)
    wide = several.choose([Extent(30, 60, 12), Extent(100, 100, 7)])
    assert wide.width > wide.height
    assert wide.frames == 5
    with pytest.raises(BadSample, match="a video has 3 frames"):
        several.choose([Extent(64, 64, 3)])
    assert Buckets(((8, 8),), (5,)).one == Bucket(8, 8, 5)


def test_rows_of_several_shapes_are_scored_together() -> None:
    found = adapter("sd3", resolution=[(32, 32), (16, 64)])
    rows = [
        sample("a cat", picture(0, height=32, width=32)),
        sample("a dog", picture(1, height=10, width=40)),
        sample("a dog", picture(2, height=32, width=32)),
        sample("sea", picture(3, height=30, width=32)),
    ]
    seeds = [1, 2, 2, 3]
    inputs = found.collate(rows, seeds)
    shapes = {part.places: str(part.bucket) for part in inputs["parts"]}
    assert shapes == {(0, 3): "32x32x1", (1, 2): "16x64x1"}
    with torch.no_grad():
        together = found.log_probs(found.policy, found.encode(inputs)).log_probs
        pair = found.encode(found.collate(rows[1:3], [2, 2]))
        alone = found.encode(found.collate(rows[:1], [1]))
        torch.testing.assert_close(together[1:3], found.log_probs(found.policy, pair).log_probs)
        torch.testing.assert_close(together[:1], found.log_probs(found.policy, alone).log_probs)


def test_bad_samples_are_refused_by_size_and_collate() -> None:
    found = adapter("stable_diffusion")
    good, prompt = picture(0), (Message(PLAIN, (Text("a cat"),)),)
    bad = [
        (Sample(prompt, (Text("words"),)), "responses of one image each"),
        (Sample(prompt, (good, good)), "responses of one image each"),
        (Sample(prompt, (picture(0, frames=3),)), r"not \['video'\]"),
        (Sample((*prompt, *prompt), (good,)), "one message of text"),
        (Sample((Message(PLAIN, (good,)),), (good,)), "one message of text"),
        (Sample(prompt, (Media("image", data=good.content[:200]),)), "cannot be read"),
    ]
    for row, reason in bad:
        with pytest.raises(BadSample, match=reason):
            found.size([row])
        with pytest.raises(BadSample, match=reason):
            found.collate([row], [1])


def test_the_collator_travels_to_workers() -> None:
    found = adapter("stable_diffusion")
    row = sample("a cat", picture(0))
    found.size([row])
    copied = pickle.loads(pickle.dumps(found.collate))
    assert not copied._recent
    assert copied.size([row]) == 16 * 16
    ours, theirs = found.collate([row], [1])["parts"], copied([row], [1])["parts"]
    assert torch.equal(ours[0].rows[0].pixels, theirs[0].rows[0].pixels)
