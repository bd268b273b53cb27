"""Images whose objects are outlined as polygons: Aperio's XML (MoNuSeg), GeoJSON (QuPath) and COCO.

    Tissue Images/<name>.tif with Annotations/<name>.xml, or both in one folder
    images/<name>.png with annotations/<name>.geojson, or both in one folder (Polygon and MultiPolygon)
    any folder with one <file>.json that holds COCO's images, annotations, categories

Masks hold objects, with their classes where there are several; ingest.label_kind=semantic makes them class ids,
numbered in the order of the classes' names. What is outlined as unsure or ignored (UNKNOWN, or a crowd of COCO's) is
unknown, not background. Names that begin as TCGA's do give the patient, which is the group. Coordinates are positions
on the pixel grid: 0 is the image's edge.

Sources: MoNuSeg (Kumar et al. 2017, doi:10.1109/TMI.2017.2677499); RFC 7946; cocodataset.org, "Data format".
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from pipeline.config import IngestSettings
from pipeline.readers.coco import STRANGERS, cases_of_coco, coco_files
from pipeline.readers.layout import RawCase, RawDataset, case_ids, stem_of
from pipeline.readers.outline_files import FOLDERS, IMAGE_FOLDERS, PARTS, REGIONS, SUFFIXES, parse_outlines
from pipeline.records.case import LabelKind
from pipeline.records.decode import IMAGE_SUFFIXES
from pipeline.records.findings import Fault, FaultyFile, Finding
from pipeline.records.raw import RawFolder

UNNAMED = "unnamed"
"""Class of outlines without one, where others have one."""

_PATIENT = re.compile(r"TCGA-\w{2}-\w{4}")


def recognises(raw: RawFolder) -> bool:
    """Whether an image has outlines of its name, or a file of COCO's is there."""
    images = {_key(name) for name in raw.files() if name.lower().endswith(IMAGE_SUFFIXES)}
    if any(_key(name) in images for name in raw.files() if name.lower().endswith(SUFFIXES)):
        return True
    return bool(images) and bool(coco_files(raw))


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Give every image its outlines; what has none is a fault. Raises ValueError where COCO's file is no such file."""
    images = [name for name in raw.files() if name.lower().endswith(IMAGE_SUFFIXES)]
    files = coco_files(raw)
    cases, faults, findings = cases_of_coco(raw, files, images) if files else _one_file_an_image(raw, images)
    cases, numbers = with_class_numbers(cases, settings)
    findings += numbers
    cases = [replace(case, group=_patient(case.image)) for case in cases]
    kind: LabelKind = "semantic" if settings.label_kind == "semantic" else "instance"
    return RawDataset(tuple(cases), tuple(faults), tuple(findings), label_kind=kind)


def _patient(image: str) -> str | None:
    """The patient by whose barcode TCGA's images are named, whatever folder they lie in."""
    found = _PATIENT.match(PurePosixPath(image).name)
    return found[0] if found else None


def with_class_numbers(
    cases: Sequence[RawCase], settings: IngestSettings
) -> tuple[list[RawCase], list[Finding]]:  # fmt: skip
    """Number the classes of outlines over all cases, in the order of their names, and tell where there are several."""
    sure = [outline for case in cases for outline in case.outlines or () if not outline.ignored]
    names = sorted({outline.class_name or "" for outline in sure})
    findings = []
    if len(names) > 1:
        told = ", ".join(f"{number} {name or 'without a name'}" for number, name in enumerate(names, start=1))
        kept = "class ids" if settings.label_kind == "semantic" else "objects keep them"
        findings.append(Finding("", "noted", "several classes", f"{told}: {kept}"))
    numbers = {name: number for number, name in enumerate(names, start=1)}
    return [
        replace(
            case,
            outlines=tuple(
                replace(
                    outline,
                    class_id=numbers.get(outline.class_name or "", 1),
                    class_name=(outline.class_name or UNNAMED) if len(names) > 1 else None,
                )
                for outline in case.outlines
            ),
        )
        if case.outlines is not None
        else case
        for case in cases
    ], findings


def _one_file_an_image(raw: RawFolder, images: Sequence[str]) -> tuple[list[RawCase], list[Fault], list[Finding]]:
    of_key: dict[str, list[str]] = defaultdict(list)
    for name in raw.files():
        if name.lower().endswith(SUFFIXES):
            of_key[_key(name)].append(name)
    ids = case_ids([stem_of(name) for name in images], IMAGE_FOLDERS | PARTS)
    cases, faults, findings = [], [], []
    for name in images:
        case_id, files = ids[stem_of(name)], of_key.pop(_key(name), [])
        if len(files) != 1:
            found = ", ".join(files) or "none"
            fault, advice = ("several outlines", "delete others") if files else ("missing outlines", "add or delete")
            faults.append(Fault(case_id, fault, name, "one .xml or .geojson of the stem", found, advice))
            continue
        try:
            outlines, remarks = parse_outlines(files[0], raw.read(files[0]))
        except FaultyFile as fault:
            faults.append(fault.at(case_id, files[0]))
            continue
        findings += [replace(remark, detail=f"{files[0]}: {remark.detail}").on(case_id) for remark in remarks]
        kept = [outline for outline in outlines if (outline.class_name or "").lower() not in REGIONS]
        if len(kept) < len(outlines):
            detail = f"{files[0]}: {len(outlines) - len(kept)} outline(s) of what was looked at are no objects"
            findings.append(Finding(case_id, "noted", "regions", detail))
        if not kept:
            detail = f"{files[0]} holds no outline: taken for an image without objects"
            findings.append(Finding(case_id, "noted", "no outlines", detail))
        cases.append(RawCase(case_id, name, labelled=True, outlines=tuple(kept)))
    strangers = []
    for name in sorted(name for files in of_key.values() for name in files):
        if _holds_outlines(name, raw.read(name)):
            expected, advice = "an image of the stem", "fetch it again, or delete the file"
            faults.append(Fault(stem_of(name).replace("/", "__"), "missing image", name, expected, "none", advice))
        else:
            strangers.append(name)
    if strangers:
        detail = f"{len(strangers)} file(s) without an image, and without outlines: {', '.join(strangers[:3])}"
        findings.append(Finding("", "noted", STRANGERS, detail))
    return cases, faults, findings


def _holds_outlines(name: str, content: bytes) -> bool:
    try:
        return bool(parse_outlines(name, content)[0])
    except FaultyFile:
        return False


def _key(name: str) -> str:
    """What an image and its outlines share: the path without suffix and without the folders that tell the two apart."""
    *folders, stem = stem_of(name).split("/")
    kept = [folder for folder in folders if folder.lower() not in IMAGE_FOLDERS | FOLDERS]
    return "/".join([*kept, stem])
