"""What the values of label rasters mean: white, class ids or object ids.

It is decided once over the whole data set (`meaning_of`), never file by file: an image whose only class is 1 looks like
a very dark 0/255 mask, and an image with one object like a binary one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from pipeline.records.case import IGNORED, MAXIMUM_OBJECTS
from pipeline.records.findings import FaultyFile, Remark

MAXIMUM_CLASSES = 254
"""Largest class id of a semantic label."""
LOW, BRIGHT = 32, 0.9
"""Values up to LOW can be class ids; values from BRIGHT of 255 (or 65535) count as white."""
REGIONS_A_VALUE = 1.25
"""Object ids form about one connected region each; class ids form many."""
FEW, ALMOST_ONE = 5, 1.1
"""More ids than FEW, all there in every image and of ALMOST_ONE connected region each, are objects however alike their
number is: hardly an image has one region of each of so many classes."""
MOST_LEVELS = 8
"""Values above 0 in a data set of flat levels, at most; edges in shades, and compression, bring many more."""
FLAT = 0.25
"""Share of a level's pixels whose 8 neighbours all have its value: none of a shade along edges, most of an area."""
_AROUND = np.ones((3, 3), np.uint8)


@dataclass(frozen=True)
class ValueSurvey:
    """The values of one label raster.

    values, counts: distinct values above 0 and their pixels; white: 255, or 65535 where values exceed it, or None;
    regions: connected regions of equal value above 0 (8 neighbours); either: whether it is of 0 and 1 that may be black
    and white as well as ids; inner: where there are few values, and shades between black and white among them, the
    pixels of each value whose 8 neighbours have it too, else none.
    """

    values: np.ndarray
    counts: np.ndarray
    white: int | None
    regions: int
    either: bool = False
    inner: np.ndarray | None = None

    @property
    def only_white(self) -> bool:
        """Whether the raster holds 0 and white alone."""
        return self.values.tolist() == [self.white]

    @property
    def only_low(self) -> bool:
        """Whether the raster holds small values alone, and some."""
        return self.values.size > 0 and int(self.values[-1]) <= LOW

    def shades(self, white: int) -> np.ndarray:
        """Whether each value lies between what may be a class id and what is nearly white: (values,) bool."""
        return (self.values > LOW) & (self.values < BRIGHT * white)


@dataclass(frozen=True)
class Meaning:
    """What the values of a data set's label rasters mean.

    kind: white (0/255 foreground), classes or objects; ignored: the value that means unknown, or None; evidence: why;
    foreground: the one value above 0 where that is another than white; levels: the values above 0, rising, of rasters
    of flat levels: classes 1, 2, ... in this order, or what is no shade of white; doubt: whether ids could be of
    classes as well as of objects.
    """

    kind: Literal["white", "classes", "objects"]
    ignored: int | None
    evidence: str
    foreground: int | None = None
    levels: tuple[int, ...] = ()
    doubt: bool = False


def survey(plane: np.ndarray) -> ValueSurvey:
    """Count the values of one label raster, as `integers` gives it."""
    from skimage.measure import label as connected

    either = plane.dtype == np.bool_
    if either:
        plane = plane.astype(np.uint8)
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
    found = ValueSurvey(values[above], counts[above], white, regions, either)
    if white is None or found.values.size > MOST_LEVELS or not found.shades(white).any():
        return found
    whole = plane.astype(np.uint16)
    even = cv2.erode(whole, _AROUND) == cv2.dilate(whole, _AROUND)
    return replace(found, inner=np.bincount(whole[even], minlength=white + 1)[found.values])


def integers(plane: np.ndarray) -> tuple[np.ndarray, list[Remark]]:
    """Bring one label plane to an integer dtype, or to booleans where it is not told whether 1 is white or an id.

    Booleans stay, and floats that are 0 and 1 alone become such; other whole floats become ids; floats with fractions
    of 0..1 become 0..255 (a probability, thresholded later). Raises FaultyFile for negative values, NaN and fractions
    above 1.
    """
    if plane.dtype == np.bool_:
        return plane, []
    if plane.dtype.kind == "f":
        if not np.isfinite(plane).all() or plane.min() < 0:
            raise FaultyFile("unknown range of values", "values of 0 and above", "negative values, NaN or infinity")
        whole = bool((plane == np.rint(plane)).all())
        if plane.max() <= 1.0 and not whole:
            scaled = np.rint(plane * 255.0).astype(np.uint8)
            return scaled, [Remark("repaired", "float mask", "values of 0..1 became 0..255")]
        if plane.max() <= 1.0:
            return plane > 0, [Remark("repaired", "float mask", "0 and 1 were stored as floats")]
        if not whole:
            raise FaultyFile(
                "unknown range of values", "whole numbers, or fractions of 0..1",
                f"fractions up to {plane.max():g}", "save class or object ids as whole numbers",
            )  # fmt: skip
        return plane.astype(np.int32), [Remark("repaired", "float mask", "whole numbers stored as floats became ids")]
    if plane.dtype.kind == "i" and plane.min(initial=0) < 0:
        raise FaultyFile("unknown range of values", "values of 0 and above", f"values down to {plane.min()}")
    return plane, []


def meaning_of(
    surveys: Sequence[ValueSurvey], label_kind: Literal["auto", "instance", "semantic"], *, one_class: bool = False
) -> Meaning:
    """Decide over a whole data set what the values of its label rasters mean.

    White (0/255): most pixels above 0 are white or nearly so, and no file holds white beside a few small values alone;
    or all files share a single value that no small class id is (0/128, 0/200).
    Flat levels (0/128/255, each over areas) are classes where label_kind is semantic, and are no shades: check_values
    refuses them otherwise, unless one_class says that a threshold was set for them.
    Objects: ids of about one connected region each (REGIONS_A_VALUE), numbered from 1 where there are few; then their
    number varies, or is above FEW.
    Classes: otherwise. 255 beside small class ids of one raster is the ignored value.
    Where more rasters hold small values alone than hold white, it is not white: check_values then names the few.
    Rasters of 0 and 1 that may be either are what the others are: foreground beside white, ids beside ids and alone.
    Raises ValueError where label_kind asks for what the values cannot give.
    """
    if not surveys or not any(entry.values.size for entry in surveys):
        return Meaning("classes", None, "every label is empty")
    told_apart = [entry for entry in surveys if not entry.either]
    levels = _flat_levels(told_apart) if label_kind != "instance" else ()
    if levels and label_kind == "semantic":
        return Meaning("classes", None, f"{_listed(levels)} over areas, which became 1 to {len(levels)}", levels=levels)
    if levels or _is_white(told_apart):
        if label_kind == "instance":
            raise ValueError(
                "ingest.label_kind=instance: expected object ids, found 0/255 masks, which do not tell touching "
                "objects apart; set ingest.label_kind=semantic, or give 16-bit rasters of object ids"
            )
        return Meaning("white", None, "0 and 255, or shades between", levels=() if one_class else levels)
    ids = sorted({int(value) for entry in surveys for value in entry.values})
    if len(ids) == 1 and LOW < ids[0] < IGNORED and label_kind != "instance":
        return Meaning("white", None, f"0 and {ids[0]}, which is taken for white", ids[0])
    # Where 255 stands alone it is the foreground of a file of another kind.
    beside_ids = any(entry.white == 255 and {255} < {*entry.values.tolist()} for entry in surveys)
    unknown = beside_ids and ids[-1] == 255 and ids[-2] <= LOW
    ignored = 255 if unknown else IGNORED if ids[-1] == IGNORED else None
    largest = max((value for value in ids if value != ignored), default=0)
    pairs = sum(int((entry.values != ignored).sum()) for entry in surveys)
    ratio = sum(entry.regions for entry in surveys) / max(1, pairs)
    doubt = False
    evidence = f"values up to {largest}, {ratio:.2f} connected regions a value"
    if label_kind == "instance" and ratio > REGIONS_A_VALUE and all(entry.either for entry in surveys):
        raise ValueError(
            f"ingest.label_kind=instance: expected object ids, found masks of 0 and 1 ({evidence}), which do not tell "
            "touching objects apart; set ingest.label_kind=semantic, or give 16-bit rasters of object ids"
        )
    if label_kind == "auto":
        counted = [entry for entry in surveys if entry.values.size]
        numbered = bool(np.mean([entry.values[-1] == entry.values.size for entry in counted]) >= 0.9)
        sizes = {entry.values.size for entry in counted}
        many = numbered and max(sizes) > FEW
        like_counts = largest > LOW or (numbered and len(sizes) > 1) or (many and ratio <= ALMOST_ONE)
        objects = largest > 1 and ratio <= REGIONS_A_VALUE and like_counts
        kind = "objects" if objects or largest > MAXIMUM_CLASSES else "classes"
        doubt = 1 < largest <= LOW and ratio <= REGIONS_A_VALUE and not (objects and many)
    else:
        kind = "objects" if label_kind == "instance" else "classes"
    if kind == "classes" and largest > MAXIMUM_CLASSES:
        raise ValueError(
            f"ingest.label_kind=semantic: expected class ids of 0..{MAXIMUM_CLASSES}, found {evidence}; "
            "set ingest.label_kind=instance if these are object ids"
        )
    return Meaning("objects" if kind == "objects" else "classes", ignored, evidence, doubt=doubt)


