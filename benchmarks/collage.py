"""Building collages against the time that decoding and encoding alone take.

    python benchmarks/collage.py                     # 640x480 photographs, two processes
    python benchmarks/collage.py --width 1600 --height 1200 --images 64 128

`mmalign build collage` makes a whole dataset: it reads, hashes, decodes, draws, encodes and writes
Parquet. Against it stand as many processes that only decode and encode: every canvas once, and the
images either as often as they are shown, or each file once, which is the least that any program
could do. They take turns. The photographs are cut out of those that scikit-image and scikit-learn
ship.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image

from mmalign.data import open_dataset
from mmalign.data_builders.collage import command
from mmalign.data_builders.command import Output, Running
from mmalign.media import open_image
from mmalign.records import Media, media_of

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from photographs import PHOTOGRAPHS  # tests are no package

LAYOUTS = ("grid", "picture-in-picture")


def write_photographs(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEG files of this size, each another part of a photograph."""
    folder.mkdir()
    sources = [open_image(Media("image", path=str(path))) for path in PHOTOGRAPHS]
    for number in range(count):
        source = sources[number % len(sources)]
        share = 0.6 + 0.4 * (number * 0.618 % 1)
        part = (0, 0, int(source.width * share), int(source.height * share))
        source.resize(size, Image.Resampling.BICUBIC, part).save(
            folder / f"{number:05}.jpg", quality=90
        )


def built(folder: Path, out: Path, workers: int) -> tuple[float, float, float]:
    """Wall and processor seconds, and the most memory that one of the processes used in MiB."""
    told = subprocess.run(
        [sys.executable, __file__, "--inside", json.dumps([str(folder), str(out), workers])],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    wall, processor, memory = map(float, told.stdout.split()[-3:])
    return wall, processor, memory


def inside(folder: str, out: str, workers: int) -> None:
    """One build. That Python starts is not counted, that workers do is."""
    usage = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)

    def used() -> float:
        return sum(resource.getrusage(who).ru_utime for who in usage) + sum(
            resource.getrusage(who).ru_stime for who in usage
        )

    began, before = time.perf_counter(), used()
    output, running = Output(out=Path(out)), Running(workers=workers)
    command(folder, layouts=LAYOUTS, output=output, running=running)
    wall = time.perf_counter() - began
    memory = max(resource.getrusage(who).ru_maxrss for who in usage) / 1024
    print(wall, used() - before, memory)


def alone(folder: Path, out: Path, workers: int, *, once: bool) -> tuple[float, float]:
    """Wall and processor seconds of decoding the files and encoding the canvases of `out`."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(workers), context.Queue()
    processes = [
        context.Process(target=_share, args=(folder, out, once, part, workers, start, results))
        for part in range(workers)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return max(wall for wall, _ in found), sum(processor for _, processor in found)


def _share(
    folder: Path, out: Path, once: bool, part: int, of: int, start: Any, results: Any
) -> None:
    media = {m.digest: m for m in (Media("image", path=str(p)) for p in sorted(folder.iterdir()))}
    mine = [p for number, p in enumerate(open_dataset(out)) if number % of == part]
    shown = [media[digest] for p in mine for digest in p.source.details["images"]]
    canvases = [open_image(media_of(p.chosen.prompt)[0]) for p in mine]
    start.wait()
    began, before = time.perf_counter(), time.process_time()
    for each in list(media.values())[part::of] if once else shown:
        open_image(each)
    for canvas in canvases:
        canvas.save(io.BytesIO(), "JPEG", quality=95)
    results.put((time.perf_counter() - began, time.process_time() - before))


def compared(count: int, size: tuple[int, int], workers: int, repeats: int) -> list[str]:
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "photographs"
        write_photographs(folder, count, size)
        for turn in range(repeats):
            out = Path(name) / f"built-{turn}"
            wall, processor, memory = built(folder, out, workers)
            found.setdefault("inputs per second", []).append(count / wall)
            found.setdefault("processor seconds per 1000 inputs", []).append(
                1000 * processor / count
            )
            found.setdefault("MiB in the largest process", []).append(memory)
            for once, words in ((False, "as often as shown"), (True, "each once")):
                least, least_processor = alone(folder, out, workers, once=once)
                ratios = ("wall", least / wall), ("processor", least_processor / processor)
                for clock, ratio in ratios:
                    found.setdefault(f"speed, images decoded {words}, {clock}", []).append(ratio)
    return [
        f"{count} images, {words}: {median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        for words, values in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        inside(*json.loads(options.inside))
        return
    for count in options.images:
        size = (options.width, options.height)
        print("\n".join(compared(count, size, options.workers, options.repeats)), flush=True)


if __name__ == "__main__":
    main()
