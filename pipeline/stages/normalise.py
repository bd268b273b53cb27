"""Normalise: bring every image to the stain of one reference, fitted on training cases.

Reads:  data/ingest/<dataset>/ (cases, images), data/split/<dataset>/<name>/split.csv
Writes: data/normalise/<dataset>/<method>/: stain.json (the fitted normaliser), images/<case_id>.png, status.csv
        (case_id, status, fallback); with method none, stain.json alone, which says so
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pipeline.config import Config
from pipeline.records.case import Case, read_cases
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, write_png
from pipeline.records.split import read_parts
from pipeline.stains import METHODS, load
from pipeline.stains.normaliser import FALLBACKS, Normaliser, Status

STAIN, STATUS, JOURNAL = "stain.json", "status.csv", ".status.jsonl"
LARGEST_FIT = 500
"""Training images that the reference is sought among; of more, so many evenly spaced ones."""


def inputs(config: Config, paths: Paths) -> list[Path]:
    """Return what decides staleness: nothing where nothing is done, else the images and the split."""
    return [] if config.normalise.method == "none" else [paths.ingest / "stage.json", paths.split / "stage.json"]


def run(config: Config, paths: Paths) -> list[str]:
    """Fit, then normalise what is not there yet.

    Raises ValueError where the reference cannot be used, or too many images fell back.
    """
    settings = config.normalise
    if settings.method == "none":
        write_json(paths.normalise / STAIN, {"method": "none", "version": 1})
        return ["normalise.method is none: the ingested images are used as they are"]
    file = paths.normalise / STAIN
    if not file.exists():
        _fit(config, paths)
    reference = json.loads(file.read_text(encoding="utf-8"))["reference_case"]
    normaliser = load(file)
    cases = read_cases(paths.cases)
    statuses = _normalise(cases, normaliser, paths)
    rows = [(case.case_id, statuses[case.case_id], FALLBACKS[statuses[case.case_id]]) for case in cases]
    fallen = [row for row in rows if row[2]]
    counts = ", ".join(f"{count} {status}" for status, count in sorted(Counter(statuses.values()).items()))
    if len(fallen) > settings.fail_if_fallback_over * len(rows):
        raise ValueError(
            f"{paths.normalise}: expected at most {settings.fail_if_fallback_over:.0%} of the images to fall back, "
            f"found {len(fallen)} of {len(rows)} ({counts}); the first are {', '.join(row[0] for row in fallen[:5])}. "
            "Set normalise.method=none where images are not stained tissue, or raise normalise.fail_if_fallback_over"
        )
    _write_status(rows, paths)
    return [
        f"{len(rows)} images brought to the stain of {reference} by {settings.method}: {counts}",
        f"{len(fallen)} of them could not be normalised by their own statistics; see {paths.normalise / STATUS}",
    ]


def _fit(config: Config, paths: Paths) -> None:
    """Fit on training cases and write stain.json; the reference is the named case, or the one nearest to the median."""
    from tqdm import tqdm

    settings = config.normalise
    training = read_parts(paths)["train"]
    if settings.reference is not None:
        named = [case for case in training if case.case_id == settings.reference]
        if not named:
            known = ", ".join(case.case_id for case in training[:5]) + (", ..." if len(training) > 5 else "")
            raise ValueError(
                f"normalise.reference: expected the id of a training case, found {settings.reference!r}; "
                f"{paths.split_table} has {len(training)}: {known}"
            )
        training = named
    chosen = [training[i] for i in _evenly(len(training), LARGEST_FIT)]
    normaliser = METHODS[settings.method](settings.maximum_gain)
    images = tqdm(_images(chosen, paths), total=len(chosen), desc="fit stain", unit="image", disable=None)
    normaliser.fit(images)
    assert normaliser.reference_index_ is not None
    normaliser.save(
        paths.normalise / STAIN, reference_case=chosen[normaliser.reference_index_].case_id, fitted_on=len(chosen)
    )


def _normalise(cases: Sequence[Case], normaliser: Normaliser, paths: Paths) -> dict[str, Status]:
    """Write every image that is not there yet; return each case's status.

    A line of the journal follows each image, so that a run that was cut off knows what became of the images it wrote.
    """
    from tqdm import tqdm

    journal = paths.normalise / JOURNAL
    statuses = _read_journal(journal)
    with journal.open("a", encoding="utf-8") as stream:
        # A line that was cut off in the middle must not swallow the next.
        stream.write("\n")
        for case in tqdm(cases, desc="normalise", unit="image", disable=None):
            target = paths.normalise / case.image
            if case.case_id in statuses and target.exists():
                continue
            image, status = normaliser.transform(read_image(paths.ingest / case.image))
            write_png(target, image)
            statuses[case.case_id] = status
            stream.write(json.dumps([case.case_id, status]) + "\n")
            stream.flush()
    return statuses


def _read_journal(journal: Path) -> dict[str, Status]:
    """Read whole lines; the last may have been cut off."""
    statuses: dict[str, Status] = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []:
        try:
            case_id, status = json.loads(line)
        except ValueError:
            continue
        statuses[case_id] = status
    return statuses


def _write_status(rows: Sequence[tuple[str, str, str]], paths: Paths) -> None:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("case_id", "status", "fallback"))
    writer.writerows(sorted(rows))
    write_text(paths.normalise / STATUS, stream.getvalue())
    (paths.normalise / JOURNAL).unlink()


def _images(cases: Sequence[Case], paths: Paths) -> Iterator[np.ndarray]:
    for case in cases:
        yield read_image(paths.ingest / case.image)


def _evenly(count: int, most: int) -> list[int]:
    """Return up to most indices below count, evenly spaced."""
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]
