"""Patches of invasive ductal carcinoma, one class each (Cruz-Roa et al. 2014; Breast Histopathology Images on Kaggle).

    10253/0/10253_idx5_x1001_y1001_class0.png     <patient>/<class>/<patient>_idx5_x<X>_y<Y>_class<class>.png

Class 0 is tissue without, class 1 with invasive ductal carcinoma; class names are these digits. x (the column) and y
(the row) are the patch's place on its slide in pixels, in steps of 50 from 1 on, and stay in the case id, which is the
file's stem without the class. Patches are 50 x 50 pixels, at a slide's border smaller. The patient is the group:
patches of one patient are neighbours on one slide. The download holds a second full copy below IDC_regular_ps50_idx5/,
which is left unread.

ingest.label_kind=coarse reads each patient as one image instead, stitched from the patches by their places, with a
label of squares of 50 x 50 pixels: 1 with carcinoma, 0 without. Where there is no patch the image is white, and the
label unknown: a missing patch is no negative.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.config import IngestSettings
from pipeline.readers.layout import Patch, RawCase, RawDataset
from pipeline.records.decode import IMAGE_SUFFIXES
from pipeline.records.findings import Fault, Finding
from pipeline.records.raw import RawFolder

COPY = "IDC_regular_ps50_idx5"
"""Folder of the second copy; where it is the only one, it is read."""
SIDE = 50
"""Pixels along a patch."""

_CLASSES = ("0", "1")
_STEM = re.compile(r"(?P<place>(?P<patient>.+)_idx\d+_x(?P<x>\d+)_y(?P<y>\d+))_class(?P<kind>[01])$")


@dataclass(frozen=True)
class _Found:
    """One patch, as its name tells; x and y are pixels from 0 on."""

    case_id: str
    name: str
    patient: str
    kind: str
    x: int
    y: int


def recognises(raw: RawFolder) -> bool:
    """Whether there is a patch by its name in a folder of a class."""
    paths = map(PurePosixPath, raw.files())
    return any(path.parent.name in _CLASSES and path.suffix == ".png" and _STEM.match(path.stem) for path in paths)


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Give every patch its class and its patient; folder and name that contradict each other are a fault."""
    images = [name for name in raw.files() if name.lower().endswith(IMAGE_SUFFIXES)]
    first, second = _copies(images)
    patches, faults, others = _patches(first)
    findings = [Finding("", "noted", "second copy", detail) for detail in _told(first, second)]
    if others:
        detail = f"{len(others)} image(s) in no folder of a class left unread: {', '.join(others[:3])}"
        findings.append(Finding("", "noted", "not a patch", detail))
    if settings.label_kind == "coarse":
        # A patch that is at fault is left out, so that excluding it leaves its patient with an unknown square.
        known = {fault.case_id for fault in faults}
        cases, more = _stitched([patch for patch in patches if patch.case_id not in known])
        return RawDataset(tuple(cases), (*faults, *more), tuple(findings), label_kind="coarse")
    sound = tuple(
        RawCase(patch.case_id, patch.name, labelled=True, class_name=patch.kind, group=patch.patient)
        for patch in patches
    )
    return RawDataset(sound, tuple(faults), tuple(findings), label_kind="class")


def _patches(names: Sequence[str]) -> tuple[list[_Found], list[Fault], list[str]]:
    """Patches, the faults of names and places, and the images that are no patches."""
    patches: dict[str, list[_Found]] = defaultdict(list)
    faults = []
    others = []
    for name in names:
        path = PurePosixPath(name)
        kind, patient = path.parent.name, path.parent.parent.name
        stem = _STEM.match(path.stem)
        if stem is None and kind in _CLASSES:
            expected = "<patient>_idx5_x<X>_y<Y>_class<0 or 1>.png"
            faults.append(Fault(path.stem, "unknown name", name, expected, path.name, "rename or move it"))
        if stem is None:
            others += [name] if kind not in _CLASSES else []
            continue
        case_id = stem["place"]
        for what, in_folder, in_name in (("class", kind, stem["kind"]), ("patient", patient, stem["patient"])):
            if in_folder != in_name:
                expected, found = f"the {what} of its folder, {in_folder or 'none'}", f"{in_name} in its name"
                faults.append(Fault(case_id, f"{what} differs", name, expected, found, "move or rename the file"))
        place = int(stem["x"]) - 1, int(stem["y"]) - 1
        patches[case_id].append(_Found(case_id, name, patient, stem["kind"], *place))
    for case_id, same in patches.items():
        if len(same) > 1:
            found = ", ".join(patch.name for patch in same)
            faults.append(Fault(case_id, "repeated case id", same[0].name, "one file a place", found, "delete others"))
    return [same[0] for same in patches.values() if len(same) == 1], faults, others


def _stitched(patches: Sequence[_Found]) -> tuple[list[RawCase], list[Fault]]:
    """One case a patient, with its patches at their places; places off the grid are faults."""
    of_patient: dict[str, list[_Found]] = defaultdict(list)
    faults = []
    for patch in patches:
        if patch.x % SIDE or patch.y % SIDE:
            expected, found = f"x and y in steps of {SIDE} from 1 on", f"{patch.x + 1} and {patch.y + 1}"
            faults.append(Fault(patch.case_id, "off the grid", patch.name, expected, found, "rename or delete it"))
        else:
            of_patient[patch.patient].append(patch)
    cases = []
    for patient, own in of_patient.items():
        left, top = min(patch.x for patch in own), min(patch.y for patch in own)
        placed = tuple(Patch(patch.name, patch.y - top, patch.x - left, int(patch.kind)) for patch in own)
        folder = str(PurePosixPath(own[0].name).parent.parent)
        cases.append(RawCase(patient, folder, labelled=True, patches=placed, cell=SIDE, group=patient))
    return cases, faults


def _copies(names: list[str]) -> tuple[list[str], list[str]]:
    """Divide images into those to read and those of the second copy; a sole copy is read, whatever its folder."""
    nested = [name for name in names if COPY in name.split("/")[:-1]]
    first = [name for name in names if COPY not in name.split("/")[:-1]]
    return (first, nested) if first else (nested, [])


def _told(first: list[str], second: list[str]) -> list[str]:
    """What was left unread, and whether the other copy holds all of it."""
    if not second:
        return []
    kept = {PurePosixPath(name).name for name in first}
    missing = sorted(name for name in second if PurePosixPath(name).name not in kept)
    detail = f"{COPY}/: {len(second)} patches left unread"
    if not missing:
        return [f"{detail}, each of a name that was read"]
    return [f"{detail}, {len(missing)} of a name that is nowhere else: {', '.join(missing[:3])}"]
