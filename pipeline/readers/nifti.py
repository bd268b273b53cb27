"""Volumes in NIfTI with a segmentation each; every axial plane is a case.

    images/<name>.nii.gz with masks/<name>.nii.gz (or labels/, or imagesTr/ with labelsTr/; nnU-Net's _0000 is dropped)
    imagesTs/<name>.nii.gz, test/<name>.nii.gz: without segmentation

nnU-Net's further channels, <name>_0001 to _0009 beside <name>_0000, are left unread. Where such a name stands alone, or
it or the one in _0000 has a segmentation of just that name, it is a volume of its own.

The volume is the group, unless ingest.group_pattern or ingest.group_csv name a patient. Grey levels are ingest.window,
else percentiles of the volume. Values of a segmentation are class ids. Source: the NIfTI-1 and NIfTI-2 standards.
"""

from __future__ import annotations

import re
from collections.abc import Set
from pathlib import PurePosixPath

from pipeline.config import IngestSettings
from pipeline.readers.layout import RawCase, RawDataset
from pipeline.records.findings import Fault, FaultyFile, Finding
from pipeline.records.raw import RawFolder
from pipeline.records.volumes import SUFFIXES, planes_of

IMAGES, LABELS, TESTS = {"images", "imagestr"}, {"masks", "labels", "labelstr"}, {"imagests", "test"}
_NAME = re.compile(r"(_0000)?\.nii(\.gz)?$", re.IGNORECASE)
_OTHER_CHANNEL = re.compile(r"_000[1-9]$")


def recognises(raw: RawFolder) -> bool:
    """Whether NIfTI files lie in a folder of images."""
    return any(_folder(name) in IMAGES for name in _volumes(raw))


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Name every plane of every volume, with its segmentation. Raises ValueError where there are no volumes."""
    labels: dict[str, list[str]] = {}
    for name in _volumes(raw):
        if _folder(name) in LABELS:
            labels.setdefault(_stem(name), []).append(name)
    images = [name for name in _volumes(raw) if _folder(name) in IMAGES | TESTS]
    if not images:
        raise ValueError(f"{raw.folder}: expected images/<name>.nii.gz, found none; put the volumes there")
    places = {_place(name) for name in images}
    named = {_name(name) for names in labels.values() for name in names}
    cases: list[RawCase] = []
    faults: list[Fault] = []
    findings: list[Finding] = []
    volumes: dict[str, list[str]] = {}
    for name in images:
        if _is_other_channel(name, places, named):
            findings.append(Finding(_stem(name), "noted", "other channel", f"{name}: only the first channel is read"))
        else:
            volumes.setdefault(_stem(name), []).append(name)
    for stem, names in volumes.items():
        name, found = names[0], labels.pop(stem, [])
        labelled = _folder(name) in IMAGES
        if len(names) > 1:
            expected, advice = f"one volume of the name {stem} (_0000 is no part of it)", "delete or rename the others"
            faults.append(Fault(stem, "several volumes", name, expected, ", ".join(names), advice))
            continue
        if labelled and len(found) != 1:
            fault = "several segmentations" if found else "missing segmentation"
            advice = "delete the others" if found else "add it, or move the volume into imagesTs/, which has none"
            expected = f"one {_beside(name)}/{stem}.nii.gz"
            faults.append(Fault(stem, fault, name, expected, ", ".join(found) or "none", advice))
            continue
        try:
            planes = planes_of(raw.read(name))
        except FaultyFile as fault_of_file:
            faults.append(fault_of_file.at(stem, name))
            continue
        cases += [
            RawCase(
                f"{stem}_z{plane:04d}", name, labelled=labelled, raster=found[0] if labelled else None,
                group=stem, plane=plane,
            )
            for plane in range(planes)
        ]  # fmt: skip
    faults += [
        Fault(stem, "missing image", name, f"its volume {stem}.nii.gz", "none", "fetch the volume, or delete the mask")
        for stem, names in labels.items()
        for name in names
    ]
    return RawDataset(tuple(cases), tuple(faults), tuple(findings), label_kind="semantic")


def _is_other_channel(name: str, places: Set[str], named: Set[str]) -> bool:
    """Whether a volume is a further channel of one of nnU-Net's: AMOS numbers its patients in the same way.

    places: of all volumes, as _place gives them; named: names of the segmentations, as _name gives them.
    """
    first = _OTHER_CHANNEL.sub("_0000", _place(name))
    return first != _place(name) and first in places and not {_name(name), _name(first)} & named


def _beside(name: str) -> str:
    return "labelsTr" if _folder(name) == "imagestr" else "masks or labels"


def _volumes(raw: RawFolder) -> list[str]:
    return [name for name in raw.files() if name.lower().endswith(SUFFIXES)]


def _folder(name: str) -> str:
    return PurePosixPath(name).parent.name.lower()


def _place(name: str) -> str:
    """The path of a volume without its suffix."""
    return re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)


def _name(name: str) -> str:
    """The name of a volume without its suffix."""
    return PurePosixPath(_place(name)).name


def _stem(name: str) -> str:
    return _NAME.sub("", PurePosixPath(name).name)
