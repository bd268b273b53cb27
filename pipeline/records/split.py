"""Reading split.csv: which case belongs to which part."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.records.case import Case, read_cases
from pipeline.records.paths import Paths

PARTS = ("train", "validation", "test")


def read_parts(paths: Paths) -> dict[str, list[Case]]:
    """Return the cases of train, validation and test, and those without a label as unlabelled, ordered by case id.

    A case's group is the one that the split used, found from pixels or given.
    Raises ValueError naming the labelled cases that the split does not know.
    """
    rows = read_split_table(paths.split_table)
    parts: dict[str, list[Case]] = {part: [] for part in (*PARTS, "unlabelled")}
    unknown = []
    for case in read_cases(paths.cases):
        if case.label is None:
            parts["unlabelled"].append(case)
        elif case.case_id in rows:
            parts[rows[case.case_id]["part"]].append(case)
        else:
            unknown.append(case.case_id)
    if unknown:
        raise ValueError(
            f"{paths.split_table}: expected every labelled case, {len(unknown)} miss ({', '.join(unknown[:5])}); "
            f"run `python -m pipeline split` again"
        )
    return parts


def read_split_table(file: Path) -> dict[str, dict[str, str]]:
    """Return the rows of split.csv (group, stratum, part, fold) by case id."""
    with file.open(encoding="utf-8", newline="") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream)}
