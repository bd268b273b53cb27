"""Outlines to pixels: in time that grows with corners and area, not with corners times area.

A pixel lies within a ring where its centre does, or lies on it: the rule of skimage.draw.polygon2mask, which asks every
pixel about every edge, to the pixel. Source of the rule: O'Rourke 1998, "Computational Geometry in C", chapter 7.
"""

from __future__ import annotations

import numpy as np

from pipeline.machine_code import compiled
from pipeline.records.outline import Outline

_AT_CORNER = 1e-12
"""Distance in x and in y from a corner, in pixels, below which a centre lies on it; that of skimage."""


def pixels_inside(outline: Outline, shape: tuple[int, ...]) -> tuple[int, int, np.ndarray] | None:
    """The pixels inside an outline; None where it holds none of the image.

    shape: height and width of the image. Returns the first row and column of the outline's box, and what of it lies
    inside, (height, width) bool. Rings of fewer than three corners hold nothing.
    """
    rings = [ring for ring in outline.rings if len(ring) >= 3]
    if not rings:
        return None
    points = np.concatenate(rings)
    left, top = (int(side) for side in np.maximum(np.floor(points.min(axis=0)), 0))
    right, below = (int(side) for side in np.minimum(np.ceil(points.max(axis=0)), shape[1::-1]))
    if right <= left or below <= top:
        return None
    inside = np.zeros((below - top, right - left), bool)
    if len(outline.parts) > 1:
        for part in outline.by_part():
            _change(inside, part.moved(left, top), np.bitwise_or)
    else:
        for ring in rings:
            _turn(inside, _centred(ring, top, left))
    for hole in outline.holes:
        _change(inside, hole.moved(left, top), np.greater)
    return (top, left, inside) if inside.any() else None


def _change(inside: np.ndarray, other: Outline, how: np.ufunc) -> None:
    """Join the pixels of another outline to those inside, or take them away, in place; only its own box is looked at.

    how: of what is inside and what the other holds, both bool: np.bitwise_or joins, np.greater takes away.
    """
    if (found := pixels_inside(other, inside.shape)) is not None:
        top, left, held = found
        box = inside[top : top + held.shape[0], left : left + held.shape[1]]
        how(box, held, out=box)


def _centred(ring: np.ndarray, top: int, left: int) -> np.ndarray:
    """Corners from the centre of the pixel in that row and column: (corners, 2) float64, x and y."""
    return np.ascontiguousarray(ring - (left + 0.5, top + 0.5), np.float64)


def _turn(inside: np.ndarray, ring: np.ndarray) -> None:
    """Turn what lies within a ring from outside to inside or back, in place; only the ring's own box is looked at."""
    sides = inside.shape[::-1]
    left, top = (int(side) for side in np.clip(np.floor(ring.min(axis=0)), 0, sides))
    right, below = (int(side) for side in np.clip(np.ceil(ring.max(axis=0)) + 1, 0, sides))
    if right <= left or below <= top:
        return
    within = np.zeros((below - top, right - left), np.uint8)
    _scan(ring, top, left, within)
    inside[top:below, left:right] ^= within > 0


@compiled
def _scan(ring: np.ndarray, top: int, left: int, within: np.ndarray) -> None:
    """Mark which of the centres of a box of pixels lie within a ring, or on it.

    ring: (corners, 2) float64; within: (height, width) uint8 zeros, in place, its first pixel in row top and column
    left. A centre is within where an odd number of edges lies to its right, and on the ring where that number is odd on
    one side alone; edges count that begin or end in its row, but on the one side their lower, on the other their upper
    ends. Bit 0 counts those to the right, bit 1 those to the left.
    """
    height, width = within.shape
    corners = ring.shape[0]
    for i in range(corners):
        x0, y0 = ring[i]
        x1, y1 = ring[i - 1]
        # Compared before they become whole numbers, which large ones cannot.
        first = int(max(np.ceil(min(y0, y1)), float(top)))
        last = int(min(np.floor(max(y0, y1)), float(top + height - 1)))
        for y in range(first, last + 1):
            to_right = (y0 > y) != (y1 > y)
            to_left = (y0 < y) != (y1 < y)
            if not (to_right or to_left):
                continue
            # Where the edge crosses the row is a first guess: only the rule's own arithmetic tells on which side of it
            # a centre lies that is next to it.
            crossing = np.floor(x0 + (x1 - x0) * ((y - y0) / (y1 - y0)))
            column = left
            if crossing > left:
                column = int(min(crossing, float(left + width)))
            while column > left and _side(x0, y0, x1, y1, column - 1, y) <= 0:
                column -= 1
            while column < left + width and _side(x0, y0, x1, y1, column, y) > 0:
                column += 1
            # Every row is crossed an even number of times, so that edges up to a centre are as odd as those beyond it.
            if to_right and column < left + width:
                within[y - top, column - left] ^= 1
            while column < left + width and _side(x0, y0, x1, y1, column, y) >= 0:
                column += 1
            if to_left and column < left + width:
                within[y - top, column - left] ^= 2
    for row in range(height):
        state = np.uint8(0)
        for column in range(width):
            state ^= within[row, column]
            within[row, column] = state
    for i in range(corners):
        column, row = np.rint(ring[i, 0]), np.rint(ring[i, 1])
        if (
            abs(ring[i, 0] - column) < _AT_CORNER
            and abs(ring[i, 1] - row) < _AT_CORNER
            and left <= column < left + width
            and top <= row < top + height
        ):
            within[int(row) - top, int(column) - left] = 1


@compiled
def _side(x0: float, y0: float, x1: float, y1: float, column: int, row: int) -> float:
    """Above 0 where an edge that crosses the row does so to the right of the column, below 0 to its left."""
    x0, y0, x1, y1 = x0 - column, y0 - row, x1 - column, y1 - row
    return (x0 * y1 - x1 * y0) / (y1 - y0)
