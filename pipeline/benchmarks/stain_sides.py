"""Our sides of the contests of stain transforms: the product's own code, and the plain NumPy of the same transform."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Literal

import cv2
import numpy as np

from pipeline.benchmarks import plain
from pipeline.stains import METHODS
from pipeline.stains.optical_density import HAEMATOXYLIN_EOSIN, mix

MAXIMUM_GAIN = 4.0
VECTORS = np.array(HAEMATOXYLIN_EOSIN)
GAIN = np.array([1.2, 0.8])
"""Of the fixed matrix: the vectors stay, haematoxylin is strengthened and eosin weakened."""


def prepare(
    method: str, tiles: str, reference: str, threads: int, variant: Literal["stainseg", "numpy"]
) -> Callable[[], object]:
    """Return one pass over the tiles of a .npy file; method: fixed matrix, or a name of METHODS."""
    cv2.setNumThreads(threads)
    stack = np.load(tiles)
    if method != "fixed matrix":
        transform = METHODS[method](MAXIMUM_GAIN).fit([np.load(reference)]).transform
        return lambda: [transform(tile) for tile in stack]
    if variant == "numpy":
        return lambda: [plain.exchange(tile, VECTORS, VECTORS, GAIN) for tile in stack]
    matrix = plain.exchange_matrix(VECTORS, VECTORS, GAIN)
    return lambda: [mix(tile, matrix) for tile in stack]


def versions() -> str:
    """Say which versions take part."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "opencv-python-headless", "numba"))
