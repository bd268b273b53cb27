"""Patches of invasive ductal carcinoma, one class each (Cruz-Roa et al. 2014; Breast Histopathology Images on Kaggle).

    10253/0/10253_idx5_x1001_y1001_class0.png     <patient>/<class>/<patient>_idx5_x<X>_y<Y>_class<class>.png

Class 0 is tissue without, class 1 with invasive ductal carcinoma; class names are these digits. x and y are the
patch's place on its slide in pixels, in steps of 50, and stay in the case id, which is the file's stem without the
class. Patches are 50 x 50 pixels, at a slide's border smaller. The patient is the group: patches of one patient are
neighbours on one slide. The download holds a second full copy below IDC_regular_ps50_idx5/, which is left unread.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import PurePosixPath

from pipeline.config import IngestSettings
from pipeline.readers.layout import RawCase, RawDataset
from pipeline.records.decode import IMAGE_SUFFIXES
from pipeline.records.findings import Fault, Finding
from pipeline.records.raw import RawFolder

COPY = "IDC_regular_ps50_idx5"
"""Folder of the second copy; where it is the only one, it is read."""

_CLASSES = ("0", "1")
_STEM = re.compile(r"(?P<place>(?P<patient>.+)_idx\d+_x\d+_y\d+)_class(?P<kind>[01])$")


def recognises(raw: RawFolder) -> bool:
    """Whether there is a patch by its name in a folder of a class."""
    paths = map(PurePosixPath, raw.files())
    return any(path.parent.name in _CLASSES and path.suffix == ".png" and _STEM.match(path.stem) for path in paths)


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Give every patch its class and its patient; folder and name that contradict each other are a fault."""
    images = [name for name in raw.files() if name.lower().endswith(IMAGE_SUFFIXES)]
    first, second = _copies(images)
    cases: dict[str, list[RawCase]] = defaultdict(list)
    faults = []
    others = []
    for name in first:
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
        cases[case_id].append(RawCase(case_id, name, labelled=True, class_name=stem["kind"], group=patient))
    for case_id, same in cases.items():
        if len(same) > 1:
            found = ", ".join(case.image for case in same)
            faults.append(Fault(case_id, "repeated case id", same[0].image, "one file a place", found, "delete others"))
    findings = [Finding("", "noted", "second copy", detail) for detail in _told(first, second)]
    if others:
        detail = f"{len(others)} image(s) in no folder of a class left unread: {', '.join(others[:3])}"
        findings.append(Finding("", "noted", "not a patch", detail))
    sound = tuple(same[0] for same in cases.values() if len(same) == 1)
    return RawDataset(sound, tuple(faults), tuple(findings), label_kind="class")


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
