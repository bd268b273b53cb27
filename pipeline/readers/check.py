"""From one raw case to its pixels: every file is decoded, and every fault is found before any is told.

Two passes. `check_case` reads one case. What the values of label rasters mean and how deep images are scaled is decided
over the whole data set, so a case that depends on it is read again, by `finish_case`, once all were checked.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np

from pipeline.config import IngestSettings
from pipeline.label_values import Meaning, ValueSurvey, integers, survey
from pipeline.labels import (
    EMPTY_OUTLINE,
    Label,
    check_size,
    difference,
    from_class_planes,
    from_object_masks,
    from_outlines,
    from_raster,
    from_runs,
    from_sampled_runs,
    refuse_ids,
)
from pipeline.readers.layout import RawCase
from pipeline.records.case import IGNORED
from pipeline.records.decode import IMAGE_SUFFIXES, Decoded, bit_depth, decode, from_array, to_plane, to_rgb
from pipeline.records.findings import Fault, FaultyFile, Finding, Remark
from pipeline.records.outline import Outline
from pipeline.records.raw import RawFolder
from pipeline.records.slides import IdRaster, View, open_slide
from pipeline.records.volumes import class_ids, grey_levels, read_volume, same_space

_opening = threading.Lock()


@dataclass
class Checked:
    """What is known of one case.

    shape: height and width; full: those of the raw file, where the image is stored smaller. image: (height, width, 3)
    uint8 RGB; label: where the case has one, its raster, or target: uint8 RGB of the image's size. All stay None where
    there are faults, and where they wait for the whole data set.
    bits: depth of image and target where one has more than 8 bits a channel;
    survey: values of a label raster; objects: how many the label has, and
    classes: theirs where they are told; unknown: whether all of its pixels are; these stay when the pixels are dropped.
    """

    case: RawCase
    shape: tuple[int, int] | None = None
    full: tuple[int, int] | None = None
    image: np.ndarray | None = None
    label: Label | None = None
    target: np.ndarray | None = None
    bits: int | None = None
    survey: ValueSurvey | None = None
    objects: int = 0
    classes: list[str] | None = None
    unknown: bool = False
    faults: list[Fault] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    @property
    def waits(self) -> bool:
        """Whether the pixels can only be made when the whole data set was seen."""
        return self.bits is not None or self.survey is not None

    @property
    def findings(self) -> list[Finding]:
        """Its remarks as lines of findings.csv."""
        return [remark.on(self.case.case_id) for remark in self.remarks]

    def count(self, label: Label | None) -> None:
        """Keep what is known of a label beside its pixels."""
        if label is not None:
            self.objects, self.classes = label.count, None if label.classes is None else list(label.classes)
            self.unknown = bool((label.raster == IGNORED).all())

    def drop_pixels(self) -> None:
        """Forget the pixels once they are written, so that memory holds a few cases at a time."""
        self.image = self.label = self.target = None

    def note(self, file: str, error: FaultyFile) -> None:
        """Keep a fault of one file."""
        self.faults.append(error.at(self.case.case_id, file))


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
        label = None
        if case.runs is not None:
            label = from_sampled_runs(case.runs[0], checked.shape, checked.full)
    except FaultyFile as fault:
        checked.note(case.image, fault)
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
        checked.label = from_raster(plane, meaning, settings.threshold)
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
        pixels, remarks = to_rgb(decoded, bits or 16)
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
    for kept in (_view, _mask, _volume, _of_stem):
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
        return _objects(raw, checked, settings)
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


def _objects(raw: RawFolder, checked: Checked, settings: IngestSettings) -> Label | None:
    """Join object masks or run-length rows, whichever is believed, and compare the two where both are there."""
    case, shape = checked.case, checked.shape
    filled = tuple(row for row in case.runs or () if row)
    said_empty = case.runs is not None and not filled
    sources: dict[str, tuple[Label | None, list[Fault]]] = {}
    if case.masks:
        sources["masks"] = _of_masks(raw, case, shape, settings.threshold)
    if case.runs is not None and shape:
        sources["runs"] = _of_runs(case, filled, shape)
    believed: str = "runs" if case.only_runs else settings.label_source
    if believed not in sources and believed == "masks":
        if filled:
            believed = "runs"
            detail = f"{len(filled)} object(s) taken from run-length rows"
            checked.remarks.append(Remark("repaired", "missing mask", detail))
        elif said_empty or settings.allow_empty:
            return Label(np.zeros(shape, np.uint16), 0) if shape else None
    if believed not in sources:
        if shape or believed == "masks":
            checked.note(_mask_folder(case), _missing(believed, _beside(raw, case)))
        return None
    label, faults = sources.pop(believed)
    checked.faults += faults
    if label is None:
        return None
    checked.remarks += label.remarks
    if not label.count and not said_empty and not settings.allow_empty:
        checked.note(_mask_folder(case), _missing(believed, _beside(raw, case)))
    checked.remarks += _compared(label, believed, sources)
    return label


def _of_masks(
    raw: RawFolder, case: RawCase, shape: tuple[int, int] | None, threshold: int
) -> tuple[Label | None, list[Fault]]:
    """One mask a time; every mask that cannot be used is a fault. Without a shape only the files are tried."""
    faults: list[Fault] = []
    remarks: dict[tuple[str, str], list[Remark]] = defaultdict(list)

    def sound() -> Iterator[tuple[str, np.ndarray]]:
        for name in case.masks:
            try:
                plane, found = to_plane(decode(name, raw.read(name), "label"))
                refuse_ids(plane)
                if shape:
                    check_size(plane.shape, shape)
                for remark in found:
                    remarks[remark.action, remark.fault].append(remark)
                yield PurePosixPath(name).name, plane
            except FaultyFile as fault:
                faults.append(fault.at(case.case_id, name))

    if shape is None:
        for _ in sound():
            continue
        return None, faults
    try:
        label = from_object_masks(sound(), shape, threshold)
    except FaultyFile as fault:
        faults.append(fault.at(case.case_id, _mask_folder(case)))
    if faults:
        return None, faults
    more = tuple(
        replace(first, detail=f"{first.detail} ({1 + len(rest)} mask(s))") for first, *rest in remarks.values()
    )
    return replace(label, remarks=(*label.remarks, *more)), []


def _of_runs(case: RawCase, rows: tuple[str, ...], shape: tuple[int, int]) -> tuple[Label | None, list[Fault]]:
    try:
        return from_runs(rows, shape), []
    except FaultyFile as fault:
        return None, [fault.at(case.case_id, str(case.runs_table))]


def _compared(label: Label, believed: str, others: dict[str, tuple[Label | None, list[Fault]]]) -> list[Remark]:
    remarks = []
    for name, (other, faults) in others.items():
        if faults:
            remarks.append(Remark("noted", f"faulty {name}", f"{len(faults)} fault(s), not needed: {faults[0]}"))
        elif other is not None and (words := difference(label.raster, other.raster)):
            remarks.append(Remark("noted", "masks and runs differ", f"{believed} believed; against {name}: {words}"))
    return remarks


def _mask_folder(case: RawCase) -> str:
    return str(PurePosixPath(case.image).parent.parent / "masks") + "/"


@lru_cache(maxsize=1)
def _of_stem(raw: RawFolder) -> dict[str, list[str]]:
    """All raw files by their stems."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in raw.files():
        names[PurePosixPath(name).stem].append(name)
    return names


def _beside(raw: RawFolder, case: RawCase) -> list[str]:
    """Files of an image's stem that are no images to the readers, and may be its mask all the same."""
    named = _of_stem(raw)[PurePosixPath(case.image).stem]
    return [name for name in named if not name.lower().endswith(IMAGE_SUFFIXES)]


def _missing(believed: str, beside: Sequence[str]) -> FaultyFile:
    if believed == "runs":
        return FaultyFile(
            "missing or empty runs", "rows of the image", "none", "ingest.label_source=masks believes the masks instead"
        )
    expected = "a mask, or an empty run-length row that says there is no object"
    if beside:
        found = f"neither, but {', '.join(beside[:3])}"
        return FaultyFile("missing or empty mask", expected, found, f"save masks as {', '.join(IMAGE_SUFFIXES)}")
    advice = "ingest.allow_empty=true takes such images for empty ones"
    return FaultyFile("missing or empty mask", expected, "neither", advice)
