"""From label rasters to what a network is trained on: channels, where they count, and brought to the network's output.

A label raster is (H, W) uint16: 0 background, 1..n object ids (or class ids), 65535 ignored. Where an ignored pixel
lies next to an object, nobody knows whether the object ends there: that is no edge. Nor is the border of the raster.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from skimage import measure

from pipeline.records.case import IGNORED

SIGMOID_CHANNELS: dict[str, tuple[str, ...]] = {
    "binary": ("foreground",),
    "boundary": ("foreground", "boundary"),
    "boundary_distance": ("foreground", "boundary", "distance"),
    "offsets": ("foreground", "down", "right"),
}
"""Output channels of each target whose channels are independent; those of target classes exclude each other."""

VECTORS = ("down", "right")
"""Channels that say where in its object a pixel lies, and nothing of the background."""
CLASS = "class "
"""Beginning of the name of a channel that stands for a class."""
RIM = 2.0
"""Pixels of an object that count as its boundary, counted inwards; at most half of what the object has."""
BORDER_SPREAD = 5.0
"""Pixels: sigma of equation 2 in Ronneberger 2015."""
BORDER_REACH = 4
"""Multiples of sigma beyond which d1 + d2 adds nothing to the weight: exp(-8) = 0.0003."""


def channels_of(target: str, classes: int = 1) -> tuple[str, ...]:
    """Names of the output channels of a target; classes: how many there are beside the background.

    Raises ValueError for a target that is none.
    """
    if target == "classes":
        return ("background", *(f"{CLASS}{number}" for number in range(1, classes + 1)))
    if target not in SIGMOID_CHANNELS:
        known = ", ".join(["classes", *SIGMOID_CHANNELS])
        raise ValueError(f"train.target: expected one of {known}, found {target!r}; auto is resolved from the labels")
    return SIGMOID_CHANNELS[target]


def make_target(label: np.ndarray, target: str, classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Turn a label raster into (target, valid).

    label: (H, W) uint16; target: a name that channels_of knows; classes: how many beside the background.
    Returns, for target classes, (1, H, W) int64 class ids, else (C, H, W) float32 in [0, 1], one plane a channel:
    foreground; boundary, an object's outermost pixels (RIM), on both sides where two touch; distance to the object's
    edge, divided by the object's largest; down and right, how far below and right of the object's centre of mass,
    divided by its largest on that side (the horizontal and vertical maps of HoVer-Net, Graham 2019); of those two -1 to
    1 stands as 0 to 1. Each connected piece of an object is taken for itself.
    valid: (H, W) bool, False where ignored; there the target is 0.
    Raises ValueError for class ids above classes.
    """
    valid = label != IGNORED
    if target == "classes":
        ids = np.where(valid, label, 0).astype(np.int64)
        if ids.max(initial=0) > classes:
            raise ValueError(
                f"label: expected class ids up to {classes}, found {ids.max()}; map object ids to classes first, or "
                f"use train.target=boundary for objects"
            )
        return ids[np.newaxis], valid
    foreground = valid & (label > 0)
    names = channels_of(target)
    planes = np.zeros((len(names), *label.shape), np.float32)
    planes[0] = foreground
    # What shows in pieces, cut by the edge of a crop or mirrored beyond the image's, is seen as so many objects.
    ids = measure.label(np.where(valid, label, 0), background=0, connectivity=2)[foreground].astype(np.intp)
    if "down" in names:
        planes[1:, foreground] = (1 + _offsets(foreground, ids)) / 2
    if "boundary" in names:
        distance = _edge_distance(label, foreground)
        largest = np.zeros(int(ids.max(initial=0)) + 1, np.float32)
        np.maximum.at(largest, ids, distance)
        planes[names.index("boundary")][foreground] = distance <= np.minimum(RIM, largest / 2)[ids]
        if "distance" in names:
            planes[names.index("distance")][foreground] = distance / largest[ids]
    return planes, valid


