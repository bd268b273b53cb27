"""From masks as data sets store them to one label raster: (height, width) uint16, 0 background, 65535 ignored.

Overlaps. A pixel that several objects claim goes to the smallest of them (of equal ones to the first by name), so that
a small object inside a large one does not vanish; an object that keeps no pixel is dropped. Both are counted.

Values. What the values of label rasters mean is decided once over the whole data set (`meaning_of`), never file by
file: an image whose only class is 1 looks like a very dark 0/255 mask, and an image with one object like a binary one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from pipeline.records.case import IGNORED, MAXIMUM_OBJECTS
from pipeline.records.findings import FaultyFile, Remark
from pipeline.records.outline import Outline
from pipeline.records.rle import decode, decode_labels, decode_sampled

MAXIMUM_CLASSES = 254
"""Largest class id of a semantic label."""
LOW, BRIGHT = 32, 0.9
"""Values up to LOW can be class ids; values from BRIGHT of 255 (or 65535) count as white."""
REGIONS_A_VALUE = 1.25
"""Object ids form about one connected region each; class ids form many."""

EMPTY_OUTLINE = "empty outline"
"""Remark on outlines that hold no pixel of their image."""
_SHOWN = 3


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


@dataclass(frozen=True)
class ValueSurvey:
    """The values of one label raster.

    values, counts: distinct values above 0 and their pixels; white: 255, or 65535 where values exceed it, or None;
    regions: connected regions of equal value above 0 (8 neighbours).
    """

    values: np.ndarray
    counts: np.ndarray
    white: int | None
    regions: int

    @property
    def only_white(self) -> bool:
        """Whether the raster holds 0 and white alone."""
        return self.values.tolist() == [self.white]

    @property
    def only_low(self) -> bool:
        """Whether the raster holds small values alone, and some."""
        return self.values.size > 0 and int(self.values[-1]) <= LOW


@dataclass(frozen=True)
class Meaning:
    """What the values of a data set's label rasters mean.

    kind: white (0/255 foreground), classes or objects; ignored: the value that means unknown, or None; evidence: why.
    """

    kind: Literal["white", "classes", "objects"]
    ignored: int | None
    evidence: str


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
        raise _too_many(len(boxes))
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
        raise _too_many(len(filled))
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


def from_outlines(outlines: Sequence[Outline], shape: tuple[int, int], *, by_class: bool = False) -> Label:
    """Fill polygons: a label raster of objects 1..n in their order, or of class ids; unknown ones become 65535.

    Pixels whose centre lies inside belong to an object. Overlaps go by the same rule as masks; what is unknown gives
    way to every object. Objects keep their classes where every outline names one. Listed: outlines that hold no pixel
    of the image (dropped). Raises FaultyFile for more than 65,534 objects.
    """
    boxes, classes, names, empty = [], [], [], []
    unknown = np.zeros(shape, bool)
    for number, outline in enumerate(outlines, start=1):
        box = _filled(outline, shape, f"outline {number}")
        if box is None:
            empty.append(f"outline {number}")
        elif outline.ignored:
            unknown[box.window] |= box.shape
        else:
            boxes.append(box)
            classes.append(outline.class_id)
            names.append(outline.class_name)
    remarks = [Remark("repaired", EMPTY_OUTLINE, f"{_some(empty)}: no pixel of the image; dropped")] if empty else []
    if len(boxes) > MAXIMUM_OBJECTS:
        raise _too_many(len(boxes))
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
        raise _too_many(len(boxes))
    raster, kept, remarks = _painted(boxes, planes.shape[:2])
    remarks += _pieces_remark(raster)
    return Label(raster, len(kept), tuple(remarks), tuple(classes[index] for index in kept))


def _filled(outline: Outline, shape: tuple[int, int], name: str) -> _Box | None:
    """The pixels inside an outline; None where there are none."""
    from skimage.draw import polygon2mask

    rings = [ring for ring in outline.rings if len(ring) >= 3]
    if not rings:
        return None
    points = np.concatenate(rings)
    left, top = (int(side) for side in np.maximum(np.floor(points.min(axis=0)), 0))
    right, below = (int(side) for side in np.minimum(np.ceil(points.max(axis=0)), shape[::-1]))
    if right <= left or below <= top:
        return None
    inside = np.zeros((below - top, right - left), bool)
    for ring in rings:
        inside ^= polygon2mask(inside.shape, ring[:, ::-1] - (top + 0.5, left + 0.5))
    return _Box(name, top, left, inside) if inside.any() else None


def difference(label: np.ndarray, other: np.ndarray) -> str | None:
    """Say in words how two rasters of objects differ, ids aside; None where they hold the same objects."""
    pairs = np.unique(label.astype(np.uint32) * 65536 + other)
    mine, theirs = pairs // 65536, pairs % 65536
    counts = (np.unique(mine[mine > 0]).size, np.unique(theirs[theirs > 0]).size)
    if ((mine > 0) == (theirs > 0)).all() and np.unique(mine).size == pairs.size == np.unique(theirs).size:
        return None
    pixels = int(((label > 0) != (other > 0)).sum())
    return f"{counts[0]} objects against {counts[1]}, {pixels} pixels are foreground in one only"


def survey(plane: np.ndarray) -> ValueSurvey:
    """Count the values of one label raster, as `integers` gives it."""
    from skimage.measure import label as connected

    if plane.dtype in (np.uint8, np.uint16):
        pixels = np.bincount(plane.ravel())
        values = np.flatnonzero(pixels)
        counts = pixels[values]
    else:
        values, counts = np.unique(plane, return_counts=True)
    above = values > 0
    largest = int(values[-1])
    white = 255 if largest <= 255 else 65535 if largest <= 65535 else None
    regions = int(connected(plane, connectivity=2, return_num=True)[1]) if above.any() else 0
    return ValueSurvey(values[above], counts[above], white, regions)


def integers(plane: np.ndarray) -> tuple[np.ndarray, list[Remark]]:
    """Bring one label plane to an integer dtype.

    Booleans and floats of 0..1 become 0..255 (a probability, thresholded later); whole floats become ids. Raises
    FaultyFile for negative values, NaN and fractions above 1.
    """
    if plane.dtype == np.bool_:
        return plane.astype(np.uint8) * 255, []
    if plane.dtype.kind == "f":
        if not np.isfinite(plane).all() or plane.min() < 0:
            raise FaultyFile("unknown range of values", "values of 0 and above", "negative values, NaN or infinity")
        if plane.max() <= 1.0:
            scaled = np.rint(plane * 255.0).astype(np.uint8)
            return scaled, [Remark("repaired", "float mask", "values of 0..1 became 0..255")]
        if (plane != np.rint(plane)).any():
            raise FaultyFile(
                "unknown range of values", "whole numbers, or fractions of 0..1",
                f"fractions up to {plane.max():g}", "save class or object ids as whole numbers",
            )  # fmt: skip
        return plane.astype(np.int32), [Remark("repaired", "float mask", "whole numbers stored as floats became ids")]
    if plane.dtype.kind == "i" and plane.min(initial=0) < 0:
        raise FaultyFile("unknown range of values", "values of 0 and above", f"values down to {plane.min()}")
    return plane, []


def meaning_of(surveys: Sequence[ValueSurvey], label_kind: Literal["auto", "instance", "semantic"]) -> Meaning:
    """Decide over a whole data set what the values of its label rasters mean.

    White (0/255): most pixels above 0 are white or nearly so, and no file holds white beside a few small values alone.
    Objects: ids of about one connected region each (REGIONS_A_VALUE), numbered from 1 where there are few.
    Classes: otherwise. 255 beside small class ids is the ignored value.
    Raises ValueError where label_kind asks for what the values cannot give.
    """
    if not surveys or not any(entry.values.size for entry in surveys):
        return Meaning("classes", None, "every label is empty")
    if _is_white(surveys):
        if label_kind == "instance":
            raise ValueError(
                "ingest.label_kind=instance: expected object ids, found 0/255 masks, which do not tell touching "
                "objects apart; set ingest.label_kind=semantic, or give 16-bit rasters of object ids"
            )
        return Meaning("white", None, "0 and 255, or shades between")
    ids = sorted({int(value) for entry in surveys for value in entry.values})
    ignored = 255 if len(ids) > 1 and ids[-1] == 255 and ids[-2] <= LOW else IGNORED if ids[-1] == IGNORED else None
    largest = max((value for value in ids if value != ignored), default=0)
    pairs = sum(int((entry.values != ignored).sum()) for entry in surveys)
    ratio = sum(entry.regions for entry in surveys) / max(1, pairs)
    evidence = f"values up to {largest}, {ratio:.2f} connected regions a value"
    if label_kind == "auto":
        counted = [entry for entry in surveys if entry.values.size]
        numbered = [entry.values[-1] == entry.values.size for entry in counted]
        sizes = {entry.values.size for entry in counted}
        like_counts = largest > LOW or (np.mean(numbered) >= 0.9 and len(sizes) > 1)
        objects = largest > 1 and ratio <= REGIONS_A_VALUE and like_counts
        kind = "objects" if objects or largest > MAXIMUM_CLASSES else "classes"
    else:
        kind = "objects" if label_kind == "instance" else "classes"
    if kind == "classes" and largest > MAXIMUM_CLASSES:
        raise ValueError(
            f"ingest.label_kind=semantic: expected class ids of 0..{MAXIMUM_CLASSES}, found {evidence}; "
            "set ingest.label_kind=instance if these are object ids"
        )
    return Meaning("objects" if kind == "objects" else "classes", ignored, evidence)


def check_values(found: ValueSurvey, meaning: Meaning) -> None:
    """Raise FaultyFile for a raster of another convention than its data set's, and for more than 65,534 objects."""
    if meaning.kind == "white":
        if found.only_low:
            raise FaultyFile(
                "0/255 against ids", "0 and 255 as in the other labels", f"values up to {found.values[-1]} alone",
                "multiply it by 255 if they mean foreground",
            )  # fmt: skip
        return
    if found.only_white and found.white == 255 and meaning.ignored != 255:
        raise FaultyFile(
            "0/255 against ids", f"ids as in the other labels ({meaning.evidence})", "0 and 255 alone",
            "save it with ids",
        )  # fmt: skip
    if meaning.kind == "objects" and found.values.size > MAXIMUM_OBJECTS + (meaning.ignored is not None):
        raise _too_many(found.values.size)


