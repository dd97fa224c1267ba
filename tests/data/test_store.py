"""The store gives back what was put in, and loses nothing when its writer is stopped."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow.parquet as pq
import pytest
from data import made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmalign.data import DatasetError, FieldError, StoreWriter, open_dataset, store, write_store
from mmalign.data.store import MANIFEST, load_manifest, verify
from mmalign.records import Media, Message, Preference, Sample, Text, pair

ALL: dict[str, Callable[[], Preference]] = {
    "chat": made.chat,
    "plain": made.plain,
    "images in several turns": made.seen,
    "list": made.ranked,
    "other image": made.contrast,
    "images as responses": made.painted,
    "weights, aux and source": made.weighted,
    "thumb up": made.liked,
    "thumb down": lambda: made.liked(False),
    "videos": lambda: made.filmed("/no/such/film.mp4"),
}


def same(found: Preference, given: Preference) -> None:
    assert found == given
    assert found.id == given.id


def hashes(folder: Path) -> list[str]:
    manifest = load_manifest(folder)
    assert manifest is not None
    verify(folder)
    return [shard.sha256 for shard in manifest.shards]


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "videos"])
def test_each_kind_comes_back(kind: str, tmp_path: Path) -> None:
    preference = ALL[kind]()
    (found,) = open_dataset(write_store([preference], tmp_path / "store"))
    same(found, preference)


def test_videos_come_back_by_path_and_by_bytes(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    film.write_bytes(b"a film")
    preference = made.filmed(str(film))
    (found,) = open_dataset(write_store([preference], tmp_path / "store"))
    same(found, preference)


def test_all_kinds_in_one_dataset_come_back(tmp_path: Path) -> None:
    given = [make() for kind, make in ALL.items() if kind != "videos"]
    folder = tmp_path / "store"
    with StoreWriter(folder, shard_rows=2) as writer:
        for preference in given:
            writer.write(preference)
    found = open_dataset(folder)
    assert list(found) == given
    assert [found[i] for i in range(len(found))] == given
    assert [p.id for p in found] == [p.id for p in given]
    schemas = {str(pq.read_schema(path)) for path in folder.glob("part-*.parquet")}
    assert len(schemas) == 1, "shards written before a column was needed have it in the end"
    verify(folder)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(made.preferences(), min_size=1, max_size=5), st.integers(1, 3))
def test_any_preferences_come_back(given: list[Preference], shard_rows: int) -> None:
    with TemporaryDirectory() as folder:
        with StoreWriter(folder, shard_rows=shard_rows) as writer:
            for preference in given:
                writer.write(preference)
        found = list(open_dataset(folder))
    assert found == given
    assert [p.id for p in found] == [p.id for p in given]


def test_embedding_keeps_the_id_and_frees_the_dataset_from_the_file(tmp_path: Path) -> None:
    file = tmp_path / "dog.png"
    file.write_bytes(made.picture(3).content)
    prompt = (made.user(Media("image", path=str(file)), "What?"),)
    preference = pair(Sample(prompt, (Text("A dog."),)), Sample(prompt, (Text("A cat."),)))
    kept = open_dataset(write_store([preference], tmp_path / "kept", embed=False))
    same(kept[0], preference)
    embedded = open_dataset(write_store([preference], tmp_path / "embedded"))
    known = preference.id
    file.unlink()
    assert embedded[0].id == known


def test_an_image_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    prompt = (made.user(Media("image", path="/no/such.png"), "What?"),)
    sample = Sample(prompt, (Text("A dog."),))
    with StoreWriter(tmp_path / "store") as writer:
        with pytest.raises(FieldError, match=r"images.*/no/such\.png"):
            writer.write(made.seen(), pair(sample, sample))
        writer.write(made.chat())
    assert list(open_dataset(tmp_path / "store")) == [made.chat()], "all of a call or nothing"


def test_random_access_reads_one_row_group(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "store", shard_rows=3) as writer:
        given = [made.chat(f"Question {i}?") for i in range(8)]
        for preference in given:
            writer.write(preference)
    dataset = open_dataset(tmp_path / "store")
    assert len(dataset) == 8
    assert dataset[-1] == given[-1]
    assert list(dataset[2:7:2]) == given[2:7:2]
    assert list(dataset.select([6, 0, 6])) == [given[6], given[0], given[6]]
    with pytest.raises(IndexError, match="8 records"):
        dataset[8]


def _read(dataset: Any, index: int) -> str:
    return str(dataset[index].id)


def test_worker_processes_read(tmp_path: Path) -> None:
    given = [made.seen(i) for i in range(6)]
    dataset = open_dataset(write_store(given, tmp_path / "store"))
    assert dataset[0] == given[0]  # files are open and the cache is warm when it is pickled
    assert list(pickle.loads(pickle.dumps(dataset))) == given
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        assert list(pool.map(_read, [dataset] * 6, range(6))) == [p.id for p in given]


def test_an_unfinished_dataset_is_not_read_as_a_whole_one(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    writer = StoreWriter(folder, shard_rows=2)
    for i in range(5):
        writer.write(made.chat(str(i)))
    with pytest.raises(DatasetError, match=r"unfinished.*4 rows"):
        open_dataset(folder)
    assert len(open_dataset(folder / "part-*.parquet")) == 4
    with pytest.raises(DatasetError, match="resume"):
        StoreWriter(folder)


@pytest.mark.parametrize("stop", range(7))
def test_resumed_after_an_error_equals_uninterrupted(stop: int, tmp_path: Path) -> None:
    given = [made.chat(str(i)) if i < 4 else made.seen(i) for i in range(7)]

    def run(folder: Path, until: int, resume: bool = False) -> None:
        with StoreWriter(folder, shard_rows=2, origin="x", resume=resume) as writer:
            for i in range(writer.position or 0, len(given)):
                if i == until:
                    raise KeyboardInterrupt
                writer.write(given[i], position=i + 1)

    run(tmp_path / "whole", until=-1)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "broken", until=stop)
    run(tmp_path / "broken", until=-1, resume=True)
    assert list(open_dataset(tmp_path / "broken")) == given
    assert hashes(tmp_path / "broken") == hashes(tmp_path / "whole")
    names = {path.name for path in (tmp_path / "broken").iterdir()}
    assert names == {path.name for path in (tmp_path / "whole").iterdir()}


def _write_ten(folder: Path, deadly: int) -> None:
    """Write ten records, the last with images; be killed after `deadly` row groups."""
    write, calls = pq.ParquetWriter.write_table, []

    def write_table(self: pq.ParquetWriter, table: Any) -> None:
        write(self, table)
        calls.append(table)
        if len(calls) == deadly:
            os.kill(os.getpid(), signal.SIGKILL)

    store.pq.ParquetWriter.write_table = write_table
    with StoreWriter(folder, shard_rows=3, resume=True) as writer:
        for i in range(writer.position or 0, 10):
            preference = made.chat(str(i)) if i < 7 else made.seen(i)
            writer.write(preference, position=i + 1)


def in_a_process(target: Callable[..., None], *arguments: Any) -> int | None:
    process = get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def test_killed_again_and_again_and_resumed_equals_uninterrupted(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert in_a_process(_write_ten, whole, 0) == 0
    # in the first shard, in a later one, and in one that is being widened at the end
    for deadly in (1, 2, 4):
        assert in_a_process(_write_ten, killed, deadly) == -signal.SIGKILL
        assert list(killed.glob(".*partial*")), "the kill came while a shard was half written"
    assert in_a_process(_write_ten, killed, 0) == 0
    assert hashes(killed) == hashes(whole)
    assert {path.name for path in killed.iterdir()} == {path.name for path in whole.iterdir()}
    assert len(open_dataset(killed)) == 10


def test_a_full_disk_is_said_and_earlier_shards_are_safe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, calls = pq.ParquetWriter.write_table, []

    def full_at_the_third(self: pq.ParquetWriter, table: Any) -> None:
        calls.append(table)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, table)

    monkeypatch.setattr(store.pq.ParquetWriter, "write_table", full_at_the_third)
    folder = tmp_path / "store"
    writer = StoreWriter(folder, shard_rows=2)
    for i in range(5):
        writer.write(made.chat(str(i)), position=i + 1)
    with pytest.raises(OSError, match=r"No space left.*4 rows in 2 shards are safe") as caught:
        writer.write(made.chat("5"), position=6)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(DatasetError, match="stopped at an error"):
        writer.write(made.chat())
    assert {path.name for path in folder.iterdir()} == {
        MANIFEST,
        "part-00000.parquet",
        "part-00001.parquet",
    }
    with StoreWriter(folder, shard_rows=2, resume=True) as writer:
        assert (writer.rows, writer.position) == (4, 4)
        for i in range(4, 9):
            writer.write(made.chat(str(i)), position=i + 1)
    assert list(open_dataset(folder)) == [made.chat(str(i)) for i in range(9)]


def _write_too_much(folder: Path, said: Path) -> None:
    writer = StoreWriter(folder, shard_rows=1)
    writer.write(made.chat())
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    big = "".join(chr(0x4E00 + i * 7919 % 20000) for i in range(20000))
    try:
        writer.write(made.chat(big))
    except OSError as error:
        said.write_text(str(error))


def test_a_refusal_of_the_system_while_writing_is_said(tmp_path: Path) -> None:
    """The same with a real limit, met while Arrow writes."""
    assert in_a_process(_write_too_much, tmp_path / "store", tmp_path / "said") == 0
    assert "1 rows in 1 shards are safe" in (tmp_path / "said").read_text()
    assert len(hashes(tmp_path / "store")) == 1


def test_what_one_input_gave_is_never_torn(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    writer = StoreWriter(folder, shard_rows=2)
    writer.write(*[made.chat(str(i)) for i in range(5)], position=1)
    writer.write(made.chat("5"), position=2)
    assert (writer.rows, writer.position) == (5, 1)


def test_other_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DatasetError, match=r"thesis\.tex"):
        StoreWriter(tmp_path)
    with pytest.raises(DatasetError, match=r"thesis\.tex"):
        StoreWriter(tmp_path, overwrite=True)


def test_finished_datasets_are_replaced_only_when_asked(tmp_path: Path) -> None:
    folder = write_store([made.chat("old")], tmp_path / "store")
    with pytest.raises(DatasetError, match="finished"):
        StoreWriter(folder, resume=True)
    write_store([made.chat("new")], folder, overwrite=True)
    assert list(open_dataset(folder)) == [made.chat("new")]


def test_resuming_from_something_else_is_an_error(tmp_path: Path) -> None:
    StoreWriter(tmp_path / "store", origin={"from": "x"})  # which came to nothing
    StoreWriter(tmp_path / "store", origin={"from": "a"}, shard_rows=1).write(made.chat())
    with pytest.raises(DatasetError, match="made from something else"):
        StoreWriter(tmp_path / "store", origin={"from": "b"}, resume=True)


def test_damage_is_found(tmp_path: Path) -> None:
    folder = write_store([made.chat()], tmp_path / "store")
    shard = folder / "part-00000.parquet"
    content = bytearray(shard.read_bytes())
    content[50] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DatasetError, match=r"part-00000\.parquet differ"):
        verify(folder)
    shard.write_bytes(content[:-10])
    with pytest.raises(DatasetError, match="changed its size"):
        open_dataset(folder)
    shard.unlink()
    with pytest.raises(DatasetError, match="is missing"):
        open_dataset(folder)


def test_the_manifest_says_what_is_there(tmp_path: Path) -> None:
    folder = write_store([made.weighted(), made.chat()], tmp_path / "store")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert (manifest["format"], manifest["rows"], manifest["complete"]) == ("mmalign", 2, True)
    assert manifest["builders"] == {"correction": 1, "unknown": 1}
    assert manifest["columns"] == pq.read_schema(folder / "part-00000.parquet").names
    assert "images" not in manifest["columns"], "text trainers would take it for image data"


def test_texts_and_numbers_that_cannot_be_stored_are_named(tmp_path: Path) -> None:
    broken = pair(*[Sample((made.user(text),), (Text("a"),)) for text in ("\ud800", "b")])
    nan = pair(made.chat().chosen, made.chat().rejected, aux={"margin": float("nan")})
    odd = made.chat().derived("x", what={1, 2})
    with StoreWriter(tmp_path / "store") as writer:
        for preference, field in ((broken, "text"), (nan, "aux"), (odd, "source")):
            with pytest.raises(FieldError, match=f"field '{field}'"):
                writer.write(preference)
        writer.write(made.chat())


def test_roles_may_be_anything(tmp_path: Path) -> None:
    prompt = (Message("developer", (Text("x"),)), Message("tool", (Text("y"),)))
    given = pair(Sample(prompt, (Text("a"),)), Sample(prompt, (Text("b"),)))
    same(open_dataset(write_store([given], tmp_path / "store"))[0], given)
