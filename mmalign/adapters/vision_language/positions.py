"""Positions of prompts whose images have a height and a width: multimodal rotary embeddings.

Text counts on; an image's tokens share one time and count along its rows and columns; what follows
goes on behind the larger of the two. arXiv:2409.12191, section 2.1. Axes: s tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
from torch import Tensor

Grid = tuple[int, int, int, float]
"""Times, rows and columns of an image or video in tokens of the language model, and how far its
times are apart."""


def multimodal_positions(image: Sequence[bool], grids: Iterable[Grid]) -> tuple[Tensor, int]:
    """(3 s) time, row and column of each token, and the position of the token that comes next.

    image: whether a token belongs to an image. grids: of the images, in order.
    """
    left, parts, start = iter(grids), [torch.empty(3, 0, dtype=torch.long)], 0
    for within, run in groupby(image):
        length = len(list(run))
        if not within:
            parts.append(torch.arange(start, start + length).expand(3, -1))
            start += length
        while within and length:
            times, rows, columns, interval = next(left)
            when = (torch.arange(times) * interval).long()
            axes = (when, torch.arange(rows), torch.arange(columns))
            parts.append(torch.cartesian_prod(*axes).T.reshape(3, -1) + start)
            start += max(rows, columns)
            length -= times * rows * columns
    return torch.cat(parts, dim=1), start
