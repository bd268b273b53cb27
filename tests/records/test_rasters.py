"""Rasters come back as they were written, and the same content gives the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.records.rasters import (
    PROBABILITY_SCALE,
    read_image,
    read_label,
    read_probabilities,
    write_png,
    write_probabilities,
)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [(1, 1), (80, 100), (300, 257)])
def test_probabilities_come_back_to_16_bits(tmp_path: Path, channels: int, size: tuple[int, int]) -> None:
    planes = np.random.default_rng(1).random((channels, *size)).astype(np.float32)
    for name in ("one.tif", "two.tif"):
        write_probabilities(tmp_path / name, planes)
    found = read_probabilities(tmp_path / "one.tif")
    assert found.shape == planes.shape and found.dtype == np.float32
    np.testing.assert_allclose(found, planes, atol=0.51 / PROBABILITY_SCALE)
    assert (tmp_path / "one.tif").read_bytes() == (tmp_path / "two.tif").read_bytes()


def test_labels_keep_16_bits_and_images_their_colours(tmp_path: Path) -> None:
    label = np.array([[0, 1, 300], [65534, 65535, 2]], np.uint16)
    write_png(tmp_path / "label.png", label)
    np.testing.assert_array_equal(read_label(tmp_path / "label.png"), label)
    image = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    write_png(tmp_path / "image.png", image)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), image)


def test_what_is_no_raster_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ValueError, match=r"text\.png: expected an image"):
        read_image(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"text\.png: expected one plane"):
        read_label(tmp_path / "text.png")
    with pytest.raises(ValueError, match="expected uint8 or uint16, found float64"):
        write_png(tmp_path / "float.png", np.zeros((2, 2)))
