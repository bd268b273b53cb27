"""Stain transforms as the usual lines of NumPy say them: what the fast ones are held against, in speed and in pixels.

Everything is float64, nothing is in tables or in bands, densities are natural logarithms and glass is white.
Definitions (darkest level, share of the change over glass) are those of pipeline.stains.
"""

from __future__ import annotations

import numpy as np

from pipeline.stains.optical_density import DARKEST, LOG_10, WHITE
from pipeline.stains.reinhard import WHOLE


def density(image: np.ndarray) -> np.ndarray:
    """Optical density in natural logarithms, glass being white: (..., 3) uint8 to float64."""
    return np.log(np.array(WHITE) / np.maximum(image.astype(np.float64), DARKEST))


def exchange_matrix(vectors: np.ndarray, wanted: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return what unmixing by vectors (least squares), scaling and mixing by those wanted do to densities: (3, 3)."""
    return np.linalg.pinv(vectors) @ np.diag(gain) @ wanted


def exchange(
    image: np.ndarray, vectors: np.ndarray, wanted: np.ndarray, gain: np.ndarray, *, nonnegative: bool = False,
    rest: float | None = None,
) -> np.ndarray:  # fmt: skip
    """Unmix, scale the concentrations, and mix by other stain vectors.

    image: (height, width, 3) uint8 RGB; vectors, wanted: (2, 3); gain: (2,). Concentrations are of least squares, or
    of nonnegative ones; rest: what the density that they do not explain is scaled by, None drops it. Returns uint8 RGB.
    """
    densities = density(image).reshape(-1, 3)
    concentrations = densities @ np.linalg.pinv(vectors)
    if nonnegative:
        alone = densities @ (vectors / np.square(vectors).sum(axis=1, keepdims=True)).T
        below = concentrations < 0.0
        concentrations = np.where(below[:, ::-1], alone, concentrations).clip(0.0)
        concentrations[below] = 0.0
    mixed = (concentrations * gain) @ wanted
    if rest is not None:
        mixed += rest * (densities - concentrations @ vectors)
    return _levels(np.array(WHITE) * np.exp(-mixed)).reshape(image.shape)


def reinhard(image: np.ndarray, mean: np.ndarray, gain: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Shift and stretch CIELAB (D65), less so the nearer a pixel is to glass; no pixel becomes green that was not.

    mean, gain, wanted: (3,), of L, a and b: v becomes (v - mean) * gain + wanted. Returns uint8 RGB.
    """
    from skimage.color import lab2rgb, rgb2lab

    lab = rgb2lab(image)
    share = np.clip(density(image).mean(axis=2, keepdims=True) / (LOG_10 * WHOLE), 0.0, 1.0)
    moved = lab + share * ((lab - mean) * gain + wanted - lab)
    moved[..., 1] = np.maximum(moved[..., 1], np.minimum(lab[..., 1], 0.0))
    return _levels(255.0 * lab2rgb(moved))


def _levels(light: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(light, 0.0, 255.0)).astype(np.uint8)


def share_within(first: np.ndarray, second: np.ndarray, levels: int = 1) -> float:
    """Share of the pixels of which no channel differs by more than so many grey levels; (..., 3) uint8 both."""
    apart = np.abs(first.astype(np.int16) - second.astype(np.int16)).max(axis=-1)
    return float((apart <= levels).mean())


def angle(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Angles in degrees between the rows of two (stains, 3) arrays."""
    # The arc sine of half the distance: the arc cosine of the product loses small angles to rounding.
    ends = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (first, second)]
    return np.degrees(2.0 * np.arcsin(np.clip(np.linalg.norm(ends[0] - ends[1], axis=1) / 2.0, 0.0, 1.0)))
