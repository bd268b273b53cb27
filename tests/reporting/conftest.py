"""A small finished run, written by the same code as a real one: disks with every kind of error in every image."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import Config, dump_config
from pipeline.metrics.summary import per_case_table, score_case, summarise
from pipeline.records.case import Case, LabelKind, write_cases
from pipeline.records.files import write_json, write_text
from pipeline.records.findings import Finding, write_findings
from pipeline.records.paths import Paths
from pipeline.records.rasters import write_png

HEIGHT, WIDTH = 72, 96
WriteRun = Callable[..., tuple[Paths, Config]]


def draw_disks(places: dict[int, tuple[int, int, int]]) -> np.ndarray:
    """Labels with a disk (row, column, radius) for each id."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    for number, (row, column, radius) in places.items():
        cv2.circle(labels, (column, row), radius, number, -1)
    return labels


def truth_and_prediction(shift: int) -> tuple[np.ndarray, np.ndarray]:
    """One object each that is found (the less well, the larger the shift), missed, split; two merged; one spurious."""
    truth = draw_disks({1: (18, 18, 9), 2: (18, 48, 7), 3: (50, 16, 8), 4: (50, 33, 8), 5: (50, 66, 12)})
    prediction = draw_disks({1: (18, 18 + shift, 9), 2: (14, 82, 6)})
    prediction[(truth == 3) | (truth == 4)] = 3
    prediction[(truth == 5) & (np.arange(WIDTH) < 66)] = 4
    prediction[(truth == 5) & (np.arange(WIDTH) > 66)] = 5
    return truth, prediction


@pytest.fixture(scope="session")
def write_run() -> WriteRun:
    """Write a run below a folder: as many cases as given, one a group."""

    def write(
        root: Path,
        cases: int = 12,
        kind: LabelKind = "instance",
        strata: tuple[str, ...] = ("pink", "grey"),
        prefix: str = "case",
    ) -> tuple[Paths, Config]:
        config = Config(dataset="disks", run="disks")
        paths = Paths.of(config, root)
        rows, records = [], []
        for number in range(cases):
            case_id, stratum = f"{prefix}-{number:02d}", strata[number % len(strata)]
            truth, prediction = truth_and_prediction(number % 5)
            if kind != "instance":
                truth, prediction = (truth > 0).astype(np.uint16), (prediction > 0).astype(np.uint16)
            image = np.full((HEIGHT, WIDTH, 3), (236, 200, 222), np.uint8)
            image[truth > 0] = (110, 60, 150)
            write_png(paths.ingest / "images" / f"{case_id}.png", image)
            write_png(paths.ingest / "labels" / f"{case_id}.png", truth)
            write_png(paths.reports / "masks" / f"{case_id}.png", prediction)
            records.append(
                Case(case_id, "disks", f"images/{case_id}.png", f"labels/{case_id}.png", kind, f"group-{number}",
                     stratum, HEIGHT, WIDTH, None, case_id)
            )  # fmt: skip
            rows.append(
                {
                    "case_id": case_id,
                    "group": f"group-{number}",
                    "stratum": stratum,
                    **score_case(truth, prediction, kind),
                }
            )
        write_cases(paths.cases, records)
        table = per_case_table(rows)
        write_text(paths.reports / "per_case.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
        write_json(paths.reports / "metrics.json", {**summarise(table, "test"), "run": "disks", "dataset": "disks"})
        write_other_stages(paths, config)
        return paths, config

    return write


def write_other_stages(paths: Paths, config: Config) -> None:
    """Everything that the page can do without."""
    history = io.StringIO()
    writer = csv.writer(history, lineterminator="\n")
    writer.writerow(["step", "epoch", "learning_rate", "loss", "validation_dice", "validation_iou", "best"])
    writer.writerows([[10 * k, k, 1e-3 / k, 1 / k, 1 - 1 / (k + 1), 1 - 1 / k, int(k == 4)] for k in range(1, 6)])
    write_text(paths.train / "history.csv", history.getvalue())
    write_text(paths.train / "config.yaml", dump_config(config))
    chosen = {"part": "validation", "cases": ["a", "b"], "score": 0.5}
    write_json(
        paths.train / "thresholds.json", {"chosen_on": chosen, "thresholds": {"foreground": 0.45, "minimum_size": 16}}
    )
    write_json(
        paths.proof,
        {
            "groups_in_two_parts": [],
            "joins_across_parts": [],
            "cases": 40,
            "groups": 20,
            "parts": {
                "train": {"cases": 26, "groups": 13, "share": 0.65},
                "test": {"cases": 14, "groups": 7, "share": 0.35},
            },
            "strata": {"pink": {"train": {"cases": 13, "groups": 7}, "test": {"cases": 7, "groups": 3}}},
            "ungrouped_split": {"test_cases": 14, "leaked": 9.3, "random_splits": 100},
        },
    )
    write_findings(
        paths.findings,
        [Finding("gone", "excluded", "size mismatch", "mask 3"), Finding("case-01", "repaired", "overlap", "4 px")],
    )
    for sheet in (paths.split / "groups.png", paths.augment / "contact_sheet.png"):
        write_png(sheet, np.full((40, 60, 3), 128, np.uint8))
    provenance = {
        "seed": 1412,
        "versions": {"torch": "2.0"},
        "commit": "0123456789ab",
        "machine": "Linux",
        "seconds": 3.5,
    }
    stages = (paths.ingest, paths.split, paths.normalise, paths.augment, paths.train, paths.predict)
    for file in (*(folder / "stage.json" for folder in stages), paths.reports / "evaluate.stage.json"):
        made = {"made_from": {"inputs": {"data/raw": "a" * 64}}, "outputs": {"x": [3, "b" * 64]}}
        write_json(file, {"stage": file.parent.name, **made, "provenance": provenance})


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, write_run: WriteRun) -> tuple[Paths, Config]:
    """A run with nothing missing; tests read it and never change it."""
    return write_run(tmp_path_factory.mktemp("finished"))
