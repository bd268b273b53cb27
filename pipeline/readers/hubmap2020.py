"""HuBMAP 2020 (Kaggle: hubmap-kidney-segmentation): glomeruli in whole slides of kidney, a mask an image.

    train.csv: id,encoding; train/<id>.tiff, test/<id>.tiff, of any order of axes, up to 5 GB
    HuBMAP-20-dataset_information.csv: image_file,width_pixels,height_pixels,patient_number,...
    sample_submission.csv: id,predicted (its own header is what gets written)
    train/<id>.json and *-anatomical-structure.json: polygons, left unread

Images are stored at 1/ingest.shrink of their size, and masks are enlarged again before they are submitted. The patient
is the group. Label files beside test images are left unread, and told. Source: the competition's data page.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from pipeline.config import IngestSettings
from pipeline.readers.layout import (
    RawCase,
    RawDataset,
    images_of,
    read_table,
    root_of,
    rows_of,
    rows_without_image,
    sample_of,
    side_cars,
)
from pipeline.records.findings import Fault
from pipeline.records.raw import RawFolder

TABLE, INFORMATION, SAMPLE = "train.csv", "HuBMAP-20-dataset_information.csv", "sample_submission.csv"
COLUMNS = ("image_file", "width_pixels", "height_pixels", "patient_number")
PARTS = ("train", "test")


def recognises(raw: RawFolder) -> bool:
    """Whether the table of patients lies beside train.csv and a folder train."""
    root = root_of(raw, "train")
    return root is not None and {f"{root}{TABLE}", f"{root}{INFORMATION}"} <= {*raw.files()}


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Name every image with its patient, size and run lengths. Raises ValueError where a table is missing."""
    root = root_of(raw, "train")
    if root is None or not {f"{root}{TABLE}", f"{root}{INFORMATION}"} <= {*raw.files()}:
        raise ValueError(f"{raw.folder}: expected train/, {TABLE} and {INFORMATION}, found not all three")
    told = read_table(raw, f"{root}{INFORMATION}", COLUMNS)
    told = [{**row, "id": PurePosixPath(row["image_file"]).stem} for row in told]
    of_id, faults = rows_of(told, "id", INFORMATION)
    runs, repeated = rows_of(read_table(raw, f"{root}{TABLE}", ("id", "encoding")), "id", TABLE)
    faults += repeated
    cases: list[RawCase] = []
    for part in PARTS:
        images, several = images_of(raw, f"{root}{part}/")
        faults += several
        for case_id, name in images.items():
            labelled = part == "train"
            if labelled and case_id not in runs:
                faults.append(Fault(case_id, "missing row", name, f"a row in {TABLE}", "none", "add it"))
                continue
            case, wrong = _case(case_id, name, of_id.get(case_id), runs[case_id]["encoding"] if labelled else None)
            cases.append(case)
            faults += wrong
    findings = side_cars(raw, {case.case_id for case in cases if not case.labelled})
    known = {case.case_id for case in cases} | {fault.case_id for fault in faults}
    faults += rows_without_image(runs.keys() - known, TABLE, "train/")
    sample, note = sample_of(raw, f"{root}{SAMPLE}")
    return RawDataset(tuple(cases), tuple(faults), (*findings, *note), sample, "semantic")


def _case(case_id: str, name: str, row: dict[str, str] | None, runs: str | None) -> tuple[RawCase, list[Fault]]:
    faults: list[Fault] = []
    size = None
    if row is not None:
        height, width = row["height_pixels"], row["width_pixels"]
        if height.isdecimal() and width.isdecimal():
            size = int(height), int(width)
        else:
            expected, found = "whole numbers of pixels", f"{width!r} and {height!r}"
            faults.append(Fault(case_id, "no number", INFORMATION, expected, found, "mend the row"))
    patient = row["patient_number"] if row is not None else ""
    if runs is not None and not patient:
        faults.append(Fault(case_id, "no patient", INFORMATION, "a patient_number", "none", "add it"))
    return RawCase(
        case_id,
        name,
        labelled=runs is not None,
        runs=None if runs is None else (runs,),
        runs_table=TABLE,
        only_runs=runs is not None,
        group=patient or None,
        size=size,
        windowed=True,
    ), faults
