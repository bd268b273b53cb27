"""Ruifrok's fixed stain vectors: the amounts alone are brought to the reference (Ruifrok and Johnston 2001)."""

from __future__ import annotations

import numpy as np

from pipeline.stains.normaliser import White
from pipeline.stains.optical_density import HAEMATOXYLIN_EOSIN, stain_basis
from pipeline.stains.separation import StainSeparation, exchange, exchange_nonnegative


class Ruifrok(StainSeparation):
    """Unmixes by the vectors of table 1 of the paper, the same for every image; no concentration is below 0.

    What these vectors do not explain is scaled by the geometric mean of both gains: it is part of the stains of a
    laboratory whose vectors are others, and would be left as a yellow or brown veil where they are weakened. So the
    reference itself does not change, and a difference of hue between two laboratories is out of this method's reach.
    """

    method = "ruifrok"

    def _vectors(self, tissue: np.ndarray, white: White) -> np.ndarray | None:
        return stain_basis(HAEMATOXYLIN_EOSIN)[:2]

    def _exchange(
        self, image: np.ndarray, own: np.ndarray, wanted: np.ndarray, gain: np.ndarray, before: White, after: White
    ) -> np.ndarray:
        rest = float(np.sqrt(gain.prod()))
        both = rest * np.eye(3) + exchange(own, own, gain - rest)
        alone = [rest * np.eye(3) + (gain[stain] - rest) * np.outer(own[stain], own[stain]) for stain in (0, 1)]
        return exchange_nonnegative(image, own, (both, alone[0], alone[1]), before, after)
