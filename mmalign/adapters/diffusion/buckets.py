"""Which size media are brought to: all rows of one preference get the same.

Timestep and noise are shared by the rows of a preference, so their latents must have one shape.
With one bucket a row's size depends on nothing. With several, the first row of a seed decides
height and width, and the shortest video the frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmalign.adapters.diffusion.media import Bucket
from mmalign.adapters.protocol import BadSample
from mmalign.errors import UserError
from mmalign.media import Extent

Resolution = int | tuple[int, int] | Sequence[tuple[int, int]]
"""A square's side, (height, width), or several of these pairs to choose from."""


@dataclass(frozen=True)
class Buckets:
    """The sizes on offer. sides: (height, width) pairs. frames: counts, ascending."""

    sides: tuple[tuple[int, int], ...]
    frames: tuple[int, ...] = (1,)

    @property
    def one(self) -> Bucket | None:
        """The bucket, where there is no choice."""
        if len(self.sides) == len(self.frames) == 1:
            return Bucket(*self.sides[0], self.frames[0])
        return None

    def choose(self, rows: Sequence[Extent]) -> Bucket:
        """The bucket of rows that share a seed. Raises BadSample when a video is too short."""
        shortest = min(row.frames for row in rows)
        counts = [count for count in self.frames if count <= shortest]
        if not counts:
            raise BadSample(
                f"a video has {shortest} frames and at least {self.frames[0]} are needed: leave "
                "it out, or train with fewer frames (frames=...)"
            )
        shape = math.log(rows[0].height / rows[0].width)
        height, width = min(self.sides, key=lambda side: abs(math.log(side[0] / side[1]) - shape))
        return Bucket(height, width, counts[-1])


def buckets_of(
    resolution: Resolution, frames: int | Sequence[int], *, multiple: int, frame_stride: int
) -> Buckets:
    """Raises UserError for sizes that the model cannot take.

    multiple: of pixels, that height and width must be. frame_stride: frame counts are one more than
    a multiple of it; 1 where any count will do.
    """
    if isinstance(resolution, int):
        sides: tuple[tuple[int, int], ...] = ((resolution, resolution),)
    elif isinstance(resolution[0], int):
        height, width = resolution
        sides = ((int(height), int(width)),)  # type: ignore[arg-type]  # a pair of integers here
    else:
        sides = tuple((h, w) for h, w in resolution)  # type: ignore[misc]  # and of pairs here
    counts = (frames,) if isinstance(frames, int) else tuple(sorted(frames))
    for side in sides:
        if any(length <= 0 or length % multiple for length in side):
            raise UserError(
                f"the resolution {side[0]}x{side[1]} does not suit this model",
                hint=f"height and width must be multiples of {multiple}",
            )
    for count in counts:
        if count < 1 or (count - 1) % frame_stride:
            raise UserError(
                f"{count} frames do not suit this model",
                hint=f"take {frame_stride}k + 1: 1, {frame_stride + 1}, {2 * frame_stride + 1} ...",
            )
    return Buckets(sides, counts)


def aspect_sides(side: int, *, multiple: int, widest: float = 2.0) -> list[tuple[int, int]]:
    """Sizes of about side x side pixels, from 1 : widest to widest : 1, for `resolution`."""
    sides = {(side, side)}
    for short in range(multiple, side, multiple):
        long = round(side * side / short / multiple) * multiple
        if long / short <= widest:
            sides |= {(short, long), (long, short)}
    return sorted(sides)
