"""The public formats of preferences between generated images or videos, each a function from a row
to a preference.

Columns are those that the datasets' cards and loaders name. Whoever liked both alike is kept as a
tie, with equal grades; what becomes of ties is decided where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmalign.data import fields
from mmalign.data.errors import FieldError
from mmalign.data.fields import Row
from mmalign.records import (
    PLAIN,
    Media,
    Message,
    Preference,
    Provenance,
    Sample,
    Text,
    thumb,
)

Kind = Literal["image", "video"]

FOLDERS = ("train", "test", "images", "videos")
"""Where the files that a table names by their bare names may lie, beside it."""

VIDEO_RATINGS = (
    "visual quality",
    "temporal consistency",
    "dynamic degree",
    "text-to-video alignment",
    "factual consistency",
)
VIDEO_VERDICTS = ("VQ", "MQ", "TA")
"""Visual quality, motion quality, text alignment."""


def pick_a_pic(row: Row, root: Path | None = None) -> Preference:
    """Pick-a-Pic v1 and v2: two images as bytes, and label_0 = 1 where the first one was picked,
    0.5 where neither was. Rows with has_label false were never judged. arXiv:2305.01569."""
    if row.get("has_label") is False:
        raise FieldError("has_label", "is false: nobody judged these images")
    if row.get("are_different") is False:
        raise FieldError("are_different", "is false: both images are the same")
    names = ("0", "1")
    return _ranked(
        row,
        "caption",
        [fields.media(row.get(f"jpg_{n}"), f"jpg_{n}", root) for n in names],
        [fields.number(row.get(f"label_{n}"), f"label_{n}") for n in names],
        builder="pick-a-pic",
        models=[row.get(f"model_{n}") for n in names],
        kept=("ranking_id", "user_id"),
    )


def hpd_v2(row: Row, root: Path | None = None) -> Preference:
    """HPD v2's train.json: two files, and 1 for the preferred one. arXiv:2306.09341."""
    return _ranked(
        row,
        "prompt",
        _files(row, "file_path", root),
        _numbers(row, "human_preference"),
        builder="hpd-v2",
    )


def hpd_v2_ranked(row: Row, root: Path | None = None) -> Preference:
    """HPD v2's test.json: files with ranks, 1 is best; equal ranks are ties."""
    ranks = _numbers(row, "rank")
    return _ranked(
        row,
        "prompt",
        _files(row, "image_path", root),
        [-rank for rank in ranks],
        builder="hpd-v2",
    )


def hpd_v3(row: Row, root: Path | None = None) -> Preference:
    """HPD v3: path1 is always the preferred one; `confidence` that it is, and `choice_dist`, the
    votes for both, come along as "confidence" and "agreement". arXiv:2508.03789."""
    aux: dict[str, float] = {}
    if row.get("confidence") is not None:
        aux["confidence"] = fields.number(row["confidence"], "confidence")
    if row.get("choice_dist"):
        first, second = _numbers(row, "choice_dist")
        aux["agreement"] = first / (first + second)
    return _ranked(
        row,
        "prompt",
        [_file(row.get(name), name, root, "image") for name in ("path1", "path2")],
        [1.0, 0.0],
        builder="hpd-v3",
        models=[row.get("model1"), row.get("model2")],
        aux=aux,
    )


def image_reward(row: Row, root: Path | None = None) -> Preference:
    """ImageReward's rankings as one row a prompt: files of `generations`, 1 is the best rank.
    arXiv:2304.05977."""
    return _ranked(
        row,
        "prompt",
        _files(row, "generations", root),
        [-rank for rank in _numbers(row, "ranking")],
        builder="image-reward",
        kept=("id",),
    )


def image_reward_db(rows: Row, root: Path | None = None) -> Preference:
    """ImageRewardDB: one row an image, those of a prompt together; 1 is the best rank."""
    name = "image" if rows.get("image") is not None else "image_path"
    return _ranked(
        _first(rows),
        "prompt",
        [_file(cell, name, root, "image") for cell in rows.get(name) or ()],
        [-rank for rank in _numbers(rows, "rank")],
        builder="image-reward-db",
        kept=("prompt_id", "classification"),
    )


