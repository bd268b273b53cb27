"""Macenko: known stains come back, haematoxylin first."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.laboratories import LABORATORIES
from pipeline.stains.macenko import Macenko
from pipeline.stains.optical_density import density_tables, tissue_pixels
from pipeline.stains.separation import LINEAR, exchange, scaling

NAMES = tuple(LABORATORIES)


def concentrations(seed: int, count: int = 40_000) -> np.ndarray:
    """Mixtures with 3 % of near-pure pixels of each stain and a fifth of glass."""
    generator = np.random.default_rng(seed)
    amounts = generator.gamma(3.0, 0.12, (count, 2)) + 0.05
    kind = generator.random(count)
    amounts[kind < 0.03, 1] *= 0.02
    amounts[(kind >= 0.03) & (kind < 0.06), 0] *= 0.02
    amounts[kind > 0.8] = 0.0
    return amounts


def image_of(amounts: np.ndarray, name: str, noise: float, seed: int = 0) -> np.ndarray:
    laboratory = LABORATORIES[name].plain(noise)
    return laboratory.scan(amounts.reshape(200, -1, 2), np.random.default_rng(seed))


def angles(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((found * true).sum(axis=1), -1.0, 1.0)))


def matrix_of(name: str) -> np.ndarray:
    matrix = np.array(LABORATORIES[name].stain_matrix)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_known_stains_come_back_within_three_degrees(name: str, noise: float) -> None:
    for seed in range(3):
        image = image_of(concentrations(seed), name, noise, seed)
        normaliser = Macenko(white=LABORATORIES[name].white_point).fit([image])
        assert normaliser.reference_ is not None
        found = normaliser.reference_[:6].reshape(2, 3)
        assert angles(found, matrix_of(name)).max() < 3.0
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_largest_concentrations_come_back_within_ten_percent(name: str) -> None:
    amounts = concentrations(7)
    normaliser = Macenko(white=LABORATORIES[name].white_point).fit([image_of(amounts, name, 1.0)])
    assert normaliser.reference_ is not None
    laboratory = LABORATORIES[name]
    lengths = np.linalg.norm(laboratory.stain_matrix, axis=1) * laboratory.amounts
    true = np.percentile(amounts[amounts.sum(axis=1) > 0] * lengths, 99, axis=0)
    np.testing.assert_allclose(normaliser.reference_[6:8], true, rtol=0.1)


@pytest.mark.parametrize("target", ["east", "south", "west"])
def test_exchanging_stains_gives_the_other_laboratorys_image(target: str) -> None:
    """With one white point and the true concentrations in common, the result is known pixel by pixel."""
    amounts = concentrations(3)
    white = (255.0, 255.0, 255.0)
    images = {}
    for name in ("north", target):
        density = (amounts * 0.6) @ matrix_of(name)
        images[name] = np.rint(255.0 * 10.0**-density).astype(np.uint8).reshape(200, -1, 3)
    normalised, status = Macenko(white=white).fit([images[target]]).transform(images["north"])
    assert status == "ok"
    difference = np.abs(normalised.astype(int) - images[target])
    assert difference.mean() < 2.5 and np.percentile(difference, 99) < 14


def test_haematoxylin_comes_before_eosin_whatever_there_is_more_of() -> None:
    for scale in ([1.6, 0.4], [0.4, 1.6]):
        image = image_of(concentrations(5) * scale, "north", 1.0)
        normaliser = Macenko(white=LABORATORIES["north"].white_point).fit([image])
        assert normaliser.reference_ is not None
        haematoxylin, eosin = normaliser.reference_[:6].reshape(2, 3)
        assert haematoxylin[0] > 0.5 > eosin[0]


def plain_vectors(density: np.ndarray) -> np.ndarray:
    """The definition, in NumPy: edges of the cloud in the plane of its second moment about glass."""
    density = density[density.max(axis=1) < LINEAR]
    _, directions = np.linalg.eigh(density.T @ density)
    plane = directions[:, [2, 1]] * np.sign(directions[:, 2].sum())
    along, across = (density @ plane).T
    edges = np.percentile(np.arctan2(across, along), [1.0, 99.0])
    vectors = np.column_stack([np.cos(edges), np.sin(edges)]) @ plane.T
    return vectors[np.argsort(-vectors[:, 0])]


@pytest.mark.parametrize("name", NAMES)
def test_the_estimate_from_a_subsample_is_the_plain_one_of_all_pixels(name: str) -> None:
    amounts = concentrations(4, 240_000)
    image = image_of(amounts, name, 1.5)
    white = LABORATORIES[name].white_point
    _, measured = Macenko(white=white).measure(image)
    tissue = tissue_pixels(image.reshape(-1, 3), white)
    density = density_tables(white)[tissue, [0, 1, 2]].astype(np.float64)
    plain = plain_vectors(density)
    assert measured is not None and angles(measured[:6].reshape(2, 3), plain).max() < 0.5
    largest = np.percentile(density @ np.linalg.pinv(plain), 99.0, axis=0)
    np.testing.assert_allclose(measured[6:8], largest, rtol=0.03)


def test_order_of_pixels_does_not_matter() -> None:
    pixels = image_of(concentrations(1, 20_000), "north", 1.0).reshape(-1, 3)
    shuffled = pixels[np.random.default_rng(0).permutation(len(pixels))]
    statistics = [Macenko().measure(order.reshape(100, -1, 3))[1] for order in (pixels, shuffled)]
    assert statistics[0] is not None
    np.testing.assert_allclose(statistics[0], statistics[1], rtol=1e-6)


def test_saturated_nuclei_do_not_pass_for_eosin() -> None:
    """A sensor's floor bends dense haematoxylin towards green; such pixels take no part in the estimate."""
    amounts = concentrations(2)
    amounts[:8000] = (2.5, 0.0)
    image = image_of(amounts, "east", 1.0).astype(float)
    image = np.maximum(image, [45, 5, 45]).astype(np.uint8)
    normaliser = Macenko(white=LABORATORIES["east"].white_point).fit([image])
    assert normaliser.reference_ is not None
    assert angles(normaliser.reference_[:6].reshape(2, 3), matrix_of("east")).max() < 3.0


