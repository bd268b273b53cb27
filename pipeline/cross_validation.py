"""Cross-validation: one training a fold, each tested on the fold that it never saw, and all of them scored together.

The folds are those of split.csv, whole groups and every stratum alike; the test part is held out of all of it. Each
fold is a run of its own (cv/<run>/fold-<k>), made by the stages as any other, so that what is complete is not made
again, and a killed cross-validation carries on. The folds' runs can be the members of an ensemble (train.members).
Writes reports/cv/<run>/: metrics.json, table.md, scores.png, per_case.csv (every case once, by the run that never saw
it), labels_to_check.csv and labels_to_check.png: where predictions contradict labels most, for the label may be wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import Config, ConfigError, load_config
from pipeline.doubted_labels import PICTURES, SHARE, caption, contradicted_share, draw_labels, order_labels
from pipeline.records.case import Case, read_cases
from pipeline.records.files import write_json, write_text, written_aside
from pipeline.records.former import former_kept
from pipeline.records.paths import Paths
from pipeline.records.split import PARTS, read_groups, read_parts
from pipeline.runner import refuse_at_once
from pipeline.runner import run as run_stage

PART = "out_of_fold"
SHOWN = ("dice", "ap", "f1_70", "recall_70_pooled", "pq")
"""Scores of the table and of the figure, where they apply."""
FILES = ("metrics.json", "table.md", "scores.png", "per_case.csv", "labels_to_check.csv", "labels_to_check.png")
"""What it writes beside the folders of the folds, which the stages look after."""
COLOUR, QUIET = "#2f6f9f", "#9aa0a6"


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
    refuse_at_once("evaluate", configs[0], Paths.of(configs[0], root), with_needs=True)
    _split(configs, root)
    for config in configs:
        print(f"\n{config.run}")
        run_stage("evaluate", config, Paths.of(config, root), with_needs=True)
    folds = [_scores(config, root) for config in configs]
    metrics = {"run": run, "dataset": configs[0].dataset} | pool(folds, configs[0].evaluate.resamples, configs[0].seed)
    table = as_table(metrics)
    folder = root / "reports" / "cv" / run
    pooled = _pooled(folds)
    doubted = order_labels(pooled)
    with former_kept(folder, [f"/{name}" for name in FILES]):
        for name, rows in (("per_case", pooled), ("labels_to_check", doubted)):
            write_text(folder / f"{name}.csv", rows.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
        write_json(folder / "metrics.json", metrics)
        write_text(folder / "table.md", table)
        draw_scores(metrics, folder / "scores.png")
        _draw_doubted(doubted[:PICTURES], configs, folder / "labels_to_check.png", root)
    print(f"\n{table}\nWritten: {folder}")


def _split(configs: Sequence[Config], root: Path) -> None:
    """Divide the images for every fold, so that what is wrong is told before hours of training and not after.

    Raises ValueError where a fold leaves a part empty, or a learned normaliser has seen what a fold is tested on.
    """
    problems = []
    for config in configs:
        paths = Paths.of(config, root)
        run_stage("split", config, paths, with_needs=True)
        parts = read_parts(paths)
        if empty := [part for part in PARTS if not parts[part]]:
            problems.append(f"fold {config.split.fold}: expected cases in each part, found none in {', '.join(empty)}")
        if config.normalise.run is not None:
            problems += _seen_by_normaliser(config, paths, parts["test"])
    if problems:
        raise ValueError(
            "\n  ".join(["a cross-validation needs every fold:", *problems])
            + "\nNothing was trained; change split.folds, split.validation_share or seed, or take a normaliser that "
            "learned from none of these images"
        )


def _seen_by_normaliser(config: Config, paths: Paths, tested: Sequence[Case]) -> list[str]:
    from pipeline.trained import open_run

    told = open_run(paths.run_folder(str(config.normalise.run))).seen_among(tested, config, read_groups(paths))
    return [f"fold {config.split.fold}: normalise.run={config.normalise.run} learned from {told}"] if told else []


def _scores(config: Config, root: Path) -> Any:
    """Return per_case.csv of a fold's run, with the share of each label that its map contradicts."""
    from pipeline.metrics.summary import read_per_case
    from pipeline.records.rasters import read_label, read_probabilities
    from pipeline.trained import open_run

    paths = Paths.of(config, root)
    table = read_per_case(paths.reports / "per_case.csv")
    channels = open_run(paths.train).outputs.channels
    labels = {case.case_id: paths.ingest / str(case.label) for case in read_cases(paths.cases)}
    table[SHARE] = [
        contradicted_share(read_probabilities(paths.predict / f"{name}.tif"), read_label(labels[name]), channels)
        for name in table["case_id"]
    ]
    return table


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


def draw_scores(metrics: Mapping[str, Any], file: Path) -> None:
    """Draw every score, all cases and each stratum, with its interval, and a dot for each fold, into a PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    shown = [score for score in SHOWN if score in metrics[PART]]
    rows = {"all": metrics[PART], **metrics["by_stratum"]}
    with matplotlib.rc_context({"font.size": 9.0, "font.family": "DejaVu Sans", "text.parse_math": False}):
        figure = Figure(figsize=(2.2 + 2.2 * len(shown), 1.2 + 0.35 * len(rows)), layout="constrained")
        for axes, score in zip(figure.subplots(1, len(shown), squeeze=False, sharey=True)[0], shown, strict=True):
            folds = metrics["by_fold"].get(score, {}).get("means", [])
            axes.plot(folds, [0.0] * len(folds), "|", color=QUIET, markersize=14.0, markeredgewidth=1.6)
            for place, entry in enumerate(rows.values()):
                if (found := entry.get(score)) is None:
                    continue
                if found["low"] is not None:
                    axes.plot([found["low"], found["high"]], [place, place], color=COLOUR, linewidth=2.4)
                axes.plot([found["mean"]], [place], "o", color=COLOUR, markersize=6.0)
            axes.set(title=score, yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
            axes.set(xlim=(-0.02, 1.02))
            axes.grid(axis="x", color="#e5e7eb")
            axes.set_axisbelow(True)
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
        figure.suptitle(f"{metrics['run']}, out of fold: 95 % intervals over groups; grey, the folds", fontsize=9.5)
        with written_aside(file) as aside:
            figure.savefig(aside, dpi=150)


def _draw_doubted(doubted: Any, configs: Sequence[Config], file: Path, root: Path) -> None:
    from pipeline.records.rasters import read_image, read_label, write_png

    all_paths = [Paths.of(config, root) for config in configs]
    cases = {case.case_id: case for case in read_cases(all_paths[0].cases)}

    def pictures() -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        for row in doubted.to_dict("records"):
            paths, case = all_paths[row["fold"]], cases[row["case_id"]]
            mask = read_label(paths.reports / "masks" / f"{case.case_id}.png")
            yield caption(row), read_image(paths.ingest / case.image), read_label(paths.ingest / str(case.label)), mask

    write_png(file, draw_labels(pictures()))
