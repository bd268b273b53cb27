"""Evaluate: probability maps to masks, and the test part's scores.

Reads:  data/predict/<run>/, data/train/<run>/thresholds.json, labels, split.csv, findings.csv
Writes: reports/<run>/: masks/<case_id>.png (16-bit object ids, or class ids), per_case.csv, metrics.json
"""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.records.case import Case
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths
from pipeline.records.split import read_parts, read_split_table

PART = "test"


def inputs(config: Config, paths: Paths) -> list[Path]:
    """Return what decides staleness: the maps, the run, the labels, the split."""
    return [
        paths.predict / "stage.json",
        paths.train / "stage.json",
        paths.ingest / "stage.json",
        paths.split / "stage.json",
    ]


def run(config: Config, paths: Paths) -> list[str]:
    """Write a mask for every predicted case, and a score for every one with truth."""
    from tqdm import tqdm

    from pipeline.instances import label_raster
    from pipeline.metrics.summary import per_case_table, summarise
    from pipeline.records.rasters import read_label, read_probabilities, write_png
    from pipeline.trained import open_run

    trained = open_run(paths.train)
    parts = read_parts(paths)
    chosen, thresholds = trained.chosen(), trained.thresholds()
    _refuse_used(parts[PART], chosen)
    groups = {case_id: row["group"] for case_id, row in read_split_table(paths.split_table).items()}
    rows: list[dict[str, Any]] = []
    for case in tqdm(parts[PART] + parts["unlabelled"], desc="evaluate", unit="image", disable=None):
        mask = label_raster(read_probabilities(paths.predict / f"{case.case_id}.tif"), trained.outputs, thresholds)
        write_png(paths.reports / "masks" / f"{case.case_id}.png", mask)
        row: dict[str, Any] = {
            "case_id": case.case_id,
            "group": groups.get(case.case_id) or None,
            "stratum": case.stratum,
        }
        if case.label is not None:
            rows.append(row | trained.outputs.score(read_label(paths.ingest / case.label), mask))
    table = per_case_table(rows)
    write_text(paths.reports / "per_case.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
    metrics = {
        "run": config.run,
        "dataset": config.dataset,
        **summarise(table, PART, config.evaluate.resamples, config.seed),
        "unscored": len(parts["unlabelled"]),
        "thresholds": chosen["thresholds"],
        "excluded": _excluded(paths.findings),
    }
    write_json(paths.reports / "metrics.json", metrics)
    return _table(metrics)


def _refuse_used(cases: list[Case], chosen: dict[str, Any]) -> None:
    used = {*chosen["trained_on"], *chosen["chosen_on"]["cases"]} & {case.case_id for case in cases}
    if used:
        raise ValueError(
            f"expected test cases that took no part in training or in choosing thresholds, found {len(used)} that did "
            f"({', '.join(sorted(used)[:5])}): the split changed since; run `make train` again"
        )


def _excluded(findings: Path) -> dict[str, int]:
    if not findings.exists():
        return {}
    with findings.open(encoding="utf-8", newline="") as stream:
        return dict(
            sorted(Counter(row["fault"] for row in csv.DictReader(stream) if row["action"] == "excluded").items())
        )


def _table(metrics: dict[str, Any]) -> list[str]:
    """Lay the headline figures out for the terminal, with their intervals."""
    shown = [name for name in ("dice", "iou", "ap", "ap_50", "f1_50", "f1_70", "pq", "aji") if name in metrics[PART]]
    strata = metrics.get("by_stratum", {})
    lines = [f"{metrics['cases']} test images in {metrics['groups']} groups; masks in masks/"]
    lines.append(f"{'':<22}{'images':>7}" + "".join(f"{name:>9}" for name in shown))
    for name, entry in [("all", metrics[PART]), *strata.items()]:
        first = entry[shown[0]]
        cells = "".join(
            f"{entry[key]['mean']:>9.3f}" if entry.get(key) and entry[key]["mean"] is not None else f"{'-':>9}"
            for key in shown
        )
        lines.append(f"{name[:21]:<22}{first['cases']:>7}" + cells)
    bounds = [metrics[PART][key] for key in shown]
    if bounds[0]["low"] is not None:
        lines.append(f"{'95 % from':<29}" + "".join(f"{bound['low']:>9.3f}" for bound in bounds))
        lines.append(f"{'95 % to':<29}" + "".join(f"{bound['high']:>9.3f}" for bound in bounds))
    else:
        lines.append(f"no intervals: {metrics['groups']} groups are too few (10 are needed)")
    return lines
