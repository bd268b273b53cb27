"""Pairs of images of the same tissue, one in the stain at hand and one in the wanted stain, joined on the file's stem.

    input/a.png with target/a.png     (inputs, source; targets)
    trainA/a.png with trainB/a.png    (also testA, valA, as image translation data sets have them)
    pairs/a.png                       one file: the input in its left half, the target in its right half

Suffixes may differ between the two. The case id is the path without these folders and without what every case shares,
its slashes written as `__`: input/P1/a.png is `P1__a`. Which cases belong to one patient stands in ingest.group_csv.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath

from pipeline.config import IngestSettings
from pipeline.readers.layout import RawCase, RawDataset, case_ids, stem_of
from pipeline.records.decode import IMAGE_SUFFIXES
from pipeline.records.findings import Fault
from pipeline.records.raw import RawFolder

PARTS = ("train", "val", "test")
"""Parts that image translation data sets divide themselves into; the split is made anew."""
ROLES = {
    "input": "input", "inputs": "input", "source": "input", "sources": "input",
    "target": "target", "targets": "target",
    "pairs": "pair",
    **{f"{part}a": "input" for part in PARTS}, **{f"{part}b": "target" for part in PARTS},
}  # fmt: skip
"""What a folder's images are, by its name in small letters."""


def recognises(raw: RawFolder) -> bool:
    """Whether there are inputs and targets, or files of both side by side."""
    roles = {role for name in raw.files() if (found := _role_and_key(name)) and (role := found[0])}
    return "pair" in roles or {"input", "target"} <= roles


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Join every input with its target; what has no partner, or several, is a fault."""
    files: dict[str, dict[str, list[str]]] = defaultdict(lambda: {"input": [], "target": [], "pair": []})
    for name in raw.files():
        if found := _role_and_key(name):
            role, key = found
            files[key][role].append(name)
    names = case_ids(files.keys(), set(PARTS))
    cases, faults = [], []
    for key, own in sorted(files.items()):
        case_id = names[key]
        # A file of both stands for an input and for a target.
        inputs, targets = own["input"] + own["pair"], own["target"] + own["pair"]
        for role, there, others in (("input", inputs, targets), ("target", targets, inputs)):
            expected = f"one {role} of the stem"
            if not there:
                faults.append(Fault(case_id, f"missing {role}", others[0], expected, "none", "add or delete"))
            elif len(there) > 1:
                faults.append(Fault(case_id, f"several {role}s", there[0], expected, ", ".join(there), "delete others"))
        if len(inputs) == len(targets) == 1:
            cases.append(RawCase(case_id, inputs[0], labelled=True, target=targets[0]))
    return RawDataset(tuple(cases), tuple(faults), label_kind="image")


def _role_and_key(name: str) -> tuple[str, str] | None:
    """Role of an image file, by the innermost folder that names one, and the key that it shares with its partner."""
    if not name.lower().endswith(IMAGE_SUFFIXES):
        return None
    *folders, stem = stem_of(name).split("/")
    at = next((at for at in range(len(folders) - 1, -1, -1) if folders[at].lower() in ROLES), None)
    if at is None:
        return None
    folder = folders[at].lower()
    part = [folder[:-1]] if folder[:-1] in PARTS else []
    return ROLES[folder], PurePosixPath(*folders[:at], *part, *folders[at + 1 :], stem).as_posix()
