"""Optical density: where stains add up, and which pixels hold stained tissue.

Absorbance is base 10: light of a white point w seen as v has the density log10(w / v) (Beer-Lambert law).
"""

from __future__ import annotations

import cv2
import numpy as np

WHITE = (255.0, 255.0, 255.0)
"""White point where none is known: grey levels of glass in red, green and blue."""
DARKEST = 0.4
"""Grey level that stands for 0, which has no logarithm; it is below half a level, so that 0 comes back as 0."""
BAND = 8192
"""Pixels worked on at a time."""
LOG_10 = float(np.log(10.0))

STAINED = 0.065
"""Mean density over the channels above which a pixel is no glass (Macenko 2009 takes 0.15 in natural logarithms)."""
OPAQUE = 2.0
"""Density of the palest channel above which no light comes through: ink, dirt, folds, the dark of fluorescence."""
COLOURED = 0.12
"""Least part of the density that differs between channels in stained tissue; dark grey and black have none."""

HAEMATOXYLIN_EOSIN = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
"""Density of haematoxylin and eosin in red, green and blue, to three digits (Ruifrok and Johnston 2001, table 1)."""


def density_tables(white: tuple[float, float, float] = WHITE) -> np.ndarray:
    """Return the density of every grey level of each channel: (256, 3) float32; levels above white are below 0."""
    levels = np.maximum(np.arange(256, dtype=np.float64), DARKEST)[:, np.newaxis]
    return np.log10(np.array(white) / levels).astype(np.float32)


def to_density(image: np.ndarray, white: tuple[float, float, float] = WHITE) -> np.ndarray:
    """Turn (height, width, 3) uint8 RGB into its optical density, float32 of the same shape."""
    return cv2.LUT(image, density_tables(white)[np.newaxis])


def to_image(density: np.ndarray, white: tuple[float, float, float] = WHITE) -> np.ndarray:
    """Turn (height, width, 3) float32 optical density into uint8 RGB; the inverse of to_density on every grey level."""
    light = cv2.exp(density * np.float32(-LOG_10))
    return cv2.convertScaleAbs(light * np.array(white, np.float32))


def mix(
    image: np.ndarray,
    matrix: np.ndarray,
    white: tuple[float, float, float] = WHITE,
    white_out: tuple[float, float, float] = WHITE,
) -> np.ndarray:
    """Multiply each pixel's optical density by a matrix: how stains are exchanged or their amounts changed.

    image: (height, width, 3) uint8 RGB; matrix: (3, 3), applied from the right to densities as rows; white, white_out:
    white point before and after, one mapped to the other exactly. Returns uint8 RGB of the same shape.
    """
    # The white point out joins the matrix as an offset and the base of the logarithm as a factor: one pass each. Bands
    # of rows stay in the cache, and their memory is not given back to the system and asked for again with every call.
    affine = np.column_stack([-LOG_10 * matrix.T, np.log(np.array(white_out))])
    tables = density_tables(white)[np.newaxis]
    mixed = np.empty(image.shape, np.uint8)
    rows = max(1, BAND // image.shape[1])
    for top in range(0, image.shape[0], rows):
        band = cv2.LUT(image[top : top + rows], tables)
        cv2.exp(cv2.transform(band, affine, dst=band), dst=band)
        cv2.convertScaleAbs(band, dst=mixed[top : top + rows])
    return mixed


def stain_basis(stain_matrix: np.ndarray | tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Complete two stain vectors by the direction that neither absorbs in: (3, 3), rows of length 1."""
    rows = np.vstack([stain_matrix, np.cross(*np.asarray(stain_matrix))])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def tissue_mask(density: np.ndarray) -> np.ndarray:
    """Mark stained tissue: neither glass, nor opaque, nor grey, nor green. (..., 3) density to (...) bool.

    Fluorescence, black and green ink and scanner borders are no tissue, however dense.
    """
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    least = np.minimum(np.minimum(red, green), blue)
    most = np.maximum(np.maximum(red, green), blue)
    total = red + green + blue
    return (total > 3 * STAINED) & (least < OPAQUE) & (most - least > COLOURED * total) & (green > least)


def is_stained(image: np.ndarray) -> bool:
    """Say whether an image looks like stained tissue in transmitted light, from a grid of about 32 x 32 of its pixels.

    Fluorescence has a dark background, unstained tissue no colour. So: half of the pixels have a channel of 50 or more,
    channels differ by at least 8 grey levels in the mean, and green is not the lightest channel, since haematoxylin
    and every dye in use with it absorb green. image: (height, width, 3) uint8 RGB.
    """
    step = max(1, min(image.shape[:2]) // 32)
    pixels = np.ascontiguousarray(image[::step, ::step]).reshape(-1, 3)
    most, least = pixels.max(axis=1), pixels.min(axis=1)
    means = pixels.mean(axis=0)
    return bool(np.median(most) >= 50 and (most - least).mean() >= 8 and means[1] <= max(means[0], means[2]))
