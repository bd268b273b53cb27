"""Objects from blocks are those of the whole image, wherever it is cut."""

from __future__ import annotations

import time
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import stitching
from pipeline.instances import INTERIOR_REACH, Thresholds, drop_objects, grow_objects
from pipeline.records.case import MAXIMUM_OBJECTS
from pipeline.stitching import FoundObject, Stitcher
from pipeline.targets import channels_of

CHANNELS = {target: channels_of(target) for target in ("binary", "boundary", "boundary_distance", "offsets")}
THRESHOLDS = Thresholds(0.5, 0.45, minimum_size=3, certainty=0.55)


def blobs(seed: int, height: int, width: int, channels: int, coarseness: float) -> np.ndarray:
    noise = np.random.default_rng(seed).random((channels, height, width)).astype(np.float32)
    smooth = np.stack([cv2.GaussianBlur(plane, (0, 0), coarseness) for plane in noise])
    low, high = smooth.min(axis=(1, 2), keepdims=True), smooth.max(axis=(1, 2), keepdims=True)
    return (smooth - low) / np.maximum(high - low, 1e-6)


def stitched(
    maps: np.ndarray, channels: Sequence[str], thresholds: Thresholds, rows: Sequence[int], columns: Sequence[int]
) -> tuple[list[FoundObject], Stitcher]:
    """Cut maps at rows and columns, and put the objects together again."""
    _, height, width = maps.shape
    stitcher = Stitcher(height, width, channels, thresholds)
    found: list[FoundObject] = []
    for top, below in zip([0, *rows], [*rows, height], strict=True):
        for left, right in zip([0, *columns], [*columns, width], strict=True):
            window = (
                slice(max(top - INTERIOR_REACH, 0), min(below + INTERIOR_REACH, height)),
                slice(max(left - INTERIOR_REACH, 0), min(right + INTERIOR_REACH, width)),
            )
            found += stitcher.add(maps[:, *window], top, left, below - top, right - left)
    return found, stitcher


def painted(found: Sequence[FoundObject], height: int, width: int) -> np.ndarray:
    raster = np.zeros((height, width), np.int64)
    for number, one in enumerate(found, start=1):
        tall, wide = one.mask.shape
        window = raster[one.top : one.top + tall, one.left : one.left + wide]
        assert not window[one.mask].any(), "two objects hold one pixel"
        window[one.mask] = number
    return raster


def same_objects(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    alike = pairs[:, pairs.any(axis=0)]
    return bool((alike > 0).all()) and len(set(alike[0])) == len(set(alike[1])) == alike.shape[1]


@pytest.mark.parametrize("target", CHANNELS)
@settings(deadline=None, max_examples=30)
@given(st.data())
def test_cut_anywhere_the_objects_are_those_of_the_whole(target: str, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    maps = blobs(data.draw(st.integers(0, 99)), height, width, len(CHANNELS[target]), data.draw(st.floats(0.6, 4.0)))
    cuts = [
        sorted(data.draw(st.sets(st.integers(1, side - 1), max_size=5))) if side > 1 else [] for side in (height, width)
    ]
    whole = drop_objects(grow_objects(maps, CHANNELS[target], THRESHOLDS), maps[0], 3, 0.55)
    found, stitcher = stitched(maps, CHANNELS[target], THRESHOLDS, *cuts)
    assert same_objects(painted(found, height, width), whole)
    assert stitcher.cut_ == 0 and not stitcher._waiting


def test_a_snake_through_every_block_is_one_object() -> None:
    maps = np.zeros((1, 40, 40), np.float32)
    maps[0, ::4] = 0.9
    maps[0, :, 0] = maps[0, 2::8, 39] = 0.9
    for row in range(0, 40, 8):
        maps[0, row : row + 5, 39] = 0.9
    found, _ = stitched(maps, ("foreground",), Thresholds(), range(3, 40, 5), range(3, 40, 5))
    assert len(found) == 1 and found[0].mask.sum() == (maps[0] > 0.5).sum()


def test_a_sheet_is_cut_and_counted_and_what_waits_is_never_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stitching, "LARGEST_PIECE", 400)
    maps = np.ones((1, 60, 30), np.float32)
    found, stitcher = stitched(maps, ("foreground",), Thresholds(), range(10, 60, 10), [15])
    assert stitcher.cut_ == 5 and [one.mask.shape for one in found] == [(10, 30)] * 6


def test_a_sheet_as_wide_as_the_slide_does_not_wait_for_the_end_of_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stitching, "LARGEST_PIECE", 400)
    stitcher = Stitcher(20, 300, ("foreground",), Thresholds())
    seen: list[FoundObject] = []
    for left in range(0, 300, 10):
        seen += stitcher.add(
            np.ones((1, 10 + INTERIOR_REACH, 14), np.float32)[:, :, max(2 - left, 0) :], 0, left, 10, 10
        )
        assert sum(piece.foreground.size for one in stitcher._waiting.values() for piece in one.fragments) <= 400
    assert stitcher.cut_ == 7 and [(one.left, one.mask.shape) for one in seen] == [
        (left, (10, 40)) for left in range(0, 280, 40)
    ]


