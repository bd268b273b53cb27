"""What the network is shown: dim and bright alike, and, where asked for, whatever the colour of the light."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.intensity import (
    INTENSITIES,
    SMALLEST_RANGE,
    TABLES,
    balance,
    balance_table,
    count_levels,
    looked_up,
    stretch,
)


def ramp(low: float, high: float) -> np.ndarray:
    """Every level between two, alike in all channels: (200, 200, 3)."""
    levels = np.rint(np.linspace(low, high, 200 * 200)).astype(np.uint8).reshape(200, 200)
    return np.repeat(levels[..., None], 3, axis=2)


def test_a_ramp_fills_the_range() -> None:
    made = stretch(ramp(20, 120))
    assert made.min() == 0 and made.max() == 255
    # The 0.5th and 99.5th percentile of levels 20 to 120 are 20 and 120: the middle stays in the middle.
    assert made[100, 0, 0] == pytest.approx(127.5, abs=2.5)


@pytest.mark.parametrize("prepare", [stretch, balance])
def test_a_blank_image_is_not_blown_up(prepare: object) -> None:
    noisy = np.random.default_rng(0).integers(118, 122, (64, 64, 3)).astype(np.uint8)
    made = INTENSITIES[prepare.__name__](noisy)  # type: ignore[attr-defined]
    assert np.ptp(made.astype(int)) <= 4 * 255 / SMALLEST_RANGE
    assert abs(float(made.mean()) - 127.5) < 20


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_grey_images_are_balanced_as_they_are_stretched(seed: int) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (40, 30)).astype(np.uint8)
    image = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(balance(image), stretch(image))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.tuples(*[st.floats(0.5, 1.0)] * 3))
def test_balance_takes_away_the_colour_of_the_light(seed: int, gains: tuple[float, float, float]) -> None:
    generator = np.random.default_rng(seed)
    image = generator.integers(40, 256, (60, 60, 3)).astype(np.uint8)
    lit = np.rint(image * np.array(gains)).astype(np.uint8)
    # A level of the darkened image stands for up to two of the other: each is stretched to at most 255 / (215 / 2).
    assert np.abs(balance(lit).astype(int) - balance(image)).max() <= 6


@pytest.mark.parametrize("prepare", TABLES)
def test_the_table_of_one_image_is_what_it_is_prepared_by(prepare: object) -> None:
    image = np.random.default_rng(1).integers(30, 200, (50, 40, 3)).astype(np.uint8)
    table = TABLES[prepare](count_levels(image))  # type: ignore[index]
    np.testing.assert_array_equal(looked_up(table, image), prepare(image))  # type: ignore[operator]
    for channel in range(3):
        np.testing.assert_array_equal(looked_up(table, image)[..., channel], table[image[..., channel], channel])


def test_channels_of_many_images_are_counted_apart() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 1], image[0, 0, 2] = 7, 9
    counts = count_levels(image)
    assert counts.shape == (256, 3) and counts[0].tolist() == [4, 0, 3] and counts[7, 1] == 4 and counts[9, 2] == 1
    assert balance_table(counts).shape == (256, 3)
