"""Every public format of preferences between images or videos is recognised and read as meant.

The rows are made up; columns and nesting are those of the public datasets.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data import made

from mmalign.data import RecordError, open_dataset
from mmalign.data.store import write_store
from mmalign.errors import UserError
from mmalign.objectives import objective
from mmalign.pipelines.options import DataOptions
from mmalign.pipelines.preferences import read_preferences
from mmalign.records import Media, Preference, text_of

A, B, C = (made.picture(shade).content for shade in (1, 2, 3))
NAMES = {A: "a", B: "b", C: "c"}
PICK = {
    "are_different": True,
    "best_image_uid": "1",
    "caption": "a dog",
    "created_at": "2023-01-01",
    "has_label": True,
    "image_0_uid": "0",
    "image_0_url": "https://x/0.png",
    "image_1_uid": "1",
    "image_1_url": "https://x/1.png",
    "jpg_0": A,
    "jpg_1": B,
    "label_0": 0.0,
    "label_1": 1.0,
    "model_0": "one",
    "model_1": "two",
    "ranking_id": 7,
    "user_id": 3,
    "num_example_per_prompt": 2,
    "__index_level_0__": 0,
}
RATED = {
    "visual quality": 3,
    "temporal consistency": 2,
    "dynamic degree": 3,
    "text-to-video alignment": 2,
    "factual consistency": 1,
}
TALK = [{"from": "human", "value": "rate it"}]


def of_db(image: bytes, rank: int) -> dict[str, Any]:
    return {
        "image": {"bytes": image, "path": None},
        "prompt_id": "p1",
        "prompt": "a dog",
        "classification": "Animals",
        "image_amount_in_total": 3,
        "rank": rank,
        "overall_rating": 5,
        "image_text_alignment_rating": 5,
        "fidelity_rating": 5,
    }


def of_feedback(name: str, more: int) -> dict[str, Any]:
    row = {"id": name, "images": [f"{name}_0.jpg"], "text prompt": "a dog", "video link": name}
    return row | {key: value + more for key, value in RATED.items()} | {"conversations": TALK}


VERDICTS = {"path_A": "b.mp4", "path_B": "a.mp4", "prompt": "a dog", "fps_A": "8", "fps_B": "8"}
ROWS: dict[str, list[dict[str, Any]]] = {
    "pick-a-pic": [PICK],
    "hpd-v2": [
        {"prompt": "a dog", "file_path": ["a.png", "b.png"], "human_preference": [0, 1]},
    ],
    "hpd-v2-test": [
        {
            "prompt": "a dog",
            "image_path": ["c.png", "a.png", "b.png"],
            "rank": [3, 2, 1],
            "raw_annotations": [{"rank": [3, 2, 1], "user_hash": "u"}],
        }
    ],
    "hpd-v3": [
        {
            "prompt": "a dog",
            "path1": "b.png",
            "path2": "a.png",
            "model1": "two",
            "model2": "one",
            "confidence": 0.9,
            "choice_dist": [12, 7],
        }
    ],
    "image-reward": [
        {
            "id": "1",
            "prompt": "a dog",
            "generations": ["a.png", "b.png", "c.png"],
            "ranking": [2, 1, 3],
        }
    ],
    "image-reward-db": [of_db(A, 2), of_db(B, 1), of_db(C, 3)],
    "video-feedback": [of_feedback("a.mp4", 0), of_feedback("b.mp4", 1)],
    "video-dpo": [{"video1": "b.mp4", "video2": "a.mp4", "frame_caption": "a dog", "score": 0.4}],
    "video-align": [VERDICTS | {"VQ": "A", "MQ": "same", "TA": "A"}],
    "votes": [{"prompt": "a dog", "image_a": "a.png", "image_b": "b.png", "winner": "B"}],
    "chosen-media": [{"prompt": "a dog", "chosen_image": "b.png", "rejected_image": "a.png"}],
    "scored": [
        {"prompt": "a dog", "image": "a.png", "score": 0.5},
        {"prompt": "a dog", "image": "b.png", "score": 0.75},
        {"prompt": "a dog", "image": "c.png", "score": -1},
    ],
}


def put(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    """The rows as their dataset has them, in Parquet, CSV or one JSON array, beside the files."""
    for content, stem in NAMES.items():
        (folder / f"{stem}.png").write_bytes(content)
        (folder / f"{stem}.mp4").write_bytes(content)
    if name in ("pick-a-pic", "image-reward-db", "video-feedback"):
        pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
        return folder / "rows.parquet"
    if name in ("votes", "video-align", "chosen-media", "scored"):
        with (folder / "rows.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
        return folder / "rows.csv"
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder / "rows.json"


def order(preference: Preference) -> str:
    """Which file each candidate is, best first."""
    media = [sample.response[0] for sample in preference.candidates]
    return "".join(NAMES[each.content] for each in media if isinstance(each, Media))


@pytest.mark.parametrize("name", ROWS)
def test_each_format_is_recognised_and_read(name: str, tmp_path: Path) -> None:
    path = put(tmp_path, name, ROWS[name])
    dataset = open_dataset(path)
    assert dataset.format == name
    assert dataset.has_media
    (found,) = dataset
    assert text_of(found.chosen.prompt[0].parts) == "a dog"
    assert order(found) == ("bac" if len(found.candidates) == 3 else "ba")
    kind = "video" if name.startswith("video") else "image"
    # silenced: a picture or video
    assert {sample.response[0].kind for sample in found.candidates} == {kind}  # type: ignore[union-attr]
    assert found.grades == tuple(sorted(set(found.grades), reverse=True)), "no ties here"
    assert [each.id for each in open_dataset(path, streaming=True)] == [found.id]
    if kind == "image":
        write_store([found], tmp_path / "store")
        assert [each.id for each in open_dataset(tmp_path / "store")] == [found.id]


def test_numbers_that_come_along(tmp_path: Path) -> None:
    (newer,) = open_dataset(put(tmp_path, "hpd-v3", ROWS["hpd-v3"]))
    assert newer.aux == {"confidence": 0.9, "agreement": pytest.approx(0.6315789474)}
    assert newer.source.models == ("two", "one")
    (picked,) = open_dataset(put(tmp_path, "pick-a-pic", [PICK]))
    assert picked.source.models == ("two", "one"), "in the order of the candidates"
    assert picked.source.details == {"ranking_id": 7, "user_id": 3}


def test_swapping_the_sides_of_a_vote_changes_nothing(tmp_path: Path) -> None:
    names = {"jpg_0": B, "jpg_1": A, "label_0": 1.0, "label_1": 0.0}
    one, other = open_dataset(put(tmp_path, "pick-a-pic", [PICK, PICK | names]))
    assert one.id == other.id


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ({"VQ": "A", "MQ": "B", "TA": "B"}, ("ab", (1.0, 0.0), {"VQ": -1.0, "MQ": 1.0, "TA": 1.0})),
        ({"VQ": "A", "MQ": "B", "TA": "same"}, ("ba", (0.5, 0.5), {"VQ": 1, "MQ": -1, "TA": 0})),
        ({"VQ": "A", "MQ": "A", "TA": "A", "Overall": "B"}, ("ab", (1.0, 0.0), None)),
    ],
)
def test_verdicts_by_aspect(verdicts: dict[str, str], expected: Any, tmp_path: Path) -> None:
    (found,) = open_dataset(put(tmp_path, "video-align", [VERDICTS | verdicts]))
    files, grades, aux = expected
    assert (order(found), found.grades) == (files, grades)
    assert aux is None or found.aux == aux


def test_a_winner_may_be_named_by_its_file(tmp_path: Path) -> None:
    rows = [ROWS["votes"][0] | {"winner": winner} for winner in ("b.png", "a.png", "tie")]
    found = list(open_dataset(put(tmp_path, "votes", rows)))
    assert [order(each) for each in found] == ["ba", "ab", "ab"]
    assert found[2].grades == (0.5, 0.5)


def test_files_in_the_usual_folders_are_found(tmp_path: Path) -> None:
    path = put(tmp_path, "hpd-v2", ROWS["hpd-v2"])
    (tmp_path / "train").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / name).rename(tmp_path / "train" / name)
    assert order(open_dataset(path)[0]) == "ba"


def test_groups_need_not_stand_together(tmp_path: Path) -> None:
    cat = {"prompt": "a cat", "image": "b.png", "score": 1}
    first, *others = ROWS["scored"]
    rows = [first, cat, *others, cat | {"image": "a.png", "score": 2}]
    dataset = open_dataset(put(tmp_path, "scored", rows))
    assert [order(each) for each in dataset] == ["bac", "ab"]
    assert [order(dataset[i]) for i in (1, 0)] == ["ab", "bac"]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("pick-a-pic", {"has_label": False}, "field 'has_label': is false: nobody judged"),
        ("pick-a-pic", {"are_different": False}, "field 'are_different': is false"),
        ("pick-a-pic", {"jpg_1": None}, "field 'jpg_1': is missing or empty"),
        ("pick-a-pic", {"caption": " "}, "field 'caption': is empty"),
        ("hpd-v2", {"human_preference": [1]}, "has 2 files but 1 grades"),
        ("image-reward", {"generations": "a.png"}, "field 'generations': is not a list"),
        ("votes", {"winner": "both"}, "field 'winner': is 'both': a, b and tie"),
        ("video-align", {"VQ": "C"}, "field 'VQ': is 'C'"),
        ("video-feedback", {"video link": "https://x/v.mp4"}, "download the video first"),
        ("scored", {"prompt": "another"}, "has one file, and a comparison needs two"),
        ("scored", {"prompt": "another", "score": "much"}, "field 'score': is 'much'"),
    ],
)
def test_what_is_wrong_is_named(
    name: str, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    dataset = open_dataset(put(tmp_path, name, [*ROWS[name], ROWS[name][-1] | change]))
    with pytest.raises(RecordError, match=words):
        list(dataset)


def test_ties_are_left_out_unless_they_count_half(tmp_path: Path) -> None:
    tie = PICK | {"label_0": 0.5, "label_1": 0.5, "caption": "a cat"}
    unjudged = PICK | {"has_label": False}
    path = put(tmp_path, "pick-a-pic", [PICK, tie, unjudged, PICK | {"caption": "a fox"}])
    counts: dict[str, int] = {}
    loss = objective("dpo(beta=0.1)")
    for ties in ("drop", "half"):
        # silenced: one of the two
        options = DataOptions(data=str(path), held_out=0, ties=ties)  # type: ignore[arg-type]
        found, _ = read_preferences(options, tmp_path, loss, seed=0, media=True)
        counts[ties] = sum(isinstance(each, Preference) for each in found)
        # silenced: one of the two
        options = DataOptions(data=str(path), streaming=True, ties=ties)  # type: ignore[arg-type]
        stream, _ = read_preferences(options, tmp_path, loss, seed=0, media=True)
        assert sum(isinstance(each, Preference) for each in stream) == counts[ties]
    assert counts == {"drop": 2, "half": 3}


@pytest.mark.parametrize("spec", ["kto(baseline='none')", "plackett_luce()", "dpo() + bco()"])
def test_ties_are_refused_where_they_cannot_count_half(spec: str, tmp_path: Path) -> None:
    options = DataOptions(data="votes.csv", ties="half")
    with pytest.raises(UserError, match="cannot count a tie"):
        read_preferences(options, tmp_path, objective(spec), seed=0, media=True)
