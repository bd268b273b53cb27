"""Vahadane's normaliser: two sparse, non-negative stains (Vahadane et al., IEEE TMI 35(8), 2016)."""

from __future__ import annotations

import numpy as np

from pipeline.stains.normaliser import White
from pipeline.stains.optical_density import amount_tables
from pipeline.stains.separation import (
    AMOUNTS,
    DENSEST,
    DIRECTIONS,
    STRONGEST,
    StainSeparation,
    angle_of,
    cloud_plane,
    direction_sums,
    exchange,
    exchange_nonnegative,
    percentile_places,
    vectors_at,
)

SPARSITY = 0.001
"""Weight of the sum of concentrations (lambda of the paper) over the mean density of the tissue. The larger, the
further both vectors are drawn into the cloud: the paper's 0.1 (in natural logarithms) draws them in by 5 to 8 degrees
where 2.5 % of the pixels are pure, this by less than one."""
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
    sampled = 4.0
    """Few pixels lie beyond the vectors, and they alone hold them there: of fewer, much depends on which."""

    def _vectors(self, tissue: np.ndarray, white: White) -> np.ndarray | None:
        plane = cloud_plane(tissue, white)
        if plane is None:
            return None
        return vectors_at(sparse_angles(direction_sums(tissue, white, plane), SPARSITY), plane)

    def _largest(self, tissue: np.ndarray, vectors: np.ndarray, white: White) -> np.ndarray:
        from pipeline.stains.compiled import amounts_nonnegative

        counts = np.zeros((2, AMOUNTS), np.int64)
        tables = amount_tables(vectors.T, white)
        amounts_nonnegative(
            tissue[:: int(self.sampled)].copy(), tables, float(vectors[0] @ vectors[1]), DENSEST, counts
        )
        return np.concatenate([percentile_places(row, STRONGEST) for row in counts]) * (DENSEST / AMOUNTS)

    def _exchange(
        self, image: np.ndarray, own: np.ndarray, wanted: np.ndarray, gain: np.ndarray, before: White, after: White
    ) -> np.ndarray:
        scaled = gain[:, np.newaxis] * wanted
        # Where one concentration would be below 0, the other one is the density's projection on its vector.
        alone = [np.outer(own[stain], scaled[stain]) for stain in (0, 1)]
        return exchange_nonnegative(image, own, (exchange(own, wanted, gain), alone[0], alone[1]), before, after)


def sparse_angles(sums: np.ndarray, sparsity: float) -> np.ndarray:
    """Find the angles (2,), lower and upper, of the two vectors in the plane that minimise the objective.

    sums: (3, DIRECTIONS) from direction_sums; sparsity: lambda over the mean density. A pixel of density r and
    direction t between vectors at a and b costs lambda * (c1 + c2), with c1 = r sin(b - t) / sin(b - a) and c2 = r
    sin(t - a) / sin(b - a); one beyond the vector at a is left with the error (r sin(t - a))^2 / 2 and costs lambda * r
    cos(t - a); so beyond b. (Terms in lambda^2, which the closed form also has, are below 1e-6 of the whole.)
    """
    from pipeline.stains.compiled import cheapest_pair

    angles = angle_of(np.arange(DIRECTIONS) + 0.5)
    _, lengths, squares = sums
    weights = [lengths * np.cos(angles), lengths * np.sin(angles)]
    weights += [squares, squares * np.cos(2 * angles), squares * np.sin(2 * angles)]
    below = np.concatenate([np.zeros((5, 1)), np.cumsum(weights, axis=1)], axis=1)
    penalty = sparsity * lengths.sum() / sums[0].sum()
    low, high = angle_of(percentile_places(sums[0], 0.01, 99.99)).tolist()
    return np.array(cheapest_pair(below, float(penalty), low, high, SEARCHED, ROUNDS))
