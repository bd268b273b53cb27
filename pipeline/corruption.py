"""What is done to an image so that a network can learn to undo it: another stain, noise, lost colour, writing, holes.

A corrupted image is a function of (settings, image, seed) and of nothing else. Each kind has a stream of random numbers
of its own, so that switching one on changes nothing of the others.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from pipeline.config import CorruptionSettings
from pipeline.stains.optical_density import HAEMATOXYLIN_EOSIN, WHITE, is_stained, mix, stain_basis

VECTOR_RANGE = ((0.25, 0.20, 0.20), (0.12, 0.20, 0.40))
"""Largest shift of haematoxylin and eosin in red, green and blue, before the vectors get length 1 again; laboratories
differ most in how much blue their eosin absorbs (0.1 to 0.55) and how much red their haematoxylin does."""
LEAST_SINE = 0.30
"""Sine of the least angle between the new vectors, about 17 degrees: two stains that are still told apart."""
AMOUNT_RANGE = math.log(2.2)
"""Largest logarithm of a factor on the amount of a stain; that on what is neither stain is half of it."""
LIGHT_RANGE, TINT_RANGE = (-0.14, 0.03), (-0.12, 0.02)
"""Relative change of the white point, in all channels alike and in each by itself: lamp, exposure, glass."""

WORDS = ("SAMPLE", "PREVIEW", "stock photo", "COPYRIGHT", "demo only", "NOT FOR USE")
FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_TRIPLEX, cv2.FONT_HERSHEY_COMPLEX)
WRITING_HEIGHT = (12.0, 30.0)
"""Height of capitals in pixels, whatever the image's size, so that a crop and a whole image look alike."""
OPACITY = (0.3, 0.6)
SUPERSAMPLED = 2
"""Writing is drawn so many times larger and then reduced, as OpenCV's letters are made of straight strokes."""


def damage(settings: CorruptionSettings) -> tuple[str, ...]:
    """Name what else than stain the settings change: noise, grey, watermark and holes, those of them that are set."""
    return tuple(name for name in ("noise", "grey", "watermark", "holes") if getattr(settings, name))


class Corruption:
    """Corrupts images: first another stain, then noise, then grey, then writing, then holes, where each is set."""

    def __init__(self, settings: CorruptionSettings) -> None:
        self.settings = settings

    def __call__(self, image: np.ndarray, seed: int) -> np.ndarray:
        """Corrupt (height, width, 3) uint8 RGB into another of the same; with nothing set it is returned as it is.

        Raises ValueError for another shape or dtype.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"expected an image (height, width, 3) uint8, found {image.shape} {image.dtype}")
        settings = self.settings
        restaining, sensing, writing, cutting = map(np.random.default_rng, np.random.SeedSequence(seed).spawn(4))
        if settings.restain:
            image = restain(image, settings.restain, restaining)
        if settings.noise:
            image = add_noise(image, settings.noise, sensing)
        if settings.grey:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if settings.watermark:
            image = add_writing(image, writing)
        if settings.holes:
            image = cut_holes(image, settings.holes, settings.hole_side, settings.hole_fill, cutting)
        return image


def restain(image: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Stain and light an image anew: other stain vectors, other amounts, another glass, all in optical density.

    image: (height, width, 3) uint8 RGB; without H&E-like stain (is_stained) it is returned as it is. strength: 0 to 1,
    share of the full ranges, which cover laboratories from real centres. Densities are taken apart by the fixed vectors
    of Ruifrok and Johnston 2001 and what neither absorbs: nothing has to be measured, so that no crop fails, and all
    pixels change by one linear map in optical density, reversible but for what the grey range cuts off.
    """
    if not is_stained(image):
        return image
    before = stain_basis(HAEMATOXYLIN_EOSIN)
    after = stain_basis(_drawn_vectors(strength, generator))
    amounts = np.exp(strength * AMOUNT_RANGE * generator.uniform(-1.0, 1.0, 3) * (1.0, 1.0, 0.5))
    light = generator.uniform(*LIGHT_RANGE) + generator.uniform(*TINT_RANGE, 3)
    red, green, blue = (np.array(WHITE) * (1.0 + strength * light)).tolist()
    return mix(image, np.linalg.inv(before) @ np.diag(amounts) @ after, WHITE, (red, green, blue))