def from_raster(plane: np.ndarray, meaning: Meaning, threshold: int = 127) -> Label:
    """Turn one plane of values, as `integers` gives it, into a label raster under the data set's meaning.

    White: above the threshold (on the scale 0..255) is class 1; shades are listed. Classes: as they are. Objects:
    renumbered 1..n in rising order; objects in several pieces are listed and stay one.
    Raises FaultyFile as check_values does.
    """
    found = survey(plane)
    check_values(found, meaning)
    if meaning.kind == "white":
        return _from_white(plane, found, threshold)
    values = found.values[found.values != meaning.ignored] if meaning.ignored else found.values
    remarks = []
    if meaning.ignored and values.size < found.values.size:
        remarks.append(Remark("noted", "ignored pixels", f"value {meaning.ignored} is left out of losses and metrics"))
    if not values.size:
        remarks.append(Remark("noted", "empty label", "no pixel is foreground"))
    targets = np.arange(1, values.size + 1) if meaning.kind == "objects" else values
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
        lost = [box.name for index, box in enumerate(boxes) if index not in set(kept.tolist())]
        remarks.append(Remark("repaired", "covered object", f"{_some(lost)}: others hold every pixel; dropped"))
        raster = _mapped(raster, kept + 1, np.arange(1, kept.size + 1).astype(np.uint16))
    return raster, kept.tolist(), remarks


