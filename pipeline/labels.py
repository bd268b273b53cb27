"""From masks as data sets store them to one label raster: (height, width) uint16, 0 background, 65535 ignored.

Overlaps. A pixel that several objects claim goes to the smallest of them (of equal ones to the first by name), so that
a small object inside a large one does not vanish; an object that keeps no pixel is dropped. Both are counted.

Values. What the values of label rasters mean is known before, see `pipeline.label_values`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.label_values import BRIGHT, LOW, Meaning, ValueSurvey, check_values, integers, survey, too_many
from pipeline.records.case import IGNORED, MAXIMUM_OBJECTS
from pipeline.records.findings import FaultyFile, Remark
from pipeline.records.outline import Outline
from pipeline.records.rle import decode, decode_labels, decode_sampled

IN_PIECES = "object in pieces"
"""Remark on objects of several connected regions."""
EMPTY_OUTLINE = "empty outline"
"""Remark on outlines that hold no pixel of their image."""
BEYOND = 0.05
"""Share of an image's outlines that may lie beyond it, as careless drawing leaves them."""
_SHOWN = 3
_EMPTY = Remark("noted", "empty label", "no pixel is foreground")


@dataclass(frozen=True)
class Label:
    """A label raster and what had to be done to get it.

    raster: (height, width) uint16. count: objects (instance), foreground classes (semantic) or squares (coarse) in it.
    classes: of object 1, 2, ..., count, where they are told.
    """

    raster: np.ndarray
    count: int
    remarks: tuple[Remark, ...] = ()
    classes: tuple[str, ...] | None = None


def check_size(shape: tuple[int, ...], image_shape: tuple[int, ...]) -> None:
    """Raise FaultyFile where a mask has not its image's height and width; it says where the two are swapped."""
    if shape[:2] == image_shape[:2]:
        return
    swapped = shape[:2] == image_shape[1::-1]
    raise FaultyFile(
        "transposed" if swapped else "size mismatch",
        f"the image's height x width {image_shape[0]} x {image_shape[1]}",
        f"{shape[0]} x {shape[1]}" + (" (transposed)" if swapped else ""),
        "swap its axes" if swapped else "give the file that belongs to the image",
    )


def from_object_masks(masks: Iterable[tuple[str, np.ndarray]], shape: tuple[int, int], threshold: int = 127) -> Label:
    """Join one mask an object into a label raster of objects 1..n, numbered in the masks' order.

    masks: (name, (height, width) of any dtype); a mask with one value above 0 is taken as it is, one with several is
    grey or anti-aliased and thresholded (threshold is on the scale 0..255). Masks are read one after the other and
    only their bounding boxes are kept. Listed: empty masks (dropped), thresholded ones, overlaps, duplicates, objects
    in several pieces (kept as one). Raises FaultyFile for more than 65,534 objects and other sizes.
    """
    boxes: list[_Box] = []
    remarks: list[Remark] = []
    empty, grey, odd = [], [], []
    for name, mask in masks:
        check_size(mask.shape, shape)
        whole, rest = _as_bytes(mask)
        if rest:
            grey.append(name)
        left, top, width, height = cv2.boundingRect(whole)
        values = np.unique(whole[top : top + height, left : left + width])
        values = values[values > 0]
        if values.size > 1:
            whole = (whole > threshold).astype(np.uint8)
            left, top, width, height = cv2.boundingRect(whole)
            grey.append(name)
        elif values.size and values[0] != 255:
            odd.append(f"{name} ({values[0]})")
        if not width:
            empty.append(name)
            continue
        boxes.append(_Box(name, top, left, whole[top : top + height, left : left + width] > 0))
    if empty:
        remarks.append(Remark("repaired", "empty object mask", f"{_some(empty)}: dropped"))
    if grey:
        grey = list(dict.fromkeys(grey))
        remarks.append(Remark("repaired", "grey mask", f"{_some(grey)}: thresholded above {threshold}"))
    if odd:
        remarks.append(Remark("repaired", "other foreground value", f"{_some(odd)}: read as foreground"))
    if len(boxes) > MAXIMUM_OBJECTS:
        raise too_many(len(boxes))
    raster, _, more = _painted(boxes, shape)
    remarks += more
    count = int(raster.max(initial=0))
    return Label(raster, count, (*remarks, *_pieces_remark(raster)))


def from_runs(rows: Sequence[str], shape: tuple[int, int]) -> Label:
    """Turn run-length rows, one an object, into a label raster of objects 1..n; empty rows are no objects.

    Overlaps go by the same rule as masks. Raises FaultyFile for rows that cannot be decoded.
    """
    filled = [row for row in rows if row.strip()]
    if len(filled) > MAXIMUM_OBJECTS:
        raise too_many(len(filled))
    try:
        raster = decode_labels(filled, *shape)
    except ValueError:
        # Either a row is faulty, or two objects overlap: decoding one by one tells which.
        return _from_overlapping_runs(filled, shape)
    return Label(raster, len(filled), tuple(_pieces_remark(raster)))


