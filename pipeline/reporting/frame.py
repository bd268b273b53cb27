"""What every page has: its frame, look and script, its sections on split, data and provenance, and how values read."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config import Config
from pipeline.metrics.summary import MINIMUM_GROUPS
from pipeline.records.rasters import read_image
from pipeline.reporting.overlays import embed_image
from pipeline.reporting.proof import describe_proof
from pipeline.reporting.sources import Sources, settings_tree

SHEET_BYTES = 70_000

Panel = tuple[str, str, dict[str, str]]
"""A chart of the training: its name, its title, and the columns of history.csv it draws with their labels."""


def render(
    template: str, sources: Sources, config: Config, *, styles: Sequence[str], scripts: Sequence[str], **further: Any
) -> str:
    """Fill a template that extends frame.html.jinja; styles, scripts: files in this folder beside the frame's own."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("pipeline.reporting", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(number=number, whole=_whole, percent=_percent, words=_words)
    style = "".join(_text(name) for name in ("page.css", *styles))
    script = "".join(_text(name) for name in ("frame.js", *scripts))
    return environment.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        policy=_policy(style, script),
        config=config,
        sources=sources,
        metrics=sources.metrics,
        part=sources.metrics.get("part", "test"),
        sheets={name: embed_image(read_image(file), SHEET_BYTES)[0] for name, file in sources.sheets.items()},
        findings=Counter((finding.action, finding.fault) for finding in sources.findings),
        settings=settings_tree(sources.settings),
        proof=describe_proof(sources.proof),
        versions=next((latest.provenance.get("versions", {}) for latest in reversed(sources.manifests.values())), {}),
        few_groups=MINIMUM_GROUPS,
        **further,
    )


def inline(figures: Sequence[str]) -> list[Any]:
    """Mark figures of our own as what they are: SVG that stands in the page as it is."""
    from markupsafe import Markup

    return [Markup(figure) for figure in figures]


def draw_history(history: Mapping[str, Sequence[float]], panels: Sequence[Panel]) -> list[str]:
    """Draw the panels whose columns are there, over optimiser steps, the best step marked."""
    from pipeline.reporting.figures import draw_curves

    steps = history.get("step", [])
    if not steps:
        return []
    marked = [step for step, best in zip(steps, history.get("best", []), strict=False) if best]
    best = marked[-1] if marked else None
    drawn = []
    for name, title, columns in panels:
        curves = {label: history[column] for column, label in columns.items() if column in history}
        if curves:
            ends = ", ".join(f"{label} from {values[0]:.4g} to {values[-1]:.4g}" for label, values in curves.items())
            description = f"{title} over {steps[-1]:,.0f} steps: {ends}"
            drawn.append(draw_curves(title, steps, curves, best, description, f"curve-{name}"))
    return drawn


def common_cautions(sources: Sources) -> list[str]:
    """Say what limits the figures of any page: leaks nobody can rule out, cases left out, changes no commit holds."""
    told = [f"Run {doubt}." for doubt in sources.metrics.get("seen_unchecked", ())]
    excluded = len({finding.case_id for finding in sources.findings if finding.action == "excluded"})
    if excluded:
        told.append(
            f"{excluded:,} {'case was' if excluded == 1 else 'cases were'} excluded before the split, "
            "and no figure counts them."
        )
    dirty = [
        stage
        for stage, manifest in sources.manifests.items()
        if str(manifest.provenance.get("commit") or "").endswith("-dirty")
    ]
    if dirty:
        told.append(f"Made from a working copy with changes that no commit holds: {', '.join(dirty)}.")
    return told


def _policy(style: str, script: str) -> str:
    """Allow this very style, this very script and embedded pictures, and nothing else."""

    def digest(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii") + "'"

    return (
        f"default-src 'none'; img-src data:; style-src {digest(style)}; script-src {digest(script)}; "
        "base-uri 'none'; form-action 'none'"
    )


def _text(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def number(value: Any, digits: int = 3) -> str:
    """Write a figure, or a dash where there is none."""
    return "–" if value is None or (isinstance(value, float) and math.isnan(value)) else f"{value:.{digits}f}"


def _whole(value: Any) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _percent(value: Any, digits: int = 0) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def interval(entry: Mapping[str, Any]) -> str:
    """Write a mean, and its interval where there is one."""
    low, high = entry.get("low"), entry.get("high")
    told = f" ({number(low)} to {number(high)})" if low is not None and high is not None else ""
    return number(entry.get("mean")) + told


_SHOWN: dict[type, Callable[[Any], str]] = {
    bool: lambda value: "yes" if value else "no",
    int: lambda value: f"{value:,}",
    float: lambda value: f"{value:.4g}",
    type(None): lambda _: "–",
}


def _words(value: Any) -> str:
    """Write a value of a JSON file for a reader."""
    return _SHOWN.get(type(value), str)(value)
