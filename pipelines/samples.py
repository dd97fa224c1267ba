"""What a generator draws before and after alignment, with equal seeds, for files and report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from markupsafe import Markup
from PIL import Image

from mmalign.adapters.protocol import Adapter
from mmalign.evaluation.intervals import Interval
from mmalign.files import whole_folder
from mmalign.media import frames, png
from mmalign.records import Media, Message, Preference, Text, text_of
from mmalign.report.page import section
from mmalign.report.pictures import Picture, side_by_side
from mmalign.training.callbacks import AsLeft
from mmalign.training.log import progress
from mmalign.training.seeds import derive


def prompts_to_sample(count: int, file: Path | None, data: Iterable[Any]) -> list[str]:
    """`count` texts to sample from: those of the file, or the first different ones of the data."""
    if count < 1:
        return []
    if file is not None:
        lines = file.read_text(encoding="utf-8").splitlines()
        return [line.strip() for line in lines if line.strip()][:count]
    found: dict[str, None] = {}
    for record in data:
        if isinstance(record, Preference):
            found[text_of(record.chosen.prompt[0].parts)] = None
        if len(found) == count:
            break
    return list(found)


def sampled(
    policy: Adapter, prompts: Sequence[str], *, seed: int, out: Path, stage: str, **options: Any
) -> list[Media]:
    """One picture or video per prompt, with equal seeds in every stage, kept in
    out/samples/STAGE. options: of the adapter's `sample`."""
    if not prompts:
        return []
    messages = [(Message("user", (Text(prompt),)),) for prompt in prompts]
    seeds = [derive(seed, "samples", index) for index in range(len(prompts))]
    with progress(f"samples {stage}", total=len(prompts)) as advance:
        found = policy.sample(messages, seeds, progress=lambda done, _: advance(to=done), **options)
    media = [part for sample in found for part in sample.response if isinstance(part, Media)]
    _write(media, out / "samples" / stage)
    return media


def kept_media(folder: Path, make: Callable[[], Sequence[Media]]) -> list[Media]:
    """Pictures or videos that are made once and read from their files afterwards."""
    if not folder.exists():
        _write(make(), folder)
    files = sorted(folder.iterdir(), key=lambda file: int(file.stem))
    return [Media(_KINDS[file.suffix], data=file.read_bytes()) for file in files]


_KINDS: dict[str, Literal["image", "video"]] = {".png": "image", ".webp": "video"}


def _write(media: Sequence[Media], folder: Path) -> None:
    endings = {kind: ending for ending, kind in _KINDS.items()}
    with whole_folder(folder) as partial:
        for index, one in enumerate(media):
            (partial / f"{index:03d}{endings[one.kind]}").write_bytes(one.content)


@dataclass
class SampledDuring:
    """A callback that draws the same prompts with the same seeds every so many steps.

    They go to out/samples/step-..., and side by side, as one picture, to trackers that show
    pictures. options: of the adapter's `sample`. judged: figures about what was drawn.
    """

    policy: Adapter
    prompts: Sequence[str]
    every: int
    seed: int
    out: Path
    options: Mapping[str, Any]
    judged: Callable[[Sequence[Media]], Mapping[str, Interval]] = lambda drawn: {}

    def __call__(
        self, step: int, figures: Mapping[str, Any], as_left: AsLeft
    ) -> Mapping[str, float | Media]:
        if step % self.every or not self.prompts:
            return {}
        with as_left():
            drawn = sampled(
                self.policy, self.prompts, seed=self.seed, out=self.out,
                stage=f"step-{step:06d}", **self.options,
            )  # fmt: skip
        means = {name: found.value for name, found in self.judged(drawn).items()}
        return {"samples": in_a_row(drawn), **means}


def in_a_row(media: Sequence[Media]) -> Media:
    """One picture of several; of videos it shows the first frames."""
    pictures = [frames(one, 1, choice="uniform")[0] for one in media]
    row = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)))
    left = 0
    for picture in pictures:
        row.paste(picture, (left, 0))
        left += picture.width
    return png(row)


def samples_section(prompts: Sequence[str], media: Mapping[str, Sequence[Media]]) -> Markup:
    """What each stage drew, side by side."""
    rows = [
        (prompt, {stage: Picture(drawn[i].content) for stage, drawn in media.items()})
        for i, prompt in enumerate(prompts)
    ]
    note = "The same prompts and seeds before and after alignment; the files are in samples/."
    return section("Samples", side_by_side(rows), note=note)
