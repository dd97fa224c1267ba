"""RichHF-18K made whole: `python -m mmalign.data.rich_hf RATINGS PICK_A_PIC OUT.parquet`.

As published, its TFRecord files hold ratings of images of Pick-a-Pic v1, which they name, but
neither the images nor their prompts. RATINGS is one of those files, PICK_A_PIC a folder of Pick-a-
Pic's Parquet files or its name on the Hugging Face Hub, of which as much is read as is needed (the
training split has the images of train.tfrecord and dev.tfrecord, the test split those of the
other). OUT is then data as any: `--data OUT.parquet`. Heat maps are left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from mmalign.data.errors import DatasetError
from mmalign.data.fields import Row
from mmalign.data.generation import RICH_SCORES
from mmalign.data.opening import open_rows
from mmalign.files import whole_file

TOKENS = "prompt_misalignment_label"
COLUMNS = pa.schema(
    [
        ("filename", pa.string()),
        ("prompt", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        *((name, pa.float64()) for name in RICH_SCORES),
        (TOKENS, pa.string()),
    ]
)
AT_ONCE = 200
"""Images that are written together."""


def join(ratings: Path, pictures: str, out: Path, *, split: str | None = None) -> tuple[int, int]:
    """Write the ratings with their images and prompts; returns how many were found, of how many.

    split: of Pick-a-Pic. Raises DatasetError where the files hold something else.
    """
    wanted = {_uid(row, ratings): row for row in open_rows(ratings, None)[3]}
    rated = len(wanted)
    columns, label, _, rows = open_rows(pictures, split)
    if missing := {"caption", "image_0_uid", "image_1_uid", "jpg_0", "jpg_1"} - set(columns):
        raise DatasetError(f"{label} is no Pick-a-Pic: it has no {', '.join(sorted(missing))}")
    with whole_file(out) as partial, pq.ParquetWriter(partial, COLUMNS) as writer:
        batch: list[Row] = []
        for row in _found(wanted, rows):
            batch.append(row)
            if len(batch) == AT_ONCE:
                writer.write_table(pa.Table.from_pylist(batch, COLUMNS))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, COLUMNS))
    return rated - len(wanted), rated


def _found(wanted: dict[str, Row], rows: Iterable[Row]) -> Iterator[Row]:
    """The ratings with image and prompt; what was found is taken out of `wanted`."""
    for row in rows:
        for n in ("0", "1"):
            rating = wanted.pop(str(row.get(f"image_{n}_uid")), None)
            if rating is not None:
                yield {
                    **{name: float(rating[name]) for name in RICH_SCORES},
                    "filename": _text(rating["filename"]),
                    "prompt": row["caption"],
                    "image": {"bytes": row[f"jpg_{n}"], "path": None},
                    TOKENS: _text(rating.get(TOKENS, "")),
                }
        if not wanted:
            return


def _uid(row: Row, file: Path) -> str:
    """The name by which Pick-a-Pic knows the image: that of its file."""
    if missing := {"filename", *RICH_SCORES} - set(row):
        raise DatasetError(f"{file} is no RichHF: a record has no {', '.join(sorted(missing))}")
    return PurePosixPath(_text(row["filename"])).stem


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ratings", type=Path)
    parser.add_argument("pictures")
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", help="of Pick-a-Pic")
    given = parser.parse_args()
    found, rated = join(given.ratings, given.pictures, given.out, split=given.split)
    Console(stderr=True).print(f"{found} of {rated} rated images found, now in {given.out}")


if __name__ == "__main__":
    main()
