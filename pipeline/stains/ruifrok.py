"""Ruifrok's fixed stain vectors: the amounts alone are brought to the reference (Ruifrok and Johnston 2001)."""

from __future__ import annotations

import numpy as np

from pipeline.stains.normaliser import White
from pipeline.stains.optical_density import HAEMATOXYLIN_EOSIN, mix, stain_basis
from pipeline.stains.separation import StainSeparation, scaling


class Ruifrok(StainSeparation):
    """Unmixes by the vectors of table 1 of the paper, the same for every image; concentrations by least squares.

    What these vectors do not explain stays as it is, so that the reference itself does not change: a difference of hue
    between two laboratories is out of this method's reach.
    """

    method = "ruifrok"

    def _vectors(self, tissue: np.ndarray, white: White) -> np.ndarray | None:
        return stain_basis(HAEMATOXYLIN_EOSIN)[:2]

    def _exchange(
        self, image: np.ndarray, own: np.ndarray, wanted: np.ndarray, gain: np.ndarray, before: White, after: White
    ) -> np.ndarray:
        return mix(image, scaling(own, gain), before, after)
