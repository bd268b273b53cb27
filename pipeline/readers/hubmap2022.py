"""HuBMAP + HPA 2022 (Kaggle: hubmap-organ-segmentation): functional tissue units of five organs, a mask an image.

    train.csv: id,organ,data_source,img_height,img_width,pixel_size,tissue_thickness,rle,age,sex
    test.csv: the same without rle, age and sex
    train_images/<id>.tiff, test_images/<id>.tiff, sample_submission.csv: id,rle
    train_annotations/<id>.json: the same masks as polygons, left unread

pixel_size is in microns and becomes mpp; organ is the stratum. The files tell no donor, so that groups are those that
pixels show. Label files of test images, wherever they lie, are left unread. Source: the competition's data page.
"""

from __future__ import annotations

import math
import re

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
from pipeline.records.findings import Fault, Finding
from pipeline.records.raw import RawFolder

IMAGES = {"train": "train_images", "test": "test_images"}
COLUMNS = ("id", "organ", "img_height", "img_width", "pixel_size")
SAMPLE = "sample_submission.csv"


def recognises(raw: RawFolder) -> bool:
    """Whether a folder train_images lies beside train.csv with organs and run lengths; read tells what it lacks."""
    root = root_of(raw, IMAGES["train"])
    if root is None or f"{root}train.csv" not in raw:
        return False
    first = raw.read(f"{root}train.csv").decode("utf-8-sig", errors="replace").partition("\n")[0]
    return {"organ", "rle"} <= {*re.findall(r"\w+", first)}


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Name every training image with its run-length mask, and the test images. Raises ValueError without train.csv."""
    root = root_of(raw, IMAGES["train"])
    if root is None or f"{root}train.csv" not in raw:
        raise ValueError(f"{raw.folder}: expected train.csv and {IMAGES['train']}/, found no such pair; put them there")
    cases: list[RawCase] = []
    faults: list[Fault] = []
    findings: list[Finding] = []
    for part, folder in IMAGES.items():
        table = f"{root}{part}.csv"
        columns = (*COLUMNS, "rle") if part == "train" else COLUMNS
        rows = read_table(raw, table, columns) if table in raw else []
        images, several = images_of(raw, f"{root}{folder}/")
        of_id, repeated = rows_of(rows, "id", table)
        faults += [*several, *repeated]
        for case_id, name in images.items():
            if case_id in of_id:
                case, wrong = _case(case_id, name, of_id[case_id], table, labelled=part == "train")
                cases.append(case)
                faults += wrong
            elif part == "train":
                faults.append(Fault(case_id, "missing row", name, f"a row in {table}", "none", "add it"))
            else:
                cases.append(RawCase(case_id, name, labelled=False))
        known = images.keys() | {fault.case_id for fault in several}
        without = sorted(of_id.keys() - known)
        if part == "train":
            faults += rows_without_image(without, table, f"{folder}/")
        elif without:
            detail = f"{table}: {len(without)} id(s) without an image: {', '.join(without[:3])}"
            findings.append(Finding("", "noted", "row without image", detail))
    findings += side_cars(raw, {case.case_id for case in cases if not case.labelled})
    sample, note = sample_of(raw, f"{root}{SAMPLE}")
    return RawDataset(tuple(cases), tuple(faults), (*findings, *note), sample, "semantic")


def _case(case_id: str, name: str, row: dict[str, str], table: str, *, labelled: bool) -> tuple[RawCase, list[Fault]]:
    faults = []
    numbers: dict[str, float | None] = {}
    for column in ("img_height", "img_width", "pixel_size"):
        try:
            numbers[column] = float(row[column])
        except ValueError:
            numbers[column] = None
        number = numbers[column] or 0
        whole = column != "pixel_size"
        if not 0 < number < math.inf or (whole and number != int(number)):
            numbers[column] = None
            expected, found = f"a {'whole ' if whole else ''}{column} above 0", repr(row[column])
            faults.append(Fault(case_id, "no number", table, expected, found, "mend the row"))
    height, width, mpp = (numbers[column] for column in ("img_height", "img_width", "pixel_size"))
    return RawCase(
        case_id,
        name,
        labelled,
        runs=(row["rle"],) if labelled else None,
        runs_table=table,
        only_runs=labelled,
        stratum=row["organ"] or None,
        mpp=mpp,
        size=(int(height), int(width)) if height and width else None,
    ), faults
