"""Pictures of one case by every method, the same piece of it at full resolution, and what each differs by."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from pipeline.metrics.normalisers import INPUT
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image
from pipeline.reporting.sources import Absent, Sources

SIDES = (256, 224, 160, 136, 96, 64)
"""Sides of the pieces that are tried until all pictures fit."""
QUALITY, DIFFERENCE_QUALITY = 88, 75
STRENGTH = 4
"""Times that a difference is shown at."""
GREY = 128
LOCAL = 8.0
"""Standard deviation in pixels of the Gaussian mean that detail is what is left of."""
TARGET = "target"


@dataclass(frozen=True)
class Tile:
    """One method's picture of a case: its name, image and difference as data URIs (none for the target itself)."""

    name: str
    image: str
    difference: str | None


@dataclass(frozen=True)
class Comparison:
    """One case by every method: its row of scores, size of the piece shown, tiles, or why they are not there."""

    row: dict[str, Any]
    height: int = 0
    width: int = 0
    whole: bool = True
    tiles: tuple[Tile, ...] = ()
    absent: Absent | None = None


@dataclass(frozen=True)
class _Images:
    """A case's images before they are cut: by method, and what stands for the target."""

    by_method: dict[str, np.ndarray]
    target: np.ndarray | None
    difference: Callable[[np.ndarray], np.ndarray]


def compare_cases(
    chosen: dict[str, list[dict[str, Any]]], methods: Sequence[str], sources: Sources, paths: Paths, budget: int
) -> dict[str, list[Comparison]]:
    """Return every chosen case by every method, all in pieces of one size, the largest that fits into budget bytes.

    chosen: rows of scores by rank, each with case_id. Nothing is reduced: a piece holds the pixels as they are.
    """
    loaded = {
        row["case_id"]: _load(row["case_id"], methods, sources, paths) for rows in chosen.values() for row in rows
    }
    shown: dict[str, Comparison] = {}
    for side in SIDES:
        shown = {case_id: _cut(images, side) for case_id, images in loaded.items()}
        size = sum(len(tile.image) + len(tile.difference or "") for one in shown.values() for tile in one.tiles)
        if size <= budget:
            break
    return {
        rank: [
            Comparison(row, one.height, one.width, one.whole, one.tiles, one.absent)
            for row in rows
            for one in (shown[row["case_id"]],)
        ]
        for rank, rows in chosen.items()
    }


def _load(case_id: str, methods: Sequence[str], sources: Sources, paths: Paths) -> _Images | Absent:
    files = {name: paths.made_image(name, case_id) for name in methods}
    for file in files.values():
        if not file.exists():
            return Absent(file.relative_to(paths.root).as_posix(), "make evaluate")
    images = {name: read_image(file) for name, file in files.items()}
    if sources.metrics.get("kind") == "unpaired":
        before = images[INPUT]
        return _Images(images, None, lambda made: detail_change(before, made))
    case = sources.cases.get(case_id)
    if case is None:
        return sources.absent.get("cases", Absent(f"{case_id} in cases.jsonl", "make ingest"))
    paired = case.label_kind == "image" and case.label is not None
    file = paths.ingest / str(case.label) if paired else paths.image(case.image)
    if not file.exists():
        return Absent(file.relative_to(paths.root).as_posix(), "make ingest")
    target = read_image(file)
    return _Images(images, target, lambda made: difference(target, made))


def difference(target: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Return STRENGTH times the absolute difference, (height, width, 3) uint8: black where nothing differs."""
    return np.clip(STRENGTH * np.abs(made.astype(np.int16) - target), 0, 255).astype(np.uint8)


def detail_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return STRENGTH times the change in detail around grey, (height, width, 3) uint8: brightness less its local mean.

    A change of stain alone leaves little; seams, blur and what was invented stand out.
    """
    details = []
    for image in (before, after):
        bright = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        details.append(bright - cv2.GaussianBlur(bright, (0, 0), LOCAL))
    change = np.clip(GREY + STRENGTH * (details[1] - details[0]), 0, 255)
    return cv2.cvtColor(np.rint(change).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def busiest(image: np.ndarray, side: int) -> tuple[slice, slice]:
    """Return rows and columns of the piece of up to side pixels whose grey levels vary most.

    Chosen on a grid, from an image that no method made, so that no method is favoured.
    """
    height, width = image.shape[:2]
    high, wide = min(side, height), min(side, width)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float64)
    tops, lefts = (sorted({*range(0, length - own, max(1, own // 4)), length - own})
                   for length, own in ((height, high), (width, wide)))  # fmt: skip
    places = [(float(grey[top : top + high, left : left + wide].std()), top, left) for top in tops for left in lefts]
    _, top, left = max(places, key=lambda place: (round(place[0], 6), -place[1], -place[2]))
    return slice(top, top + high), slice(left, left + wide)


def _cut(images: _Images | Absent, side: int) -> Comparison:
    if isinstance(images, Absent):
        return Comparison({}, absent=images)
    guide = images.by_method[INPUT] if images.target is None else images.target
    place = busiest(guide, side)
    tiles = [
        Tile(name, encode(image[place], QUALITY), encode(images.difference(image)[place], DIFFERENCE_QUALITY))
        for name, image in images.by_method.items()
    ]
    if images.target is not None:
        tiles.append(Tile(TARGET, encode(images.target[place], QUALITY), None))
    height, width = guide[place].shape[:2]
    return Comparison({}, height, width, (height, width) == guide.shape[:2], tuple(tiles))


def encode(image: np.ndarray, quality: int) -> str:
    """Encode (height, width, 3) uint8 RGB as a WebP data URI, pixel for pixel."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(stream, "WEBP", quality=quality, method=4)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
