"""The sheet of joined groups, to look at."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np

from pipeline.grouping.joins import Join, join_sets, oriented
from pipeline.grouping.layout import lay_out

_CELL, _CAPTION = 320, 18
"""Sides in pixels of a group's place on the sheet, and of the line above it."""


def draw_groups(
    joins: Sequence[Join], load: Callable[[str], np.ndarray], sizes: dict[str, tuple[int, int]], shown: int = 20
) -> np.ndarray:
    """Draw joined groups, each fitted together in its found positions: (height, width, 3) uint8 RGB.

    Shown are groups from the weakest join to the strongest, evenly spaced, so that what may be false is among them.
    Turned duplicates are turned back and stand beside the image that they copy. Dark images are brightened.
    """
    grouped = join_sets(sizes, ((join.first, join.second) for join in joins))
    by_group: dict[str, list[Join]] = defaultdict(list)
    for join in joins:
        by_group[grouped[join.first]].append(join)
    ordered = sorted(by_group.items(), key=lambda entry: (min(_strength(join) for join in entry[1]), entry[0]))
    evenly = np.linspace(0, len(ordered) - 1, min(shown, len(ordered))).astype(int)
    chosen = [ordered[index] for index in evenly]
    columns = 5
    sheet = np.full((max(1, -(-len(chosen) // columns)) * (_CELL + _CAPTION), columns * _CELL, 3), 40, np.uint8)
    if not chosen:
        _write(sheet, "no two images belong together by their pixels", 0, 0)
    for number, (name, evidence) in enumerate(chosen):
        top, left = number // columns * (_CELL + _CAPTION), number % columns * _CELL
        picture = _draw_group(evidence, load, sizes)
        count = len({join.first for join in evidence} | {join.second for join in evidence})
        _write(sheet, f"{name[:12]}: {count}, weakest {min(_strength(join) for join in evidence):.1f}", top, left)
        top += _CAPTION
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def _strength(join: Join) -> float:
    """Score on one scale: the correlation of the same pixels is shown as a hundredfold."""
    return 100.0 * join.score if join.same_pixels else join.score


def _write(sheet: np.ndarray, text: str, top: int, left: int) -> None:
    cv2.putText(sheet, text, (left + 4, top + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)


def _draw_group(
    joins: Sequence[Join], load: Callable[[str], np.ndarray], sizes: Mapping[str, tuple[int, int]]
) -> np.ndarray:
    members = sorted({join.first for join in joins} | {join.second for join in joins})
    turns = _turns(members, joins)
    images = {name: oriented(load(name), *turns[name]) for name in members}
    pieces = lay_out(joins, {name: sizes[name] for name in members})
    pictures = [_draw_piece(piece, images) for piece in pieces]
    gap, height = 12, max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    canvas = np.full((height, width, 3), 40, np.uint8)
    left = 0
    for picture in pictures:
        canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    scale = (_CELL - 6) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)


def _turns(members: Sequence[str], joins: Sequence[Join]) -> dict[str, tuple[int, bool]]:
    """How to turn each image for show: a turned duplicate that stands alone looks like what it copies."""
    turns = dict.fromkeys(members, (0, False))
    placed = {name for join in joins if join.aligned for name in (join.first, join.second)}
    for join in joins:
        if join.kind == "duplicate" and join.second not in placed:
            turns[join.second] = (join.quarters, join.mirrored)
    return turns


def _draw_piece(piece: Mapping[str, tuple[int, int]], images: Mapping[str, np.ndarray]) -> np.ndarray:
    height = max(top + images[name].shape[0] for name, (top, _) in piece.items())
    width = max(left + images[name].shape[1] for name, (_, left) in piece.items())
    canvas = np.full((height, width, 3), 110, np.uint8)
    everything = np.concatenate([images[name].reshape(-1, 3)[::7] for name in piece]).astype(np.float32)
    dark, bright = np.percentile(np.sqrt(everything), (0.5, 99.7))
    levels = np.clip((np.sqrt(np.arange(256)) - dark) / max(bright - dark, 2.0), 0.0, 1.0)
    table = np.rint(255.0 * levels).astype(np.uint8) if everything.mean() < 80.0 else np.arange(256, dtype=np.uint8)
    for name, (top, left) in piece.items():
        image = images[name]
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = table[image]
    return canvas