def _as_bytes(mask: np.ndarray) -> tuple[np.ndarray, bool]:
    """A mask on the scale 0..255, and whether it had to be scaled; foreground never rounds to 0."""
    if mask.dtype == np.uint8:
        return mask, False
    plane, remarks = integers(mask)
    if plane.dtype == np.uint8:
        return plane, bool(remarks)
    largest = int(plane.max(initial=0))
    if np.unique(plane).size <= 2:
        return np.where(plane > 0, 255, 0).astype(np.uint8), largest not in (0, 255, 65535)
    white = 65535 if largest > 255 else 255
    return np.rint(plane * (255.0 / white)).clip(0, 255).astype(np.uint8), True


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
        remarks.append(Remark("noted", "empty label", "no pixel is foreground"))
    return Label(foreground.astype(np.uint16), int(foreground.any()), tuple(remarks))


def _is_white(surveys: Sequence[ValueSurvey]) -> bool:
    """Whether the data set's foreground is white, exactly or with the shades of compression and smoothing."""
    low = shades = bright = exact = 0
    mixed = False
    for entry in surveys:
        if entry.white is None:
            return False
        is_low, is_exact = entry.values <= LOW, entry.values == entry.white
        is_bright = entry.values >= BRIGHT * entry.white
        low += int(entry.counts[is_low].sum())
        exact += int(entry.counts[is_exact].sum())
        bright += int(entry.counts[is_bright].sum())
        shades += int(entry.counts[~is_low & ~is_exact].sum())
        mixed |= bool(is_low.any() and is_exact.any())
    if shades:
        # Ringing around the edges of a compressed mask adds low values, which say nothing.
        return bright * 2 >= shades + exact and exact * 5 >= shades + exact
    # White beside a few small values in one file is an ignored value beside class ids; in other files than theirs,
    # what most foreground pixels are decides.
    return exact >= low and exact > 0 and not mixed


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
    return [Remark("noted", "object in pieces", f"{split.size} object(s) of several pieces, kept as one each")]


def _too_many(count: int) -> FaultyFile:
    return FaultyFile(
        "too many objects", f"at most {MAXIMUM_OBJECTS:,}, as 16 bits hold", f"{count:,}", "cut the image into tiles"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
