"""Metrics of images: closed forms, parity with plain formulas and published values, and what changes nothing."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.laboratories import LABORATORIES
from pipeline.metrics import stain
from pipeline.stains.optical_density import stain_basis
from pipeline.tissue import render_field

NORTH = LABORATORIES["north"].plain()


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return render_field("nest", 160, 192, NORTH, 7).image


def flat(level: int, height: int = 16, width: int = 20) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


# --- Pixel by pixel -----------------------------------------------------------------------------------------------


def test_psnr_of_a_known_error() -> None:
    assert stain.psnr(flat(100), flat(110)) == pytest.approx(10.0 * math.log10(255.0**2 / 100.0))
    one = flat(100)
    one[3, 4, 1] = 101
    assert stain.psnr(one, flat(100)) == pytest.approx(10.0 * math.log10(255.0**2 * one.size))
    assert stain.psnr(flat(0), flat(255)) == pytest.approx(0.0)
    assert stain.psnr(flat(9), flat(9)) == stain.LARGEST_PSNR == 100.0


def test_ssim_of_flat_images_has_a_closed_form() -> None:
    constant = (0.01 * 255.0) ** 2
    expected = (2.0 * 100.0 * 140.0 + constant) / (100.0**2 + 140.0**2 + constant)
    assert stain.ssim(flat(100), flat(140)) == pytest.approx(expected, abs=1e-6)


def test_ssim_is_the_papers_formula(tissue: np.ndarray) -> None:
    other = cv2.GaussianBlur(tissue, (0, 0), 1.0)
    x, y = tissue.astype(np.float64), other.astype(np.float64)

    def mean(plane: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(plane, (11, 11), 1.5)[5:-5, 5:-5]

    spread, both = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2, mean(x * y) - mean(x) * mean(y)
    first, second = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
    light = (2.0 * mean(x) * mean(y) + first) / (mean(x) ** 2 + mean(y) ** 2 + first)
    assert stain.ssim(tissue, other) == pytest.approx(float((light * (2.0 * both + second) / (spread + second)).mean()))


@pytest.mark.parametrize("shape", [(1, 1), (3, 40), (11, 11), (10, 64)])
def test_small_images_are_measured_too(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    found = stain.compare(image, image)
    assert (found["psnr"], found["ciede2000"]) == (100.0, 0.0) and found["ssim"] == pytest.approx(1.0)


def test_ciede2000_of_black_white_and_grey() -> None:
    assert stain.ciede2000(flat(0), flat(255)) == pytest.approx(100.0, abs=1e-3)
    assert stain.ciede2000(flat(40), flat(40)) == 0.0
    # A difference of lightness alone: dL / S_L, with L of sRGB grey levels 119 and 120 (Sharma 2005, equations 8-22).
    lightness = [116.0 * ((level / 255.0 + 0.055) / 1.055) ** (2.4 / 3.0) - 16.0 for level in (119.0, 120.0)]
    middle = (sum(lightness) / 2.0 - 50.0) ** 2
    scale = 1.0 + 0.015 * middle / math.sqrt(20.0 + middle)
    assert stain.ciede2000(flat(119), flat(120)) == pytest.approx((lightness[1] - lightness[0]) / scale, abs=1e-3)


def test_other_sizes_are_refused() -> None:
    for measure in (stain.psnr, stain.ssim, stain.ciede2000, stain.structure, stain.compare):
        with pytest.raises(ValueError, match=r"found \(16, 20, 3\) and \(16, 21, 3\); compare an image with"):
            measure(flat(0), flat(0, 16, 21))


# --- Stains -------------------------------------------------------------------------------------------------------


def test_angles_of_known_vectors() -> None:
    axes = np.eye(3)
    turned = np.array([[1.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1e-9, 0.0, 1.0]])
    assert stain.vector_angles(axes, turned) == pytest.approx([45.0, 0.0, np.degrees(1e-9)], rel=1e-6)


def test_stain_angles_are_those_of_the_laboratories(tissue: np.ndarray) -> None:
    field = render_field("nest", 160, 192, NORTH, 7)
    east = LABORATORIES["east"].plain()
    found = stain.stain_angles(tissue, field.rescanned(east, 1).image)
    assert found is not None
    # Of what Macenko sees, to which its own error on each image adds.
    true = stain.vector_angles(np.array(NORTH.stain_matrix), np.array(east.stain_matrix))
    assert found == pytest.approx(true, abs=6.0)
    assert stain.stain_angle(tissue, field.rescanned(east, 1).image) == pytest.approx(sum(found) / 2.0)
    assert stain.stain_angles(tissue, tissue) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert stain.stain_angles(tissue, flat(240)) is None and stain.stain_angle(flat(240), tissue) is None


def test_angles_that_cannot_be_measured_are_not_a_number(tissue: np.ndarray) -> None:
    found = stain.compare(flat(240, *tissue.shape[:2]), tissue)
    assert math.isnan(found["haematoxylin_angle"]) and math.isnan(found["eosin_angle"]) and 0.0 < found["psnr"] < 30.0


def test_columns_of_compare(tissue: np.ndarray) -> None:
    found = stain.compare(tissue, tissue)
    assert tuple(found) == stain.COLUMNS and all(type(value) is float for value in found.values())
    assert list(found.values()) == pytest.approx([100.0, 1.0, 0.0, 0.0, 0.0], abs=1e-6)


def restained(image: np.ndarray, amount: float) -> np.ndarray:
    """Other vectors and another amount, by the plain law, with the pixels' own rounding."""
    before, after = (stain_basis(LABORATORIES[name].stain_matrix) for name in ("north", "east"))
    density = -np.log10(np.maximum(image, 0.4) / 255.0)
    light = 10.0 ** -(amount * density @ np.linalg.inv(before) @ after)
    return np.rint(np.clip(255.0 * light, 0, 255)).astype(np.uint8)