def _offsets(foreground: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Place of each foreground pixel in its object, down and right of the centre: (2, foreground pixels) in [-1, 1]."""
    # Faster than nonzero, whose two int64 arrays would be converted.
    places = np.empty((2, len(ids)), np.float32)
    places[:] = np.divmod(np.flatnonzero(foreground).astype(np.int32), np.int32(foreground.shape[1]))
    count = np.bincount(ids)
    for side in places:
        centre = np.bincount(ids, weights=side) / np.maximum(count, 1)
        side -= centre.astype(np.float32)[ids]
        least, most = np.zeros((2, len(count)), np.float32)
        np.minimum.at(least, ids, side)
        np.maximum.at(most, ids, side)
        np.divide(side, np.where(side > 0, most[ids], -least[ids]), out=side, where=side != 0)
    return places


def _edge_distance(label: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Distance in pixels of each foreground pixel's centre to the edge of its object, (foreground pixels,) float32.

    An outermost pixel has 0.5; straight edges are exact, slanting ones to half a pixel. Every straight way out of an
    object leads over its own outermost pixels, so that one distance transform to all of them serves touching objects.
    """
    outermost = foreground & _differs_from_neighbour(label)
    inside = np.logical_not(outermost).view(np.uint8)
    return _distances(inside)[foreground] + np.float32(0.5)


def _distances(inside: np.ndarray) -> np.ndarray:
    """Distance in pixels to the nearest 0, (height, width) float32, of a (height, width) uint8 raster."""
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Where nothing is 0 it gives a number whose square may be too large, as the processor has it; nothing is farther
    # away than the raster is long.
    np.minimum(distance, np.float32(np.hypot(*inside.shape)), out=distance)
    # OpenCV's last bits depend on where in memory the raster lies. Squares of distances are whole numbers, and it is
    # right to half of one up to 700 pixels; rounding the distance itself would leave those that lie on an edge.
    return np.sqrt(np.rint(np.square(distance)))


def _differs_from_neighbour(label: np.ndarray) -> np.ndarray:
    """Whether one of the eight neighbours has another id; ignored pixels and the raster's border do not count."""
    square = np.ones((3, 3), np.uint8)
    low = np.where(label == IGNORED, 0, label)  # never a maximum
    return (cv2.dilate(low, square) != label) | (cv2.erode(label, square) != label)  # and 65535 never a minimum


def class_planes(label: np.ndarray, classes: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """Return a plane a class: (len(names), H, W) float32, 1 on the objects of that class, else 0.

    label: (H, W) uint16 object ids; classes: of object 1, 2, ... (records.Case.classes); an object of a class that is
    none of the names is in no plane. Raises ValueError for objects beyond the classes.
    """
    largest = int(label.max(initial=0, where=label != IGNORED))
    if largest > len(classes):
        raise ValueError(f"label: expected a class for every object, found {len(classes)} and the object {largest}")
    place = {name: number for number, name in enumerate(names)}
    table = np.full(IGNORED + 1, -1)
    table[1 : len(classes) + 1] = [place.get(name, -1) for name in classes]
    return (table[label] == np.arange(len(names))[:, np.newaxis, np.newaxis]).astype(np.float32)


def border_weights(label: np.ndarray, spread: float = BORDER_SPREAD) -> np.ndarray:
    """Weights that are high between close objects: exp(-(d1 + d2)^2 / (2 spread^2)), Ronneberger 2015, equation 2.

    label: (H, W) uint16; d1 and d2: distance in pixels to the nearest and the second nearest object, 0 inside; spread:
    sigma in pixels. Returns (H, W) float32 in [0, 1], 0 beyond BORDER_REACH * spread and where ignored;
    loss.boundary_weight is the factor w0 before it.
    """
    height, width = label.shape
    reach = int(np.ceil(BORDER_REACH * spread))
    nearest = np.full((height, width), np.inf, np.float32)
    second = np.full((height, width), np.inf, np.float32)
    for identity, top, bottom, left, right in _boxes(label):
        window = np.s_[max(top - reach, 0) : bottom + reach, max(left - reach, 0) : right + reach]
        elsewhere = (label[window] != identity).view(np.uint8)
        distance = _distances(elsewhere)
        np.minimum(second[window], np.maximum(nearest[window], distance), out=second[window])
        np.minimum(nearest[window], distance, out=nearest[window])
    total = nearest + second
    weights = np.exp(-np.square(total) / (2 * spread**2))
    weights[(total > reach) | (label == IGNORED)] = 0
    return weights


def _boxes(label: np.ndarray) -> list[tuple[int, ...]]:
    """Id, top, bottom, left and right (ends excluded) of each object."""
    rows, columns = np.nonzero((label > 0) & (label != IGNORED))
    ids = label[rows, columns]
    boxes = np.empty((int(ids.max(initial=0)) + 1, 5), np.int64)
    boxes[:] = np.arange(len(boxes))[:, np.newaxis] * (1, 0, 0, 0, 0) + (0, label.shape[0], 0, label.shape[1], 0)
    np.minimum.at(boxes[:, 1], ids, rows)
    np.maximum.at(boxes[:, 2], ids, rows + 1)
    np.minimum.at(boxes[:, 3], ids, columns)
    np.maximum.at(boxes[:, 4], ids, columns + 1)
    return [tuple(box) for box in boxes[boxes[:, 2] > 0].tolist()]


def cell_means(maps: np.ndarray, cell: int) -> np.ndarray:
    """Mean of each square of maps: (C, H, W) float32 to (C, ceil(H / cell), ceil(W / cell)).

    cell: pixels along a square; those over the end hold what there is of them.
    """
    size = -(-maps.shape[1] // cell), -(-maps.shape[2] // cell)
    return fit_target(maps, np.ones(maps.shape[1:], bool), 0, cell, size)[0]


def cell_classes(label: np.ndarray, cell: int) -> np.ndarray:
    """Commonest class of each square of a label, (H, W) uint16 class ids to (ceil(H / cell), ceil(W / cell)).

    Ignored pixels have no vote; a square of nothing else is ignored.
    """
    size = -(-label.shape[0] // cell), -(-label.shape[1] // cell)
    valid = label != IGNORED
    classes, known = fit_target(np.where(valid, label, 0)[np.newaxis], valid, 0, cell, size)
    return np.where(known, classes[0], IGNORED).astype(np.uint16)


def fit_target(
    target: np.ndarray, valid: np.ndarray, margin: int, stride: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Bring a target to the pixels of a network's output: crop by the margin, reduce blocks of stride x stride.

    target, valid: as make_target gives them, or weights as (1, H, W) float32; margin, stride and size =
    output_size(H, W): the network's. Float planes become the mean of a block's valid pixels (the share of foreground,
    say); class ids the most frequent valid one, the smallest where several are. A block counts where at least one of
    its pixels is valid; blocks that stand over the end of the image hold what there is of it.
    Raises ValueError where the output reaches outside of the target.
    """
    height, width = size
    bottom, right = margin + height * stride, margin + width * stride
    rows, columns = valid.shape
    if bottom - stride >= rows or right - stride >= columns:
        raise ValueError(
            f"target: expected at least {bottom - stride + 1}x{right - stride + 1} pixels for an output of "
            f"{height}x{width} at margin {margin} and stride {stride}, found {rows}x{columns}; give size = "
            f"network.output_size of the image"
        )
    target, valid = target[:, margin:bottom, margin:right], valid[margin:bottom, margin:right]
    if stride == 1:
        return np.ascontiguousarray(target), np.ascontiguousarray(valid)
    beyond = ((0, height * stride - valid.shape[0]), (0, width * stride - valid.shape[1]))
    blocks_valid = _blocks(np.pad(valid, beyond), stride)
    blocks = _blocks(np.pad(target, ((0, 0), *beyond)), stride)
    counted = blocks_valid.sum(axis=-1)
    if target.dtype.kind == "f":
        reduced = (blocks * blocks_valid).sum(axis=-1) / np.maximum(counted, 1).astype(np.float32)
    else:
        ids = np.arange(int(target.max(initial=0)) + 1)
        votes = ((blocks[..., np.newaxis] == ids) & blocks_valid[..., np.newaxis]).sum(axis=-2)
        reduced = votes.argmax(axis=-1)
    return reduced.astype(target.dtype), counted > 0


def _blocks(raster: np.ndarray, stride: int) -> np.ndarray:
    """(..., H, W) as (..., H / stride, W / stride, stride^2)."""
    *planes, height, width = raster.shape
    split = raster.reshape(*planes, height // stride, stride, width // stride, stride)
    return np.moveaxis(split, -3, -2).reshape(*planes, height // stride, width // stride, stride**2)
