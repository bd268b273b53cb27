"""The side of tiatoolbox: its normalisers as its documentation calls them."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata

import cv2
import numpy as np
import torch
from tiatoolbox.tools.stainnorm import get_normalizer


def prepare(method: str, tiles: str, reference: str, threads: int) -> Callable[[], object]:
    """Return one pass over the tiles of a .npy file: (height, width, 3) uint8 in, the same size and dtype out."""
    cv2.setNumThreads(threads)
    torch.set_num_threads(threads)
    normalizer = get_normalizer(method)
    normalizer.fit(np.load(reference))
    stack = np.load(tiles)
    return lambda: [normalizer.transform(tile) for tile in stack]


def versions() -> str:
    """Say which versions take part."""
    names = ("tiatoolbox", "numpy", "scikit-learn", "opencv-python")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)
