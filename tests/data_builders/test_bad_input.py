"""Whatever a source holds: no traceback, and no record that is lost without a trace."""

from __future__ import annotations

import errno
import functools
import io
import json
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mmalign.data import store
from mmalign.data.errors import RecordError
from mmalign.data_builders import engine
from mmalign.data_builders.engine import Built, Refused, build
from mmalign.data_builders.records import Record, asked_about, read_prompts, read_records
from mmalign.errors import UserError
from mmalign.records import Preference, Provenance, Sample, Text, pair

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
COLUMN = st.sampled_from(["image", "images", "caption", "question", "answers", "prompt", "x"])
ROW = st.dictionaries(COLUMN, JSON, max_size=4)
NAME = st.text("ab.", min_size=1, max_size=4).filter(lambda name: name.strip("."))
ENDING = st.sampled_from([".jpg", ".png", ".txt", ".json", "", ".tar.gz"])


def known(records: Iterable[Record]) -> Iterator[Preference | Refused]:
    """One preference for each record that has a text and, if it has an image, a whole one."""
    for record in records:
        if record.image is not None:
            record.pixels()
        text = record.caption or record.question
        if not text:
            yield Refused(record.id, "has no text")
            continue
        prompt = asked_about(record, "Say it.")
        source = Provenance("known", parents=(record.id,))
        yield pair(
            Sample(prompt, (Text(text),)), Sample(prompt, (Text(text + "!"),)), source=source
        )


def accounted(source: Path) -> None:
    """Every row of the source is a preference or in quarantine; or the source is refused."""
    with TemporaryDirectory() as out:
        try:
            found = list(read_records(source))
        except UserError:
            return
        assert [number for number, _ in found] == list(range(len(found)))
        assert all(isinstance(record, Record | RecordError) for _, record in found)
        try:
            built = build(known, iter(found), Path(out) / "made", show=False)
        except UserError:  # nothing could be used
            lines = (Path(out) / "made/quarantine.jsonl").read_text().splitlines()
            assert len(lines) == len(found) > 0
        else:
            assert built.read == len(found)
            assert built.preferences + built.refused == built.read


@FUZZ
@given(
    st.lists(ROW.map(json.dumps) | st.text(max_size=20).filter(str.strip), min_size=1, max_size=6)
)
def test_json_lines(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    accounted(path)


@FUZZ
@given(st.binary(max_size=200))
def test_bytes_that_pass_for_a_table(tmp_path: Path, data: bytes) -> None:
    for ending in (".jsonl", ".json", ".csv", ".parquet"):
        path = tmp_path / f"rows{ending}"
        path.write_bytes(data)
        accounted(path)


@FUZZ
@given(st.lists(st.tuples(NAME, ENDING, st.binary(max_size=30)), min_size=1, max_size=6))
def test_folders(files: list[tuple[str, str, bytes]]) -> None:
    with TemporaryDirectory() as folder:
        for name, ending, data in files:
            (Path(folder) / f"{name}{ending}").write_bytes(data)
        accounted(Path(folder))


@FUZZ
@given(
    st.lists(st.tuples(NAME, ENDING, st.binary(max_size=30)), min_size=1, max_size=6),
    st.integers(0, 4000),
)
def test_torn_tars(tmp_path: Path, files: list[tuple[str, str, bytes]], cut: int) -> None:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for name, ending, data in files:
            info = tarfile.TarInfo(f"{name}{ending}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(path.read_bytes()[:-cut] if cut else path.read_bytes())
    accounted(path)


@FUZZ
@given(st.binary(max_size=100))
def test_text_files_of_prompts(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(data)
    try:
        found = list(read_prompts(path))
    except UserError:
        return
    assert len(found) == len([line for line in data.splitlines() if line.strip()])


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims to be as large as that."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_images_that_are_none(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    whole = buffer.getvalue()
    images = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "huge": png_header(100_000, 100_000),
        "text": b"<html>404 Not Found</html>",
        "whole": whole,
        "zero": png_header(0, 0),
    }
    for name, data in images.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
        (tmp_path / f"{name}.txt").write_text(name)
    built = build(known, read_records(tmp_path), tmp_path / "out", show=False)
    assert built == Built(read=6, refused=5, preferences=1)
    lines = [json.loads(x) for x in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [0, 1, 2, 3, 5]
    for line, name in zip(lines, ("cut", "empty", "huge", "text", "zero"), strict=True):
        assert f"{name}.jpg" in line["reason"]
    assert "more than" in lines[2]["reason"]


def captions(folder: Path) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps({"caption": f"caption {i}"}) + "\n" for i in range(120)))
    return path


def test_a_disk_that_fills_costs_nothing_that_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "StoreWriter", functools.partial(store.StoreWriter, shard_rows=30))
    source = captions(tmp_path)
    build(known, read_records(source), tmp_path / "whole", show=False)
    write, written = store.write_shard, []

    def full(path: Path, *rest: Any) -> store.Shard:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path)
        return write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_shard", full)
        with pytest.raises(OSError, match="make room and run the same again"):
            build(known, read_records(source), tmp_path / "full", show=False)
    build(known, read_records(source), tmp_path / "full", show=False)
    files: Callable[[str], dict[str, bytes]] = lambda name: {  # noqa: E731  # a table's entry
        path.name: path.read_bytes() for path in (tmp_path / name).iterdir()
    }
    assert files("full") == files("whole")


def test_a_full_disk_is_no_inputs_fault(tmp_path: Path) -> None:
    def no_room(records: Iterable[Record]) -> Iterator[Preference]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    with pytest.raises(OSError, match="No space"):
        build(no_room, read_records(captions(tmp_path)), tmp_path / "out", show=False)


def mount(folder: Path, size: str, *more: str) -> None:
    options = ",".join((*more, f"size={size}"))
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs the right to do so")


def test_a_small_disk_that_fills_and_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "StoreWriter", functools.partial(store.StoreWriter, shard_rows=30))
    source = captions(tmp_path)
    build(known, read_records(source), tmp_path / "whole", show=False)
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    needed = sum(map(len, expected.values())) // 1024
    disk = tmp_path / "disk"
    disk.mkdir()
    mount(disk, f"{needed // 2}k")
    try:
        with pytest.raises(OSError, match="make room and run the same again"):
            build(known, read_records(source), disk / "out", show=False)
        shards = list((disk / "out").glob("part-*.parquet"))
        assert 0 < len(shards) < sum(name.startswith("part-") for name in expected)
        mount(disk, "4m", "remount")
        build(known, read_records(source), disk / "out", show=False)
        assert {path.name: path.read_bytes() for path in (disk / "out").iterdir()} == expected
    finally:
        subprocess.run(["umount", str(disk)], check=True)
