"""Cases to look at: which ones, and each with its image and layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, read_label
from pipeline.reporting.overlays import Layers, embed_image, trace_layers
from pipeline.reporting.sources import Absent, Sources


@dataclass(frozen=True)
class Picture:
    """One case to look at: its row of scores, its image and layers, or why they are not there."""

    row: dict[str, Any]
    image: str = ""
    scale: float = 1.0
    layers: Layers | None = None
    absent: Absent | None = None


def choose_cases(rows: Sequence[dict[str, Any]], score: str, count: int) -> dict[str, list[dict[str, Any]]]:
    """Choose the worst, the median and the best cases by a score, each case once; ties go by case id.

    With fewer cases than three times count, the worst take theirs first, then the best. What is empty in truth and
    prediction scores 1 and has nothing to look at: it is chosen where there is nothing else.
    """
    scored = [row for row in rows if row.get(score) is not None]
    shown = [row for row in scored if any(row.get(name, 1) for name in ("tp", "fp", "fn"))] or scored
    ranked = sorted(shown, key=lambda row: (row[score], row["case_id"]))
    share = min(count, max(1, -(-len(ranked) // 3)))
    worst = ranked[:share]
    best = ranked[len(worst) :][-share:][::-1]
    rest = ranked[len(worst) : len(ranked) - len(best)]
    first = max(0, (len(rest) - share) // 2)
    return {"worst": worst, "median": rest[first : first + share], "best": best}


def take_picture(row: dict[str, Any], sources: Sources, paths: Paths, budget: int) -> Picture:
    """Return a case's image, in about budget bytes, with its layers; what is missing is named instead.

    Raises ValueError where mask and label differ in size.
    """
    case = sources.cases.get(row["case_id"])
    if case is None or case.label is None:
        return Picture(
            row, absent=sources.absent.get("cases", Absent(f"{row['case_id']} in cases.jsonl", "make ingest"))
        )
    image, label = paths.image(case.image), paths.ingest / case.label
    mask = paths.reports / "masks" / f"{case.case_id}.png"
    made_by = "make ingest" if paths.normalise_method == "none" else "make normalise"
    for file, command in ((image, made_by), (label, "make ingest"), (mask, "make evaluate")):
        if not file.exists():
            return Picture(row, absent=Absent(file.relative_to(paths.root).as_posix(), command))
    uri, scale = embed_image(read_image(image), budget)
    try:
        objects = case.label_kind == "instance"
        layers = trace_layers(read_label(label), read_label(mask), objects=objects, tolerance=0.5 / scale)
    except ValueError as error:
        raise ValueError(f"{mask}: {error}; run `make evaluate` again") from error
    return Picture(row, uri, scale, layers)
