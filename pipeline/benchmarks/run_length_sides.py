"""Sides of the contest of run lengths: the product's codec, pycocotools, and the lines of many public notebooks."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from typing import Literal

import numpy as np

from pipeline.records import rle


def prepare(
    what: Literal["encode", "decode"], mask: str, variant: Literal["ours", "pycocotools", "numpy"]
) -> Callable[[], object]:
    """Return one encoding of the mask of a .npy file, (height, width) bool, or one decoding of its run lengths.

    pycocotools has a form of its own, and wants columns that lie together: bringing a mask to that is part of its work,
    as it is for a mask that a network made.
    """
    raster: np.ndarray = np.load(mask)
    height, width = raster.shape
    if variant == "pycocotools":
        from pycocotools import mask as coco

        if what == "encode":
            return lambda: coco.encode(np.asfortranarray(raster.view(np.uint8)))
        coded = coco.encode(np.asfortranarray(raster.view(np.uint8)))
        return lambda: np.ascontiguousarray(coco.decode(coded))
    encode, decode = (rle.encode, rle.decode) if variant == "ours" else (_encode, _decode)
    if what == "encode":
        return lambda: encode(raster)
    text = rle.encode(raster)
    return lambda: decode(text, height, width)


def _encode(mask: np.ndarray) -> str:
    pixels = np.concatenate([[0], mask.T.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(number) for number in runs)


def _decode(text: str, height: int, width: int) -> np.ndarray:
    numbers = text.split()
    starts, lengths = (np.asarray(part, dtype=int) for part in (numbers[0::2], numbers[1::2]))
    starts = starts - 1
    flat = np.zeros(height * width, dtype=np.uint8)
    for low, high in zip(starts, starts + lengths, strict=True):
        flat[low:high] = 1
    return np.ascontiguousarray(flat.reshape((width, height)).T)


def same(mask: str) -> bool:
    """Whether the product's text, decoded by the plain lines and by itself, is the mask again, and both texts agree."""
    raster: np.ndarray = np.load(mask)
    text = rle.encode(raster)
    plain = _decode(text, *raster.shape).astype(bool)
    return text == _encode(raster) and bool(
        (plain == raster).all() and (rle.decode(text, *raster.shape) == raster).all()
    )


def versions() -> str:
    """Say which versions take part."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "pycocotools"))
