"""Reinhard's normaliser: mean and spread of lightness and colour (Reinhard et al., IEEE CG&A 21(5), 2001)."""

from __future__ import annotations

from typing import ClassVar

import cv2
import numpy as np

from pipeline.stains.normaliser import Normaliser, Status, tissue_status
from pipeline.stains.optical_density import STAINED, tissue_mask, to_density

LEAST_SPREAD = 1.5
"""Standard deviation of a channel (CIELAB units) below which an image holds one colour, such as yellow glass, and its
noise would be stretched; tissue has 2.4 and more."""


class Reinhard(Normaliser):
    """Shifts and stretches CIELAB over tissue until mean and standard deviation are the reference's.

    The paper's colour space is l-alpha-beta and it moves every pixel; here glass stays as it is, and between glass and
    tissue the change grows with optical density, so that no edge appears.
    """

    method = "reinhard"
    statistics: ClassVar[dict[str, tuple[int, ...]]] = {"mean": (3,), "standard_deviation": (3,)}
    """Of L, a and b over tissue (D65)."""

    def measure(self, image: np.ndarray) -> tuple[Status, np.ndarray | None]:
        """Measure mean and standard deviation of L, a and b over the tissue of an image."""
        tissue = tissue_mask(to_density(image, self.white))
        status = tissue_status(tissue)
        if status != "ok":
            return status, None
        colours = _lab(image)[tissue].astype(np.float64)
        spread = colours.std(axis=0)
        if spread.min() < LEAST_SPREAD:
            return "degenerate", None
        return "ok", np.concatenate([colours.mean(axis=0), spread])

    def _apply(self, image: np.ndarray, measured: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, Status]:
        own, wanted = self._parts(measured), self._parts(reference)
        gain, status = self._bounded(wanted["standard_deviation"] / own["standard_deviation"])
        lab = _lab(image)
        moved = (lab - own["mean"]) * gain + wanted["mean"]
        share = np.clip(to_density(image, self.white).mean(axis=2, keepdims=True) / STAINED, 0.0, 1.0)
        colours = cv2.cvtColor((lab + share * (moved - lab)).astype(np.float32), cv2.COLOR_LAB2RGB)
        return cv2.convertScaleAbs(np.clip(colours, 0.0, 1.0), alpha=255.0), status


def _lab(image: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 RGB to float32 L (0 to 100), a and b."""
    return cv2.cvtColor(image.astype(np.float32) / np.float32(255.0), cv2.COLOR_RGB2LAB)
