"""A run as a table for the terminal and as a chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.benchmarks.history import REGRESSION, Check, Run
from pipeline.benchmarks.timing import Row
from pipeline.records.files import written_aside

BUSY = 0.5
"""Load (processes that run or wait) at the start above which the table says that figures are indicative."""
INK, QUIET, GOOD, SHORT = "#1f2430", "#6b7280", "#2f6f9f", "#c2553a"


def table(name: str, run: Run, change: Mapping[str, float]) -> str:
    """Return the lines of a run: speed, first calls, checks, sides; change: see history.changes."""
    machine, found, load = run.circumstances.machine, run.findings, run.circumstances.load
    lines = [
        f"{name}: {found.threads} threads a side, {machine['processor']}, {machine['cores']} cores",
        f"ratio: median over interleaved rounds, with its 95 % interval; worked on: {found.items}",
    ]
    if load is not None and load > BUSY:
        lines.append(f"load {load:.1f} at the start: other work was running, figures are indicative")
    lines += ["", *_columns([_HEAD, *(_speed_cells(row, change.get(row.key)) for row in found.rows)])]
    if found.checks:
        lines += ["", *_columns([("check", "found", "aim", ""), *map(_check_cells, found.checks)])]
    return "\n".join([*lines, "", *_columns([("side", "versions"), *found.sides.items()])]) + "\n"


_HEAD = ("what", "on", "ours", "", "against", "theirs", "ratio", "interval", "aim", "change", "fit and first pass s")


def _speed_cells(row: Row, change: float | None) -> tuple[str, ...]:
    if row.ratio is None or row.low is None or row.high is None or row.speed is None or row.other_speed is None:
        return (row.what, row.items, "", "", row.against, row.failed)
    aim = "" if row.aim is None else f"{row.aim:g} {'met' if row.ratio >= row.aim else 'MISSED'}"
    return (
        row.what,
        row.items,
        f"{row.speed:.4g}",
        row.unit,
        row.against,
        f"{row.other_speed:.4g}",
        f"{_shown(row.ratio)}x",
        f"{_shown(row.low)} to {_shown(row.high)}",
        aim,
        "new" if change is None else f"{change:+.0%}{' REGRESSION' if change < -REGRESSION else ''}",
        f"{row.first_s:.2f}, {row.other_first_s:.2f}",
    )


def _shown(ratio: float) -> str:
    """Near 1 a tenth is much."""
    return f"{ratio:.{2 if ratio < 2.0 else 1}f}"


def _check_cells(check: Check) -> tuple[str, ...]:
    found = "not measured" if check.found is None else f"{check.found:.4g} {check.unit}"
    aim = ""
    if check.aim is not None:
        verdict = {True: " met", False: " MISSED", None: ""}[check.met]
        aim = f"{'<=' if check.at_most else '>='} {check.aim:g}{verdict}"
    return (check.what, found, aim, check.detail)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align cells into columns; a last cell of a row that is shorter than the others may run on."""
    count = max(map(len, rows))
    full = [row for row in rows if len(row) == count]
    widths = [max(len(row[column]) for row in full) for column in range(count - 1)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return lines


def plot(name: str, run: Run, stem: Path) -> list[Path]:
    """Draw the ratios with their intervals and aims on a logarithmic axis: <stem>.svg and <stem>.png."""
    import matplotlib
    from matplotlib.figure import Figure

    rows = [row for row in run.findings.rows if row.ratio is not None]
    with matplotlib.rc_context({"svg.hashsalt": "stainseg", "font.size": 9.0, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(8.0, 1.1 + 0.27 * max(1, len(rows))), layout="constrained")
        axes: Any = figure.add_subplot()
        for place, row in enumerate(rows):
            _draw(axes, place, row)
        labels = [f"{row.what}, {row.items}, against {row.against}" for row in rows]
        axes.set_yticks(range(len(rows)), labels)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.axvline(1.0, color=QUIET, linewidth=0.8)
        axes.set_xscale("log")
        axes.margins(x=0.1)
        axes.xaxis.set_major_formatter("{x:g}x")
        where = run.circumstances
        circumstances = f"{run.findings.threads} threads a side, {where.machine['processor']}, {where.date[:10]}"
        # Of the whole figure: long names of rows leave the axes less room than either needs.
        figure.supxlabel(f"times as fast ({circumstances})", fontsize="medium")
        figure.suptitle(f"{name}: ratio of times, 95 % interval of the median; mark: aim", fontsize="large", color=INK)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        files = [stem.with_suffix(suffix) for suffix in (".svg", ".png")]
        for file in files:
            with written_aside(file) as aside:
                figure.savefig(aside, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files


def _draw(axes: Any, place: int, row: Row) -> None:
    assert row.ratio is not None and row.low is not None and row.high is not None
    colour = QUIET if row.aim is None else GOOD if row.ratio >= row.aim else SHORT
    axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2.0, solid_capstyle="butt")
    axes.plot([row.ratio], [place], "o", color=colour, markersize=5.0)
    end = max(row.high, row.aim or row.high)
    axes.annotate(_shown(row.ratio), (end, place), xytext=(5, 0), textcoords="offset points", va="center", color=INK)
    if row.aim is not None:
        axes.plot([row.aim], [place], "|", color=INK, markersize=11.0, markeredgewidth=1.5)