def test_a_piece_is_cut_where_a_row_above_reaches_far_beyond_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comb: its back lies in the first row of blocks, and each tooth, which reaches the next one, would join it."""
    monkeypatch.setattr(stitching, "LARGEST_PIECE", 400)
    maps = np.zeros((1, 20, 40), np.float32)
    maps[0, 9] = maps[0, :, ::4] = 0.9
    found, stitcher = stitched(maps, ("foreground",), Thresholds(), [10], range(10, 40, 10))
    assert stitcher.cut_ == 1 and sorted(one.mask.shape for one in found) == [(10, 1)] * 10 + [(10, 40)]


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_what_is_smaller_than_the_limit_is_as_of_the_whole_beside_what_is_cut(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(20, 70)), data.draw(st.integers(20, 70))
    maps = blobs(data.draw(st.integers(0, 99)), height, width, 2, data.draw(st.floats(0.6, 3.0)))
    cuts = [sorted(data.draw(st.sets(st.integers(1, side - 1), max_size=7))) for side in (height, width)]
    thresholds, limit = Thresholds(0.5, 0.45), data.draw(st.integers(1, 900))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stitching, "LARGEST_PIECE", limit)
        found, stitcher = stitched(maps, CHANNELS["boundary"], thresholds, *cuts)
    raster, whole = painted(found, height, width), grow_objects(maps, CHANNELS["boundary"], thresholds)
    assert ((raster > 0) == (whole > 0)).all() and not stitcher._waiting
    _, pieces, boxes, _ = cv2.connectedComponentsWithStats((whole > 0).astype(np.uint8), connectivity=4)
    small = (boxes[:, cv2.CC_STAT_WIDTH] * boxes[:, cv2.CC_STAT_HEIGHT] <= limit)[pieces] & (whole > 0)
    assert same_objects(np.where(small, raster, 0), np.where(small, whole, 0))
    assert stitcher.cut_ == 0 or (small | (whole == 0)).mean() < 1


def test_one_piece_holds_more_objects_than_a_raster_of_16_bits() -> None:
    side = 514
    maps = np.full((2, side, side), 0.9, np.float32)
    maps[1] = 1.0
    maps[1, 1::2, 1::2] = 0.0
    stitcher = Stitcher(side, side, ("foreground", "boundary"), Thresholds())
    found = stitcher.add(maps, 0, 0, side, side)
    assert sum(1 for _ in found) == (side // 2) ** 2 > MAXIMUM_OBJECTS


def test_an_object_of_a_large_piece_takes_no_look_at_all_of_it() -> None:
    height, width = 1024, 2048
    maps = np.full((2, height, width), 0.9, np.float32)
    maps[1] = 0.0
    maps[1, ::16] = maps[1, :, ::16] = 1.0
    stitcher = Stitcher(height, width, ("foreground", "boundary"), Thresholds())
    found = stitcher.add(maps, 0, 0, height, width)
    next(found)
    begun = time.process_time()
    assert sum(1 for _ in found) == height * width // 256 - 1
    # Of processors, so that other work does not count: 0.02 s, or 7 where each object is looked for among all pixels.
    assert time.process_time() - begun < 2.0
