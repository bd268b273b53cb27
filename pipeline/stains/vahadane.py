"""Vahadane's normaliser: two sparse, non-negative stains (Vahadane et al., IEEE TMI 35(8), 2016)."""

from __future__ import annotations

import numpy as np

from pipeline.stains.normaliser import White
from pipeline.stains.optical_density import amount_tables, light_factors
from pipeline.stains.separation import (
    AMOUNTS,
    DENSEST,
    DIRECTIONS,
    STRONGEST,
    StainSeparation,
    angle_of,
    cloud_plane,
    direction_sums,
    percentile_places,
    vectors_at,
)

SPARSITY = 0.001
"""Weight of the sum of concentrations (lambda of the paper) over the mean density of the tissue. The larger, the further
both vectors are drawn into the cloud; the paper's 0.1 (in natural logarithms) draws them in by 6 to 8 degrees where 2.5 %
of the pixels are pure, this by less than one."""
SEARCHED, ROUNDS = 24, 4
"""Angles tried for each vector in a round, and rounds, each over the neighbourhood of the best of the one before."""


class Vahadane(StainSeparation):
    """Learns the stain vectors as a sparse non-negative dictionary; concentrations by non-negative least squares.

    Minimised is the paper's equation 3 (squared error + lambda times the sum of concentrations, all non-negative,
    vectors of length 1) with its two vectors in the plane that the densities span: there a pixel counts by its
    direction and length only, so that a histogram of directions holds the whole objective (sparse_angles).
    Concentrations for the transform carry no penalty, which would pale every pixel by the same density.
    """

    method = "vahadane"

    def _vectors(self, tissue: np.ndarray, white: White) -> np.ndarray | None:
        plane = cloud_plane(tissue, white)
        if plane is None:
            return None
        return vectors_at(sparse_angles(direction_sums(tissue, white, plane), SPARSITY), plane)

    def _largest(self, tissue: np.ndarray, vectors: np.ndarray, white: White) -> np.ndarray:
        from pipeline.stains.compiled import amounts_nonnegative

        counts = np.zeros((2, AMOUNTS), np.int64)
        tables = amount_tables(vectors.T, white)
        amounts_nonnegative(tissue, tables, float(vectors[0] @ vectors[1]), DENSEST, counts)
        return np.concatenate([percentile_places(row, STRONGEST) for row in counts]) * (DENSEST / AMOUNTS)

    def _exchange(
        self, image: np.ndarray, own: np.ndarray, wanted: np.ndarray, gain: np.ndarray, before: White, after: White
    ) -> np.ndarray:
        from pipeline.stains.compiled import over_image, product_nonnegative

        unmix = np.linalg.pinv(own)
        scaled = gain[:, np.newaxis] * wanted
        # Where one concentration would be below 0, the other one is the density's projection on its vector.
        cases = (unmix @ scaled, np.outer(own[0], scaled[0]), np.outer(own[1], scaled[1]))
        factors = np.stack([light_factors(matrix, before, after) for matrix in cases])
        glass = np.array(after, np.float32)
        return over_image(product_nonnegative, image, amount_tables(unmix, before), factors, glass)


def sparse_angles(sums: np.ndarray, sparsity: float) -> np.ndarray:
    """Find the angles (2,), lower and upper, of the two vectors that minimise the objective, by search on finer grids.

    sums: (3, DIRECTIONS) from direction_sums; sparsity: lambda over the mean density. A pixel of density r and direction
    t between vectors at a and b costs lambda * (c1 + c2) with the concentrations c1 = r sin(b - t) / sin(b - a), c2 =
    r sin(t - a) / sin(b - a); one beyond the vector at a is left with the error (r sin(t - a))^2 / 2 and costs lambda *
    r cos(t - a); so beyond b. (Terms in lambda^2, which the closed form also has, are below 1e-6 of the whole.)
    """
    angles = angle_of(np.arange(DIRECTIONS) + 0.5)
    edges = angle_of(np.arange(DIRECTIONS + 1.0))
    penalty = sparsity * sums[1].sum() / sums[0].sum()
    weights = np.stack(
        [sums[1] * np.cos(angles), sums[1] * np.sin(angles), sums[2], sums[2] * np.cos(2 * angles),
         sums[2] * np.sin(2 * angles)]
    )  # fmt: skip
    below = np.concatenate([np.zeros((5, 1)), np.cumsum(weights, axis=1)], axis=1)

    def beyond(part: np.ndarray, angle: np.ndarray) -> np.ndarray:
        cosines, sines, squares, double_cosines, double_sines = part
        error = (squares - double_cosines * np.cos(2 * angle) - double_sines * np.sin(2 * angle)) / 4.0
        return error + penalty * (cosines * np.cos(angle) + sines * np.sin(angle))

    low, high = angle_of(percentile_places(sums[0], 0.01, 99.99))
    centres, reach = np.array([low, high]), 0.0
    lower = upper = np.linspace(low, high, SEARCHED)
    for _ in range(ROUNDS):
        if reach:
            lower, upper = (np.linspace(centre - reach, centre + reach, SEARCHED) for centre in centres)
        under = np.stack([np.interp(lower, edges, row) for row in below])
        over = below[:, -1:] - np.stack([np.interp(upper, edges, row) for row in below])
        a, b = lower[:, np.newaxis], upper[np.newaxis]
        between = below[:, -1, np.newaxis, np.newaxis] - under[:, :, np.newaxis] - over[:, np.newaxis]
        apart = np.maximum(np.sin(b - a), 1e-3)
        inside = ((np.sin(b) - np.sin(a)) * between[0] + (np.cos(a) - np.cos(b)) * between[1]) / apart
        cost = penalty * inside + beyond(under, lower)[:, np.newaxis] + beyond(over, upper)[np.newaxis]
        cost[b <= a] = np.inf
        one, other = np.unravel_index(np.argmin(cost), cost.shape)
        reach = 1.5 * (lower[1] - lower[0])
        centres = np.array([lower[one], upper[other]])
    return centres
