"""Objects of an image too large for memory, from maps that come block by block: the same as of the whole at once.

A connected piece of foreground does not know of the others (instances.flood), so that pieces that end within a block
are finished there; those that reach its edge wait, with their maps, until the neighbours have come. What waits is what
lies on the edges of one row of blocks. Where two objects touch and the evidence of pixels between them ties, such a
pixel can go to the other one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.instances import INTERIOR_REACH, Thresholds, flood, interior_of, numbers_of_kept

LARGEST_PIECE = 1 << 23
"""Pixels of the rectangle around a piece that it does not grow beyond: the next block's part of it begins a new one. A
sheet of foreground as large as the slide, or as wide, would need the slide's memory. Cuts are counted."""


@dataclass(frozen=True)
class FoundObject:
    """One object: its rectangle's upper left pixel in the image, and which pixels of it (height, width) are its own."""

    top: int
    left: int
    mask: np.ndarray


Box = tuple[int, int, int, int]
"""Edges of a rectangle: top, left, and the first row and column beyond it."""


@dataclass(frozen=True)
class _Fragment:
    """What one block holds of a piece: place of its rectangle, and there foreground (0 outside the piece), interior."""

    top: int
    left: int
    foreground: np.ndarray
    interior: np.ndarray

    @property
    def box(self) -> Box:
        tall, wide = self.foreground.shape
        return self.top, self.left, self.top + tall, self.left + wide


@dataclass(frozen=True)
class _Piece:
    """What has come of a piece that waits: fragments of it, and the rectangle around them."""

    fragments: list[_Fragment]
    box: Box

    def box_with(self, other: _Piece) -> Box:
        (top, left, below, right), (upper, before, lower, beyond) = self.box, other.box
        return min(top, upper), min(left, before), max(below, lower), max(right, beyond)

    def whole(self) -> _Fragment:
        """Put the fragments together."""
        if len(self.fragments) == 1:
            return self.fragments[0]
        top, left, below, right = self.box
        foreground, interior = np.zeros((2, below - top, right - left), np.float32)
        for part in self.fragments:
            tall, wide = part.foreground.shape
            window = slice(part.top - top, part.top - top + tall), slice(part.left - left, part.left - left + wide)
            own = part.foreground > 0
            foreground[window][own] = part.foreground[own]
            interior[window][own] = part.interior[own]
        return _Fragment(top, left, foreground, interior)


