"""From a stored image to the network's input: the same lines for training and for prediction."""

from __future__ import annotations

import numpy as np
import torch

SMALLEST_RANGE = 24
"""Grey levels below which an image counts as blank and is not stretched further, so that noise is not blown up."""


def stretch(image: np.ndarray) -> np.ndarray:
    """Stretch an image so that its 0.5th and 99.5th percentile over all channels become 0 and 255.

    image: (height, width, 3) uint8; returns the same. One range for the three channels keeps the colours; a dim
    fluorescence image and a bright one become alike.
    """
    return stretch_table(np.bincount(image.ravel(), minlength=256))[image]


def stretch_table(counts: np.ndarray) -> np.ndarray:
    """Return what each grey level becomes: (256,) uint8, of how often each occurs in an image, (256,)."""
    counts = np.cumsum(counts)
    low, high = np.searchsorted(counts, np.array([0.005, 0.995]) * counts[-1])
    if high - low < SMALLEST_RANGE:
        middle = (low + high) / 2
        low, high = middle - SMALLEST_RANGE / 2, middle + SMALLEST_RANGE / 2
    return np.clip(np.rint((np.arange(256) - low) * (255.0 / (high - low))), 0, 255).astype(np.uint8)


def stored(image: np.ndarray) -> np.ndarray:
    """Leave an image as it is stored."""
    return image


INTENSITIES = {"stored": stored, "stretch": stretch}
"""What train.intensity chooses from."""


def as_input(images: torch.Tensor) -> torch.Tensor:
    """Turn (N, height, width, 3) uint8 into (N, 3, height, width) float32 in [0, 1], in memory still channels last."""
    return (images.float() / 255.0).permute(0, 3, 1, 2)
