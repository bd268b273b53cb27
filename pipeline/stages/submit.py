"""Submit: the competition's file, kept only after it was decoded back and equals the masks.

Reads:  reports/<run>/masks/, data/ingest/<dataset>/sample_submission.csv (header, ids and their order)
Writes: reports/<run>/submission.csv
"""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Config
from pipeline.records.files import file_hash
from pipeline.records.paths import Paths


def inputs(config: Config, paths: Paths) -> list[Path]:
    """Return what decides staleness: the masks, and the sample file among the ingested ones."""
    return [paths.reports / "evaluate.stage.json", paths.ingest / "stage.json"]


def run(config: Config, paths: Paths) -> list[str]:
    """Write the file, decode it back, compare it with the masks, and only then keep it."""
    from pipeline.records.submission import LabelFiles, read_sample_file, write_submission

    if not paths.sample_submission.exists():
        raise ValueError(
            f"{paths.sample_submission}: expected the competition's sample submission; put it into {paths.raw} "
            f"and run ingest again: the header and the ids of a submission are always the sample's"
        )
    sample = read_sample_file(paths.sample_submission)
    file = paths.reports / "submission.csv"
    written = write_submission(file, LabelFiles(paths.reports / "masks", sample.ids), sample, config.submit.format)
    return [
        f"{written.rows} rows for {written.images} images, {written.empty_images} of them empty, as {written.format}; "
        f"decoded back and equal to the masks",
        f"sha256 {file_hash(file)}",
    ]
