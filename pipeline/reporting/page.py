"""The page: one HTML file that holds everything and asks nothing of the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.config import Config
from pipeline.metrics.summary import MINIMUM_GROUPS, SCORE_COLUMNS
from pipeline.records.paths import Paths
from pipeline.reporting.cases import Picture, choose_cases, take_picture
from pipeline.reporting.frame import common_cautions, draw_history, inline, interval, render
from pipeline.reporting.overlays import ERROR_KINDS
from pipeline.reporting.sources import Sources, read_sources

PICTURE_BYTES = 620_000
"""Bytes for all pictures of cases together, before base64; each gets its share and is reduced until it fits."""
PICTURE_LIMIT = 80_000

HEADLINE = ("dice", "iou", "ap", "ap_50", "f1_50", "f1_70", "pq", "bpq", "mpq", "aji")
TITLES = {
    "dice": "Dice", "iou": "IoU", "ap": "AP", "ap_50": "AP at 0.50", "ap_75": "AP at 0.75", "f1_50": "F1 at 0.50",
    "f1_70": "F1 at 0.70", "precision_70": "Precision at 0.70", "recall_70": "Recall at 0.70", "pq": "PQ", "sq": "SQ",
    "rq": "RQ", "bpq": "bPQ", "mpq": "mPQ", "aji": "AJI", "dice_pooled": "Dice, pooled", "iou_pooled": "IoU, pooled",
    "precision_70_pooled": "Precision at 0.70, pooled", "recall_70_pooled": "Recall at 0.70, pooled",
    "f1_70_pooled": "F1 at 0.70, pooled",
}  # fmt: skip
MEANINGS = {
    **SCORE_COLUMNS,
    "dice": "2 TP / (2 TP + FP + FN) of foreground pixels; of several classes the mean",
    "iou": "TP / (TP + FP + FN) of foreground pixels; of several classes the mean",
    "f1_50": "objects matched at IoU above 0.50, against missed and spurious ones",
    "f1_70": "objects matched at IoU above 0.70, against missed and spurious ones",
    "bpq": "PQ of all objects; mean over images that have some, then over strata (PanNuke's bPQ)",
    "mpq": "mean PQ of the classes that an image has; mean over images, then over strata (PanNuke's mPQ)",
    "pq": "panoptic quality: mean IoU of the matched objects times F1 at 0.50",
    "ap": "objects found, mean over IoU above 0.50, 0.55, …, 0.95 (the Data Science Bowl's score)",
    "ap_50": "TP / (TP + FP + FN) of objects at IoU above 0.50",
    "ap_75": "TP / (TP + FP + FN) of objects at IoU above 0.75",
    "dice_pooled": "all pixels of the part counted together",
    "iou_pooled": "all pixels of the part counted together",
    "precision_70_pooled": "all objects of the part counted together",
    "recall_70_pooled": "all objects of the part counted together",
    "f1_70_pooled": "all objects of the part counted together",
}
ERROR_MEANINGS = {
    "missed": "in the truth, found by no object",
    "spurious": "predicted where the truth has nothing that matches",
    "merged": "one prediction over two or more true objects",
    "split": "one true object under two or more predictions",
}
REGION_MEANINGS = {
    "missed": "foreground of the truth that the prediction lacks",
    "spurious": "predicted foreground that the truth lacks",
    "confused": "foreground, of another class than in the truth",
}
"""Where labels hold classes; seams thinner than three pixels are not drawn."""
TABLE_ROWS = 300
PANELS = (
    ("loss", "Training loss", {"loss": "loss"}),
    ("validation", "Validation part", {"validation_dice": "Dice", "validation_iou": "IoU"}),
    ("rate", "Learning rate", {"learning_rate": "learning rate"}),
)


def build_page(paths: Paths, config: Config) -> str:
    """Return the report as one HTML text, the same for the same files; it reads and computes no score.

    Raises ValueError where metrics.json or per_case.csv is missing; what else is missing is named on the page.
    """
    sources = read_sources(paths, config)
    part = sources.metrics.get("part", "test")
    scores = sources.metrics[part]
    score = "ap" if _mean(scores, "ap") is not None else "dice"
    chosen = choose_cases(sources.rows, score, config.report.cases)
    count = max(1, sum(map(len, chosen.values())))
    classes: dict[str, str] = sources.metrics.get("classes", {})
    numbered = [name.removeprefix("dice_class_") for name in scores if name.startswith("dice_class_")]
    pictures = {
        kind: [take_picture(row, sources, paths, min(PICTURE_LIMIT, PICTURE_BYTES // count)) for row in rows]
        for kind, rows in chosen.items()
    }
    return render(
        "page.html.jinja",
        sources,
        config,
        styles=(),
        scripts=("page.js",),
        scores=scores,
        headline=[name for name in HEADLINE if _mean(scores, name) is not None],
        further=[name for name in scores if name not in HEADLINE and _mean(scores, name) is not None],
        titles=TITLES
        | {f"pq_class_{number}": f"PQ, {name}" for number, name in classes.items()}
        | {f"dice_class_{number}": f"Dice, class {number}" for number in numbered},
        meanings=MEANINGS
        | {
            f"pq_class_{number}": f"PQ of the objects of class {name}; mean over images that have some"
            for number, name in classes.items()
        }
        | {
            f"dice_class_{number}": f"Dice of class {number}; mean over images with it in truth or prediction"
            for number in numbered
        },
        objects=score == "ap",
        score=score,
        errors=_error_totals(sources.rows),
        error_meanings=ERROR_MEANINGS,
        strata=_strata(sources),
        strata_figures=inline(_strata_figures(sources, part, score)),
        curves=inline(draw_history(sources.history, PANELS)),
        reliability=inline(_draw_reliability(sources.metrics)),
        pictures=pictures,
        legend=_legend(pictures, score == "ap"),
        table=sorted(
            sources.rows, key=lambda row: (row[score] if row.get(score) is not None else -1.0, row["case_id"])
        )[:TABLE_ROWS],
        table_columns=_table_columns(sources.rows),
        cautions=_cautions(sources, part),
    )


def _draw_reliability(metrics: dict[str, Any]) -> list[str]:
    """Draw what share of the pixels is foreground over what the network said; nothing where it was not measured."""
    bins = metrics.get("calibration", {}).get("bins", [])
    if not bins:
        return []
    from pipeline.reporting.figures import draw_reliability

    said, seen = ([one[key] for one in bins] for key in ("said", "seen"))
    told = ", ".join(f"{one:.2f} said, {other:.2f} seen" for one, other in zip(said, seen, strict=True))
    return [draw_reliability(said, seen, f"Share of foreground by probability: {told}", "reliability")]


def _mean(scores: dict[str, Any], name: str) -> float | None:
    entry = scores.get(name)
    return entry.get("mean") if isinstance(entry, dict) else None


def _error_totals(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Add up the errors of all cases; empty where no case has objects."""
    counted = [row for row in rows if row.get("truth_objects") is not None]
    return {kind: int(sum(row.get(kind) or 0 for row in counted)) for kind in ERROR_KINDS} if counted else {}


