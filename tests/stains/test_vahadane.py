"""Vahadane: the search over angles finds the sparse dictionary that slower ways find, and no stain is negative."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.laboratories import LABORATORIES
from pipeline.stains.optical_density import WHITE, tissue_pixels, to_density
from pipeline.stains.separation import exchange, unmixing
from pipeline.stains.vahadane import SPARSITY, Vahadane

NAMES = tuple(LABORATORIES)


def image_of(name: str, seed: int, count: int = 20_000) -> np.ndarray:
    generator = np.random.default_rng(seed)
    amounts = generator.gamma(3.0, 0.1, (count, 2)) + 0.05
    kind = generator.random(count)
    amounts[kind < 0.04, 1] = amounts[(kind >= 0.04) & (kind < 0.08), 0] = 0.0
    laboratory = LABORATORIES[name].plain(1.5)
    return laboratory.scan(amounts.reshape(100, -1, 2), generator)


def lasso(density: np.ndarray, vectors: np.ndarray, penalty: float) -> np.ndarray:
    """Concentrations (n, 2) at least 0 that minimise squared error / 2 + penalty * sum, case by case."""
    products = density @ vectors.T - penalty
    both = products @ np.linalg.inv(vectors @ vectors.T)
    found = both.copy()
    alone = np.maximum(products, 0.0)
    found[both[:, 0] < 0.0] = np.column_stack([np.zeros(len(density)), alone[:, 1]])[both[:, 0] < 0.0]
    found[both[:, 1] < 0.0] = np.column_stack([alone[:, 0], np.zeros(len(density))])[both[:, 1] < 0.0]
    found[(both < 0.0).all(axis=1)] = 0.0
    return found


def cost(density: np.ndarray, vectors: np.ndarray, penalty: float) -> float:
    amounts = lasso(density, vectors, penalty)
    return float(np.square(density - amounts @ vectors).sum() / 2.0 + penalty * amounts.sum())


def alternating(density: np.ndarray, vectors: np.ndarray, penalty: float, rounds: int = 400) -> np.ndarray:
    """The paper's way: concentrations, then vectors by coordinate descent, and again."""
    vectors = vectors.copy()
    for _ in range(rounds):
        amounts = lasso(density, vectors, penalty)
        squares, products = amounts.T @ amounts, amounts.T @ density
        for stain in (0, 1):
            step = vectors[stain] + (products[stain] - squares[stain] @ vectors) / squares[stain, stain]
            vectors[stain] = np.maximum(step, 0.0) / np.linalg.norm(np.maximum(step, 0.0))
    return vectors


def angles(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((found * true).sum(axis=1), -1.0, 1.0)))


def setting(name: str, count: int = 20_000) -> tuple[np.ndarray, np.ndarray, float]:
    """Densities of tissue, the vectors found for it, and the penalty that they were found with."""
    white = LABORATORIES[name].white_point
    image = image_of(name, 1, count)
    _, measured = Vahadane(white=white).measure(image)
    assert measured is not None
    tissue = tissue_pixels(image.reshape(-1, 3), white)
    density = to_density(tissue[np.newaxis], white)[0].astype(np.float64)
    density = density[density.max(axis=1) < 1.0]
    return density, measured[:6].reshape(2, 3), SPARSITY * float(np.linalg.norm(density, axis=1).mean())


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_minimum_that_alternating_minimisation_finds(name: str) -> None:
    density, found, penalty = setting(name)
    slow = alternating(density, found + 0.02 * np.array([[-1.0, 1.0, 1.0], [1.0, -1.0, 1.0]]), penalty)
    assert angles(found, slow).max() < 0.25
    assert cost(density, found, penalty) < 1.002 * cost(density, slow, penalty)


def test_it_is_the_dictionary_that_scikit_learn_learns() -> None:
    from sklearn.decomposition import dict_learning

    density, found, penalty = setting("north", 2_000)
    _, vectors, _ = dict_learning(
        density, 2, alpha=penalty, method="cd", max_iter=40, tol=1e-9,
        code_init=lasso(density, found, penalty), dict_init=found + 0.02,
        positive_code=True, positive_dict=True, random_state=0,
    )  # fmt: skip
    assert angles(found, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).max() < 0.6


def test_the_penalty_draws_the_vectors_into_the_cloud_and_depth_does_not() -> None:
    from pipeline.stains.separation import angle_of, cloud_plane, direction_sums, percentile_places
    from pipeline.stains.vahadane import sparse_angles

    tissue = tissue_pixels(image_of("north", 3).reshape(-1, 3))
    plane = cloud_plane(tissue, WHITE)
    assert plane is not None
    sums = direction_sums(tissue, WHITE, plane)
    widths = [float(np.diff(sparse_angles(sums, sparsity))[0]) for sparsity in (0.0005, 0.002, 0.01)]
    assert widths[0] > widths[1] > widths[2] > 0.0
    assert widths[0] < np.diff(angle_of(percentile_places(sums[0], 0.01, 99.99)))[0]
    deeper = sums * np.array([[1.0], [2.0], [4.0]])
    np.testing.assert_allclose(sparse_angles(deeper, 0.002), sparse_angles(sums, 0.002), atol=1e-9)


def test_no_concentration_is_negative_and_the_plain_formula_gives_the_same_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    own, wanted = (np.array(LABORATORIES[name].stain_matrix) for name in ("east", "north"))
    own, wanted = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (own, wanted))
    gain = np.array([1.3, 0.8])
    found = Vahadane()._exchange(image, own, wanted, gain, WHITE, (250.0, 252.0, 251.0))
    density = to_density(image).reshape(-1, 3).astype(np.float64)
    amounts = lasso(density, own, 0.0)
    assert ((density @ unmixing(own)) < 0.0).any(axis=1).mean() > 0.2
    light = np.array([250.0, 252.0, 251.0]) * 10.0 ** -(amounts * gain @ wanted)
    assert np.abs(found.reshape(-1, 3) - light).max() < 0.52
    both = (density @ unmixing(own) >= 0.0).all(axis=1)
    straight = np.array([250.0, 252.0, 251.0]) * 10.0 ** -(density @ exchange(own, wanted, gain))
    assert np.abs(found.reshape(-1, 3) - straight)[both].max() < 0.52