def from_sampled_runs(row: str, shape: tuple[int, int], of: tuple[int, int]) -> Label:
    """Turn one run-length row of an image of height and width `of` into a label raster of another shape, 0 and 1.

    Raises FaultyFile for a row that cannot be decoded.
    """
    try:
        mask = decode_sampled(row, *of, shape)
    except ValueError as error:
        raise FaultyFile("faulty runs", f"runs within {of[0]} x {of[1]} pixels", str(error), "mend the row") from error
    return Label(mask.astype(np.uint16), int(mask.any()))


def from_outlines(
    outlines: Sequence[Outline], shape: tuple[int, int], *, by_class: bool = False, part: bool = False
) -> Label:
    """Fill polygons: a label raster of objects 1..n in their order, or of class ids; unknown ones become 65535.

    Pixels whose centre lies inside belong to an object. Overlaps go by the same rule as masks; what is unknown gives
    way to every object. Objects keep their classes where every outline names one. Listed: outlines that hold no pixel
    of the image (dropped). Raises FaultyFile for more than 65,534 objects, and where many outlines, or all, lie beyond
    the image, which then is another one, or of another size.

    part: the image is cut from a larger one, on whose rest outlines may lie.
    """
    # Others than outlines do not wait for the compiler.
    from pipeline.filling import pixels_inside

    beyond = 0 if part else sum(_lies_beyond(outline, shape) for outline in outlines)
    if beyond > max(1, BEYOND * len(outlines)) or 0 < beyond == len(outlines):
        raise FaultyFile(
            "outlines beyond the image", f"outlines within its {shape[0]} x {shape[1]} pixels",
            f"{beyond} of {len(outlines)} that lie beyond it", "give the image that they were drawn on, at its size",
        )  # fmt: skip
    boxes, classes, names, empty = [], [], [], []
    unknown = np.zeros(shape, bool)
    for number, outline in enumerate(outlines, start=1):
        found = pixels_inside(outline, shape)
        if found is None:
            empty.append(f"outline {number}")
            continue
        box = _Box(f"outline {number}", *found)
        if outline.ignored:
            unknown[box.window] |= box.shape
        else:
            boxes.append(box)
            classes.append(outline.class_id)
            names.append(outline.class_name)
    remarks = [Remark("repaired", EMPTY_OUTLINE, f"{_some(empty)}: no pixel of the image; dropped")] if empty else []
    if len(boxes) > MAXIMUM_OBJECTS:
        raise too_many(len(boxes))
    raster, kept, more = _painted(boxes, shape)
    if by_class:
        raster = np.array([0, *(classes[index] for index in kept)], np.uint16)[raster]
    count = np.unique(raster[raster > 0]).size
    raster[unknown & (raster == 0)] = IGNORED
    told = tuple(name for index in kept if (name := names[index]) is not None)
    return Label(raster, count, (*remarks, *more), None if by_class or len(told) < len(kept) else told)


def from_class_planes(planes: np.ndarray, names: Sequence[str]) -> Label:
    """Join planes of object ids, one a class, into one label raster of objects 1..n with a class each.

    planes: (height, width, planes) whole numbers of any dtype, 0 where the class has no object; planes beyond the names
    (a background) are not read. Ids count within their plane alone: the same id in two planes is two objects. Pixels
    that several planes claim go by the same rule as masks. Raises FaultyFile for values that are no ids, and for more
    than 65,534 objects.
    """
    from scipy.ndimage import find_objects

    if planes.ndim != 3 or planes.shape[2] < len(names):
        raise FaultyFile("other planes", f"a plane of object ids for each of {', '.join(names)}", f"{planes.shape}")
    boxes, classes = [], []
    for number, name in enumerate(names):
        plane = np.asarray(planes[..., number])
        if plane.dtype.kind not in "bfui" or not np.isfinite(plane).all() or (plane < 0).any() or (plane % 1).any():
            raise FaultyFile("unknown range of values", "object ids, whole numbers of 0 and above", f"others ({name})")
        ids, places = np.unique(np.append(plane.ravel(), 0), return_inverse=True)
        numbered = places[:-1].reshape(plane.shape).astype(np.int32)
        for identity, window in enumerate(find_objects(numbered), start=1):
            rows, columns = window
            inside = numbered[window] == identity
            boxes.append(_Box(f"{name} {ids[identity]:g}", rows.start, columns.start, inside))
            classes.append(name)
    if len(boxes) > MAXIMUM_OBJECTS:
        raise too_many(len(boxes))
    raster, kept, remarks = _painted(boxes, planes.shape[:2])
    remarks += _pieces_remark(raster)
    return Label(raster, len(kept), tuple(remarks), tuple(classes[index] for index in kept))