def _drawn_vectors(strength: float, generator: np.random.Generator) -> np.ndarray:
    """Vectors around those of Ruifrok and Johnston: nowhere negative, haematoxylin redder than eosin, well apart."""
    middle, widest = np.array(HAEMATOXYLIN_EOSIN), strength * np.array(VECTOR_RANGE)
    while True:
        vectors = np.clip(middle + widest * generator.uniform(-1.0, 1.0, (2, 3)), 0.01, None)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        if vectors[0, 0] > vectors[1, 0] and np.linalg.norm(np.cross(*vectors)) >= LEAST_SINE:
            return vectors


def add_noise(image: np.ndarray, deviation: float, generator: np.random.Generator) -> np.ndarray:
    """Add Gaussian noise to each channel of each pixel; deviation: share of the grey range 0..255."""
    noise = generator.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image + np.float32(255.0 * deviation) * noise), 0, 255).astype(np.uint8)


def add_writing(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Lay half-transparent writing over an image, repeated along slanted lines as on pictures of stock agencies.

    Words, letters, size, angle, spacing, grey level and opacity are drawn anew for each image.
    """
    height, width = image.shape[:2]
    words = WORDS[int(generator.integers(len(WORDS)))]
    font = FONTS[int(generator.integers(len(FONTS)))]
    capitals = float(generator.uniform(*WRITING_HEIGHT))
    angle = float(generator.uniform(-50.0, 50.0))
    opacity = float(generator.uniform(*OPACITY))
    level = 255.0 if generator.random() < 0.75 else float(generator.uniform(0.0, 90.0))
    apart, between = generator.uniform((0.4, 1.8), (1.2, 4.5)) * capitals
    start = generator.random(2)

    side = SUPERSAMPLED * (math.ceil(math.hypot(height, width)) + 2)
    sheet = np.zeros((side, side), np.uint8)
    thickness = max(1, round(SUPERSAMPLED * capitals * float(generator.uniform(0.07, 0.14))))
    scale = cv2.getFontScaleFromHeight(font, round(SUPERSAMPLED * capitals), thickness)
    (length, tall), below = cv2.getTextSize(words, font, scale, thickness)
    step, line = length + round(SUPERSAMPLED * apart), tall + below + round(SUPERSAMPLED * between)
    for row, bottom in enumerate(range(round(start[0] * line), side + line, line)):
        # Every other line is set off by half a step.
        first = round((start[1] - 1.0 + 0.5 * (row % 2)) * step) - step
        for left in range(first, side, step):
            cv2.putText(sheet, words, (left, bottom), font, scale, 255, thickness, cv2.LINE_AA)
    turn = cv2.getRotationMatrix2D((side / 2.0, side / 2.0), angle, 1.0 / SUPERSAMPLED)
    turn[:, 2] += (width / 2.0 - side / 2.0, height / 2.0 - side / 2.0)
    soft = cv2.GaussianBlur(sheet, (0, 0), SUPERSAMPLED / 2.0)
    cover = cv2.warpAffine(soft, turn, (width, height), flags=cv2.INTER_LINEAR).astype(np.float32)
    cover = cover[..., np.newaxis] * np.float32(opacity / 255.0)
    return np.rint(image * (1.0 - cover) + np.float32(level) * cover).astype(np.uint8)


def cut_holes(
    image: np.ndarray, holes: int, sides: tuple[float, float], fill: int, generator: np.random.Generator
) -> np.ndarray:
    """Fill rectangles with one grey level.

    sides: least and largest side as a share of the image's height and width; holes lie within it and may overlap.
    """
    cut = image.copy()
    extent = np.array(image.shape[:2])
    for _ in range(holes):
        size = np.maximum(1, np.rint(generator.uniform(*sides, 2) * extent).astype(int))
        top, left = generator.integers(0, extent - size, endpoint=True)
        cut[top : top + size[0], left : left + size[1]] = fill
    return cut
