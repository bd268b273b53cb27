"""From one raw case to its pixels: every file is decoded, and every fault is found before any is told.

Two passes. `check_case` reads one case. What the values of label rasters mean and how deep images are scaled is decided
over the whole data set, so a case that depends on it is read again, by `finish_case`, once all were checked.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from pipeline.config import IngestSettings
from pipeline.label_values import Meaning, integers, survey
from pipeline.labels import (
    EMPTY_OUTLINE,
    Label,
    check_size,
    from_class_planes,
    from_outlines,
    from_raster,
    from_sampled_runs,
)
from pipeline.readers.checked import Checked
from pipeline.readers.layout import RawCase
from pipeline.readers.object_labels import files_of_stems, label_of_objects
from pipeline.records.case import IGNORED
from pipeline.records.decode import Decoded, bit_depth, decode, from_array, to_plane, to_rgb
from pipeline.records.findings import FaultyFile, Remark
from pipeline.records.outline import Outline
from pipeline.records.raw import RawFolder
from pipeline.records.slides import IdRaster, View, open_slide
from pipeline.records.volumes import class_ids, grey_levels, read_volume, same_space

_opening = threading.Lock()


def check_case(raw: RawFolder, case: RawCase, settings: IngestSettings) -> Checked:
    """Read image and label of one case; what is wrong with them stands in its faults."""
    checked = Checked(case)
    if case.patches:
        return _stitch(raw, checked)
    if case.plane is not None:
        return _cut(raw, checked, settings)
    if case.windowed:
        return _shrink(raw, checked, settings.shrink)
    image = _colours(raw, checked, case.image, settings)
    target = _colours(raw, checked, case.target, settings, of_target=True) if case.target else None
    label = _check_label(raw, checked, settings) if case.segmented else None
    if not checked.faults and not checked.waits:
        checked.image, checked.target, checked.label = image, target, label
        checked.count(label)
    return checked


def _cut(raw: RawFolder, checked: Checked, settings: IngestSettings) -> Checked:
    """Take one plane out of a volume and out of its segmentation, which must share its space."""
    case, plane = checked.case, checked.case.plane
    with _opening:
        seen = _volume(raw, case.image, case.raster, settings.window)
    if isinstance(seen, _Faulty):
        checked.note(seen.file, seen.error)
        return checked
    levels, ids = seen
    checked.shape = levels.shape[1], levels.shape[2]
    checked.image = np.repeat(levels[plane][..., None], 3, axis=2)
    if ids is not None:
        checked.label = Label(ids[plane], int(np.unique(ids[plane][ids[plane] > 0]).size))
    checked.count(checked.label)
    return checked


@dataclass(frozen=True)
class _Faulty:
    """Which of the files of a volume cannot be used, and why."""

    file: str
    error: FaultyFile


@lru_cache(maxsize=2)
def _volume(
    raw: RawFolder, image: str, raster: str | None, window: tuple[float, float] | None
) -> tuple[np.ndarray, np.ndarray | None] | _Faulty:
    """Grey levels and class ids of a volume, kept for its next plane, as is what is wrong with it."""
    name = image
    try:
        volume = read_volume(raw.read(image))
        levels = grey_levels(volume.values, window)
        if raster is None:
            return levels, None
        name = raster
        segmentation = read_volume(raw.read(raster))
        ids = class_ids(segmentation.values)
        if apart := same_space(volume, segmentation):
            expected = f"the shape and affine of {image}"
            raise FaultyFile("another space", expected, apart, "resample it into the volume's space")
    except FaultyFile as error:
        return _Faulty(name, error)
    return levels, ids


def _shrink(raw: RawFolder, checked: Checked, shrink: int) -> Checked:
    """Read an image that may be larger than memory at a part of its size, and its one mask likewise."""
    case = checked.case
    try:
        with open_slide(raw.path(case.image)) as slide:
            view = View(slide, float(shrink))
            checked.full = slide.levels[0].height, slide.levels[0].width
            _check_table(case, checked.full)
            checked.shape = view.height, view.width
            image = view.window(0, 0, view.height, view.width)
    except FaultyFile as fault:
        checked.note(case.image, fault)
        return checked
    label = None
    if case.runs is not None:
        try:
            label = from_sampled_runs(case.runs[0], checked.shape, checked.full)
        except FaultyFile as fault:
            checked.note(str(case.runs_table), fault)
            return checked
    checked.image, checked.label = image, label
    checked.count(label)
    return checked


def _stitch(raw: RawFolder, checked: Checked) -> Checked:
    """Lay the patches of a case side by side: white, and unknown, where there is none."""
    case, found, small = checked.case, [], 0
    assert case.cell is not None
    for patch in case.patches:
        try:
            decoded = decode(patch.name, raw.read(patch.name), "image")
            pixels, remarks = to_rgb(decoded)
            if decoded.pixels.dtype != np.uint8:
                raise FaultyFile("deep patch", "8 bits a channel", str(decoded.pixels.dtype), "save it with 8 bits")
            if max(pixels.shape[:2]) > case.cell:
                expected, size = f"at most {case.cell} x {case.cell} pixels", " x ".join(map(str, pixels.shape[:2]))
                raise FaultyFile("large patch", expected, size, "it would cover its neighbours: cut or delete it")
        except FaultyFile as fault:
            checked.note(patch.name, fault)
            continue
        checked.remarks += remarks
        small += min(pixels.shape[:2]) < case.cell
        found.append((patch, pixels))
    if checked.faults:
        return checked
    height = max(patch.top + pixels.shape[0] for patch, pixels in found)
    width = max(patch.left + pixels.shape[1] for patch, pixels in found)
    checked.shape = height, width
    checked.image = np.full((height, width, 3), 255, np.uint8)
    label = np.full((height, width), IGNORED, np.uint16)
    for patch, pixels in found:
        window = np.s_[patch.top : patch.top + pixels.shape[0], patch.left : patch.left + pixels.shape[1]]
        checked.image[window], label[window] = pixels, patch.class_id
    if small:
        checked.remarks.append(Remark("noted", "small patches", f"{small} of {len(found)}, kept at their places"))
    squares = -(-height // case.cell) * -(-width // case.cell)
    checked.remarks.append(
        Remark("noted", "squares without patch", f"{squares - len(found)} of {squares} are unknown, and left out")
    )
    checked.label = Label(label, sum(patch.class_id > 0 for patch in case.patches))
    checked.count(checked.label)
    return checked


def finish_case(raw: RawFolder, case: RawCase, settings: IngestSettings, meaning: Meaning | None, bits: int) -> Checked:
    """Read a case that waited, and had no faults, under what was decided over the whole data set."""
    checked = Checked(case)
    checked.image = _colours(raw, checked, case.image, settings, bits)
    checked.target = _colours(raw, checked, case.target, settings, bits, of_target=True) if case.target else None
    if case.raster is not None and meaning is not None:
        plane, remarks = _plane(raw, case, settings)
        checked.label = from_raster(plane, meaning, settings.foreground_above)
        checked.remarks += [*remarks, *checked.label.remarks]
    elif case.segmented:
        checked.label = _check_label(raw, checked, settings)
    checked.count(checked.label)
    return checked


def _colours(
    raw: RawFolder, checked: Checked, name: str, settings: IngestSettings, bits: int | None = None, *,
    of_target: bool = False,
) -> np.ndarray | None:  # fmt: skip
    """The image or the target of a case as RGB; None where there are faults, which are noted.

    bits: depth by which every image of the data set is scaled; None while it is being found.
    """
    try:
        decoded = _decoded(raw, checked.case, name, settings)
        if checked.case.target == checked.case.image:
            decoded = replace(decoded, pixels=_half(decoded.pixels, right=of_target))
        shape = decoded.pixels.shape[:2]
        if of_target and checked.shape:
            check_size(shape, checked.shape)
        elif not of_target:
            _check_table(checked.case, shape)
            checked.shape = (shape[0], shape[1])
        if bits is None and decoded.pixels.dtype.kind in "ui" and decoded.pixels.dtype != np.uint8:
            checked.bits = max(bit_depth(decoded.pixels), checked.bits or 0)
        pixels, remarks = to_rgb(decoded, bits or settings.depth or 16)
    except FaultyFile as fault:
        checked.note(name, fault)
        return None
    checked.remarks += remarks
    return pixels


def _decoded(raw: RawFolder, case: RawCase, name: str, settings: IngestSettings) -> Decoded:
    if case.window is not None:
        return Decoded(_viewed(raw, name, settings.mpp, settings.shrink).window(*case.window))
    return decode(name, raw.read(name), "image") if case.index is None else from_array(raw.array(name)[case.index])


def _decoded_ids(raw: RawFolder, case: RawCase, name: str, settings: IngestSettings) -> np.ndarray:
    assert case.window is not None
    with _opening:
        mask = _mask(raw, name)
    return _viewed(raw, case.image, settings.mpp, settings.shrink).ids(mask, *case.window)


def _viewed(raw: RawFolder, name: str, mpp: float | None, shrink: int) -> View:
    # Several threads would each open, and decode, what they miss at once.
    with _opening:
        return _view(raw, name, mpp, shrink)


@lru_cache(maxsize=4)
def _view(raw: RawFolder, name: str, mpp: float | None, shrink: int) -> View:
    """A slide as it is looked at, kept open for its next tile."""
    return View.at(open_slide(raw.path(name)), mpp, shrink)


@lru_cache(maxsize=2)
def _mask(raw: RawFolder, name: str) -> IdRaster:
    """A slide's mask, kept open for its next tile."""
    return IdRaster(raw.path(name))