def test_exchange_unmixes_scales_and_mixes() -> None:
    own, wanted = matrix_of("east"), matrix_of("west")
    amounts = np.array([[0.7, 0.2], [0.0, 1.0]])
    found = amounts @ own @ exchange(own, wanted, np.array([2.0, 0.5]))
    np.testing.assert_allclose(found, amounts * [2.0, 0.5] @ wanted, atol=1e-12)


def test_scaling_by_one_is_no_change_and_the_rest_stays() -> None:
    vectors = matrix_of("north")
    np.testing.assert_allclose(scaling(vectors, np.ones(2)), np.eye(3), atol=1e-12)
    rest = np.cross(*vectors)
    scaled = (np.array([0.5, 0.3]) @ vectors + 0.2 * rest) @ scaling(vectors, np.array([2.0, 0.5]))
    np.testing.assert_allclose(scaled, np.array([1.0, 0.15]) @ vectors + 0.2 * rest, atol=1e-12)


def test_a_tile_of_one_stain_keeps_its_colours_and_comes_nearer_in_depth() -> None:
    """No second vector can be had: the reference's own scale the eosin that there is, and nothing is invented."""
    normaliser = Macenko(white=LABORATORIES["north"].white_point).fit([image_of(concentrations(0), "north", 1.0)])
    amounts = np.column_stack([np.zeros(40_000), 0.3 + np.random.default_rng(1).gamma(4.0, 0.05, 40_000)])
    image = image_of(amounts, "north", 0.5)
    found = normaliser.normalise(image)
    assert (found.status, found.fallback) == ("degenerate", "reference")
    change = found.image.astype(float) - image
    assert np.abs(change).mean() > 2.0
    density = [density_tables()[picture.reshape(-1, 3), [0, 1, 2]].mean(axis=0) for picture in (image, found.image)]
    assert angles(*(d[np.newaxis] / np.linalg.norm(d) for d in density)).max() < 3.0
    assert (density[1] <= 1.55 * density[0]).all()