def _lies_beyond(outline: Outline, shape: tuple[int, int]) -> bool:
    corners = [ring for ring in outline.rings if len(ring)]
    if not corners:
        return False
    points = np.concatenate(corners)
    least, most = points.min(axis=0), points.max(axis=0)
    return bool(((most <= 0) & (least < 0)).any() or ((least >= shape[::-1]) & (most > shape[::-1])).any())


def difference(label: np.ndarray, other: np.ndarray) -> str | None:
    """Say in words how two rasters of objects differ, ids aside; None where they hold the same objects."""
    pairs = np.unique(label.astype(np.uint32) * 65536 + other)
    mine, theirs = pairs // 65536, pairs % 65536
    counts = (np.unique(mine[mine > 0]).size, np.unique(theirs[theirs > 0]).size)
    if ((mine > 0) == (theirs > 0)).all() and np.unique(mine).size == pairs.size == np.unique(theirs).size:
        return None
    pixels = int(((label > 0) != (other > 0)).sum())
    return f"{counts[0]} objects against {counts[1]}, {pixels} pixels are foreground in one only"


def from_raster(plane: np.ndarray, meaning: Meaning, threshold: int = 127) -> Label:
    """Turn one plane of values, as `integers` gives it, into a label raster under the data set's meaning.

    White: above the threshold (on the scale 0..255) is class 1; shades are listed. Classes: as they are, or by the
    place of their level. Objects: renumbered 1..n in rising order; objects in several pieces are listed and stay one.
    Raises FaultyFile as check_values does.
    """
    if plane.dtype == np.bool_ and meaning.levels:
        plane = plane.astype(np.uint16) * meaning.levels[-1]
    found = survey(plane)
    check_values(found, meaning)
    if meaning.foreground is not None:
        return Label((plane > 0).astype(np.uint16), int((plane > 0).any()))
    if plane.dtype == np.bool_:
        plane = plane.astype(np.uint8)
        if meaning.kind == "white":
            return Label(plane.astype(np.uint16), found.values.size, () if found.values.size else (_EMPTY,))
    if meaning.kind == "white":
        return _from_white(plane, found, threshold)
    values = found.values[found.values != meaning.ignored] if meaning.ignored else found.values
    remarks = []
    if meaning.ignored and values.size < found.values.size:
        remarks.append(Remark("noted", "ignored pixels", f"value {meaning.ignored} is left out of losses and metrics"))
    if not values.size:
        remarks.append(_EMPTY)
    targets = np.arange(1, values.size + 1) if meaning.kind == "objects" else values
    if meaning.levels:
        targets = np.searchsorted(meaning.levels, values) + 1
        told = ", ".join(f"{value} became class {target}" for value, target in zip(values, targets, strict=True))
        remarks += [Remark("repaired", "flat levels", told)] if told else []
    raster = _mapped(plane, values, targets.astype(np.uint16))
    if meaning.ignored:
        raster[plane == meaning.ignored] = IGNORED
    if meaning.kind == "objects":
        remarks += _pieces_remark(raster)
    return Label(raster, int(values.size), tuple(remarks))


@dataclass(frozen=True)
class _Box:
    name: str
    top: int
    left: int
    shape: np.ndarray

    @property
    def area(self) -> int:
        return int(np.count_nonzero(self.shape))

    @property
    def window(self) -> tuple[slice, slice]:
        height, width = self.shape.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


def _painted(boxes: list[_Box], shape: tuple[int, ...]) -> tuple[np.ndarray, list[int], list[Remark]]:
    """Paint large objects first, so that contested pixels end with the smallest; drop what keeps no pixel.

    Returns the raster of objects 1..n, the place in boxes of each, and what is to be listed.
    """
    raster = np.zeros(shape, np.uint16)
    contested = np.zeros(shape, bool)
    areas = [box.area for box in boxes]
    for index in sorted(range(len(boxes)), key=lambda index: (-areas[index], -index)):
        box = boxes[index]
        under = raster[box.window]
        contested[box.window] |= (under > 0) & box.shape
        under[box.shape] = index + 1
    remarks = []
    if contested.any():
        pixels = int(contested.sum())
        remarks.append(
            Remark("repaired", "overlapping objects", f"{pixels} contested pixel(s) went to the smaller object")
        )
    kept = np.flatnonzero(np.bincount(raster.ravel(), minlength=len(boxes) + 1)[1:])
    if kept.size < len(boxes):
        lost = [boxes[index].name for index in np.setdiff1d(np.arange(len(boxes)), kept)]
        remarks.append(Remark("repaired", "covered object", f"{_some(lost)}: others hold every pixel; dropped"))
        raster = _mapped(raster, kept + 1, np.arange(1, kept.size + 1).astype(np.uint16))
    return raster, kept.tolist(), remarks


