"""Cross-validation: one training a fold, each tested on the fold that it never saw, and all of them scored together.

The folds are those of split.csv, whole groups and every stratum alike; the test part is held out of all of it. Each
fold is a run of its own (cv/<run>/fold-<k>), made by the stages as any other, so that what is complete is not made
again, and a killed cross-validation carries on. The folds' runs can be the members of an ensemble (train.members).
Writes reports/cv/<run>/: metrics.json, table.md, per_case.csv (every case once, by the run that never saw it),
labels_to_check.csv and labels_to_check.png: where label and prediction disagree most, for the label may be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, ConfigError, load_config
from pipeline.records.case import read_cases
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths
from pipeline.stages import run as run_stage

PART = "out_of_fold"
SHOWN = ("dice", "ap", "f1_70", "recall_70_pooled", "pq")
"""Scores of the table, where they apply."""
DOUBTED = 12
"""Cases whose label and prediction are drawn side by side."""
WIDTH, GAP = 384, 8
"""Of a picture in that sheet, and between two, in pixels."""


def fold_configs(file: Path | None, settings: list[str]) -> list[Config]:
    """Return the settings of each fold's run. Raises ConfigError for what cannot be cross-validated."""
    base = load_config(file, settings)
    problems = []
    if base.train.task != "segmentation":
        problems.append(f"train.task=segmentation, found {base.train.task}")
    if base.train.members:
        problems.append("a network to train, found train.members: cross-validate the members")
    if base.split.fold is not None:
        problems.append(f"no split.fold, since every fold has its turn, found {base.split.fold}")
    if problems:
        raise ConfigError(f"{file or 'settings'}: a cross-validation expects " + "; ".join(problems))
    return [
        load_config(
            file,
            [
                *settings,
                f"split.fold={fold}",
                f"split.name={base.split.name}-fold-{fold}",
                f"run=cv/{base.run}/fold-{fold}",
            ],
        )
        for fold in range(base.split.folds)
    ]


