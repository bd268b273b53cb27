"""PatchCamelyon as Kaggle served it (histopathologic-cancer-detection): 96 x 96 patches, one class each.

    train/<id>.tif, test/<id>.tif
    train_labels.csv: id,label; label 1: the centre of 32 x 32 pixels holds tumour
    sample_submission.csv: id,label; label is the probability of class 1

The competition tells no patients or slides, so that patches of one slide can stand in several parts: no split here can
know, and it is listed among the findings. Source: the competition's data page.
"""

from __future__ import annotations

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
)
from pipeline.records.findings import Fault, Finding
from pipeline.records.raw import RawFolder

TABLE, SAMPLE = "train_labels.csv", "sample_submission.csv"
CLASSES = ("0", "1")


def recognises(raw: RawFolder) -> bool:
    """Whether a folder train lies beside train_labels.csv."""
    root = root_of(raw, "train")
    return root is not None and f"{root}{TABLE}" in raw


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Give every training patch its class. Raises ValueError where the folder or the table of classes is missing."""
    root = root_of(raw, "train")
    if root is None or f"{root}{TABLE}" not in raw:
        raise ValueError(f"{raw.folder}: expected train/ and {TABLE} beside it, found no such pair; put them there")
    rows, faults = rows_of(read_table(raw, f"{root}{TABLE}", ("id", "label")), "id", TABLE)
    classes = {name: row["label"] for name, row in rows.items()}
    train, several = images_of(raw, f"{root}train/")
    test, more = images_of(raw, f"{root}test/")
    faults += [*several, *more]
    for case_id, name in train.items():
        if case_id not in classes:
            faults.append(Fault(case_id, "missing class", name, f"a row in {TABLE}", "none", "add the row"))
        elif classes[case_id] not in CLASSES:
            expected, found = "0 or 1", classes[case_id] or "an empty cell"
            faults.append(Fault(case_id, "unknown class", TABLE, expected, found, "mend the row"))
    findings = [
        Finding(
            "", "noted", "no patients",
            "the competition tells no patients or slides: patches of one slide can stand in several parts",
        )
    ]  # fmt: skip
    faults += rows_without_image(classes.keys() - train.keys() - {fault.case_id for fault in several}, TABLE, "train/")
    cases = [
        RawCase(case_id, name, labelled=True, class_name=classes[case_id])
        for case_id, name in train.items()
        if classes.get(case_id) in CLASSES
    ]
    cases += [RawCase(case_id, name, labelled=False) for case_id, name in test.items()]
    sample, note = sample_of(raw, f"{root}{SAMPLE}")
    return RawDataset(tuple(cases), tuple(faults), (*findings, *note), sample, label_kind="class")
