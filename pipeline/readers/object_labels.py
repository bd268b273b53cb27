"""The label of a case whose objects come one by one: a mask each, a run-length row each, or both."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np

from pipeline.config import IngestSettings
from pipeline.labels import Label, check_size, difference, from_object_masks, from_runs, refuse_ids
from pipeline.readers.checked import Checked
from pipeline.readers.layout import RawCase
from pipeline.records.decode import IMAGE_SUFFIXES, decode, to_plane
from pipeline.records.findings import Fault, FaultyFile, Remark
from pipeline.records.raw import RawFolder


def label_of_objects(raw: RawFolder, checked: Checked, settings: IngestSettings) -> Label | None:
    """Join object masks or run-length rows, whichever is believed, and compare the two where both are there.

    Returns None where the image's size is unknown or the label has faults; those are noted in `checked`.
    """
    case, shape = checked.case, checked.shape
    filled = tuple(row for row in case.runs or () if row)
    said_empty = case.runs is not None and not filled
    sources: dict[str, tuple[Label | None, list[Fault]]] = {}
    if case.masks:
        sources["masks"] = _of_masks(raw, case, shape, settings.foreground_above)
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
        told = fault.at(case.case_id, str(case.runs_table))
        masks = ", or believe its masks: ingest.label_source=masks" if case.masks else ""
        return None, [replace(told, advice=told.advice or f"mend the row{masks}")]


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
def files_of_stems(raw: RawFolder) -> dict[str, list[str]]:
    """All raw files by their stems; kept until `check.forget`."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in raw.files():
        names[PurePosixPath(name).stem].append(name)
    return names


def _beside(raw: RawFolder, case: RawCase) -> list[str]:
    """Files of an image's stem that are no images to the readers, and may be its mask all the same."""
    named = files_of_stems(raw)[PurePosixPath(case.image).stem]
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
