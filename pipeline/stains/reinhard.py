"""Reinhard's normaliser: mean and spread of lightness and colour (Reinhard et al., IEEE CG&A 21(5), 2001)."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import numpy as np

from pipeline.stains.normaliser import StatisticalNormaliser, White
from pipeline.stains.optical_density import density_tables

LEAST_SPREAD = 1.5
"""Standard deviation of a channel (CIELAB units) below which an image holds one colour, such as yellow glass, and its
noise would be stretched; tissue has 2.4 and more."""
WHOLE = 0.13
"""Mean density over the channels from which a pixel is moved all the way; glass is not, and in between the more, the
denser: pale pixels lie so far from the tissue's mean that they would be thrown into colours that no tissue has."""
RGB_TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
"""Linear light of sRGB's primaries to CIE XYZ (D65)."""
F_TO_LAB = ((0.0, 116.0, 0.0), (500.0, -500.0, 0.0), (0.0, 200.0, -200.0))
"""L + 16, a and b from CIE's f of X, Y and Z over white (ISO 11664-4)."""
BLACK = (16.0, 0.0, 0.0)
LEVELS = 2**14
"""Steps of linear light that grey levels are looked up for: a tenth of a level apart where they are widest."""


class Reinhard(StatisticalNormaliser):
    """Shifts and stretches CIELAB over tissue until mean and standard deviation are the reference's.

    The paper's colour space is l-alpha-beta and it moves every pixel. Here glass stays as it is, and between glass and
    tissue the change grows with optical density (WHOLE), so that no edge appears. No pixel becomes green (a below 0)
    that was not, since no tissue is: pale pixels, extrapolated beyond the reference's colours, would turn cyan. There
    is no stain matrix to fall back to: an image without statistics of its own or its slide's keeps its pixels. A
    measured white point decides what is glass; it moves no light.
    """

    method = "reinhard"
    sampled = 0.25
    statistics: ClassVar[dict[str, tuple[int, ...]]] = {"mean": (3,), "standard_deviation": (3,)}
    """Of L, a and b over tissue (D65)."""

    def _statistics(self, tissue: np.ndarray, white: White) -> np.ndarray | None:
        from pipeline.stains.compiled import colour_moments

        sums, products = colour_moments(tissue, _linear_light(), _xyz())
        mean = sums / len(tissue)
        to_lab = np.array(F_TO_LAB)
        variance = np.diag(to_lab @ (products / len(tissue) - np.outer(mean, mean)) @ to_lab.T)
        spread = np.sqrt(variance.clip(0.0))
        return None if spread.min() < LEAST_SPREAD else np.concatenate([to_lab @ mean - BLACK, spread])

    def _apply(self, image: np.ndarray, own: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, bool]:
        from pipeline.stains.compiled import colour_shift, over_image

        measured, wanted = self._parts(own), self._parts(reference)
        gain, held_back = self._bounded(wanted["standard_deviation"] / measured["standard_deviation"])
        # (lab - mean) * gain + wanted mean, in terms of f, of which lab is an affine map.
        from_lab, to_lab = np.linalg.inv(F_TO_LAB), np.array(F_TO_LAB)
        matrix = from_lab @ np.diag(gain) @ to_lab
        offset = from_lab @ (wanted["mean"] + BLACK - gain * (measured["mean"] + BLACK))
        red, green, blue = measured["white_point"].tolist()
        shares = np.ascontiguousarray(density_tables((red, green, blue)).T) / np.float32(3 * WHOLE)
        tables = (_linear_light(), shares, _xyz(), matrix, offset, np.linalg.inv(_xyz()))
        as_read = [np.ascontiguousarray(table, np.float32) for table in tables]
        return over_image(colour_shift, image, *as_read, _grey_levels()), held_back


@cache
def _xyz() -> np.ndarray:
    """(3, 3) float32: linear light of red, green and blue to X, Y and Z over those of white."""
    matrix = np.array(RGB_TO_XYZ)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


@cache
def _linear_light() -> np.ndarray:
    """(256,) float32: linear light, 0 to 1, of each grey level of sRGB (IEC 61966-2-1)."""
    level = np.arange(256) / 255.0
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4).astype(np.float32)


@cache
def _grey_levels() -> np.ndarray:
    """(LEVELS,) uint8: the nearest grey level of linear light from 0 to 1."""
    light = np.linspace(0.0, 1.0, LEVELS)
    return np.rint(255.0 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )
