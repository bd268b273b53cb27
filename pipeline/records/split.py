"""Reading split.csv: which case belongs to which part."""

from __future__ import annotations

import csv
from pathlib import Path

from pipeline.records.case import Case, divided, read_cases
from pipeline.records.paths import Paths

PARTS = ("train", "validation", "test")
HELD_OUT = "held_out"
"""Part of the cases that take part in nothing: the test part of the whole, where a fold is tested on."""


def read_parts(paths: Paths) -> dict[str, list[Case]]:
    """Return the cases of train, validation and test, and those left out of them as unlabelled, ordered by case id.

    Left out is what has no truth, where other cases of the data set have, or where the split does not know it. What is
    held out is in no part.

    A case keeps the group that it was given, if any; that of the split is a column of split.csv.
    Raises ValueError naming the labelled cases that the split does not know.
    """
    rows = read_split_table(paths.split_table)
    parts: dict[str, list[Case]] = {part: [] for part in (*PARTS, "unlabelled")}
    unknown = []
    cases = read_cases(paths.cases)
    known = {case.case_id for case in divided(cases)}
    for case in cases:
        if case.case_id not in known or (case.case_id not in rows and not case.labelled):
            parts["unlabelled"].append(case)
        elif case.case_id in rows and rows[case.case_id]["part"] == HELD_OUT:
            continue
        elif case.case_id in rows:
            parts[rows[case.case_id]["part"]].append(case)
        else:
            unknown.append(case.case_id)
    if unknown:
        raise ValueError(
            f"{paths.split_table}: expected every case with a label, {len(unknown)} miss ({', '.join(unknown[:5])}); "
            f"run `python -m pipeline split` again"
        )
    return parts


def read_groups(paths: Paths) -> dict[str, str]:
    """Return each case's group in the split, given or found from pixels, by case id; empty where there is no split."""
    rows = read_split_table(paths.split_table) if paths.split_table.exists() else {}
    return {case_id: row["group"] for case_id, row in rows.items()}


def read_split_table(file: Path) -> dict[str, dict[str, str]]:
    """Return the rows of split.csv (group, stratum, part, fold) by case id."""
    with file.open(encoding="utf-8", newline="") as stream:
        return {row["case_id"]: row for row in csv.DictReader(stream)}
