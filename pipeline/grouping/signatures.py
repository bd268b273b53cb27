"""What is kept of an image while it is compared with all others: borders, a thumbnail, landmarks, its colours."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import cv2
import numpy as np

THUMBNAIL = 32
"""Side in pixels of the picture that proposes a duplicate."""
LANDMARKS, PATCH = 40, 8
"""Landmarks of an image, and half a patch's side at half size."""


@dataclass(frozen=True)
class Signature:
    """Border lines, outermost first, as (2, length, 3) square roots of intensity; a band-passed thumbnail;
    a hash of the colours; up to LANDMARKS (row, column) and the unit patches around them."""

    name: str
    height: int
    width: int
    borders: dict[str, np.ndarray]
    thumbnail: np.ndarray
    colours: bytes
    landmarks: np.ndarray
    patches: np.ndarray

    @classmethod
    def of(cls, name: str, image: np.ndarray) -> Signature:
        """Reduce (height, width, 3) uint8 RGB to what is compared."""
        height, width = image.shape[:2]
        colours = colour_digest(image)
        landmarks = _landmarks(image)
        if height < 2 or width < 2:
            return cls(name, height, width, {}, np.zeros((THUMBNAIL, THUMBNAIL), np.float32), colours, *landmarks)
        # The square root makes photon noise alike in bright and in dark places, so that dark borders count.
        lines = {
            "left": image[:, :2].swapaxes(0, 1),
            "right": image[:, :-3:-1].swapaxes(0, 1),
            "top": image[:2],
            "bottom": image[:-3:-1],
        }
        borders = {side: np.sqrt(pair.astype(np.float32)) for side, pair in lines.items()}
        return cls(name, height, width, borders, _thumbnail(image), colours, *landmarks)


def colour_digest(image: np.ndarray) -> bytes:
    """Hash of the histograms and the sides, the same in all eight orientations; empty for one plain colour."""
    planes = image.reshape(-1, image.shape[2])
    counts = [np.bincount(plane, minlength=256) for plane in planes.T]
    if all(count.max() == len(planes) for count in counts):
        return b""
    return hashlib.sha256(np.array(sorted(image.shape[:2])).tobytes() + np.stack(counts).tobytes()).digest()


def grey_roots(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Square roots of the grey levels, float32, at (width, height)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.sqrt(cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    roots = grey_roots(image, (THUMBNAIL, THUMBNAIL))
    detail = roots - cv2.GaussianBlur(roots, (0, 0), 4.0)
    # A nearly blank image keeps a short vector, hence a low correlation with everything.
    return detail / np.sqrt((detail**2).sum() + THUMBNAIL**2 * 1e-3)


def _landmarks(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners that stand out, (N, 2) rows and columns in pixels, and the (N, side * side) unit patches around them."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    reach, side = PATCH, 2 * PATCH + 1
    if min(height, width) <= side:
        return np.zeros((0, 2), np.int64), np.zeros((0, side * side), np.float32)
    roots = cv2.GaussianBlur(grey_roots(image, (width, height)), (0, 0), 1.0)
    detail = roots - cv2.GaussianBlur(roots, (0, 0), 8.0)
    inside = np.zeros(detail.shape, np.uint8)
    inside[reach:-reach, reach:-reach] = 1
    corners = cv2.goodFeaturesToTrack(detail, LANDMARKS, 0.05, PATCH / 2.0, mask=inside)
    points = np.zeros((0, 2), np.int64) if corners is None else corners.reshape(-1, 2)[:, ::-1].astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(detail, (side, side))
    patches = windows[points[:, 0] - reach, points[:, 1] - reach].reshape(len(points), side * side)
    patches = patches - patches.mean(1, keepdims=True)
    return 2 * points, (patches / np.sqrt((patches**2).sum(1, keepdims=True) + 1e-3)).astype(np.float32)
