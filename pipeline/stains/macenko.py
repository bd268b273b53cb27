"""Macenko's normaliser: two stain vectors from the plane that optical density spans (Macenko et al., ISBI 2009)."""

from __future__ import annotations

import numpy as np

from pipeline.stains.normaliser import White
from pipeline.stains.separation import (
    StainSeparation,
    angle_of,
    cloud_plane,
    direction_sums,
    percentile_places,
    vectors_at,
)

ROBUST = 1.0
"""Percentile of the angles at each end that a stain vector is taken at (alpha of the paper)."""


class Macenko(StainSeparation):
    """Takes as stain vectors the robust edges of the cloud of densities; concentrations by least squares.

    Where torchstain's definition, the usual one, differs: its density is the natural logarithm of (level + 1) over a
    white of 240; its tissue is every pixel with all channels above 0.15 of that, ours leaves glass out by the mean of
    the channels, and ink, dirt and saturated pixels too (tissue_mask, LINEAR); its plane is of the covariance about the
    mean of the tissue, ours of the second moment about glass; its largest concentrations are over all pixels, ours over
    tissue, and its gain has no bound. The transform from given vectors, concentrations and white is the same.
    """

    method = "macenko"

    def _vectors(self, tissue: np.ndarray, white: White) -> np.ndarray | None:
        plane = cloud_plane(tissue, white)
        if plane is None:
            return None
        edges = percentile_places(direction_sums(tissue, white, plane)[0], ROBUST, 100.0 - ROBUST)
        return vectors_at(angle_of(edges), plane)
