"""From a stored image to the network's input: the same lines for training and for prediction."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch

SMALLEST_RANGE = 24
"""Grey levels below which an image counts as blank and is not stretched further, so that noise is not blown up."""


def stored(image: np.ndarray) -> np.ndarray:
    """Leave an image as it is stored."""
    return image


def stretch(image: np.ndarray) -> np.ndarray:
    """Stretch an image so that its 0.5th and 99.5th percentile over all channels become 0 and 255.

    image: (height, width, 3) uint8; returns the same. One range for the three channels keeps the colours; a dim
    fluorescence image and a bright one become alike.
    """
    return looked_up(stretch_table(count_levels(image)), image)


def balance(image: np.ndarray) -> np.ndarray:
    """Stretch each channel of an image by percentiles of its own, so that what is brightest in each becomes white.

    image: (height, width, 3) uint8; returns the same. Tissue on yellow, grey or white ground becomes alike; what is
    grey stays grey. An image of one colour alone has nothing to be told by, and becomes grey.
    """
    return looked_up(balance_table(count_levels(image)), image)


INTENSITIES = {"stored": stored, "stretch": stretch, "balance": balance}
"""What train.intensity chooses from."""


def count_levels(image: np.ndarray) -> np.ndarray:
    """Count how often each grey level occurs in each channel of (height, width, 3) uint8: (256, 3)."""
    return np.stack([np.bincount(image[..., channel].ravel(), minlength=256) for channel in range(3)], axis=1)


def stretch_table(counts: np.ndarray) -> np.ndarray:
    """Return what each grey level becomes, alike in all channels: (256, 3) uint8, of counts (256, 3)."""
    return np.repeat(_stretched(counts.sum(axis=1))[:, np.newaxis], 3, axis=1)


def balance_table(counts: np.ndarray) -> np.ndarray:
    """Return what each grey level becomes in each channel: (256, 3) uint8, of counts (256, 3)."""
    return np.stack([_stretched(counts[:, channel]) for channel in range(3)], axis=1)


TABLES: dict[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]] = {
    stretch: stretch_table,
    balance: balance_table,
}
"""For each preparation that looks at the image as a whole, what makes its table of many images' counts."""


def looked_up(table: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Replace the levels of (height, width, 3) uint8 by those of a table (256, 3) uint8."""
    return cv2.LUT(image, np.ascontiguousarray(table[np.newaxis]))


def _stretched(counts: np.ndarray) -> np.ndarray:
    counts = np.cumsum(counts)
    low, high = np.searchsorted(counts, np.array([0.005, 0.995]) * counts[-1])
    if high - low < SMALLEST_RANGE:
        middle = (low + high) / 2
        low, high = middle - SMALLEST_RANGE / 2, middle + SMALLEST_RANGE / 2
    return np.clip(np.rint((np.arange(256) - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)


def as_input(images: torch.Tensor) -> torch.Tensor:
    """Turn (N, height, width, 3) uint8 into (N, 3, height, width) float32 in [0, 1], in memory still channels last.

    Planes of volumes alike: (N, planes, height, width, 3) into (N, 3, planes, height, width).
    """
    # In place: of a slide's window a copy is as much memory as the network's own input.
    return images.float().div_(255.0).movedim(-1, 1)
