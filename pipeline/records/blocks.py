"""Blocks that a view of a slide is cut into, and which of them hold tissue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

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
    """Return the blocks in which something is darker than the slide's glass; all where it shows none, or is dark."""
    step = max(COARSE, math.ceil(max(view.height, view.width) / LARGEST_COARSE))
    coarse = View(view.slide, view.scale * step)
    picture = coarse.window(0, 0, coarse.height, coarse.width)
    glass = np.percentile(picture.reshape(-1, 3), 90, axis=0)
    if glass.min() < GLASS:
        return [*blocks]
    darker = (picture < glass - DARKER).any(axis=2)
    found = []
    for block in blocks:
        top, left, height, width = block
        rows = slice(top // step, min(-(-(top + height) // step), coarse.height))
        columns = slice(left // step, min(-(-(left + width) // step), coarse.width))
        if darker[rows, columns].any():
            found.append(block)
    return found
