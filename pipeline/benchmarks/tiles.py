"""The tiles that stain transforms are timed on: rendered tissue of several laboratories, and real tissue."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from pipeline.laboratories import LABORATORIES
from pipeline.records.rasters import read_image
from pipeline.tissue import TissueKind, render_field

SIZES = ((256, 320), (1024, 960))
"""Height and width."""
RENDERED: dict[tuple[int, int], tuple[tuple[TissueKind, str], ...]] = {
    SIZES[0]: (("gland", "north"), ("nest", "east"), ("lymphoid", "south"), ("stroma", "west"), ("nest", "south")),
    SIZES[1]: (("lymphoid", "east"), ("stroma", "south")),
}
"""Tissue and laboratory of each rendered tile."""
REAL = {
    SIZES[0]: (
        "camelyon17_centres/center_0/domain_0_15018.png",
        "camelyon17_centres/center_1/domain_1_12919.png",
        "camelyon17_centres/center_2/domain_2_14011.png",
    ),
    SIZES[1]: ("stain_examples/veta_example1.png",),
}
"""Files below real/ in the folder that STAINSEG_REAL_DATA names; the upper left corner is taken."""
REFERENCE: tuple[TissueKind, str] = ("gland", "north")
"""Tissue and laboratory of the reference, which is none of the tiles."""
SEED = 20


def render_tiles(size: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """Return the tiles of a size, (n, height, width, 3) uint8 RGB, and their names; real ones only where they are."""
    tiles, names = [], []
    for number, (kind, laboratory) in enumerate(RENDERED[size]):
        tiles.append(render_field(kind, *size, LABORATORIES[laboratory], SEED + number).image)
        names.append(f"{laboratory} {kind}")
    for name in REAL[size]:
        file = real_folder() / name
        if file.is_file():
            tiles.append(read_image(file)[: size[0], : size[1]])
            names.append(file.stem)
    return np.stack(tiles), names


def render_reference() -> np.ndarray:
    """Return the tile that every normaliser is fitted to: (256, 320, 3) uint8 RGB."""
    kind, laboratory = REFERENCE
    return render_field(kind, *SIZES[0], LABORATORIES[laboratory], SEED - 1).image


def real_folder() -> Path:
    """Where real data would lie; the folder need not exist."""
    return Path(os.environ.get("STAINSEG_REAL_DATA", "absent")) / "real"


def fingerprint(*tiles: np.ndarray) -> str:
    """Eight hexadecimal digits that stand for these pixels."""
    digest = hashlib.sha256()
    for stack in tiles:
        digest.update(repr(stack.shape).encode() + stack.tobytes())
    return digest.hexdigest()[:8]
