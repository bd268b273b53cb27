"""Normalisers that separate two stains: a matrix of stain vectors, and how much of each stain there is."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from pipeline.stains.normaliser import ENOUGH_PIXELS, StatisticalNormaliser, White, white_points
from pipeline.stains.optical_density import WHITE, amount_tables, channel_densities, light_factors, mix

STRONGEST = 99.0
"""Percentile of a stain's concentrations that stands for the largest."""
LINEAR = 1.0
"""Density of the densest channel up to which vectors are measured: below a tenth of white, green runs into the sensor's
floor, dense nuclei bend towards it, and haematoxylin passes for eosin."""
LEAST_ANGLE = 8.0
"""Degrees between the vectors below which they are one stain and its noise."""
DIRECTIONS, AMOUNTS = 2048, 4096
"""Bins of the directions in the plane of the stains, and of the concentrations."""
DENSEST = 5.0
"""Concentration at the end of the last bin; the darkest pixel of 8 bits comes to 4.9."""
MEASURABLE, CAREFUL_GAIN = 0.15, 1.5
"""Largest concentration from which an image without statistics tells how deep a stain is, and the gain it is held to.
"""


class StainSeparation(StatisticalNormaliser):
    """Exchanges the stain vectors of an image and the largest concentrations for those of the reference.

    An image whose own vectors cannot be had keeps its colours: by the reference's vectors its concentrations are only
    scaled towards the reference's, each stain by at most CAREFUL_GAIN and where it is deep enough to be measured, and
    what these vectors do not explain stays as it is. To put the reference's colours in place of unknown ones would tint
    what is not stained (yellow glass turns lilac).
    """

    statistics: ClassVar[dict[str, tuple[int, ...]]] = {"stain_matrix": (2, 3), "maximum_concentration": (2,)}
    """Rows haematoxylin and eosin of length 1 in density of red, green and blue; and the density that each reaches."""

    @abstractmethod
    def _vectors(self, tissue: np.ndarray, white: White) -> np.ndarray | None:
        """Find the stain vectors (2, 3) of (n, 3) uint8 tissue, haematoxylin first; None where there are no two."""

    def _largest(self, tissue: np.ndarray, vectors: np.ndarray, white: White) -> np.ndarray:
        """Measure the concentration that each stain reaches (STRONGEST): least squares."""
        from pipeline.stains.compiled import amounts

        counts = np.zeros((2, AMOUNTS), np.int64)
        amounts(tissue, amount_tables(unmixing(vectors), white), DENSEST, counts)
        return np.concatenate([percentile_places(row, STRONGEST) for row in counts]) * (DENSEST / AMOUNTS)

    def _statistics(self, tissue: np.ndarray, white: White) -> np.ndarray | None:
        vectors = self._vectors(tissue, white)
        if vectors is None:
            return None
        largest = self._largest(tissue, vectors, white)
        return None if largest.min() <= DENSEST / AMOUNTS else np.concatenate([vectors.ravel(), largest])

    def _apply(self, image: np.ndarray, own: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, bool]:
        measured, wanted = self._parts(own), self._parts(reference)
        gain, held_back = self._bounded(wanted["maximum_concentration"] / measured["maximum_concentration"])
        before, after = white_points(own, reference)
        return self._exchange(image, measured["stain_matrix"], wanted["stain_matrix"], gain, before, after), held_back

    def _exchange(
        self, image: np.ndarray, own: np.ndarray, wanted: np.ndarray, gain: np.ndarray, before: White, after: White
    ) -> np.ndarray:
        """Unmix by own vectors (least squares), scale, and mix by those wanted."""
        return mix(image, exchange(own, wanted, gain), before, after)

    def _by_reference(
        self, image: np.ndarray, tissue: np.ndarray, white: White | None, reference: np.ndarray
    ) -> np.ndarray | None:
        wanted = self._parts(reference)
        vectors = wanted["stain_matrix"]
        if len(tissue) < ENOUGH_PIXELS:
            return None
        largest = self._largest(tissue, vectors, white or WHITE)
        bound = min(self.maximum_gain, CAREFUL_GAIN)
        gain = np.clip(wanted["maximum_concentration"] / np.maximum(largest, MEASURABLE), 1.0 / bound, bound)
        gain[largest < MEASURABLE] = 1.0
        if (gain == 1.0).all():
            return None
        before, after = white_points(np.full(3, np.nan) if white is None else np.array(white), reference)
        return mix(image, scaling(vectors, gain), before, after)

    def _light(self, image: np.ndarray, before: White, after: White) -> np.ndarray | None:
        return mix(image, np.eye(3), before, after)