def forget() -> None:
    """Let go of the slides and volumes that were kept for their next part."""
    for kept in (_view, _mask, _volume, files_of_stems):
        kept.cache_clear()


def _check_table(case: RawCase, shape: tuple[int, ...]) -> None:
    """Refuse an image of another size than its table says: run-length masks would fall into wrong places in silence."""
    if case.size is not None and case.size != shape[:2]:
        expected, found = (f"{height} x {width} pixels" for height, width in (case.size, shape[:2]))
        raise FaultyFile("size mismatch", f"{expected} (height x width), as the table says", found, "mend the table")


def _half(pixels: np.ndarray, *, right: bool) -> np.ndarray:
    width = pixels.shape[1]
    if width % 2:
        expected = "image and target side by side, of the same width"
        raise FaultyFile("odd width", expected, f"{width} pixels", "cut it into input/ and target/")
    return pixels[:, width // 2 :] if right else pixels[:, : width // 2]


def _check_label(raw: RawFolder, checked: Checked, settings: IngestSettings) -> Label | None:
    """The label of a case, or None where it waits (a raster) or has faults, which are noted."""
    case = checked.case
    if case.outlines is not None:
        return _outlined(checked, case.outlines, by_class=settings.label_kind == "semantic")
    if case.planes is not None:
        return _of_planes(raw, checked, case.planes)
    if case.raster is None:
        return label_of_objects(raw, checked, settings)
    try:
        plane, _ = _plane(raw, case, settings)
        if checked.shape:
            check_size(plane.shape, checked.shape)
        checked.survey = survey(plane)
    except FaultyFile as fault:
        checked.note(case.raster, fault)
    return None


def _outlined(checked: Checked, outlines: tuple[Outline, ...], *, by_class: bool) -> Label | None:
    if checked.shape is None:
        return None
    try:
        # What holds no pixel of one tile of a slide lies on another.
        in_part = checked.case.window is not None
        label = from_outlines(outlines, checked.shape, by_class=by_class, part=in_part)
    except FaultyFile as fault:
        checked.note(checked.case.image, fault)
        return None
    checked.remarks += [remark for remark in label.remarks if not (in_part and remark.fault == EMPTY_OUTLINE)]
    return label


def _of_planes(raw: RawFolder, checked: Checked, name: str) -> Label | None:
    case = checked.case
    if checked.shape is None:
        return None
    try:
        planes = raw.array(name)[case.index]
        check_size(planes.shape, checked.shape)
        label = from_class_planes(planes, case.plane_classes)
    except FaultyFile as fault:
        checked.note(f"{name}[{case.index}]", fault)
        return None
    checked.remarks += label.remarks
    return label


def _plane(raw: RawFolder, case: RawCase, settings: IngestSettings) -> tuple[np.ndarray, list[Remark]]:
    name = str(case.raster)
    if case.window is not None:
        return integers(_decoded_ids(raw, case, name, settings))
    plane, remarks = to_plane(decode(name, raw.read(name), "label"))
    whole, more = integers(plane)
    return whole, [*remarks, *more]