def run_cross_validation(file: Path | None, settings: list[str], root: Path = Path()) -> None:
    """Train and score every fold, and write and print what they come to together.

    Raises ConfigError or ValueError before anything is trained where the settings or the groups do not allow it.
    """
    configs = fold_configs(file, settings)
    run = load_config(file, settings).run
    for config in configs:
        run_stage("split", config, Paths.of(config, root), with_needs=True)
    for config in configs:
        print(f"\n{config.run}")
        run_stage("evaluate", config, Paths.of(config, root), with_needs=True)
    folds = [_scores(Paths.of(config, root)) for config in configs]
    metrics = {"run": run, "dataset": configs[0].dataset} | pool(folds, configs[0].evaluate.resamples, configs[0].seed)
    table = as_table(metrics)
    folder = root / "reports" / "cv" / run
    pooled = _pooled(folds)
    write_text(folder / "per_case.csv", pooled.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
    write_json(folder / "metrics.json", metrics)
    write_text(folder / "table.md", table)
    doubted = doubtful(pooled)
    write_text(folder / "labels_to_check.csv", doubted.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
    _draw_doubtful(doubted[:DOUBTED], configs, folder / "labels_to_check.png", root)
    print(f"\n{table}\nWritten: {folder}")


def _scores(paths: Paths) -> Any:
    """Return per_case.csv of a fold's run."""
    import pandas as pd

    return pd.read_csv(paths.reports / "per_case.csv", dtype={"case_id": str, "group": str, "stratum": str})


def _pooled(folds: Sequence[Any]) -> Any:
    import pandas as pd

    table = pd.concat([one.assign(fold=fold) for fold, one in enumerate(folds)], ignore_index=True)
    twice = sorted(set(table.loc[table["case_id"].duplicated(), "case_id"]))
    across = table.dropna(subset=["group"]).groupby("group")["fold"].nunique()
    # The split rules both out; a figure over folds that overlap would be worth nothing.
    if twice or (across > 1).any():
        raise ValueError(
            f"folds: expected every case and group in one fold, found in several: "
            f"{', '.join([*twice, *across.index[across > 1]][:5])}; remove data/split/ of the folds and run again"
        )
    return table.sort_values("case_id").reset_index(drop=True)


def pool(folds: Sequence[Any], resamples: int = 2000, seed: int = 1412) -> dict[str, Any]:
    """Summarise the cases of all folds together, as metrics.json does a part, and each score's spread over the folds.

    folds: per_case tables, one a fold. Returns what metrics.summary.summarise does, with the part out_of_fold, and
    by_fold: for each score its mean in every fold, and their standard deviation.
    Raises ValueError where a case or a group is in two folds.
    """
    from pipeline.metrics.summary import summarise

    content = summarise(_pooled(folds), PART, resamples, seed)
    each = [summarise(fold, PART, resamples, seed)[PART] for fold in folds]
    content["by_fold"] = {
        score: {
            "means": [means[score]["mean"] for means in each],
            "spread": round(float(np.std([means[score]["mean"] for means in each], ddof=1)), 6),
        }
        for score in content[PART] if all(score in means for means in each)
    }  # fmt: skip
    return content


def as_table(metrics: Mapping[str, Any]) -> str:
    """Lay the scores out as Markdown: all cases with intervals, each stratum, each fold."""
    shown = [score for score in SHOWN if score in metrics[PART]]
    by_fold = metrics["by_fold"]

    def cell(entry: Mapping[str, Any], score: str) -> str:
        if not (found := entry.get(score)):
            return ""
        interval = "" if found["low"] is None else f" ({found['low']:.3f} to {found['high']:.3f})"
        return f"{found['mean']:.3f}{interval}"

    lines = [
        f"{metrics['run']}: {metrics['cases']} images in {metrics['groups']} groups, each scored by the run of a fold "
        "that never saw it; the test part is held out",
        "",
        f"| | images | {' | '.join(shown)} |",
        "|---|---|" + "---|" * len(shown),
    ]
    for name, entry in [("all", metrics[PART]), *metrics["by_stratum"].items()]:
        lines.append(f"| {name} | {entry[shown[0]]['cases']} | {' | '.join(cell(entry, score) for score in shown)} |")
    for fold in range(len(by_fold[shown[0]]["means"])):
        means = (f"{by_fold[score]['means'][fold]:.3f}" for score in shown)
        lines.append(f"| fold {fold} | | {' | '.join(means)} |")
    spreads = (f"{by_fold[score]['spread']:.3f}" for score in shown)
    lines.append(f"| spread of folds | | {' | '.join(spreads)} |")
    return "\n".join(lines) + "\n"


def doubtful(table: Any) -> Any:
    """Order cases by how little their label and the out-of-fold prediction share, and say what differs.

    table: per_case.csv with a column fold. Returns case_id, fold, group, stratum, dice and, for objects, ap_50 and the
    counts of objects missed, spurious, merged and split; the least Dice first.
    """
    columns = ["case_id", "fold", "group", "stratum", "dice"]
    objects = ["ap_50", "truth_objects", "missed", "spurious", "merged", "split"]
    columns += [name for name in objects if table[name].notna().any()]
    return table.sort_values(["dice", "case_id"])[columns].reset_index(drop=True)


def _draw_doubtful(doubted: Any, configs: Sequence[Config], file: Path, root: Path) -> None:
    """Draw cases a row each: the image, the outlines of its label, and those of the prediction."""
    import cv2

    from pipeline.records.rasters import read_image, read_label, write_png
    from pipeline.reporting.overlays import draw_outlines

    rows = []
    for case_id, fold in zip(doubted["case_id"], doubted["fold"], strict=True):
        paths = Paths.of(configs[fold], root)
        case = next(case for case in read_cases(paths.cases) if case.case_id == case_id)
        image = read_image(paths.ingest / case.image)
        mask = read_label(paths.reports / "masks" / f"{case_id}.png")
        pictures = [image, draw_outlines(image, read_label(paths.ingest / str(case.label))), draw_outlines(image, mask)]
        height = max(1, round(WIDTH * image.shape[0] / image.shape[1]))
        row = np.full((height + GAP, 3 * (WIDTH + GAP), 3), 255, np.uint8)
        for place, picture in enumerate(pictures):
            left = place * (WIDTH + GAP)
            fitted = cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_AREA)
            row[:height, left : left + WIDTH] = fitted
        rows.append(row)
    write_png(file, np.concatenate(rows))
