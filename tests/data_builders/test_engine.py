"""Builds are the same whoever builds them and however often they stop; nothing is lost unseen."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from mmalign.data import open_dataset
from mmalign.data.errors import DatasetError, RecordError
from mmalign.data_builders.engine import NOTHING_MADE, Built, Refused, build, build_whole
from mmalign.data_builders.records import Record, read_records
from mmalign.errors import UserError
from mmalign.records import Message, Preference, Provenance, Sample, Text, pair, text_of


def louder(records: Iterable[Record]) -> Iterator[Preference | Refused]:
    """Prefers a caption to its shout; refuses the empty, forgets "skip", stumbles over "bad"."""
    for record in records:
        if not record.caption:
            yield Refused(record.id, "has no caption", "caption")
        elif record.caption.startswith("bad"):
            raise ValueError("a bad one")
        elif record.caption != "skip":
            prompt = (Message("user", (Text("Say it."),)),)
            good, shout = (Text(t) for t in (record.caption, record.caption.upper()))
            source = Provenance("louder", parents=(record.id,))
            yield pair(Sample(prompt, (good,)), Sample(prompt, (shout,)), source=source)


def unwritable(records: Iterable[Record]) -> Iterator[Preference | Refused]:
    """As `louder`, but no file can hold what is made of "caption 5"."""
    for made in louder(records):
        if isinstance(made, Preference) and made.chosen.response == (Text("caption 5"),):
            source = replace(made.source, details={"found": {1, 2}})
            made = replace(made, source=source)
        yield made


def wrong_settings(records: Iterable[Record]) -> Iterator[Preference]:
    raise UserError("no such reward")
    yield


def table(folder: Path, captions: Iterable[str]) -> Path:
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps({"caption": text}) + "\n" for text in captions))
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def png(colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, "PNG")
    return file.getvalue()


CAPTIONS = [f"caption {i}" for i in range(70)]
CAPTIONS[3], CAPTIONS[40], CAPTIONS[41] = "", "bad", "skip"


def test_every_input_is_used_or_in_quarantine_with_its_reason(tmp_path: Path) -> None:
    source = table(tmp_path, CAPTIONS)
    source.write_text(source.read_text() + "{torn\n")
    built = build(louder, read_records(source), tmp_path / "out", show=False)
    assert built == Built(read=71, refused=4, preferences=67)
    lines = [json.loads(x) for x in (tmp_path / "out/quarantine.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == [3, 40, 41, 70]
    reasons = [line["reason"] for line in lines]
    assert reasons[:3] == ["has no caption", "a bad one", NOTHING_MADE]
    assert "not valid JSON" in reasons[3]
    made = open_dataset(tmp_path / "out")
    assert [text_of(p.chosen.response) for p in made][2:4] == ["caption 2", "caption 4"]
    assert [p.source.details["row"] for p in made][2:4] == [2, 4]


def test_a_build_that_stopped_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = table(tmp_path, CAPTIONS)
    build(louder, read_records(source), tmp_path / "whole", show=False)

    def cut() -> Iterator[tuple[int, Record | RecordError]]:
        for number, record in read_records(source):
            if number == 65:
                raise KeyboardInterrupt
            yield number, record

    with pytest.raises(KeyboardInterrupt):
        build(louder, cut(), tmp_path / "cut", show=False)
    build(louder, read_records(source), tmp_path / "cut", show=False)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert build(louder, iter(()), tmp_path / "cut", show=False) == Built(70, 3, 67)


def test_what_cannot_be_written_is_in_quarantine_and_costs_nothing_else(tmp_path: Path) -> None:
    source = table(tmp_path, CAPTIONS[4:20])
    built = build(unwritable, read_records(source), tmp_path / "out", show=False)
    assert built == Built(read=16, refused=1, preferences=15)
    (line,) = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == 1
    assert "JSON" in json.loads(line)["reason"]


def last_first(preferences: Sequence[Preference]) -> Iterator[Preference]:
    """Looks at the whole dataset: hands it on backwards, but for the first."""
    for preference in preferences[:0:-1]:
        yield preference.derived("last_first")


def test_builders_of_the_whole_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    build(louder, read_records(table(tmp_path, CAPTIONS[4:30])), tmp_path / "in", show=False)
    dataset = open_dataset(tmp_path / "in")
    built = build_whole(last_first, dataset, tmp_path / "whole", show=False)
    assert built == Built(read=26, refused=0, preferences=25)

    def interrupted(preferences: Sequence[Preference]) -> Iterator[Preference]:
        yield from islice(last_first(preferences), 20)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_whole(interrupted, dataset, tmp_path / "cut", show=False)
    assert build_whole(last_first, dataset, tmp_path / "cut", show=False) == built
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    with pytest.raises(DatasetError, match="keeps none"):
        build_whole(lambda preferences: iter(()), dataset, tmp_path / "none", show=False)


def test_wrong_settings_are_not_the_inputs_fault(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such reward"):
        build(wrong_settings, read_records(table(tmp_path, ["a"])), tmp_path / "out", show=False)


def test_nothing_but_refusals_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="none of the 2 inputs"):
        build(louder, read_records(table(tmp_path, ["", ""])), tmp_path / "out", show=False)


def test_images_of_a_folder_have_captions_beside_them(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(png())
    (tmp_path / "a.jpg").write_text("no image at all")
    (tmp_path / "b.txt").write_text("a red square\n")
    (_, broken), (_, good) = read_records(tmp_path)
    assert isinstance(good, Record)
    assert isinstance(broken, Record)
    assert (good.caption, good.pixels().size) == ("a red square", (4, 4))
    with pytest.raises(ValueError, match="image"):
        broken.pixels()


def test_a_torn_tar_gives_what_is_whole_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in (("1.png", png()), ("1.txt", b"one"), ("2.png", png()), ("2.txt", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert [r.caption for _, r in read_records(path) if isinstance(r, Record)] == ["one", ""]
    path.write_bytes(path.read_bytes()[: 512 * 4 + 700])  # within 2.png's header and content
    found = [record for _, record in read_records(path)]
    assert isinstance(found[0], Record)
    assert found[0].caption == "one"
    assert isinstance(found[-1], RecordError)


SCRIPT = """
import functools
import sys
from pathlib import Path
from mmalign.data_builders import corrupt, engine
from mmalign.data_builders.records import read_records
# many small shards, so that kills hit every kind of moment
engine.StoreWriter = functools.partial(engine.StoreWriter, shard_rows=60)
if __name__ == "__main__":
    source, out, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    engine.build(corrupt.build, read_records(source), out, workers=workers, show=False)
