"""Nuclei of nineteen tissues with five classes, in arrays of three folds (PanNuke; Gamper et al. 2020).

    Fold 1/images/fold1/images.npy    N x 256 x 256 x 3, RGB of 0..255, as floats or bytes
    Fold 1/images/fold1/types.npy     N names of tissues: the stratum
    Fold 1/masks/fold1/masks.npy      N x 256 x 256 x 6, a plane of object ids a class, at last the background

How folders are nested does not matter, as long as fold1, Fold 2 or the like stands in the path of each file; the last
one counts. Image n of a fold is fold1_0000. The fold is the case's part, which split.published can hold to. Arrays are
mapped, never read whole, so that they must lie unpacked. The data set tells no patients or slides, so that images of
one slide can stand in several folds: no split here can know, and it is listed among the findings.

Source: Gamper et al. 2020, PanNuke Dataset Extension, Insights and Baselines (arXiv 2003.10778): order of the planes,
40x, 0.25 microns per pixel.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import PurePosixPath

import numpy as np

from pipeline.config import IngestSettings
from pipeline.readers.layout import RawCase, RawDataset
from pipeline.records.findings import Fault, FaultyFile, Finding
from pipeline.records.raw import RawFolder

CLASSES = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
"""The planes of masks.npy before the background."""
MPP = 0.25

_FILES = ("images.npy", "masks.npy", "types.npy")
_FOLD = re.compile(r"fold[ _-]?(\d+)", re.IGNORECASE)


def recognises(raw: RawFolder) -> bool:
    """Whether there are both images.npy and masks.npy."""
    return {"images.npy", "masks.npy"} <= {PurePosixPath(name).name for name in raw.files()}


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Give every image its place in the arrays of its fold; a fold whose arrays do not fit together is a fault."""
    folds, faults = _folds(raw)
    cases: list[RawCase] = []
    findings = [
        Finding(
            "", "noted", "no patients",
            "the data set tells no patients or slides: images of one slide can stand in several parts",
        )
    ]  # fmt: skip
    double = {fault.case_id for fault in faults}
    for fold, files in sorted(folds.items()):
        missing = [name for name in _FILES[:2] if name not in files]
        if missing:
            there = ", ".join(files.values())
            faults.append(Fault(fold, "missing array", there, f"{' and '.join(missing)} of {fold}", "none", "add it"))
            continue
        tissues, wrong = _tissues(raw, fold, files)
        faults += wrong
        if tissues is None or fold in double:
            continue
        if "types.npy" not in files:
            findings.append(Finding("", "noted", "no types", f"{fold} has no types.npy: its tissues are unknown"))
        cases += [
            RawCase(
                f"{fold}_{number:04}", files["images.npy"], labelled=True, planes=files["masks.npy"],
                plane_classes=CLASSES, index=number, stratum=tissue, mpp=MPP, part=fold,
            )
            for number, tissue in enumerate(tissues)
        ]  # fmt: skip
    return RawDataset(tuple(cases), tuple(faults), tuple(findings), label_kind="instance")


def _folds(raw: RawFolder) -> tuple[dict[str, dict[str, str]], list[Fault]]:
    """The arrays of each fold by their file names."""
    folds: dict[str, dict[str, str]] = defaultdict(dict)
    faults = []
    for name in raw.files():
        file = PurePosixPath(name).name
        if file not in _FILES:
            continue
        numbers = _FOLD.findall(str(PurePosixPath(name).parent))
        if not numbers:
            expected = "fold1, fold2 or fold3 in its path"
            faults.append(Fault(file, "unknown fold", name, expected, "no fold", "put it into a folder of that name"))
            continue
        fold = f"fold{int(numbers[-1])}"
        if file in folds[fold]:
            found = f"{folds[fold][file]} and {name}"
            faults.append(Fault(fold, "several arrays", name, f"one {file} of {fold}", found, "delete one"))
        folds[fold].setdefault(file, name)
    return folds, faults


def _tissues(raw: RawFolder, fold: str, files: dict[str, str]) -> tuple[list[str | None] | None, list[Fault]]:
    """The tissue of each image of a fold; None, with faults, where its arrays are unreadable or do not fit together."""
    faults, arrays = [], {}
    for file, name in files.items():
        try:
            arrays[file] = raw.array(name)
        except FaultyFile as fault:
            faults.append(fault.at(fold, name))
    if faults:
        return None, faults
    images, count = arrays["images.npy"], len(arrays["images.npy"]) if arrays["images.npy"].ndim else 0
    expected = {
        "images.npy": ("images x height x width x 3", images.ndim == 4 and images.shape[-1] == 3),
        "masks.npy": (
            f"{' x '.join(map(str, images.shape[:3]))} x {len(CLASSES) + 1}, as its images",
            arrays["masks.npy"].shape == (*images.shape[:3], len(CLASSES) + 1),
        ),
        "types.npy": (f"{count} names", "types.npy" not in arrays or _are_words(arrays["types.npy"], count)),
    }
    for file, (words, fits) in expected.items():
        if not fits:
            found = f"{' x '.join(map(str, arrays[file].shape))} of {arrays[file].dtype}"
            faults.append(Fault(fold, "other shape", files[file], words, found, "fetch the fold again"))
    if faults:
        return None, faults
    if "types.npy" not in arrays:
        return [None] * count, []
    return [str(tissue) for tissue in arrays["types.npy"]], []


def _are_words(types: np.ndarray, count: int) -> bool:
    return types.shape == (count,) and types.dtype.kind == "U"