class Stitcher:
    """Takes the maps of blocks, row by row from the upper left, and gives back objects as they are finished.

    height, width: of the image in pixels; channels: of the maps, foreground first.
    cut_: how many pieces would have grown larger than LARGEST_PIECE, and were cut at the edge of a block.
    """

    def __init__(self, height: int, width: int, channels: Sequence[str], thresholds: Thresholds) -> None:
        self.height, self.width, self.channels, self.thresholds = height, width, channels, thresholds
        self.cut_ = 0
        self._parent: dict[int, int] = {}
        self._waiting: dict[int, _Piece] = {}
        self._pieces = 0
        # Which piece, 0 for none, each pixel just above the row of blocks and just left of the next block belongs to.
        self._above, self._below = np.zeros(width, np.int64), np.zeros(width, np.int64)
        self._left = np.zeros(0, np.int64)

    def add(self, maps: np.ndarray | None, top: int, left: int, height: int, width: int) -> Iterator[FoundObject]:
        """Take one block and yield the objects that end within it, and, at a row's end, those that end in the row.

        maps: (channels, ...) float32 in [0, 1] of the block and INTERIOR_REACH pixels more on each side that is not the
        image's own, or None where there is no foreground; top, left, height, width: of the block without these. Blocks
        of a row are of one height.
        """
        if left == 0:
            self._above, self._below = self._below, np.zeros(self.width, np.int64)
            self._left = np.zeros(height, np.int64)
        last_row, last_column = top + height == self.height, left + width == self.width
        if maps is None:
            self._left = np.zeros(height, np.int64)
        else:
            yield from self._taken(maps, top, left, height, width)
        if last_column:
            yield from self._end_row(last=last_row)

    def _taken(self, maps: np.ndarray, top: int, left: int, height: int, width: int) -> Iterator[FoundObject]:
        """Finish the pieces within a block, and keep those on its edges."""
        last_row, last_column = top + height == self.height, left + width == self.width
        above, before = min(top, INTERIOR_REACH), min(left, INTERIOR_REACH)
        block = slice(above, above + height), slice(before, before + width)
        foreground, interior = maps[0][block], interior_of(maps, self.channels)[block]
        inside = (foreground > self.thresholds.foreground).astype(np.uint8)
        count, pieces, boxes, _ = cv2.connectedComponentsWithStats(inside, connectivity=4)
        numbers = np.zeros(count, np.int64)
        numbers[1:] = np.arange(self._pieces + 1, self._pieces + count)
        self._pieces += count - 1
        at_edge = np.zeros(count, bool)
        for edge, open_edge in (
            (pieces[0], top > 0), (pieces[-1], not last_row), (pieces[:, 0], left > 0), (pieces[:, -1], not last_column)
        ):  # fmt: skip
            if open_edge:
                at_edge[edge] = True
        at_edge[0] = False
        for piece in range(1, count):
            column, row, wide, tall, _ = boxes[piece].tolist()
            window = slice(row, row + tall), slice(column, column + wide)
            own = pieces[window] == piece
            part = _Fragment(top + row, left + column, np.where(own, foreground[window], 0), interior[window].copy())
            if at_edge[piece]:
                self._parent[int(numbers[piece])] = int(numbers[piece])
                self._waiting[int(numbers[piece])] = _Piece([part], part.box)
            else:
                yield from self._finished(_Piece([part], part.box))
        numbers[~at_edge] = 0
        beside = self._left
        # Edges first: what is cut while it is joined is taken off them.
        self._left = numbers[pieces[:, -1]]
        self._below[left : left + width] = numbers[pieces[-1]]
        yield from self._join(self._above[left : left + width], numbers[pieces[0]])
        yield from self._join(beside, numbers[pieces[:, 0]])

    def _join(self, known: np.ndarray, new: np.ndarray) -> Iterator[FoundObject]:
        """Put a block's pieces to those that they touch, and cut off and finish what that would make too large."""
        for one, other in np.unique(np.stack([known, new], axis=1)[(known > 0) & (new > 0)], axis=0).tolist():
            before, here = self._root(one), self._root(other)
            if before == here or before not in self._waiting or here not in self._waiting:
                continue
            box = self._waiting[before].box_with(self._waiting[here])
            if _area(box) > LARGEST_PIECE:
                yield from self._cut(before)
                continue
            first, second = sorted((before, here))
            self._parent[second] = first
            self._waiting[first].fragments.extend(self._waiting.pop(second).fragments)
            self._waiting[first] = _Piece(self._waiting[first].fragments, box)

    def _cut(self, root: int) -> Iterator[FoundObject]:
        """Finish a piece as it is, and take it off the edges, so that nothing more is put to it."""
        self.cut_ += 1
        for edge in (self._above, self._below, self._left):
            own = [piece for piece in np.unique(edge[edge > 0]).tolist() if self._root(piece) == root]
            edge[np.isin(edge, own)] = 0
        yield from self._finished(self._waiting.pop(root))

    def _root(self, piece: int) -> int:
        while self._parent[piece] != piece:
            self._parent[piece] = piece = self._parent[self._parent[piece]]
        return piece

    def _end_row(self, *, last: bool) -> Iterator[FoundObject]:
        """Finish what does not reach the row's lower edge."""
        reaching = set() if last else {self._root(piece) for piece in np.unique(self._below[self._below > 0]).tolist()}
        for root in sorted(self._waiting.keys() - reaching):
            yield from self._finished(self._waiting.pop(root))
        kept = {piece: self._root(piece) for piece in np.unique(self._below[self._below > 0]).tolist()}
        self._parent = {root: root for root in kept.values()} | kept

    def _finished(self, piece: _Piece) -> Iterator[FoundObject]:
        """Grow the objects of one whole piece."""
        from scipy.ndimage import find_objects

        part = piece.whole()
        del piece  # or the fragments of a large one would be there twice while it is flooded
        if np.count_nonzero(part.foreground) < self.thresholds.minimum_size:
            return
        grown = flood(part.foreground, part.interior, self.thresholds)
        # A slide's masks have 32 bits, and tissue of touching nuclei may be one piece of more objects than 16 count.
        grown = numbers_of_kept(grown, part.foreground, self.thresholds.minimum_size, self.thresholds.certainty)[grown]
        # Compared within its own box: all of a large piece, looked at for each object, takes milliseconds an object.
        for number, (rows, columns) in enumerate(find_objects(grown), start=1):
            yield FoundObject(part.top + rows.start, part.left + columns.start, grown[rows, columns] == number)


def _area(box: Box) -> int:
    top, left, below, right = box
    return (below - top) * (right - left)