RICH_SCORES = ("overall_score", "aesthetics_score", "artifact_score", "misalignment_score")
"""From 0 to 1, all the better the higher."""


def rich_hf(row: Row, root: Path | None = None) -> Preference:
    """RichHF-18K with prompts and images: one rated image a row, liked where its overall score
    exceeds one half, with all four scores in the aux. As published it has neither prompt nor image;
    `mmalign.data.rich_hf` puts them in. arXiv:2312.10240."""
    text = fields.text(row.get("prompt"), "prompt")
    if not text.strip():
        raise FieldError("prompt", "is empty")
    scores = {name: fields.number(row.get(name), name) for name in RICH_SCORES}
    image = _file(row.get("image"), "image", root, "image")
    return thumb(
        Sample((Message(PLAIN, (Text(text),)),), (image,)),
        scores["overall_score"] > 0.5,
        aux=scores,
        source=Provenance(builder="rich-hf", details={"filename": str(row.get("filename", ""))}),
    )


def rich_hf_ranked(rows: Row, root: Path | None = None) -> Preference:
    """RichHF-18K, the images of a prompt ranked by their overall scores."""
    return _ranked(
        _first(rows),
        "prompt",
        [_file(cell, "image", root, "image") for cell in rows.get("image") or ()],
        _numbers(rows, "overall_score"),
        builder="rich-hf",
    )


def video_feedback(rows: Row, root: Path | None = None) -> Preference:
    """VideoFeedback: one row a video, those of a prompt together, ranked by the mean of its five
    ratings from 1 to 4. `video link` has to name a file here. arXiv:2406.15252."""
    ratings = [_numbers(rows, name) for name in VIDEO_RATINGS]
    return _ranked(
        _first(rows),
        "text prompt",
        [_file(cell, "video link", root, "video") for cell in rows.get("video link") or ()],
        [sum(each) / len(each) for each in zip(*ratings, strict=True)],
        builder="video-feedback",
    )


def video_dpo(row: Row, root: Path | None = None) -> Preference:
    """VideoDPO's pair.json: video1 is the better one; how far, in its score, is the aux "margin".
    arXiv:2412.14167."""
    score = row.get("score")
    return _ranked(
        row,
        "frame_caption",
        [_file(row.get(name), name, root, "video") for name in ("video1", "video2")],
        [1.0, 0.0],
        builder="video-dpo",
        aux={} if score is None else {"margin": fields.number(score, "score")},
    )


def video_align(row: Row, root: Path | None = None) -> Preference:
    """VideoAlign's training data and VideoGen-RewardBench: verdicts A, B or same about quality,
    motion and text. The verdict `Overall` decides, or where there is none, who got more of the
    others. arXiv:2501.13918."""
    verdicts = {name: _verdict(row[name], name) for name in VIDEO_VERDICTS if row.get(name)}
    overall = row.get("Overall")
    won = _verdict(overall, "Overall") if overall else sum(verdicts.values())
    if not verdicts and not overall:
        raise FieldError("Overall", f"is missing, as are {', '.join(VIDEO_VERDICTS)}")
    sign = -1.0 if won < 0 else 1.0
    return _ranked(
        row,
        "prompt",
        [_file(row.get(name), name, root, "video") for name in ("path_A", "path_B")],
        _grades(won),
        builder="video-align",
        models=[row.get("A_model"), row.get("B_model")],
        aux={name: sign * verdict for name, verdict in verdicts.items()},
    )


def votes(row: Row, root: Path | None = None) -> Preference:
    """A table of votes about files: prompt, image_a, image_b (or video_a, video_b), and winner: a,
    b, tie, or the name of the file that won."""
    kind = _kind(row, "image_a")
    names = (f"{kind}_a", f"{kind}_b")
    winner = str(row.get("winner", "")).strip()
    marks = {str(row.get(name, "")): mark for name, mark in zip(names, "ab", strict=True)}
    return _ranked(
        row,
        "prompt",
        [_file(row.get(name), name, root, kind) for name in names],
        _grades(_verdict(marks.get(winner, winner), "winner")),
        builder="votes",
        kept=("annotator",),
    )


