"""Images alone, without labels, in folders of any depth: for stain normalisers and restorers, which need none.

    <stratum>/a.png, <stratum>/b.png      one folder a hospital, scanner or stain: the topmost folder names the stratum
    a.png, b.png                          or no folder at all

The case id is the path without what every case shares, its slashes written as `__`.
"""

from __future__ import annotations

from pipeline.config import IngestSettings
from pipeline.readers.layout import RawCase, RawDataset, case_ids, stem_of
from pipeline.records.decode import IMAGE_SUFFIXES
from pipeline.records.findings import Fault
from pipeline.records.raw import RawFolder


def recognises(raw: RawFolder) -> bool:
    """Whether there is an image; never asked unless by name."""
    return bool(_images(raw))


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Take every image as a case; two files of one stem in one folder are a fault."""
    by_key: dict[str, list[str]] = {}
    for name in _images(raw):
        by_key.setdefault(stem_of(name), []).append(name)
    names = case_ids(by_key, set())
    cases, faults = [], []
    for key, files in sorted(by_key.items()):
        case_id = names[key]
        if len(files) > 1:
            faults.append(Fault(case_id, "repeated case id", files[0], "one image of the stem", ", ".join(files)))
        folder, separator, _ = case_id.partition("__")
        cases.append(RawCase(case_id, files[0], labelled=False, stratum=folder if separator else None))
    return RawDataset(tuple(cases), tuple(faults))


def _images(raw: RawFolder) -> list[str]:
    return [name for name in raw.files() if name.lower().endswith(IMAGE_SUFFIXES)]
