"""The layout of the 2018 Data Science Bowl (Kaggle: data-science-bowl-2018), also used by the embedded sample.

    stage1_train/<ImageId>/images/<ImageId>.png, stage1_train/<ImageId>/masks/*.png (0/255, one an object)
    stage1_train_labels.csv: ImageId,EncodedPixels, one row an object
    stage1_test/<ImageId>/images/<ImageId>.png, stage1_sample_submission.csv
    stage2_test_final/..., stage2_sample_submission_final.csv (ingest.competition_stage=2)
    classes.csv: filename,foreground,background; the two colours are the stratum

Source: the competition's data page.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePosixPath

from pipeline.config import IngestSettings
from pipeline.readers.layout import RawCase, RawDataset, read_table, root_of, rows_without_image, sample_of
from pipeline.records.findings import Fault, Finding
from pipeline.records.raw import RawFolder

TRAIN = "stage1_train"
RUNS = "stage1_train_labels.csv"
CLASSES = "classes.csv"
TEST = {1: ("stage1_test", "stage1_sample_submission.csv"),
        2: ("stage2_test_final", "stage2_sample_submission_final.csv")}  # fmt: skip
"""Folder of test images and sample submission of each stage of the competition."""


def recognises(raw: RawFolder) -> bool:
    """Whether the folder stage1_train is there."""
    return root_of(raw, TRAIN) is not None


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Name every training and test case. Raises ValueError where what the settings ask for is not there."""
    root = root_of(raw, TRAIN)
    if root is None:
        raise ValueError(f"{raw.folder}: expected {TRAIN}/ or {TRAIN}.zip, found neither; put it there")
    test_folder, sample_name = TEST[settings.competition_stage]
    runs, findings = _runs(raw, root, settings)
    strata, more = _strata(raw, root)
    findings += more
    train, faults = _cases(raw, f"{root}{TRAIN}/", labelled=True)
    test, more_faults = _cases(raw, f"{root}{test_folder}/", labelled=False)
    if not test:
        told = f"expected {test_folder}/ or {test_folder}.zip for the test images, found neither"
        if settings.competition_stage == 2:
            raise ValueError(f"{raw.folder}: ingest.competition_stage=2: {told}; put it there, or use stage 1")
        findings.append(Finding("", "noted", "no test images", told))
    sample, note = sample_of(raw, f"{root}{sample_name}")
    findings += note
    cases = [
        RawCase(
            case.case_id, case.image, case.labelled, case.masks,
            runs=runs.get(case.case_id) if case.labelled else None, runs_table=RUNS,
            stratum=next(iter(strata.get(case.case_id, ())), None),
        )
        for case in (*train, *test)
    ]  # fmt: skip
    findings += [
        Finding(case.case_id, "noted", "no stratum", f"{CLASSES} does not name the image")
        for case in cases
        if strata and case.stratum is None
    ]
    faults += more_faults
    faults += [
        Fault(
            case.case_id, "several strata", CLASSES, "one pair of colours an image",
            " and ".join(strata[case.case_id]), "delete the rows that are wrong",
        )
        for case in cases
        if len(strata.get(case.case_id, ())) > 1
    ]  # fmt: skip
    known = {case.case_id for case in train} | {fault.case_id for fault in faults}
    faults += rows_without_image(runs.keys() - known, RUNS, f"{TRAIN}/")
    return RawDataset(tuple(cases), tuple(faults), tuple(findings), sample, "instance")


def _cases(raw: RawFolder, folder: str, *, labelled: bool) -> tuple[list[RawCase], list[Fault]]:
    images: dict[str, list[str]] = {}
    masks: dict[str, list[str]] = defaultdict(list)
    # A zip that was unpacked into a folder of its name has it twice.
    twice = f"{folder}{PurePosixPath(folder).name}/"
    below = [name for name in raw.files() if name.startswith(folder)]
    folder = twice if below and all(name.startswith(twice) for name in below) else folder
    for name in below:
        case_id, _, rest = name[len(folder) :].partition("/")
        found = images.setdefault(case_id, [])
        if rest.startswith("images/"):
            found.append(name)
        elif rest.startswith("masks/"):
            masks[case_id].append(name)
    cases, faults = [], []
    for case_id, found in images.items():
        if len(found) == 1:
            cases.append(RawCase(case_id, found[0], labelled, tuple(masks[case_id]) if labelled else ()))
        else:
            what = f"{len(found)} ({', '.join(PurePosixPath(name).name for name in found[:3])})" if found else "none"
            fault = "several images" if found else "missing image"
            advice = "delete the others" if found else "add it, or delete the folder"
            faults.append(Fault(case_id, fault, f"{folder}{case_id}/images/", "one image", what, advice))
    return cases, faults


def _runs(raw: RawFolder, root: str, settings: IngestSettings) -> tuple[dict[str, tuple[str, ...]], list[Finding]]:
    name = f"{root}{RUNS}"
    if name not in raw:
        if settings.label_source == "runs":
            raise ValueError(f"{raw.folder / name}: ingest.label_source=runs: expected {RUNS}, found nothing")
        return {}, [Finding("", "noted", "no run-length file", f"{RUNS} is not there: masks were not compared with it")]
    rows: dict[str, list[str]] = defaultdict(list)
    for row in read_table(raw, name, ("ImageId", "EncodedPixels")):
        rows[row["ImageId"]].append(row["EncodedPixels"])
    return {case_id: tuple(texts) for case_id, texts in rows.items()}, []


def _strata(raw: RawFolder, root: str) -> tuple[dict[str, tuple[str, ...]], list[Finding]]:
    """Each image's pair of colours; several where its rows differ."""
    name = f"{root}{CLASSES}"
    if name not in raw:
        return {}, [Finding("", "noted", "no strata", f"{CLASSES} is not there: scores are not told apart by modality")]
    pairs: dict[str, tuple[str, ...]] = {}
    for row in read_table(raw, name, ("filename", "foreground", "background")):
        case_id, pair = PurePosixPath(row["filename"]).stem, f"{row['foreground']}/{row['background']}"
        told = pairs.setdefault(case_id, (pair,))
        if pair not in told:
            pairs[case_id] = (*told, pair)
    return pairs, []
