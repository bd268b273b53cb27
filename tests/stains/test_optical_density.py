"""Optical density: exact tables, a product of matrices, and what counts as stained tissue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.records.rasters import read_image
from pipeline.stains.optical_density import (
    HAEMATOXYLIN_EOSIN,
    density_tables,
    ink_mask,
    is_stained,
    measure_white,
    mix,
    sample_pixels,
    stain_basis,
    tissue_and_ink,
    tissue_mask,
    tissue_pixels,
    to_density,
    to_image,
)

LEVELS = np.repeat(np.arange(256, dtype=np.uint8)[np.newaxis, :, np.newaxis], 3, axis=2)
WHITES = [(255.0, 255.0, 255.0), (240.0, 228.0, 218.0)]


def test_density_is_the_logarithm_to_base_10_of_how_much_is_left_of_white() -> None:
    table = density_tables((250.0, 100.0, 255.0))
    np.testing.assert_allclose(table[25], [1.0, np.log10(4.0), np.log10(10.2)], rtol=1e-6)
    np.testing.assert_allclose(table[100, 1], 0.0, atol=1e-7)
    assert np.isfinite(table).all() and (np.diff(table, axis=0) < 0).all()


@pytest.mark.parametrize("white", WHITES)
def test_every_grey_level_comes_back(white: tuple[float, float, float]) -> None:
    np.testing.assert_array_equal(to_image(to_density(LEVELS, white), white), LEVELS)
    np.testing.assert_array_equal(mix(LEVELS, np.eye(3), white, white), LEVELS)


@pytest.mark.parametrize("shape", [(1, 1), (1, 30_000), (9_000, 1), (300, 211), (800, 611)])
def test_mixing_is_one_matrix_on_densities(shape: tuple[int, int]) -> None:
    """Against the plain formula, in one thread and in several, to the rounding of one grey level."""
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (*shape, 3), dtype=np.uint8)
    matrix = np.eye(3) + generator.normal(0.0, 0.2, (3, 3))
    white, white_out = np.array([245.0, 240.0, 235.0]), np.array([255.0, 250.0, 252.0])
    density = np.log10(white / np.maximum(image.astype(np.float64), 0.4))
    plain = np.clip(white_out * 10.0 ** -(density @ matrix), 0.0, 255.0)
    mixed = mix(image, matrix, tuple(white), tuple(white_out))
    assert mixed.dtype == np.uint8 and mixed.flags.c_contiguous
    assert np.abs(mixed - plain).max() < 0.51


def test_white_maps_to_white_and_views_are_taken_as_they_are() -> None:
    matrix = np.random.default_rng(1).normal(0.0, 1.0, (3, 3))
    glass = np.broadcast_to(np.array([240, 228, 218], np.uint8), (5, 7, 3))
    assert (mix(glass, matrix, WHITES[1], (255.0, 254.0, 253.0)) == [255, 254, 253]).all()
    image = np.random.default_rng(2).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    for view in (image[::2, ::3], image.transpose(1, 0, 2), image[:, ::-1]):
        np.testing.assert_array_equal(mix(view, matrix), mix(view.copy(), matrix))


def test_the_basis_has_unit_rows_and_a_third_that_neither_stain_absorbs() -> None:
    basis = stain_basis(HAEMATOXYLIN_EOSIN)
    np.testing.assert_allclose(np.linalg.norm(basis, axis=1), 1.0)
    np.testing.assert_allclose(basis[:2] @ basis[2], 0.0, atol=1e-12)


def test_stain_amounts_agree_with_scikit_image() -> None:
    """Its separate_stains takes the same matrix; its logarithm has another base and unit, the same for all stains."""
    from skimage.color import separate_stains

    image = np.random.default_rng(4).integers(20, 250, (30, 30, 3), dtype=np.uint8)
    unmix = np.linalg.inv(stain_basis(HAEMATOXYLIN_EOSIN))
    theirs = separate_stains(image, unmix)
    ours = to_density(image) @ unmix
    shown = theirs > 0.005
    ratio = ours[shown] / theirs[shown]
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=2e-3)


def test_tissue_is_neither_glass_nor_grey_nor_opaque() -> None:
    pixels = {
        (255, 255, 255): False, (243, 241, 244): False, (0, 0, 0): False, (128, 128, 128): False, (20, 20, 22): False,
        (1, 2, 1): False, (120, 70, 150): True, (225, 150, 190): True, (60, 25, 80): True,
    }  # fmt: skip
    found = tissue_mask(to_density(np.array([list(pixels)], np.uint8)))[0]
    assert found.tolist() == list(pixels.values())


def test_the_compiled_tissue_mask_is_the_plain_one() -> None:
    pixels = np.random.default_rng(5).integers(0, 256, (50_000, 3), dtype=np.uint8)
    for white in WHITES:
        plain = pixels[tissue_mask(to_density(pixels[np.newaxis], white))[0]]
        np.testing.assert_array_equal(tissue_pixels(pixels, white), plain)
        density = to_density(pixels[np.newaxis], white)[0]
        found, ink, alike = tissue_and_ink(pixels, white)
        np.testing.assert_array_equal(found, plain)
        assert ink == ink_mask(density).sum() > alike > 0
    assert len(tissue_pixels(pixels[:0])) == 0


def test_ink_is_told_from_stains() -> None:
    pixels = {
        (40, 60, 190): True, (20, 120, 40): True, (15, 15, 18): True, (200, 30, 40): True, (0, 0, 255): True,
        (90, 70, 150): False, (120, 60, 140): False, (60, 25, 80): False, (225, 110, 170): False,
        (190, 60, 80): False, (120, 70, 40): False, (70, 40, 20): False, (255, 255, 255): False, (128, 128, 128): False,
    }  # fmt: skip
    found = ink_mask(to_density(np.array([list(pixels)], np.uint8)))[0]
    assert found.tolist() == list(pixels.values())


@pytest.mark.parametrize("shape", [(1, 1), (1, 500_000), (500_000, 1), (256, 320), (1024, 960)])
def test_the_grid_is_even_and_all_of_a_small_image(shape: tuple[int, int]) -> None:
    places = np.arange(shape[0] * shape[1])
    image = np.stack([places & 255, places >> 8 & 255, places >> 16], axis=1).astype(np.uint8).reshape(*shape, 3)
    for times in (0.25, 1.0, 4.0):
        found = sample_pixels(image, times).astype(np.int64) @ [1, 256, 65536]
        assert len(set(found.tolist())) == len(found) >= min(4000, len(places))
        # In the mean at the middle, up to half a step and the shifts of the rows.
        assert abs(found.mean() - places.mean()) < 0.02 * len(places) + 1
        assert len(found) < 2.6 * times * 2**15 or min(shape) < 10


@pytest.mark.parametrize("white", [(244.0, 242.0, 245.0), (226.0, 214.0, 190.0), (255.0, 255.0, 255.0)])
def test_glass_is_measured_where_there_is_any(white: tuple[float, float, float]) -> None:
    """Known white points with noise; tissue without glass, however pale, has none; fluorescence neither."""
    generator = np.random.default_rng(0)
    pink = np.array(white) * 10.0 ** -(generator.gamma(3.0, 0.12, (20_000, 1)) @ [[0.07, 0.99, 0.10]] + 0.01)
    glass = np.array(white) + generator.normal(0.0, 1.5, (1_000, 3))
    pixels = np.rint(np.concatenate([pink, glass]).clip(0, 255)).astype(np.uint8)
    found = measure_white(pixels)
    assert found is not None and np.abs(np.array(found) - white).max() <= 2.5
    dense = np.rint(pink.clip(0, 200)).astype(np.uint8)
    assert measure_white(dense[dense[:, 1] < 170]) is None
    assert measure_white(np.zeros((100, 3), np.uint8)) is None


@pytest.mark.parametrize("shape", [(1, 1), (31, 200), (256, 256)])
def test_what_looks_stained(shape: tuple[int, int]) -> None:
    def plain(*colour: int) -> np.ndarray:
        return np.broadcast_to(np.array(colour, np.uint8), (*shape, 3))

    assert is_stained(plain(180, 120, 190)) and is_stained(plain(90, 40, 80))
    for colour in ((0, 0, 0), (255, 255, 255), (130, 130, 130), (10, 5, 30), (60, 200, 90), (235, 234, 238)):
        assert not is_stained(plain(*colour)), colour


@pytest.mark.real
def test_real_tissue_looks_stained(real_data: Path) -> None:
    files = sorted((real_data / "camelyon17_centres").rglob("*.*g")) + sorted((real_data / "stain_examples").glob("*"))
    assert len(files) >= 25
    assert [file.name for file in files if not is_stained(read_image(file))] == []


@pytest.mark.real
def test_real_fluorescence_does_not(dsb2018: Path) -> None:
    """Only the modality is looked up; white on black is fluorescence, black on white an unstained smear."""
    import csv
    import zipfile

    import cv2

    with (dsb2018 / "classes.csv").open(encoding="utf-8", newline="") as stream:
        looks = {row["filename"][:-4]: (row["foreground"], row["background"]) for row in csv.DictReader(stream)}
    wanted = {
        ("white", "black"): False,
        ("black", "white"): False,
        ("purple", "white"): True,
        ("purple", "purple"): True,
    }
    counts = dict.fromkeys(wanted, 0)
    with zipfile.ZipFile(dsb2018 / "stage1_train.zip") as archive:
        for name in archive.namelist():
            case, _, rest = name.partition("/")
            look = looks.get(case)
            if rest.startswith("images/") and rest.endswith(".png") and look in counts and counts[look] < 10:
                pixels = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_COLOR)
                assert is_stained(pixels[..., ::-1]) == wanted[look], (case, look)
                counts[look] += 1
    assert min(counts.values()) == 10
