"""Gland segmentation in colon histology (GlaS, MICCAI 2015; Warwick-QU): one raster of glands an image.

    Grade.csv: name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)
    train_1.bmp, train_1_anno.bmp (object ids), testA_1.bmp, testB_1.bmp, ... in one folder

The patient is the group and the grade (benign or malignant) the stratum. The contest's own parts are pooled: where
patients stand on both sides of them, which is told, scores on test A and B are not scores on unknown patients.
Source: Sirinukunwattana et al. 2017, doi:10.1016/j.media.2016.08.008, and the contest's read-me.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import PurePosixPath

from pipeline.config import IngestSettings
from pipeline.readers.layout import RawCase, RawDataset, read_table, rows_of, rows_without_image
from pipeline.records.findings import Fault, Finding
from pipeline.records.raw import RawFolder

TABLE = "Grade.csv"
_RASTER = re.compile(r"(train|testA|testB)_\d+_anno\.bmp$", re.IGNORECASE)
_IMAGE = re.compile(r"(?P<part>train|testA|testB)_\d+\.bmp$", re.IGNORECASE)


def recognises(raw: RawFolder) -> bool:
    """Whether Grade.csv lies beside a gland image and its raster."""
    table = _table(raw)
    return table is not None and any(_raster(name) in raw for name in _images(raw, table))


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Pair every image with its raster and its row of Grade.csv. Raises ValueError without that file."""
    table = _table(raw)
    if table is None:
        raise ValueError(f"{raw.folder}: expected {TABLE} beside train_1.bmp, found none; patients stand in it alone")
    rows, faults = rows_of(read_table(raw, table, ("name", "patient ID", "grade (GlaS)")), "name", table)
    cases: list[RawCase] = []
    parts: dict[str, set[str]] = defaultdict(set)
    images = _images(raw, table)
    for name in images:
        case_id, row = PurePosixPath(name).stem, rows.get(PurePosixPath(name).stem)
        if row is None or not row["patient ID"]:
            faults.append(Fault(case_id, "no patient", table, "a row with its patient", "none", "add the row"))
        raster = _raster(name)
        if raster not in raw:
            faults.append(Fault(case_id, "missing raster", raster, "the objects of the image", "no file", "add it"))
            continue
        patient = row["patient ID"] if row else ""
        cases.append(
            RawCase(
                case_id, name, labelled=True, raster=raster,
                group=patient or None, stratum=(row or {}).get("grade (GlaS)") or None,
            )
        )  # fmt: skip
        match = _IMAGE.search(name)
        assert match is not None
        parts["training" if match["part"].lower() == "train" else "test"].add(patient)
    findings = []
    ids = {PurePosixPath(name).stem for name in images}
    rasters = {case.raster for case in cases}
    faults += rows_without_image(rows.keys() - ids, table, f"{PurePosixPath(table).parent}/")
    alone = {name for name in raw.files() if _RASTER.search(name)} - rasters - {_raster(name) for name in images}
    for name in sorted(alone):
        case_id = PurePosixPath(name).stem.removesuffix("_anno")
        faults.append(
            Fault(case_id, "missing image", name, "its image", "none", "fetch it again, or delete the raster")
        )
    both = (parts["training"] & parts["test"]) - {""}
    if both:
        detail = f"{len(both)} of {len(parts['test'])} patients of test A and B are in the training part too"
        findings.append(Finding("", "noted", "patients on both sides", f"{detail}: all parts were pooled"))
    return RawDataset(tuple(cases), tuple(faults), tuple(findings), label_kind="instance")


def _table(raw: RawFolder) -> str | None:
    found = [name for name in raw.files() if PurePosixPath(name).name.lower() == TABLE.lower()]
    return min(found, key=lambda name: (name.count("/"), name), default=None)


def _images(raw: RawFolder, table: str) -> list[str]:
    folder = PurePosixPath(table).parent
    return [
        name for name in raw.files() if PurePosixPath(name).parent == folder and _IMAGE.match(PurePosixPath(name).name)
    ]


def _raster(name: str) -> str:
    return f"{name[:-4]}_anno{name[-4:]}"
