"""How near two images are in stain and in structure, and how far apart two samples of stained tissue lie.

Images are (height, width, 3) uint8 RGB throughout. Stain vectors are those of Macenko, measured with the white point
(255, 255, 255) in both images, so that an unequal glass counts as an unequal stain.
"""

from __future__ import annotations

import math

import numpy as np

from pipeline.stains.macenko import Macenko
from pipeline.stains.optical_density import WHITE, measure_white, sample_pixels, tissue_mask, to_density

LARGEST_PSNR = 100.0
"""Decibels that stand for equal images: infinity has no mean. One level in one channel of a megapixel gives 113."""
WINDOW = 11
"""Side in pixels of the Gaussian window of SSIM (standard deviation 1.5, Wang 2004)."""
DENSEST = 99.9
"""Percentile of haematoxylin that its SSIM takes for the range of values: single pixels reach further."""
SAMPLES = 4096
"""Pixels of each sample that an energy distance compares at most; its time grows with their product."""
COLUMNS = ("psnr", "ssim", "ciede2000", "haematoxylin_angle", "eosin_angle")
"""What compare gives."""


def compare(image: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Measure how near an image comes to its target, pixel by pixel and in its stains.

    Returns psnr (dB), ssim, ciede2000 (mean colour difference), haematoxylin_angle and eosin_angle (degrees; NaN where
    the vectors of either image cannot be measured). Raises ValueError for images of different sizes.
    """
    haematoxylin, eosin = stain_angles(image, target) or (math.nan, math.nan)
    values = (psnr(image, target), ssim(image, target), ciede2000(image, target), haematoxylin, eosin)
    return dict(zip(COLUMNS, values, strict=True))


# --- Pixel by pixel -----------------------------------------------------------------------------------------------


def psnr(image: np.ndarray, target: np.ndarray) -> float:
    """Peak signal to noise ratio in dB over all channels: 10 log10(255^2 / mean squared error), at most LARGEST_PSNR.

    Raises ValueError for images of different sizes.
    """
    _check_alike(image, target)
    error = float(np.square(image.astype(np.float32) - target).mean(dtype=np.float64))
    return min(LARGEST_PSNR, 10.0 * math.log10(255.0**2 / error)) if error else LARGEST_PSNR


def ssim(image: np.ndarray, target: np.ndarray) -> float:
    """Structural similarity, -1 to 1 for equal images, mean over channels (Wang 2004, doi:10.1109/tip.2003.819861).

    The paper's settings: Gaussian window of 11 pixels, standard deviation 1.5, population covariance, K 0.01 and 0.03,
    range 255. Images smaller than the window are mirrored to its size. Raises ValueError for different sizes.
    """
    _check_alike(image, target)
    return _ssim(image, target, 255.0)


def ciede2000(image: np.ndarray, target: np.ndarray) -> float:
    """Mean colour difference over the pixels, 0 or more; about 1 is just seen, 2.3 in side-by-side patches.

    CIEDE2000 (Sharma et al. 2005, doi:10.1002/col.20070) between sRGB colours under D65. Raises ValueError for
    different sizes.
    """
    from skimage.color import deltaE_ciede2000, rgb2lab

    _check_alike(image, target)
    return float(deltaE_ciede2000(rgb2lab(image), rgb2lab(target)).mean())


def _ssim(first: np.ndarray, second: np.ndarray, data_range: float) -> float:
    from skimage.metrics import structural_similarity

    missing = [(0, max(0, WINDOW - length)) for length in first.shape[:2]]
    around = [*missing, (0, 0)] if first.ndim == 3 else missing
    planes = [np.pad(plane, around, mode="symmetric") for plane in (first, second)]
    value = structural_similarity(
        *planes, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=data_range,
        channel_axis=2 if first.ndim == 3 else None,
    )  # fmt: skip
    return float(value)


# --- Stains -------------------------------------------------------------------------------------------------------


def stain_vectors(image: np.ndarray) -> np.ndarray | None:
    """Vectors of haematoxylin and eosin, (2, 3) with rows of length 1 in optical density; None where not measurable."""
    measured = Macenko().measure(image)[1]
    return None if measured is None else _vectors(measured)


def _vectors(measured: np.ndarray) -> np.ndarray:
    """The stain matrix, which is what Macenko's statistics begin with."""
    return measured[:6].reshape(2, 3)


def vector_angles(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Angles in degrees between the rows of two stain matrices, (stains, 3) each: (stains,)."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    crossed = np.linalg.norm(np.cross(vectors, others), axis=1)
    # The arc cosine alone loses half of the digits at small angles.
    return np.degrees(np.arctan2(crossed / lengths, (vectors * others).sum(axis=1) / lengths))


def stain_angles(image: np.ndarray, target: np.ndarray) -> tuple[float, float] | None:
    """Degrees between the haematoxylin vectors, and the eosin vectors, of two images; None where not measurable."""
    vectors, others = stain_vectors(image), stain_vectors(target)
    if vectors is None or others is None:
        return None
    haematoxylin, eosin = vector_angles(vectors, others).tolist()
    return haematoxylin, eosin


def stain_angle(image: np.ndarray, target: np.ndarray) -> float | None:
    """Mean of the two angles of stain_angles; None where not measurable."""
    angles = stain_angles(image, target)
    return None if angles is None else sum(angles) / 2.0


def structure(before: np.ndarray, after: np.ndarray) -> float | None:
    """SSIM between the haematoxylin of an image before and after a normaliser changed its stain, up to scale.

    Each image is unmixed by its own stain matrix and glass (least squares, negative amounts cut off); the second is
    scaled to the first by least squares. 1: all structure kept; blur, invention and tinted glass, which hides the
    second stain, lower it. An image after, whose stains cannot be measured, is unmixed by the matrix before. None where
    the stains before cannot be measured.
    Raises ValueError for different sizes.
    """
    _check_alike(before, after)
    vectors = _own_vectors(before)
    if vectors is None:
        return None
    changed = _own_vectors(after)
    first, second = _haematoxylin(before, vectors), _haematoxylin(after, vectors if changed is None else changed)
    energy = float(np.square(second).sum())
    scale = float((first * second).sum()) / energy if energy else 0.0
    return _ssim(first, scale * second, float(np.percentile(first, DENSEST)))


def _glass(image: np.ndarray) -> tuple[float, float, float]:
    """White point of an image; white where it shows no glass."""
    return measure_white(sample_pixels(image)) or WHITE


def _own_vectors(image: np.ndarray) -> np.ndarray | None:
    """Stain vectors under the image's own glass, from which on densities are proportional; else under white."""
    measured = Macenko(white=_glass(image)).measure(image)[1]
    return stain_vectors(image) if measured is None else _vectors(measured)


def _haematoxylin(image: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    density = to_density(image, _glass(image))
    return np.clip(density @ np.linalg.pinv(vectors)[:, 0].astype(np.float32), 0.0, None)


# --- Samples of tissue --------------------------------------------------------------------------------------------


def tissue_density(image: np.ndarray) -> np.ndarray:
    """Optical density of the pixels of an image that show stained tissue: (n, 3) float32, base 10."""
    density = to_density(image)
    return density[tissue_mask(density)]


def energy_distance(first: np.ndarray, second: np.ndarray, seed: int = 0, samples: int = SAMPLES) -> float:
    """Distance between two distributions, 0 for equal ones, in the units of the values.

    The root of 2 E|X - Y| - E|X - X'| - E|Y - Y'| with Euclidean distances (Székely and Rizzo 2013,
    doi:10.1016/j.jspi.2013.03.018), as scipy.stats.energy_distance has it in one dimension; for a small shift it is
    proportional to the shift. first, second: (n, dimensions) each; of more than `samples` rows so many are drawn,
    seeded. Two samples of one distribution come out near the root of their mean distance times (1/n + 1/m), not at 0.
    Raises ValueError where either is empty.
    """
    if not len(first) or not len(second):
        raise ValueError(f"energy distance: expected two samples, found {len(first)} and {len(second)} rows")
    generator = np.random.default_rng(seed)
    x, y = (_drawn(sample, samples, generator) for sample in (first, second))
    squared = 2.0 * _mean_distance(x, y) - _mean_distance(x, x) - _mean_distance(y, y)
    return math.sqrt(max(0.0, squared))


def excess_removed(before: float, after: float, split_half: float) -> float | None:
    """Share of a distance's excess over the split-half distance that a normaliser removed.

    1: what is left is what two halves of one source differ by; 0: nothing removed; below 0: made worse; above 1: nearer
    than the halves. None where there was no excess.
    """
    excess = before - split_half
    return (before - after) / excess if excess > 0.0 else None


def _drawn(sample: np.ndarray, samples: int, generator: np.random.Generator) -> np.ndarray:
    if len(sample) <= samples:
        return np.asarray(sample, np.float64)
    return np.asarray(sample[generator.choice(len(sample), samples, replace=False)], np.float64)


def _mean_distance(x: np.ndarray, y: np.ndarray) -> float:
    from scipy.spatial.distance import cdist

    # Blocks of rows bound the memory; their sums are added in a fixed order.
    total = sum(float(cdist(x[start : start + 512], y).sum()) for start in range(0, len(x), 512))
    return total / (len(x) * len(y))


def _check_alike(image: np.ndarray, target: np.ndarray) -> None:
    if image.shape != target.shape or image.ndim != 3 or not image.size:
        raise ValueError(
            f"expected two images (height, width, 3) of one size, found {image.shape} and {target.shape}; "
            "compare an image with the target of its own case"
        )