def unmixing(vectors: np.ndarray) -> np.ndarray:
    """Return the (3, 2) matrix from densities to least-squares concentrations: the pseudo-inverse of (2, 3) vectors."""
    return vectors.T @ np.linalg.inv(vectors @ vectors.T)


def exchange(vectors: np.ndarray, wanted: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return the (3, 3) matrix on densities that unmixes by vectors (least squares), scales, and mixes by wanted."""
    return unmixing(vectors) @ np.diag(gain) @ wanted


def scaling(vectors: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return the (3, 3) matrix on densities that scales two stains and leaves what is neither; gain 1: the identity."""
    return np.eye(3) + exchange(vectors, vectors, gain - 1.0)


def exchange_nonnegative(
    image: np.ndarray, vectors: np.ndarray, matrices: tuple[np.ndarray, ...], before: White, after: White
) -> np.ndarray:
    """Multiply densities by one of three (3, 3) matrices, by what two stains' non-negative least squares say.

    matrices: where both concentrations are above 0, where only the first, and only the second, which must agree where
    the cases meet; before, after: white points. Nothing comes out brighter than the white point.
    """
    from pipeline.stains.compiled import over_image, product_nonnegative

    factors = np.stack([light_factors(matrix, before, after) for matrix in matrices])
    return over_image(
        product_nonnegative, image, amount_tables(unmixing(vectors), before), factors, np.array(after, np.float32)
    )


def cloud_plane(tissue: np.ndarray, white: White) -> np.ndarray | None:
    """Find the plane that the optical densities of tissue span with glass: (3, 2), along the cloud and across it.

    tissue: (n, 3) uint8; densities above LINEAR take no part. None where fewer than ENOUGH_PIXELS are left. The second
    moments are about glass, not about the mean, since both stains begin there.
    """
    from pipeline.stains.compiled import second_moment

    count, moment = second_moment(tissue, channel_densities(white), LINEAR)
    if count < ENOUGH_PIXELS:
        return None
    _, directions = np.linalg.eigh(moment)
    plane = directions[:, [2, 1]]
    # The first direction points into the cloud, so that every angle from it lies within a quarter turn.
    plane[:, 0] *= np.sign(plane[:, 0].sum())
    return plane


def direction_sums(tissue: np.ndarray, white: White, plane: np.ndarray) -> np.ndarray:
    """Sort tissue by its direction in a plane: (3, DIRECTIONS), number of pixels, sum of densities and of squares."""
    from pipeline.stains.compiled import directions

    sums = np.zeros((3, DIRECTIONS))
    directions(tissue, channel_densities(white), LINEAR, plane.astype(np.float32), sums)
    return sums


def angle_of(place: np.ndarray) -> np.ndarray:
    """Return the angle from the first axis, in radians, of a place among the bins (0 to DIRECTIONS)."""
    side = 2.0 * place / DIRECTIONS - 1.0
    return np.arctan2(side, 1.0 - np.abs(side))


def vectors_at(angles: np.ndarray, plane: np.ndarray) -> np.ndarray | None:
    """Return the two stain vectors at angles (lower, upper) in a plane, haematoxylin first: it absorbs more red.

    None where they are less than LEAST_ANGLE apart. Nothing is below 0; rows have length 1.
    """
    if np.degrees(angles[1] - angles[0]) < LEAST_ANGLE:
        return None
    vectors = np.clip(np.column_stack([np.cos(angles), np.sin(angles)]) @ plane.T, 0.0, None)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[np.argsort(-vectors[:, 0], kind="stable")]


def percentile_places(counts: np.ndarray, *percents: float) -> np.ndarray:
    """Return where among the bins of a histogram percentiles lie, to a fraction of a bin."""
    below = np.concatenate([[0], np.cumsum(counts)])
    targets = np.array(percents) / 100.0 * below[-1]
    filled = np.searchsorted(below, targets, side="left").clip(1) - 1
    return filled + (targets - below[filled]) / (below[filled + 1] - below[filled])
