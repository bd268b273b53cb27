"""The page of a run that gives an image one class: figures, confusion, and the errors it is surest of."""

from __future__ import annotations

from typing import Any

from pipeline.config import Config
from pipeline.metrics.classification import PROBABILITY, SCORES, cautions_of_classes
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image
from pipeline.reporting.cases import Picture
from pipeline.reporting.frame import Panel, common_cautions, draw_history, inline, render
from pipeline.reporting.overlays import embed_image
from pipeline.reporting.sources import Absent, Sources, read_sources, scores_hold

PICTURE_BYTES = 400_000
"""Bytes for all pictures of cases together, before base64."""
PICTURE_LIMIT = 40_000
TABLE_ROWS = 300
TITLES = {"auc": "AUC", "balanced_accuracy": "Balanced accuracy", "accuracy": "Accuracy"}
PANELS: tuple[Panel, ...] = (
    ("loss", "Training loss", {"loss": "loss"}),
    (
        "validation",
        "Validation part",
        {"validation_auc": "AUC", "validation_balanced_accuracy": "balanced accuracy"},
    ),
    ("rate", "Learning rate", {"learning_rate": "learning rate"}),
)


def applies(paths: Paths) -> bool:
    """Say whether reports/<run>/metrics.json is that of a run that gives images a class."""
    return scores_hold(paths, "confusion")


def build_page(paths: Paths, config: Config) -> str:
    """Return the report as one HTML text, the same for the same files; it reads and computes no score.

    Raises ValueError where metrics.json or per_case.csv is missing; what else is missing is named on the page.
    """
    sources = read_sources(paths, config)
    metrics = sources.metrics
    part = metrics["part"]
    errors = [row for row in sources.rows if row["class"] != row["predicted"]]
    errors.sort(key=lambda row: (-row[PROBABILITY + row["predicted"]], row["case_id"]))
    shown = {
        name: [row for row in errors if row["class"] == name][: config.report.cases] for name in metrics["classes"]
    }
    budget = min(PICTURE_LIMIT, PICTURE_BYTES // max(1, sum(map(len, shown.values()))))
    return render(
        "class_page.html.jinja",
        sources,
        config,
        styles=("class_page.css",),
        scripts=(),
        scores=metrics[part],
        headline=[name for name in SCORES if name in metrics[part]],
        titles=TITLES,
        meanings=SCORES,
        strata=metrics.get("by_stratum", {}),
        errors=len(errors),
        pictures={name: [_picture(row, sources, paths, budget) for row in rows] for name, rows in shown.items()},
        table=errors[:TABLE_ROWS],
        curves=inline(draw_history(sources.history, PANELS)),
        cautions=cautions_of_classes(metrics) + common_cautions(sources),
    )


def _picture(row: dict[str, Any], sources: Sources, paths: Paths, budget: int) -> Picture:
    case = sources.cases.get(row["case_id"])
    if case is None:
        return Picture(row)
    file = paths.image(case.image)
    if not file.exists():
        made_by = "make ingest" if paths.normalise_method == "none" else "make normalise"
        return Picture(row, absent=Absent(file.relative_to(paths.root).as_posix(), made_by))
    uri, scale = embed_image(read_image(file), budget)
    return Picture(row, uri, scale)