def chosen_media(row: Row, root: Path | None = None) -> Preference:
    """prompt, chosen_image and rejected_image, or the same with videos, as files or bytes."""
    kind = _kind(row, "chosen_image")
    return _ranked(
        row,
        "prompt",
        [_file(row.get(n), n, root, kind) for n in (f"chosen_{kind}", f"rejected_{kind}")],
        [1.0, 0.0],
        builder="chosen-media",
    )


def scored(rows: Row, root: Path | None = None) -> Preference:
    """A table of files with scores, larger is better: prompt, image (or video) and score. Those of
    a prompt together are a ranked list."""
    kind = _kind(rows, "image")
    return _ranked(
        _first(rows),
        "prompt",
        [_file(cell, kind, root, kind) for cell in rows.get(kind) or ()],
        _numbers(rows, "score"),
        builder="scored",
    )


def _ranked(
    row: Row,
    prompt: str,
    media: Sequence[Media],
    grades: Sequence[float],
    *,
    builder: str,
    models: Sequence[Any] = (),
    aux: Mapping[str, float] | None = None,
    kept: Sequence[str] = (),
) -> Preference:
    """The media in order of their grades, as answers to the prompt in the field of that name."""
    text = fields.text(row.get(prompt), prompt)
    if not text.strip():
        raise FieldError(prompt, "is empty")
    if len(media) != len(grades):
        raise FieldError(prompt, f"has {len(media)} files but {len(grades)} grades: one each")
    if len(media) < 2:
        raise FieldError(prompt, "has one file, and a comparison needs two")
    asked = (Message(PLAIN, (Text(text),)),)
    order = sorted(range(len(media)), key=lambda place: -grades[place])
    return Preference(
        tuple(Sample(asked, (media[place],)) for place in order),
        tuple(float(grades[place]) for place in order),
        dict(aux or {}),
        Provenance(
            builder=builder,
            models=tuple(str(models[place]) for place in order) if any(models) else (),
            details={name: row[name] for name in kept if row.get(name) is not None},
        ),
    )


def _first(rows: Row) -> Row:
    """Of grouped rows, the first."""
    return {name: values[0] for name, values in rows.items() if isinstance(values, list)}


def _files(row: Row, name: str, root: Path | None) -> list[Media]:
    cells = row.get(name)
    if not isinstance(cells, list):
        raise FieldError(name, "is missing" if cells is None else "is not a list of files")
    return [_file(cell, name, root, "image") for cell in cells]


def _file(cell: Any, name: str, root: Path | None, kind: Kind) -> Media:
    """A file beside the table or in one of FOLDERS, or bytes."""
    if isinstance(cell, str) and root is not None and not (root / cell).exists():
        found = (root / folder / cell for folder in FOLDERS)
        cell = next((str(file) for file in found if file.is_file()), cell)
    return fields.media(cell, name, root, kind=kind)


def _numbers(row: Row, name: str) -> list[float]:
    cells = row.get(name)
    if not isinstance(cells, list):
        raise FieldError(name, "is missing" if cells is None else "is not a list of numbers")
    return [fields.number(_parsed(cell), name) for cell in cells]


def _parsed(cell: Any) -> Any:
    """A number that came as text, as in CSV files."""
    if isinstance(cell, str):
        try:
            return float(cell)
        except ValueError:
            return cell
    return cell


def _kind(row: Row, name: str) -> Kind:
    """Whether a row is about images, which it then has in the column `name`, or about videos."""
    return "image" if row.get(name) not in (None, "") else "video"


def _verdict(value: Any, name: str) -> float:
    """1 where the first won, -1 where the second did, 0 where neither did."""
    match str(value).strip().lower():
        case "a" | "first":
            return 1.0
        case "b" | "second":
            return -1.0
        case "same" | "tie" | "draw":
            return 0.0
    raise FieldError(name, f"is {value!r}: a, b and tie (or same) are known")


def _grades(won: float) -> list[float]:
    """Grades of the first and the second, given who won."""
    return [0.5, 0.5] if won == 0 else [1.0, 0.0] if won > 0 else [0.0, 1.0]
