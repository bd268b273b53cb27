"""Tiles along the sides of an image: where they lie, and what each of them counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Side:
    """Tiles along one side of an image: their first pixels, their length, and the weights (length,) of each.

    Weights of all tiles add to 1 at every pixel of the side.
    """

    starts: list[int]
    length: int
    weights: list[np.ndarray]

    def tile(self, number: int) -> slice:
        """From its first pixel to its end."""
        return slice(self.starts[number], self.starts[number] + self.length)

    def own(self, number: int, first: int, end: int) -> slice:
        """The part of a tile that has a weight and is wanted, which is from first to end of the side; may be empty."""
        places = np.flatnonzero(self.weights[number])
        start = self.starts[number]
        return slice(max(int(places[0]), first - start), min(int(places[-1]) + 1, end - start))


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of equally spaced tiles that cover a length; neighbours overlap by at least the share."""
    if length <= tile:
        return [0]
    count = int(np.ceil((length - tile) / (tile * (1 - overlap)))) + 1
    return [int(start) for start in np.rint(np.linspace(0, length - tile, count))]


def seamless_side(length: int, tile: int, overlap: float, cell: int, reach: int, largest: int | None = None) -> Side:
    """Lay tiles along a side so that what is made of them does not depend on where it is cut.

    length: of the side, a multiple of cell. Tiles begin and end at multiples of cell and are `tile` long, two cells at
    least, and reach more on either side; with a bound `largest` on what the network takes, reach gives way. Neighbours
    overlap by the share, and at least by twice the reach and one cell. Weights are 0 up to reach from an inner edge,
    rise along a line over the rest of the overlap, and are divided by their sum.
    """
    size = max(whole_cells(tile, cell), 2 * cell) + 2 * reach
    if largest is not None and size > largest:
        size = max(largest // cell, 2) * cell
        reach = min(reach, size // cell // 4 * cell)
    if length <= size:
        return Side([0], length, [np.ones(length)])
    shared = min(max(whole_cells(overlap * size, cell), 2 * reach + cell), size - cell)
    # As many as that takes, none longer than they need be.
    count = len(tile_starts(length // cell, size // cell, shared / size))
    size = whole_cells((length + (count - 1) * shared) / count, cell)
    starts = [cell * int(start) for start in np.rint(np.linspace(0, (length - size) // cell, count))]

    def weights(start: int) -> np.ndarray:
        at = np.arange(size) + 0.5
        before = at - reach if start else np.full(size, np.inf)
        after = size - at - reach if start + size < length else np.full(size, np.inf)
        return np.clip(np.minimum(before, after) / (shared - 2 * reach), 0.0, 1.0)

    weighted = [weights(start) for start in starts]
    total = np.zeros(length)
    for start, own in zip(starts, weighted, strict=True):
        total[start : start + size] += own
    return Side(starts, size, [own / total[start : start + size] for start, own in zip(starts, weighted, strict=True)])


def whole_cells(length: float, cell: int) -> int:
    """The next multiple of cell."""
    return int(np.ceil(length / cell)) * cell
