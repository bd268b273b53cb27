"""Tiles: every pixel is covered, and what does not see enough counts nothing."""

import itertools

import numpy as np
import pytest

from pipeline.tiling import seamless_side, tile_starts


@pytest.mark.parametrize(
    ("length", "tile", "overlap"), [(10, 64, 0.25), (64, 64, 0.0), (65, 64, 0.25), (1000, 256, 0.5), (257, 128, 0.75)]
)
def test_tiles_cover_everything_and_overlap_enough(length: int, tile: int, overlap: float) -> None:
    starts = tile_starts(length, tile, overlap)
    covered = np.zeros(length, int)
    for start in starts:
        covered[start : start + tile] += 1
    assert covered.min() >= 1
    assert starts[0] == 0 and starts[-1] == max(0, length - tile)
    assert all(later - earlier <= tile * (1 - overlap) + 1 for earlier, later in itertools.pairwise(starts))


@pytest.mark.parametrize(("cell", "reach"), [(1, 0), (4, 16), (8, 56), (32, 128), (128, 896)])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0.0), (100, 0.25), (512, 0.25), (256, 0.75)])
def test_tiles_of_an_image_begin_at_cells_and_leave_no_pixel_out(
    cell: int, reach: int, tile: int, overlap: float
) -> None:
    for length in (2 * cell, 17 * cell, 61 * cell, 5 * (tile // cell + 1) * cell):
        side = seamless_side(length, tile, overlap, cell, reach)
        assert side.length <= max(tile + cell - 1, 2 * cell) + 2 * reach
        assert all(start % cell == 0 for start in [*side.starts, side.length])
        assert side.starts[0] == 0 and side.starts[-1] + side.length == length
        total = np.zeros(length)
        for start, weights in zip(side.starts, side.weights, strict=True):
            total[start : start + side.length] += weights
            assert start == 0 or not weights[:reach].any()
            assert start + side.length == length or not weights[side.length - reach :].any()
        np.testing.assert_allclose(total, 1.0, rtol=1e-12)


@pytest.mark.parametrize("largest", [96, 256])
def test_tiles_stay_within_what_a_network_of_one_size_takes(largest: int) -> None:
    side = seamless_side(32 * 40, 512, 0.25, 32, 128, largest)
    assert side.length <= largest
    assert all(later - earlier < side.length for earlier, later in itertools.pairwise(side.starts))