def test_structure_outlives_another_stain_and_not_blur_or_invention() -> None:
    before = render_field("gland", 160, 192, LABORATORIES["north"], 7).image
    after = restained(before, 0.8)
    kept = stain.structure(before, after)
    assert kept is not None and kept > 0.95 and stain.structure(before, before) == pytest.approx(1.0)
    invented = after.copy()
    darkest = after.reshape(-1, 3)[after.sum(axis=2).argmin()].tolist()
    for x in range(20, 180, 40):
        cv2.circle(invented, (x, 80), 12, darkest, -1)
    erased = np.full_like(before, 240)
    for worse in (cv2.GaussianBlur(after, (0, 0), 1.5), invented, erased):
        found = stain.structure(before, worse)
        assert found is not None and found < kept - 0.05
    assert stain.structure(erased, before) is None


# --- Samples of tissue --------------------------------------------------------------------------------------------


def test_tissue_density_leaves_glass_out(tissue: np.ndarray) -> None:
    density = stain.tissue_density(tissue)
    assert density.shape[1] == 3 and 0 < len(density) <= tissue.size // 3 and (density.sum(axis=1) > 0.19).all()
    assert len(stain.tissue_density(flat(250))) == 0


def test_energy_distance_of_points_and_in_one_dimension() -> None:
    from scipy.stats import energy_distance

    assert stain.energy_distance(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])) == pytest.approx(math.sqrt(10.0))
    generator = np.random.default_rng(1)
    x, y = generator.normal(0.0, 1.0, 700), generator.normal(0.4, 1.5, 900)
    assert stain.energy_distance(x[:, None], y[:, None]) == pytest.approx(energy_distance(x, y), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 30), m=st.integers(1, 30))
def test_energy_distance_is_the_plain_formula(seed: int, n: int, m: int) -> None:
    generator = np.random.default_rng(seed)
    x, y = generator.normal(0.0, 1.0, (n, 3)), generator.normal(0.5, 1.0, (m, 3))

    def mean(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a[:, None] - b[None], axis=2).mean())

    plain = math.sqrt(max(0.0, 2.0 * mean(x, y) - mean(x, x) - mean(y, y)))
    assert stain.energy_distance(x, y) == pytest.approx(plain, abs=1e-7)
    assert stain.energy_distance(y, x) == pytest.approx(plain, abs=1e-7)
    assert stain.energy_distance(x, x) == 0.0


def test_a_subsample_is_seeded_and_near_the_whole() -> None:
    generator = np.random.default_rng(2)
    x, y = generator.normal(0.0, 0.2, (6000, 3)), generator.normal(0.1, 0.2, (6000, 3))
    whole = stain.energy_distance(x, y, samples=6000)
    first, again, other = (stain.energy_distance(x, y, seed, samples=2000) for seed in (3, 3, 4))
    assert first == again != other and first == pytest.approx(whole, rel=0.1)


def test_energy_distance_needs_two_samples() -> None:
    with pytest.raises(ValueError, match="expected two samples, found 0 and 5 rows"):
        stain.energy_distance(np.zeros((0, 3)), np.zeros((5, 3)))


def test_share_of_the_excess() -> None:
    assert stain.excess_removed(0.5, 0.2, 0.1) == pytest.approx(0.75)
    assert stain.excess_removed(0.5, 0.5, 0.1) == 0.0 and stain.excess_removed(0.5, 0.6, 0.1) == pytest.approx(-0.25)
    assert stain.excess_removed(0.5, 0.05, 0.1) == pytest.approx(1.125)
    assert stain.excess_removed(0.1, 0.05, 0.1) is None