"""
KILLS = int(os.environ.get("MMALIGN_KILLS", "5"))
IN_A_ROW = 5
"""How often one build is killed before it may end."""


def begun(process: subprocess.Popen[bytes], out: Path) -> bool:
    """Wait until the build writes; False when it ended before that could be seen."""
    before = changed(out)
    while process.poll() is None:
        if changed(out) != before:
            return True
        time.sleep(0.005)
    return False


def changed(folder: Path) -> int:
    """When the folder's entries last changed: every file that is written takes its place there."""
    return folder.stat().st_mtime_ns if folder.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_builds_with_workers_end_with_the_same_bytes(tmp_path: Path) -> None:
    rows = []
    for number in range(600):
        (tmp_path / f"{number % 7}.png").write_bytes(png(("red", "green", "blue")[number % 3]))
        caption = f"Photo {number}: two red cars to the left of a dog."
        image = f"{number % 7}.png" if number % 50 else "missing.png"
        rows.append(json.dumps({"image": image, "caption": caption if number % 31 else ""}))
    source = tmp_path / "photos.jsonl"
    source.write_text("\n".join(rows))
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def command(out: str, workers: int) -> list[str]:
        return [sys.executable, str(script), str(source), str(tmp_path / out), str(workers)]

    subprocess.run(command("whole", 0), check=True)
    expected = files(tmp_path / "whole")
    refused = expected["quarantine.jsonl"].splitlines()
    assert len(refused) == 12 + 20 - 1  # 0 is missing and empty at once
    process = subprocess.Popen(command("workers", 2))
    assert begun(process, tmp_path / "workers")
    start = time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - start
    assert files(tmp_path / "workers") == expected

    draws = random.Random(0)
    killed, trial = 0, 0
    while killed < KILLS:
        out = f"killed-{trial}"
        for _ in range(min(IN_A_ROW, KILLS - killed)):
            process = subprocess.Popen(command(out, 2))
            if begun(process, tmp_path / out):
                time.sleep(draws.uniform(0, 0.5) * seconds)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
            process.wait()
        subprocess.run(command(out, 2), check=True)
        assert files(tmp_path / out) == expected, f"trial {trial}"
        trial += 1
    print(f"{killed} kills of {trial} builds")