def _as_bytes(mask: np.ndarray) -> tuple[np.ndarray, bool]:
    """A mask on the scale 0..255, and whether it had to be scaled; foreground never rounds to 0."""
    if mask.dtype == np.uint8:
        return mask, False
    plane, remarks = integers(mask)
    if plane.dtype == np.bool_:
        plane = plane.astype(np.uint8) * 255
    if plane.dtype == np.uint8:
        return plane, bool(remarks)
    largest = int(plane.max(initial=0))
    if np.unique(plane).size <= 2:
        return np.where(plane > 0, 255, 0).astype(np.uint8), largest not in (0, 255, 65535)
    white = 65535 if largest > 255 else 255
    return np.rint(plane * (255.0 / white)).clip(0, 255).astype(np.uint8), True


def refuse_ids(mask: np.ndarray) -> None:
    """Raise FaultyFile for a mask of several ids, where one of a single object is expected; of any integer dtype.

    Most of a shape in shades is nearly as light as its lightest pixel, faint ringing of a JPEG aside; ids are spread
    over their range, and even in both directions.
    """
    if mask.dtype.kind not in "ui":
        return
    largest = int(mask.max(initial=0))
    # Nearly every mask has one value; an ingest of 26,000 asks each of them.
    if np.count_nonzero(mask == largest) == np.count_nonzero(mask != 0):
        return
    white = 255 if largest <= 255 else 65535
    shown = mask > (LOW * white // 255 if largest >= BRIGHT * white else 0)
    count = np.count_nonzero(shown)
    bright = np.count_nonzero(mask >= BRIGHT * largest)
    if not largest or (mask[shown] == largest).all() or (largest > LOW and 2 * bright >= count):
        return
    for one, other in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        inside = shown[one] & shown[other]
        if 2 * np.count_nonzero(mask[one][inside] == mask[other][inside]) <= np.count_nonzero(inside):
            return
    raise FaultyFile(
        "ids in a mask of one object", "0 and 255, or shades between, as of one object",
        f"{np.unique(mask[shown]).size} even values up to {largest}",
        "give a mask an object, or put rasters of ids into images/ and masks/, which the layout folder_pairs reads",
    )  # fmt: skip


def _from_overlapping_runs(rows: Sequence[str], shape: tuple[int, int]) -> Label:
    faults = []
    masks = []
    for number, row in enumerate(rows, start=1):
        try:
            masks.append((f"row {number}", decode(row, *shape).astype(np.uint8) * 255))
        except ValueError as error:
            faults.append(f"row {number}: {error}")
    if faults:
        raise FaultyFile("faulty run-length row", "pairs of start and length within the image", _some(faults))
    return from_object_masks(masks, shape)


def _from_white(plane: np.ndarray, found: ValueSurvey, threshold: int) -> Label:
    scale = 257 if found.white == 65535 else 1
    foreground = plane > threshold * scale
    remarks = []
    if found.values.size and not found.only_white:
        shades = int(found.counts[found.values != found.white].sum())
        remarks.append(
            Remark("repaired", "grey mask", f"{shades} pixel(s) between black and white, thresholded above {threshold}")
        )
    if not foreground.any():
        remarks.append(_EMPTY)
    return Label(foreground.astype(np.uint16), int(foreground.any()), tuple(remarks))


def _mapped(plane: np.ndarray, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Replace each of the rising values by its target; everything else becomes 0."""
    if not values.size:
        return np.zeros(plane.shape, np.uint16)
    at = np.searchsorted(values, plane).clip(max=values.size - 1)
    return np.where(values[at] == plane, targets[at], 0).astype(np.uint16)


def _pieces_remark(raster: np.ndarray) -> list[Remark]:
    """List objects in several connected pieces (8 neighbours)."""
    from skimage.measure import label as connected

    objects = raster if IGNORED not in raster else np.where(raster == IGNORED, 0, raster)
    pieces, count = connected(objects, connectivity=2, return_num=True)
    if count <= np.count_nonzero(np.bincount(objects.ravel())[1:]):
        return []
    owners = np.zeros(count + 1, np.int64)
    owners[pieces.ravel()] = objects.ravel()
    ids, number = np.unique(owners[1:], return_counts=True)
    split = ids[number > 1]
    return [Remark("noted", IN_PIECES, f"{split.size} object(s) of several pieces, kept as one each")]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
