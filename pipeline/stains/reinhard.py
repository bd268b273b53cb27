"""Reinhard's normaliser: mean and spread of lightness and colour (Reinhard et al., IEEE CG&A 21(5), 2001)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from pipeline.stains.normaliser import StatisticalNormaliser, White, white_point
from pipeline.stains.optical_density import DARKEST, WHITE

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

        sums, products = colour_moments(tissue, _light(), _xyz())
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
        share_at_white = np.log10(white_point(own) or WHITE).sum() / (3 * WHOLE)
        density = np.array([share_at_white, -np.log10(2.0) / (3 * WHOLE), DARKEST, *_logarithm()])
        as_read = [np.ascontiguousarray(table, np.float32) for table in (density, _xyz(), matrix, offset, _rgb())]
        return over_image(colour_shift, image, _light(), *as_read, _grey_levels()), held_back


@cache
def _xyz() -> np.ndarray:
    """(3, 3) float32: linear light of red, green and blue to X, Y and Z over those of white."""
    matrix = np.array(RGB_TO_XYZ)
    return (matrix / matrix.sum(axis=1, keepdims=True)).astype(np.float32)


@cache
def _rgb() -> np.ndarray:
    """(3, 3) float32: the inverse of _xyz."""
    return np.linalg.inv(_xyz())


def _polynomial(function: Callable[[np.ndarray], np.ndarray], low: float, high: float, degree: int) -> np.ndarray:
    """Interpolate a function between low and high: (degree + 1,) float32 coefficients, from the highest."""
    found = Chebyshev.interpolate(function, degree, (low, high))
    return found.convert(kind=Polynomial).coef[::-1].astype(np.float32)


@cache
def _light() -> np.ndarray:
    """From grey levels of sRGB to linear light, 0 to 1 (IEC 61966-2-1), above its linear part; to 0.01 levels."""
    return _polynomial(lambda level: ((level / 255.0 + 0.055) / 1.055) ** 2.4, 0.04045 * 255.0, 255.0, 6)


@cache
def _logarithm() -> np.ndarray:
    """From the part m of 2^n * (1 + m) to its binary logarithm less n + m; to 2e-5."""
    return _polynomial(lambda part: np.log2(1.0 + part) - part, 0.0, 1.0, 5)


@cache
def _grey_levels() -> np.ndarray:
    """(LEVELS,) uint8: the nearest grey level of linear light from 0 to 1."""
    light = np.linspace(0.0, 1.0, LEVELS)
    return np.rint(255.0 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )
