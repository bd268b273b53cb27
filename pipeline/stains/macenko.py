"""Macenko's normaliser: two stain vectors from the plane that optical density spans (Macenko et al., ISBI 2009)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from pipeline.stains.normaliser import ENOUGH_PIXELS, Normaliser, Status, tissue_status
from pipeline.stains.optical_density import mix, tissue_mask, to_density

ROBUST = 1.0
"""Percentile of the angles at each end that a stain vector is taken at (alpha of the paper)."""
STRONGEST = 99.0
"""Percentile of a stain's concentrations that stands for the largest."""
LINEAR = 1.0
"""Density of the densest channel up to which vectors are measured: below a tenth of white, green runs into the sensor's
floor, dense nuclei bend towards it, and haematoxylin passes for eosin."""
LEAST_ANGLE = 8.0
"""Degrees between the vectors below which they are one stain and its noise."""


class Macenko(Normaliser):
    """Exchanges the stain vectors of an image and the largest concentrations for those of the reference."""

    method = "macenko"
    statistics: ClassVar[dict[str, tuple[int, ...]]] = {"stain_matrix": (2, 3), "maximum_concentration": (2,)}
    """Rows haematoxylin and eosin of length 1 in density of red, green and blue; and the density that each reaches."""

    def measure(self, image: np.ndarray) -> tuple[Status, np.ndarray | None]:
        """Measure stain vectors and largest concentrations over the tissue of an image."""
        density = to_density(image, self.white)
        tissue = tissue_mask(density)
        status = tissue_status(tissue)
        if status != "ok":
            return status, None
        stained = density[tissue].astype(np.float64)
        vectors = stain_vectors(stained[stained.max(axis=1) < LINEAR])
        if vectors is None:
            return "degenerate", None
        largest = np.percentile(stained @ np.linalg.pinv(vectors), STRONGEST, axis=0)
        if largest.min() <= 0.0:
            return "degenerate", None
        return "ok", np.concatenate([vectors.ravel(), largest])

    def _apply(self, image: np.ndarray, measured: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, Status]:
        own, wanted = self._parts(measured), self._parts(reference)
        gain, status = self._bounded(wanted["maximum_concentration"] / own["maximum_concentration"])
        return mix(image, exchange(own["stain_matrix"], wanted["stain_matrix"], gain), self.white, self.white), status


def stain_vectors(density: np.ndarray) -> np.ndarray | None:
    """Find the two stain vectors that bound a cloud of optical densities, haematoxylin first.

    density: (n, 3) float64 of tissue. Returns (2, 3), rows of length 1, nothing below 0; None where the cloud has fewer
    than ENOUGH_PIXELS points or spans less than LEAST_ANGLE. Haematoxylin is the vector that absorbs more red.
    """
    if len(density) < ENOUGH_PIXELS:
        return None
    _, directions = np.linalg.eigh(density.T @ density)
    plane = directions[:, [2, 1]]
    # The first direction points into the cloud, so that every angle from it lies within a quarter turn.
    plane[:, 0] *= np.sign(plane[:, 0].sum())
    along, across = (density @ plane).T
    slopes = np.percentile(across / along, [ROBUST, 100.0 - ROBUST])
    angles = np.arctan(slopes)
    if np.degrees(angles[1] - angles[0]) < LEAST_ANGLE:
        return None
    vectors = np.clip(np.column_stack([np.cos(angles), np.sin(angles)]) @ plane.T, 0.0, None)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[np.argsort(-vectors[:, 0], kind="stable")]


def exchange(vectors: np.ndarray, wanted: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return the (3, 3) matrix on densities that unmixes by vectors (least squares), scales, and mixes by wanted."""
    return np.linalg.pinv(vectors) @ np.diag(gain) @ wanted