def check_values(found: ValueSurvey, meaning: Meaning) -> None:
    """Raise FaultyFile for a raster of another convention than its data set's, and for more than 65,534 objects."""
    if meaning.kind == "white":
        if found.only_low and not found.either:
            raise FaultyFile(
                "0/255 against ids", "0 and 255 as in the other labels", f"values up to {found.values[-1]} alone",
                "multiply it by 255 if they mean foreground",
            )  # fmt: skip
        if len(meaning.levels) > 1 and found.shades(meaning.levels[-1]).any():
            raise FaultyFile(
                "flat levels", "0 and 255, with shades along edges alone, or class ids",
                f"{_listed([0, *found.values.tolist()])} over areas",
                "save class ids 0, 1, 2, ..., or set ingest.label_kind=semantic where each level is a class, or "
                "ingest.threshold where what lies above it is the only one",
            )  # fmt: skip
        return
    if meaning.levels:
        return
    if found.only_white and found.white == 255 and meaning.ignored != 255:
        raise FaultyFile(
            "0/255 against ids", f"ids as in the other labels ({meaning.evidence})", "0 and 255 alone",
            "save it with ids",
        )  # fmt: skip
    if meaning.kind == "objects" and found.values.size > MAXIMUM_OBJECTS + (meaning.ignored is not None):
        raise too_many(found.values.size)


def too_many(count: int) -> FaultyFile:
    """What to raise where an image holds more objects than a raster has ids."""
    return FaultyFile(
        "too many objects", f"at most {MAXIMUM_OBJECTS:,}, as 16 bits hold", f"{count:,}", "cut the image into tiles"
    )


def _listed(levels: Sequence[int]) -> str:
    return "the levels " + ", ".join(map(str, levels))


def _flat_levels(surveys: Sequence[ValueSurvey]) -> tuple[int, ...]:
    """The values above 0 of a data set that has white, few others, none small, and one at least that fills areas."""
    levels = sorted({int(value) for entry in surveys for value in entry.values})
    if not 1 < len(levels) <= MOST_LEVELS or levels[0] <= LOW or levels[-1] not in (255, 65535):
        return ()
    for level in levels:
        pixels = even = 0
        for entry in surveys:
            if entry.inner is not None:
                pixels += int(entry.counts[entry.values == level].sum())
                even += int(entry.inner[entry.values == level].sum())
        if level < BRIGHT * levels[-1] and even > FLAT * pixels:
            return tuple(levels)
    return ()


def _is_white(surveys: Sequence[ValueSurvey]) -> bool:
    """Whether the data set's foreground is white, exactly or with the shades of compression and smoothing."""
    low = shades = bright = exact = 0
    # A file of another kind does not outvote the rest, however much of it is foreground.
    if sum(entry.only_low for entry in surveys) > sum(entry.white in entry.values.tolist() for entry in surveys):
        return False
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
