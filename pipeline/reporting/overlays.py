"""Pictures of cases: the image as a small data URI, outlines and errors as vector paths that stay sharp at any zoom."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.metrics.instance import errors, overlaps
from pipeline.records.case import IGNORED

ERROR_KINDS = ("missed", "spurious", "merged", "split")
"""Errors of objects; label rasters of classes have missed, spurious and confused regions instead."""
REGION_KINDS = ("missed", "spurious", "confused")

PER_PIXEL = 2
"""Path units a pixel: outlines run a quarter of a pixel inside the true edge, so that neighbours do not coincide."""

PAINT = (111, 220, 255)
"""RGB of painted outlines, the page's colour of predictions."""

_SIDES = (1024, 896, 768, 640, 512, 448, 384, 320, 256)
_QUALITY = 82


@dataclass(frozen=True)
class Layers:
    """One case's layers as SVG path data, in units of half a pixel.

    height, width: pixels of the label; truth, prediction, ignored: path data; errors: path data by kind of error.
    """

    height: int
    width: int
    truth: str
    prediction: str
    ignored: str
    errors: dict[str, str]


def trace_layers(truth: np.ndarray, prediction: np.ndarray, *, objects: bool, tolerance: float = 0.5) -> Layers:
    """Trace truth, prediction and what differs.

    truth, prediction: (height, width) integer ids of objects, or of classes where objects is false; truth pixels of
    65535 are left out on both sides. tolerance: pixels by which a path may leave the pixel outline.
    Raises ValueError where the shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"expected truth and prediction of one shape, found {truth.shape} and {prediction.shape}")
    ignored = truth == IGNORED
    kept_truth = np.where(ignored, 0, truth)
    kept_prediction = np.where(ignored, 0, prediction)
    differences = (
        _object_errors(truth, prediction, tolerance)
        if objects
        else _region_errors(kept_truth, kept_prediction, tolerance)
    )
    return Layers(
        height=truth.shape[0],
        width=truth.shape[1],
        truth=trace(kept_truth, tolerance=tolerance),
        prediction=trace(kept_prediction, tolerance=tolerance),
        ignored=trace(ignored.astype(np.uint8), tolerance=tolerance),
        errors=differences,
    )


def draw_outlines(image: np.ndarray, labels: np.ndarray, paint: tuple[int, int, int] = PAINT) -> np.ndarray:
    """Paint the outline of every object into a copy of the image, bright inside its edge and dark outside.

    image: (height, width, 3) uint8 RGB; labels: (height, width) integer ids, 0 background; paint: RGB. Raises
    ValueError where the sizes differ.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"expected labels of the image's size {image.shape[:2]}, found {labels.shape}")
    framed = np.pad(labels, 1, mode="edge")
    neighbours = (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:])
    edge = np.logical_or.reduce([labels != neighbour for neighbour in neighbours])
    painted = image.copy()
    outside = edge & (labels == 0)
    painted[outside] = painted[outside] // 2
    painted[edge & (labels > 0)] = paint
    return painted


def trace(labels: np.ndarray, ids: Iterable[int] | None = None, tolerance: float = 0.5) -> str:
    """Trace the objects of the given ids (all by default) as one SVG path, in units of half a pixel.

    labels: (height, width) integer ids, 0 background. Holes are traced too (fill them by the even-odd rule).
    """
    from scipy.ndimage import find_objects

    boxes = find_objects(labels.astype(np.int32, copy=False))
    wanted = range(1, len(boxes) + 1) if ids is None else (int(number) for number in ids)
    pieces = []
    for number in wanted:
        if boxes[number - 1] is None:
            continue
        rows, columns = boxes[number - 1]
        inside = (labels[rows, columns] == number).astype(np.uint8)
        doubled = inside.repeat(PER_PIXEL, axis=0).repeat(PER_PIXEL, axis=1)
        corner = (columns.start * PER_PIXEL, rows.start * PER_PIXEL)
        contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=corner)
        pieces += [_path(cv2.approxPolyDP(contour, tolerance * PER_PIXEL, closed=True)[:, 0]) for contour in contours]
    return "".join(pieces)


def embed_image(image: np.ndarray, budget: int) -> tuple[str, float]:
    """Encode an image as a WebP data URI of about budget bytes or fewer; return it and the scale it is shown at.

    image: (height, width, 3) uint8 RGB. The image is reduced until it fits; the smallest size is taken in any case.
    """
    from PIL import Image

    longest = max(image.shape[:2])
    encoded, scale = b"", 1.0
    for side in sorted({min(side, longest) for side in _SIDES}, reverse=True):
        scale = side / longest
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        shown = image if scale == 1.0 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        stream = io.BytesIO()
        Image.fromarray(shown).save(stream, "WEBP", quality=_QUALITY, method=4)
        encoded = stream.getvalue()
        if len(encoded) <= budget:
            break
    return "data:image/webp;base64," + base64.b64encode(encoded).decode("ascii"), scale


def _object_errors(truth: np.ndarray, prediction: np.ndarray, tolerance: float) -> dict[str, str]:
    found = errors(overlaps(truth, prediction))
    known = np.where(truth == IGNORED, 0, prediction)
    sides = {"missed": truth, "spurious": known, "merged": known, "split": truth}
    return {kind: trace(sides[kind], getattr(found, kind), tolerance) for kind in ERROR_KINDS}


def _region_errors(truth: np.ndarray, prediction: np.ndarray, tolerance: float) -> dict[str, str]:
    """Trace regions that differ; seams of one or two pixels, which every mask has along its edges, are left out."""
    regions = {
        "missed": (truth > 0) & (prediction == 0),
        "spurious": (truth == 0) & (prediction > 0),
        "confused": (truth > 0) & (prediction > 0) & (truth != prediction),
    }
    square = np.ones((3, 3), np.uint8)
    return {
        kind: trace(cv2.morphologyEx(region.astype(np.uint8), cv2.MORPH_OPEN, square), tolerance=tolerance)
        for kind, region in regions.items()
    }


def _path(points: np.ndarray) -> str:
    """Write (n, 2) integer points as a closed path of relative steps, which are the shortest."""
    start, *steps = [points[0], *np.diff(points, axis=0)]
    drawn = "".join(_pair(step) for step in steps)
    return f"M{start[0]} {start[1]}" + (f"l{drawn.strip()}" if drawn else "h0") + "z"


def _pair(step: np.ndarray) -> str:
    across, down = int(step[0]), int(step[1])
    return (f"{across}" if across < 0 else f" {across}") + (f"{down}" if down < 0 else f" {down}")
