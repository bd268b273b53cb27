"""Outlines to pixels: pixel for pixel what scikit-image makes of them, in a time that corners and area add up to."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon2mask

from pipeline.filling import pixels_inside
from pipeline.records.outline import Outline

SHAPE = (14, 17)
HALVES = st.integers(-8, 44).map(lambda half: half / 2)
QUARTERS = st.integers(-16, 88).map(lambda quarter: quarter / 4)
ANYWHERE = st.floats(-6, 24, width=64)
NEARLY = st.tuples(HALVES, st.sampled_from([0.0, 1e-16, 1e-13, -1e-13, 3e-12, -3e-12, 1e-9])).map(sum)


def rings(*numbers: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    number = st.one_of(*numbers)
    return st.lists(st.tuples(number, number), min_size=1, max_size=12).map(lambda points: np.array(points, float))


ANY_RING = st.one_of(rings(HALVES), rings(QUARTERS), rings(ANYWHERE), rings(HALVES, ANYWHERE), rings(NEARLY))


def plainly(outline: Outline, shape: tuple[int, int]) -> np.ndarray:
    """Every pixel of the image asked about every ring."""
    inside = np.zeros(shape, bool)
    start = 0
    for count in outline.parts or (len(outline.rings),):
        part = np.zeros(shape, bool)
        for ring in outline.rings[start : start + count]:
            if len(ring) >= 3:
                part ^= polygon2mask(shape, ring[:, ::-1] - 0.5)
        inside |= part
        start += count
    for hole in outline.holes:
        inside &= ~plainly(hole, shape)
    return inside


def filled(outline: Outline, shape: tuple[int, int]) -> np.ndarray:
    whole = np.zeros(shape, bool)
    if (found := pixels_inside(outline, shape)) is not None:
        top, left, inside = found
        whole[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return whole


PARTS = st.lists(st.lists(ANY_RING, max_size=3), min_size=1, max_size=3)


@settings(deadline=None, max_examples=300)
@given(PARTS, st.lists(PARTS, max_size=2))
def test_parity_with_every_pixel_asked_about_every_edge(
    parts: list[list[np.ndarray]], holes: list[list[list[np.ndarray]]]
) -> None:
    def outline(parts: list[list[np.ndarray]], **more: tuple[Outline, ...]) -> Outline:
        return Outline(tuple(ring for part in parts for ring in part), parts=tuple(map(len, parts)), **more)

    made = outline(parts, holes=tuple(map(outline, holes)))
    np.testing.assert_array_equal(filled(made, SHAPE), plainly(made, SHAPE))


@pytest.mark.parametrize("side", [1, 7, 300])
def test_corners_in_any_number_are_filled_alike(side: int) -> None:
    generator = np.random.default_rng(side)
    wild = generator.uniform(-0.2, 1.2, (500, 2)) * side
    outline = Outline((wild, generator.integers(0, side + 1, (200, 2)).astype(float)))
    np.testing.assert_array_equal(filled(outline, (side, side)), plainly(outline, (side, side)))


def test_an_outline_of_many_corners_takes_no_longer_than_its_pixels() -> None:
    angles = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    radius = 900 * (1 + 0.02 * np.sin(40 * angles))
    outline = Outline((np.stack([1000 + radius * np.cos(angles), 1000 + radius * np.sin(angles)], axis=1),))
    pixels_inside(Outline((outline.rings[0][::10_000],)), (2000, 2000))
    start = time.process_time()
    inside = filled(outline, (2000, 2000))
    # Every pixel asked about every edge, 8,000 corners took 171 s.
    assert time.process_time() - start < 2
    assert abs(inside.sum() / (np.pi * 900**2) - 1) < 0.001


def test_each_ring_is_looked_at_within_its_own_box() -> None:
    frame = np.array([(0, 0), (2000, 0), (2000, 2000), (0, 2000)], float)
    holes = [frame / 200 + (20 * column, 20 * row) for row in range(100) for column in range(100)]
    outline = Outline((frame, *holes))
    start = time.process_time()
    inside = filled(outline, (2000, 2000))
    assert time.process_time() - start < 5
    assert inside.sum() == 2000**2 - 100**2 * 10**2


@pytest.mark.parametrize("far", [1e9, 1e30, 1e200, 1e308])
def test_corners_far_beyond_the_image_do_no_harm(far: float) -> None:
    outline = Outline((np.array([(-far, -far), (far, -far), (far, far), (-far, far)]),))
    assert filled(outline, (5, 6)).shape == (5, 6)
    if far < 1e100:
        assert filled(outline, (5, 6)).all()
