"""Submit: the competition's file, kept only after it was decoded back and equals the masks.

Reads:  reports/<run>/masks/, of a classification data/predict/<run>/classes.csv;
        data/ingest/<dataset>/sample_submission.csv (header, ids and their order)
Writes: reports/<run>/submission.csv
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import Config
from pipeline.records.case import read_cases
from pipeline.records.files import file_hash
from pipeline.records.findings import some
from pipeline.records.paths import Paths

if TYPE_CHECKING:
    from pipeline.records.submission import Sample, Truth


def inputs(config: Config, paths: Paths) -> list[Path]:
    """Return what decides staleness: the masks, the ingested cases, and the competition's sample."""
    return [paths.reports / "evaluate.stage.json", paths.ingest / "stage.json", paths.sample_submission]


def run(config: Config, paths: Paths) -> list[str]:
    """Write the file, decode it back, compare it with the masks, and only then keep it."""
    from pipeline.records.submission import (
        FORMATS,
        LabelFiles,
        ScoredFiles,
        read_sample_file,
        recognise_format,
        write_submission,
    )

    if not paths.sample_submission.exists():
        raise ValueError(
            f"{paths.sample_submission}: expected the competition's sample submission; put it into {paths.raw} "
            f"and run ingest again: the header and the ids of a submission are always the sample's"
        )
    sample = read_sample_file(paths.sample_submission)
    name = recognise_format(sample.header) if config.submit.format == "auto" else config.submit.format
    file = paths.reports / "submission.csv"
    of_classes = config.train.task == "classification"
    full = {case.case_id: case.full for case in read_cases(paths.cases) if case.full is not None}
    masks = LabelFiles(paths.reports / "masks", sample.ids, full)
    labels: Mapping[str, Truth] = masks
    if of_classes:
        labels = _probabilities(paths.classes, sample)
    elif FORMATS[name].rows == "scored":
        labels = ScoredFiles(masks, paths.predict)
    written = write_submission(file, labels, sample, name)
    empty = "" if of_classes else f", {written.empty_images} of them empty"
    told = [
        f"{written.rows} rows for {written.images} images{empty}, as {written.format}; "
        f"decoded back and equal to the {'probabilities' if of_classes else 'masks'}",
        f"sha256 {file_hash(file)}",
    ]
    if written.other_sizes:
        told.append(
            f"noted: the sample gives {len(written.other_sizes)} image(s) another height x width than their files, "
            f"which were written: {some(written.other_sizes)}; see whether the images are those that it asks for"
        )
    return told


def _probabilities(classes: Path, sample: Sample) -> dict[str, float]:
    """Return the probability of the second class of the sample's images. Raises ValueError unless there are two."""
    from pipeline.metrics.classification import PROBABILITY, read_classes

    table = read_classes(classes)
    columns = [name for name in table.columns if name.startswith(PROBABILITY)]
    if len(columns) != 2:
        raise ValueError(f"{classes}: expected two classes, one of which is submitted, found {', '.join(columns)}")
    wanted = table[table["case_id"].isin(sample.ids)]
    return dict(zip(wanted["case_id"], wanted[columns[1]].astype(float).tolist(), strict=True))
