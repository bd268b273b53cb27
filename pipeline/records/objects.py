"""What each object of a mask has beside its id: a class, and what maps say of it on average."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.records.files import write_text

FILE = "objects.csv"
COLUMNS = ("case_id", "object", "class", "probability")


def means_by_id(objects: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Average values over the pixels of each id of a mask, 0 included: (largest id + 1,) float64, 0 for ids not there.

    objects: (height, width) unsigned ids; values: (height, width).
    """
    ids = objects.ravel()
    return np.bincount(ids, values.ravel().astype(np.float64)) / np.maximum(np.bincount(ids), 1)


def write_objects(file: Path, rows: Iterable[tuple[str, int, str, float]]) -> None:
    """Write rows of case_id, object (its id in the mask), class and probability, the mean over the object's pixels."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([*one, f"{probability:.6f}"] for *one, probability in rows)
    write_text(file, stream.getvalue())
