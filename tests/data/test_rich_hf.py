"""TFRecord files are read as TensorFlow writes them, and RichHF gets its images and prompts."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data import made

from mmalign.data import open_dataset
from mmalign.data.errors import DatasetError
from mmalign.data.generation import RICH_SCORES
from mmalign.data.opening import open_rows
from mmalign.data.rich_hf import join
from mmalign.data.rows import BrokenRow
from mmalign.data.tfrecord import TFRecordRows, crc32c, masked_crc, parsed

OF_TENSORFLOW = (
    b"\nR\n\x14\n\x08feature2\x12\x08\n\x06\n\x04goat\n\x11\n\x08feature1\x12\x05\x1a\x03\n\x01\x04"
    b"\n\x11\n\x08feature0\x12\x05\x1a\x03\n\x01\x00\n\x14\n\x08feature3\x12\x08\x12\x06\n\x04[\xd3|?"
)
"""The example of TensorFlow's tutorial on TFRecord, as TensorFlow serialises it."""


def field(number: int, content: bytes) -> bytes:
    """A field of protobuf's wire format, with its length before it."""
    size, groups = len(content), []
    while size > 0x7F:
        groups.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *groups, size]) + content


def example(features: dict[str, bytes | float]) -> bytes:
    entries = []
    for name, value in features.items():
        if isinstance(value, bytes):
            kind = field(1, field(1, value))
        else:
            kind = field(2, field(1, struct.pack("<f", value)))
        entries.append(field(1, field(1, name.encode()) + field(2, kind)))
    return field(1, b"".join(entries))


def write(file: Path, records: list[bytes]) -> Path:
    with file.open("wb") as opened:
        for record in records:
            head = struct.pack("<Q", len(record))
            for part in (head, record):
                opened.write(part + struct.pack("<I", masked_crc(part)))
    return file


def rated(uid: str, overall: float) -> bytes:
    scores = dict.fromkeys(RICH_SCORES, 0.25) | {"overall_score": overall}
    maps = {"artifact_map": made.picture(9).content, "prompt_misalignment_label": b"1 1"}
    return example({"filename": f"train/{uid}.png".encode(), **scores, **maps})


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_an_example_of_tensorflow_is_read() -> None:
    row = parsed(OF_TENSORFLOW)
    assert row == {
        "feature0": 0, "feature1": 4, "feature2": b"goat", "feature3": pytest.approx(0.9876)
    }  # fmt: skip


def test_records_are_read_by_index_and_damage_is_named(tmp_path: Path) -> None:
    file = write(tmp_path / "a.tfrecord", [OF_TENSORFLOW, b"\x0b", OF_TENSORFLOW])
    rows = pickle.loads(pickle.dumps(TFRecordRows([file], None)))
    assert len(rows) == 3
    assert rows[2] == parsed(OF_TENSORFLOW)
    assert isinstance(rows[1], BrokenRow)
    assert list(rows.column("feature1")) == [4, None, 4]
    content = file.read_bytes()
    file.write_bytes(content[:-3])
    with pytest.raises(DatasetError, match="ends within a record"):
        TFRecordRows([file], None)
    file.write_bytes(b"PAR1" + content)
    with pytest.raises(DatasetError, match="is not a TFRecord file"):
        TFRecordRows([file], None)


def test_rich_hf_gets_the_images_and_prompts_of_pick_a_pic(tmp_path: Path) -> None:
    ratings = write(
        tmp_path / "train.tfrecord", [rated("u1", 0.75), rated("u3", 0.5), rated("gone", 0.5)]
    )
    images = {f"u{n}": made.picture(n).content for n in range(4)}
    rows = [
        {
            "caption": f"prompt {n}", "image_0_uid": f"u{n}", "image_1_uid": f"u{n + 1}",
            "jpg_0": images[f"u{n}"], "jpg_1": images[f"u{n + 1}"],
        }
        for n in (0, 2)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "pictures.parquet")
    out = tmp_path / "whole" / "train.parquet"
    assert join(ratings, str(tmp_path / "pictures.parquet"), out) == (2, 3)
    data = open_dataset(out)
    assert data.format == "rich-hf"
    liked, other = data
    assert (liked.grades, other.grades) == ((1.0,), (0.0,))
    assert liked.aux["overall_score"] == 0.75
    assert other.aux["artifact_score"] == 0.25
    # silenced: an image, as the format says
    assert liked.chosen.response[0].content == images["u1"]  # type: ignore[union-attr]
    assert liked.source.details == {"filename": "train/u1.png"}
    with pytest.raises(DatasetError, match="is no Pick-a-Pic: it has no caption"):
        join(ratings, str(out), tmp_path / "other.parquet")


def test_the_images_of_a_prompt_can_be_ranked(tmp_path: Path) -> None:
    scores = dict.fromkeys(RICH_SCORES, 0.5)
    rows = [
        {"prompt": "a dog", "image": made.picture(n).content, **scores, "overall_score": n / 4}
        for n in (1, 3, 2)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (found,) = open_dataset(tmp_path / "rows.parquet", format="rich-hf-ranked")
    assert found.grades == (0.75, 0.5, 0.25)


def test_as_published_it_lacks_prompt_and_image(tmp_path: Path) -> None:
    file = write(tmp_path / "train.tfrecord", [rated("u1", 0.75)])
    columns = open_rows(file, None)[0]
    assert set(columns) >= {"filename", *RICH_SCORES}
    with pytest.raises(DatasetError, match=r"rich-hf .* needs prompt, image.*no prompt, image"):
        open_dataset(file)
