"""Rendered tissue: exact in its physics, the same for the same seed, with every nucleus known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from pipeline.canvas import CONCENTRATION_STEP, MINIMUM_AREA
from pipeline.laboratories import LABORATORIES
from pipeline.tissue import render_field


@pytest.mark.parametrize("name", sorted(LABORATORIES))
def test_plain_scan_obeys_beer_lambert_within_quantisation(name: str) -> None:
    laboratory = LABORATORIES[name].plain()
    field = render_field("gland", 96, 80, laboratory, seed=5)
    concentrations = field.tissue.concentrations.astype(np.float64) * laboratory.amounts
    light = 10.0 ** -(concentrations @ np.array(laboratory.stain_matrix)) * laboratory.white_point
    assert field.image.shape == (96, 80, 3)
    assert np.abs(field.image - light).max() <= 0.5 + 1e-6


def test_least_squares_with_the_true_matrix_returns_the_concentrations() -> None:
    laboratory = LABORATORIES["south"].plain(noise=0.5)
    field = render_field("nest", 128, 128, laboratory, seed=8)
    density = -np.log10(np.maximum(field.image, 1) / np.array(laboratory.white_point)).reshape(-1, 3)
    found = np.linalg.lstsq(np.array(laboratory.stain_matrix).T, density.T, rcond=None)[0].T / laboratory.amounts
    truth = field.tissue.concentrations.reshape(-1, 2)
    assert np.median(np.abs(found - truth), axis=0) == pytest.approx([0.0, 0.0], abs=0.02)


def test_stain_vectors_have_length_one_and_crosstalk_keeps_white_white() -> None:
    for laboratory in LABORATORIES.values():
        assert np.linalg.norm(laboratory.stain_matrix, axis=1) == pytest.approx([1.0, 1.0], abs=1e-3)
        assert np.sum(laboratory.crosstalk, axis=1) == pytest.approx([1.0, 1.0, 1.0])
        glass = np.zeros((64, 64, 2), np.float32)
        scanned = laboratory.scan(glass, np.random.default_rng(0)).astype(float)
        assert scanned.mean(axis=(0, 1)) == pytest.approx(laboratory.white_point, abs=0.6)


def test_another_laboratory_changes_the_look_and_not_the_tissue() -> None:
    field = render_field("lymphoid", 96, 96, LABORATORIES["north"], seed=3)
    again = render_field("lymphoid", 96, 96, LABORATORIES["east"], seed=3)
    other = field.rescanned(LABORATORIES["east"], seed=4)
    assert np.array_equal(field.tissue.concentrations, again.tissue.concentrations)
    assert other.tissue is field.tissue
    assert np.abs(field.image.astype(int) - other.image).mean() > 15
    assert np.abs(again.image.astype(int) - other.image).mean() < 4


def test_same_seed_same_pixels_and_another_seed_others() -> None:
    first, second, third = (render_field("stroma", 96, 112, LABORATORIES["west"], seed=seed) for seed in (2, 2, 9))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.tissue.label, second.tissue.label)
    assert not np.array_equal(first.image, third.image)


def test_concentrations_lie_on_the_grid_that_float16_holds() -> None:
    concentrations = render_field("nest", 96, 96, LABORATORIES["east"], seed=1).tissue.concentrations
    assert np.array_equal(concentrations.astype(np.float16).astype(np.float32), concentrations)
    assert np.array_equal(concentrations, np.rint(concentrations / CONCENTRATION_STEP) * CONCENTRATION_STEP)
    assert concentrations.min() >= 0.0


def test_nuclei_hold_more_haematoxylin_than_what_lies_around_them() -> None:
    """Truth is well defined: nearly every annotated nucleus is darker in haematoxylin than the ring around it."""
    darker = []
    for kind in ("gland", "nest", "lymphoid", "stroma"):
        tissue = render_field(kind, 160, 160, LABORATORIES["north"].plain(), seed=6).tissue
        haematoxylin, background = tissue.concentrations[..., 0], tissue.label == 0
        for number, place in enumerate(ndimage.find_objects(tissue.label), start=1):
            wide = tuple(slice(max(0, side.start - 3), side.stop + 3) for side in place)
            inside = tissue.label[wide] == number
            ring = ndimage.binary_dilation(inside, iterations=3) & background[wide] & ~ndimage.binary_dilation(inside)
            if ring.sum() >= 8:
                darker.append(haematoxylin[wide][inside].mean() > haematoxylin[wide][ring].mean() + 0.05)
    assert len(darker) > 150
    assert np.mean(darker) > 0.97


def test_crops_tile_their_tissue_exactly() -> None:
    tissue = render_field("gland", 128, 160, LABORATORIES["north"], seed=4).tissue
    crops = [[tissue.cut(top, left, 64, 80) for left in (0, 80)] for top in (0, 64)]
    assert np.array_equal(
        np.vstack([np.hstack([c.concentrations for c in row]) for row in crops]), tissue.concentrations
    )
    together = np.block([[c.label for c in row] for row in crops]) > 0
    lost = (tissue.label > 0) & ~together
    assert not (together & (tissue.label == 0)).any()
    assert all((lost & (tissue.label == number)).sum() < 3 * MINIMUM_AREA for number in np.unique(tissue.label[lost]))
