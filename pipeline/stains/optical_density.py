"""Optical density: where stains add up, and which pixels hold stained tissue.

Absorbance is base 10: light of a white point w seen as v has the density log10(w / v) (Beer-Lambert law).
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np

WHITE = (255.0, 255.0, 255.0)
"""White point where none is known: grey levels of glass in red, green and blue."""
DARKEST = 0.4
"""Grey level that stands for 0, which has no logarithm; it is below half a level, so that 0 comes back as 0."""
LOG_10 = float(np.log(10.0))

STAINED = 0.065
"""Mean density over the channels above which a pixel is no glass (Macenko 2009 takes 0.15 in natural logarithms)."""
OPAQUE = 2.0
"""Density of the palest channel above which no light comes through: ink, dirt, folds, the dark of fluorescence."""
DARK = 50
"""Grey level below which a pixel that is so in all channels is dark."""
COLOURED = 0.12
"""Least part of the density that differs between channels in stained tissue; dark grey and black have none."""
BLUE_INK, RED_INK, GREEN_INK, BLACK_INK = (0.4, 1.25), (0.65, 0.18, 0.65), (0.3, 0.8), (0.85, 0.06, 1.6)
"""Densities and ratios that tell marker ink from stains (ink_mask); among 660 images of real H&E the one most like ink
has 2.9 % of such pixels, nearly all have none."""

SAMPLE = 2**15
"""Pixels that statistics are measured from, about."""
PALE, GREENISH, CLUSTER = 160, 6, 36
"""Of glass: least grey level of any channel; what green may fall short of red and blue; spread of the brightness."""
LEAST_GLASS = 0.005
"""Share of the pixels that must show glass for its grey levels to be measured."""

HAEMATOXYLIN_EOSIN = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105))
"""Density of haematoxylin and eosin in red, green and blue, to three digits (Ruifrok and Johnston 2001, table 1)."""


def density_tables(white: tuple[float, float, float] = WHITE) -> np.ndarray:
    """Return the density of every grey level of each channel: (256, 3) float32; levels above white are below 0."""
    levels = np.maximum(np.arange(256, dtype=np.float64), DARKEST)[:, np.newaxis]
    return np.log10(np.array(white) / levels).astype(np.float32)


@lru_cache(maxsize=64)
def channel_densities(white: tuple[float, float, float] = WHITE) -> np.ndarray:
    """Return density_tables as the compiled loops read it: (3, 256) float32, never to be written to."""
    # Not locked: a locked array would be compiled for once more.
    return np.ascontiguousarray(density_tables(white).T)


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
    # numba takes most of a second to import, which nobody who only asks for help should wait for.
    from pipeline.stains.compiled import over_image, product

    return over_image(product, image, light_factors(matrix, white, white_out))


def light_factors(
    matrix: np.ndarray, white: tuple[float, float, float], white_out: tuple[float, float, float]
) -> np.ndarray:
    """Tabulate what a matrix on densities does to light: (3, 256, 4) float32 (channel in, grey level in, channel out).

    The three channels out lie side by side, and beside them a 0, so that one load fetches them.
    The exponential of a sum is a product: a channel's grey level out is the product of three factors, one looked up for
    each channel in. The table is kept for the next image under the same matrix, and never to be written to.
    """
    return _light_factors(matrix.astype(np.float64).tobytes(), white, white_out)


@lru_cache(maxsize=16)
def _light_factors(
    matrix: bytes, white: tuple[float, float, float], white_out: tuple[float, float, float]
) -> np.ndarray:
    rows = np.frombuffer(matrix).reshape(3, 3)
    exponents = -LOG_10 * density_tables(white).T[:, :, np.newaxis] * rows[:, np.newaxis]
    factors = np.zeros((3, 256, 4), np.float32)
    # Beyond these, three factors could leave the range of float32.
    light = np.exp(np.clip(exponents, -27.0, 27.0))
    light[0] *= np.array(white_out)
    factors[..., :3] = light
    return factors


def amount_tables(unmix: np.ndarray, white: tuple[float, float, float]) -> np.ndarray:
    """Tabulate each channel's part of each stain's concentration: (stains, 3, 256) float32 for a (3, stains) matrix."""
    return (unmix.T[:, :, np.newaxis] * density_tables(white).T).astype(np.float32)


def stain_basis(stain_matrix: np.ndarray | tuple[tuple[float, float, float], ...]) -> np.ndarray:
    """Complete two stain vectors by the direction that neither absorbs in: (3, 3), rows of length 1."""
    rows = np.vstack([stain_matrix, np.cross(*np.asarray(stain_matrix))])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def tissue_mask(density: np.ndarray) -> np.ndarray:
    """Mark stained tissue: neither glass, nor opaque, nor grey, nor green, nor ink. (..., 3) density to (...) bool.

    Fluorescence, pen marks of any colour (ink_mask) and scanner borders are no tissue, however dense.
    """
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    least = np.minimum(np.minimum(red, green), blue)
    most = np.maximum(np.maximum(red, green), blue)
    total = red + green + blue
    stained = (total > 3 * STAINED) & (least < OPAQUE) & (most - least > COLOURED * total) & (green > least)
    return stained & ~ink_mask(density)


def ink_mask(density: np.ndarray) -> np.ndarray:
    """Mark marker ink, blue, red, green or black. (..., 3) density to (...) bool.

    Blue ink lets more blue and green through for its red than haematoxylin of any laboratory; red ink absorbs blue
    nearly as it does green, as eosin does not, and more than red cells do; green ink absorbs green least; black ink
    has no colour, as only the floor of the sensor has that dense nuclei run into. Pale ink is not told from stain, nor
    are the soft edges of a mark; black padding counts as ink, and so do dyes of the colours of ink (alcian blue).
    """
    red, green, blue = density[..., 0], density[..., 1], density[..., 2]
    least = np.minimum(np.minimum(red, green), blue)
    most = np.maximum(np.maximum(red, green), blue)
    blue_ink = (red > BLUE_INK[0]) & (green + 2 * blue < BLUE_INK[1] * red)
    red_ink = (green > RED_INK[0]) & (red < RED_INK[1] * green) & (blue > RED_INK[2] * green)
    green_ink = (most > GREEN_INK[0]) & (green < GREEN_INK[1] * np.minimum(red, blue))
    grey = most - least <= BLACK_INK[1] * (red + green + blue)
    black_ink = (least > BLACK_INK[0]) & (grey | (least > BLACK_INK[2]))
    return blue_ink | red_ink | green_ink | black_ink


def is_stained(image: np.ndarray) -> bool:
    """Say whether an image looks like stained tissue in transmitted light, from a grid of about 32 x 32 of its pixels.

    Fluorescence has a dark background, unstained tissue no colour. So: half of the pixels have a channel of DARK or
    more, channels differ by at least 8 grey levels in the mean, and green is not the lightest channel, since
    haematoxylin and every dye in use with it absorb green. image: (height, width, 3) uint8 RGB.
    """
    step = max(1, min(image.shape[:2]) // 32)
    pixels = np.ascontiguousarray(image[::step, ::step]).reshape(-1, 3)
    most, least = pixels.max(axis=1), pixels.min(axis=1)
    means = pixels.mean(axis=0)
    return bool(np.median(most) >= DARK and (most - least).mean() >= 8 and means[1] <= max(means[0], means[2]))


def is_dark(pixels: np.ndarray) -> bool:
    """Say whether pixels are of light on a dark ground, as in fluorescence of any colour: (n, 3) uint8 RGB.

    Half of them are dark in all channels, and hardly any (one in twenty) is light in all, as glass and most of tissue
    are: an image of tissue that is mostly black padding is none.
    """
    if not len(pixels):
        return False
    most, least = pixels.max(axis=1), pixels.min(axis=1)
    return bool(np.median(most) < DARK and np.quantile(least, 0.95) < DARK)


def sample_pixels(image: np.ndarray, times: float = 1.0) -> np.ndarray:
    """Take a grid of about times * SAMPLE pixels from an image, all of a small one: (n, 3) uint8."""
    from pipeline.stains.compiled import grid

    return grid(image, max(1, round(math.sqrt(image.shape[0] * image.shape[1] / (times * SAMPLE)))))


def tissue_pixels(pixels: np.ndarray, white: tuple[float, float, float] = WHITE) -> np.ndarray:
    """Keep the pixels of stained tissue (tissue_mask) among (n, 3) uint8."""
    return tissue_and_ink(pixels, white)[0]


def tissue_and_ink(pixels: np.ndarray, white: tuple[float, float, float] = WHITE) -> tuple[np.ndarray, int, int]:
    """Keep the pixels of stained tissue (tissue_mask) among (n, 3) uint8, and count those of ink (ink_mask).

    Returns the pixels of tissue; the number of those of ink; and of those of them that absorb as stains do (blue, red).
    """
    from pipeline.stains.compiled import select

    kept = np.empty((len(pixels) + 1, 3), np.uint8)
    inks = np.zeros(2, np.int64)
    thresholds = np.array([3 * STAINED, OPAQUE, COLOURED, *BLUE_INK, *RED_INK, *GREEN_INK, *BLACK_INK], np.float32)
    tissue = kept[: select(pixels, channel_densities(white), thresholds, kept, inks)]
    ink, alike = inks.tolist()
    return tissue, ink, alike


def measure_white(pixels: np.ndarray) -> tuple[float, float, float] | None:
    """Measure the grey levels of glass among (n, 3) uint8 pixels; None where too few show any.

    Glass is light (PALE) and, unlike stained tissue, does not absorb green more than red and blue. Of what is, the
    brightest cluster counts: its medians.
    """
    levels = pixels.astype(np.int16)
    red, green, blue = levels[:, 0], levels[:, 1], levels[:, 2]
    light = levels.min(axis=1) >= PALE
    glass = levels[light & (green >= np.minimum(red, blue) - GREENISH)]
    if len(glass) < LEAST_GLASS * len(pixels):
        return None
    brightness = glass.sum(axis=1)
    cluster = glass[brightness >= np.percentile(brightness, 95) - CLUSTER]
    if len(cluster) < LEAST_GLASS * len(pixels):
        return None
    measured_red, measured_green, measured_blue = np.median(cluster, axis=0).tolist()
    return measured_red, measured_green, measured_blue