def _legend(pictures: dict[str, list[Picture]], objects: bool) -> dict[str, str]:
    """Name and meaning of each kind of error that the pictures can show, and of ignored regions if there are some."""
    layers = [picture.layers for row in pictures.values() for picture in row if picture.layers]
    legend = dict(ERROR_MEANINGS if objects else REGION_MEANINGS)
    if not any(layer.errors.get("confused") for layer in layers):
        legend.pop("confused", None)
    if any(layer.ignored for layer in layers):
        legend["ignored"] = "left out of every score"
    return legend


def _strata(sources: Sources) -> list[dict[str, Any]]:
    """One row of the table a stratum: its scores and its errors."""
    table = []
    for name, scores in sources.metrics.get("by_stratum", {}).items():
        rows = [row for row in sources.rows if _same_stratum(row, name)]
        first: dict[str, Any] = next(iter(scores.values()), {})
        objects = [row["truth_objects"] for row in rows if row.get("truth_objects") is not None]
        table.append(
            {
                "name": name,
                "scores": scores,
                "cases": first.get("cases", len(rows)),
                "groups": first.get("groups"),
                "objects": int(sum(objects)) if objects else None,
                "errors": _error_totals(rows),
            }
        )
    return table


def _same_stratum(row: dict[str, Any], name: str) -> bool:
    return (row.get("stratum") or "unknown") == name


def _strata_figures(sources: Sources, part: str, score: str) -> list[str]:
    from pipeline.reporting.figures import draw_strata

    strata = sources.metrics.get("by_stratum", {})
    entries = [("all", sources.rows, sources.metrics[part])]
    if len(strata) > 1:
        entries += [
            (name, [row for row in sources.rows if _same_stratum(row, name)], scores) for name, scores in strata.items()
        ]
    figures = []
    for metric in dict.fromkeys(("dice", score)):
        rows = [
            (name, [row[metric] for row in cases if row.get(metric) is not None], scores.get(metric) or {})
            for name, cases, scores in entries
        ]
        told = "; ".join(f"{name} {interval(entry)}" for name, _, entry in rows)
        drawn = ", 95 % interval" if any(entry.get("low") is not None for _, _, entry in rows) else ""
        title, description = f"{TITLES[metric]}: every image, mean{drawn}", f"{TITLES[metric]} by stratum: {told}"
        figures.append(draw_strata(title, rows, description, f"strata-{metric}"))
    return figures


def _table_columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    wanted = (
        "dice",
        "iou",
        "ap",
        "ap_50",
        "f1_70",
        "pq",
        "bpq",
        "mpq",
        "aji",
        "truth_objects",
        "predicted_objects",
        *ERROR_KINDS,
    )
    return [name for name in wanted if any(row.get(name) is not None for row in rows)]


def _cautions(sources: Sources, part: str) -> list[str]:
    """Say what limits the figures, as far as the files tell."""
    metrics, told = sources.metrics, []
    if (cell := metrics.get("cell")) is not None:
        told.append(
            f"Labels tell one class for each square of {cell} x {cell} pixels: wherever this page speaks of pixels, "
            "scores count squares, each by the mean probability over it."
        )
    if (groups := metrics.get("groups")) is not None and groups < MINIMUM_GROUPS:
        told.append(
            f"The {part} part has {groups} groups. Below {MINIMUM_GROUPS} there is no interval: "
            "it would promise too much."
        )
    few = [
        f"{row['name']} ({row['groups']})"
        for row in _strata(sources)
        if row["groups"] is not None and row["groups"] < MINIMUM_GROUPS
    ]
    if few and len(metrics.get("by_stratum", {})) > 1:
        told.append(
            f"Strata with fewer than {MINIMUM_GROUPS} groups have a mean but no interval; "
            f"read them as examples: {', '.join(few)}."
        )
    return told + common_cautions(sources)
