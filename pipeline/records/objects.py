"""What class each object of a mask has, beside the masks that hold their ids."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from pipeline.records.files import write_text

FILE = "objects.csv"
COLUMNS = ("case_id", "object", "class", "probability")


def write_objects(file: Path, rows: Iterable[tuple[str, int, str, float]]) -> None:
    """Write rows of case_id, object (its id in the mask), class and probability, the mean over the object's pixels."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([*one, f"{probability:.6f}"] for *one, probability in rows)
    write_text(file, stream.getvalue())
