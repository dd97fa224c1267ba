"""`mmalign inspect` and `mmalign convert`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from data import made

from mmalign.data import DatasetError, RecordError, StoreWriter, open_dataset, write_store
from mmalign.data.convert import convert
from mmalign.data.inspect import inspect
from mmalign.data.store import MANIFEST, load_manifest
from mmalign.records import Media, Preference, Sample, Text, pair

WORSE = Preference(made.chat().candidates, (1.0, 1.0))


def sample_rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {"prompt": f"Question {i}?", "chosen": "A long answer.", "rejected": "Short."}
        for i in range(7)
    ]
    rows[3]["rejected"] = None
    return rows


def source_file(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in sample_rows()))
    return path


def test_statistics_find_planted_faults(tmp_path: Path) -> None:
    empty = pair(made.chat("x", "", "no").chosen, made.chat("x", "", "no").rejected)
    equal = pair(made.chat("y").chosen, made.chat("y").chosen)
    rows = [made.chat(), made.chat(), WORSE, made.seen(), made.ranked(), made.contrast()]
    rows += [made.liked(), made.liked(False), made.weighted(), empty, equal]
    found = inspect(str(write_store(rows, tmp_path / "store")))
    assert found["records"] == found["rows"] == 11
    assert found["kinds"] == {
        "pairs": 8,
        "lists": 1,
        "thumbs up": 1,
        "thumbs down": 1,
        "of these, prompts differ": 1,
    }
    assert found["faults"] == {
        "repeated preferences": 1,
        "repeated prompts": 3,
        "images seen in an earlier preference": 0,
        "ties": 1,
        "empty responses": 1,
        "identical chosen and rejected": 1,
    }
    assert found["images_per_prompt"] == {"0": 9, "1": 1, "3": 1}
    assert found["aux"]["confidence"]["mean"] == 0.75
    assert found["sources"] == {"unknown": 10, "correction": 1}


def test_length_bias_and_refused_records(tmp_path: Path, capsys: Any) -> None:
    found = inspect(str(source_file(tmp_path)))
    assert found["chosen_longer"] == 1.0
    assert found["refused"] == {"is missing": 1}
    lengths = found["lengths"]["chosen, words"]
    assert (lengths["count"], lengths["mean"], lengths["max"]) == (6, 3.0, 3.0)
    said = capsys.readouterr().out
    assert "format 'trl'" in said
    assert "100.0%" in said


def test_the_page_shows_records_and_is_safe(tmp_path: Path) -> None:
    attack = made.chat("</script><script>alert(1)</script>", "<b>good</b>", "[bold]bad")
    broken = Media("image", data=b"no image")
    blind = pair(*[Sample((made.user(broken, "?"),), (Text(t),)) for t in ("a", "b")])
    rows = [attack, made.seen(), made.contrast(), made.painted(), made.ranked(), blind]
    out = tmp_path / "out"
    inspect(str(write_store(rows, tmp_path / "store")), out=out, show=6)
    statistics = json.loads((out / "statistics.json").read_text())
    assert statistics["records"] == 6
    page = (out / "index.html").read_text()
    assert "<script>alert" not in page
    assert not re.search(r"(src|href)=[\"']?http", page), "it needs no other file"
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    entries = json.loads(data[1])
    assert entries[0]["prompt"][1]["parts"] == [{"text": "</script><script>alert(1)</script>"}]
    kinds = ["image" if "image" in part else "text" for part in entries[1]["prompt"][0]["parts"]]
    assert kinds == ["image", "text", "image", "text"]
    shown = entries[1]["prompt"][0]["parts"][0]
    assert shown["size"] == [8, 8]
    assert f'id="i{shown["image"]}">data:image/jpeg;base64,' in page
    assert entries[2]["prompt"] == []
    assert [len(c["prompt"]) for c in entries[2]["candidates"]] == [1, 1]
    assert len(entries[4]["candidates"]) == 4
    assert "cannot be shown" in entries[5]["prompt"][0]["parts"][0]["text"]


def test_a_limit_looks_at_the_first_records(tmp_path: Path) -> None:
    assert inspect(str(source_file(tmp_path)), limit=2)["records"] == 2


def test_missing_image_files_are_counted(tmp_path: Path) -> None:
    row = {"images": ["gone.png"], "prompt": [{"role": "user", "content": "?"}]}
    row |= {side: [{"role": "assistant", "content": "x"}] for side in ("chosen", "rejected")}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    found = inspect(str(tmp_path / "rows.jsonl"), out=tmp_path / "out")
    assert found["records"] == 0
    assert list(found["refused"]) == ["cannot read media: No such file or directory"]
    with pytest.raises(DatasetError, match=r"none of the 1 records.*gone\.png"):
        convert(str(tmp_path / "rows.jsonl"), tmp_path / "store")


def test_converting_keeps_records_and_quarantines_the_rest(tmp_path: Path) -> None:
    source, target = source_file(tmp_path), tmp_path / "store"
    assert convert(str(source), target) == target
    dataset = open_dataset(target)
    assert dataset.format == "mmalign"
    wanted = [
        record.id for _, record in open_dataset(source).checked() if isinstance(record, Preference)
    ]
    assert [preference.id for preference in dataset] == wanted
    assert dataset[3].source.details == {"dataset": str(source), "row": 4}
    (entry,) = map(json.loads, (target / "quarantine.jsonl").read_text().splitlines())
    assert (entry["row"], entry["field"], entry["reason"]) == (3, "rejected", "is missing")


def test_converting_to_trl_and_back_keeps_ids(tmp_path: Path) -> None:
    given = [made.seen(1), made.chat(), made.seen(4), made.ranked()]
    ours = write_store(given, tmp_path / "ours")
    theirs = convert(str(ours), tmp_path / "theirs", to="trl")
    back = convert(str(theirs), tmp_path / "back")
    assert [p.id for p in open_dataset(back)] == [p.id for p in given[:3]]
    assert "4 candidates" in (theirs / "quarantine.jsonl").read_text()


def test_strict_stops_at_the_first(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="row 3"):
        convert(str(source_file(tmp_path)), tmp_path / "store", strict=True)


def test_an_interrupted_conversion_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, write, calls = source_file(tmp_path), StoreWriter.write, []
    monkeypatch.setattr("mmalign.data.convert.StoreWriter", _small_shards)

    def stop_at_five(self: StoreWriter, *preferences: Preference, position: Any = None) -> None:
        calls.append(position)
        if len(calls) == 5:
            raise KeyboardInterrupt
        write(self, *preferences, position=position)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write", stop_at_five)
        with pytest.raises(KeyboardInterrupt):
            convert(str(source), tmp_path / "store")
    stopped = load_manifest(tmp_path / "store")
    assert stopped is not None
    assert (stopped.rows, stopped.position, stopped.complete) == (4, 5, False)
    convert(str(source), tmp_path / "store")
    convert(str(source), tmp_path / "whole")
    assert list(open_dataset(tmp_path / "store")) == list(open_dataset(tmp_path / "whole"))
    for name in (MANIFEST, "quarantine.jsonl"):
        assert (tmp_path / "store" / name).read_text() == (tmp_path / "whole" / name).read_text()


def _small_shards(*arguments: Any, **options: Any) -> StoreWriter:
    return StoreWriter(*arguments, **options, shard_rows=2)


def test_a_finished_conversion_is_not_repeated(tmp_path: Path, capsys: Any) -> None:
    source, target = source_file(tmp_path), tmp_path / "store"
    convert(str(source), target)
    before = (target / MANIFEST).stat().st_mtime_ns
    convert(str(source), target)
    assert "finished already" in capsys.readouterr().err
    assert (target / MANIFEST).stat().st_mtime_ns == before
    with pytest.raises(DatasetError, match="overwrite"):
        convert(str(source), target, limit=2)
    convert(str(source), target, limit=2, overwrite=True)
    assert len(open_dataset(target)) == 2


def test_columns_are_named_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "a", "better": "b", "worse": "c", "tools": ["x"]}\n')
    names = ["prompt=q", "chosen=better", "rejected=worse", "tools="]
    convert(str(path), tmp_path / "store", columns=names)
    assert open_dataset(tmp_path / "store")[0].chosen.response == (Text("b"),)
    with pytest.raises(DatasetError, match="which column"):
        convert(str(path), tmp_path / "other", columns=["better"])
