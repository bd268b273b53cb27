"""Blocks that a view of a slide is cut into, and which of them hold tissue."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import cv2
import numpy as np

from pipeline.records.slides import View

BLOCK = 1024
"""Pixels of a view along the side of a block that is predicted."""
COARSE = 16
"""Pixels of the view along the side of one in which tissue is looked for: a single nucleus still darkens it."""
LARGEST_COARSE = 8192
"""Pixels along the longer side of that picture at most."""
GLASS, DARKER = 160, 12
"""Grey level from which the brightest tenth of a slide counts as glass; and how much darker than it, in any channel,
tissue is."""

Block = tuple[int, int, int, int]
"""Top, left, height and width in pixels of a view."""


def blocks_of(view: View) -> list[Block]:
    """Lay blocks of BLOCK pixels over a view, row by row; the last ones are what is left."""
    return [
        (top, left, min(BLOCK, view.height - top), min(BLOCK, view.width - left))
        for top in range(0, view.height, BLOCK)
        for left in range(0, view.width, BLOCK)
    ]


def even_blocks(view: View, largest: int) -> list[Block]:
    """Cut a view into the fewest blocks of at most `largest` pixels a side, all of nearly one size, row by row."""
    rows, columns = (
        [round(side * place / count) for place in range(count + 1)]
        for side, count in ((side, math.ceil(side / largest)) for side in (view.height, view.width))
    )
    return [
        (top, left, below - top, right - left) for top, below in pairwise(rows) for left, right in pairwise(columns)
    ]


def find_tissue(view: View, blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks in which something is darker than the slide's glass; all where it shows none, or is dark.

    It is looked for in a picture of the whole at 1/COARSE; what that leaves over at the far edges, in strips of them.
    """
    step = max(COARSE, math.ceil(max(view.height, view.width) / LARGEST_COARSE))
    coarse = View(view.slide, view.scale * step)
    picture = coarse.window(0, 0, coarse.height, coarse.width)
    glass = np.percentile(picture.reshape(-1, 3), 90, axis=0)
    if glass.min() < GLASS:
        return [*blocks]
    darker = (picture < glass - DARKER).any(axis=2)
    covered = coarse.height * step, coarse.width * step
    found = []
    for block in blocks:
        top, left, height, width = block
        rows = slice(top // step, -(-(top + height) // step))
        columns = slice(left // step, -(-(left + width) // step))
        strips = (_averaged(view.window(*strip), step) for strip in _left_over(block, covered))
        if darker[rows, columns].any() or any((strip < glass - DARKER).any() for strip in strips):
            found.append(block)
    return found


def _left_over(block: Block, covered: tuple[int, int]) -> Iterator[Block]:
    """What of a block lies below or right of so many rows and columns."""
    top, left, height, width = block
    first, start = max(top, covered[0]), max(left, covered[1])
    if first < top + height:
        yield first, left, top + height - first, width
    if start < left + width:
        yield top, start, height, left + width - start


def _averaged(pixels: np.ndarray, step: int) -> np.ndarray:
    """Means over squares of about step pixels."""
    height, width = (math.ceil(side / step) for side in pixels.shape[:2])
    return cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
