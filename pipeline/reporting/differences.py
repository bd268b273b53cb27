"""Paired differences as a picture: a dot and its interval for each, about a line at 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

from pipeline.records.files import written_aside

Difference = tuple[float, float | None, float | None, str]
"""Mean, low and high (None where there is no interval), and the colour that its verdict has."""
MOST_PANELS = 16
"""Beyond that a picture is too wide to be looked at."""


def draw_differences(
    title: str, rows: Sequence[str], panels: Mapping[str, Mapping[str, Difference]], file: Path
) -> None:
    """Draw one panel beside the other into a PNG; rows: names from the top, each of which a panel may lack.

    Of more than MOST_PANELS the first ones are drawn, which the title says.
    """
    import matplotlib
    from matplotlib.figure import Figure

    if len(panels) > MOST_PANELS:
        title = f"{title} (the first {MOST_PANELS} of {len(panels)})"
        panels = dict(islice(panels.items(), MOST_PANELS))
    with matplotlib.rc_context({"font.size": 9.0, "font.family": "DejaVu Sans", "text.parse_math": False}):
        figure = Figure(figsize=(max(6.0, 2.2 + 2.4 * len(panels)), 1.2 + 0.35 * len(rows)), layout="constrained")
        drawn = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (name, entries) in zip(drawn, panels.items(), strict=True):
            for place, row in enumerate(rows):
                if row not in entries:
                    continue
                mean, low, high, colour = entries[row]
                if low is not None:
                    axes.plot([low, high], [place, place], color=colour, linewidth=2.4)
                axes.plot([mean], [place], "o", color=colour, markersize=6.0)
            axes.axvline(0.0, color="#1f2430", linewidth=0.8)
            axes.set(title=name, yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
            axes.spines[["top", "right", "left"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.margins(x=0.12)
            axes.locator_params(axis="x", nbins=5)
            axes.xaxis.set_major_formatter("{x:+.3g}")
        figure.suptitle(title, fontsize=9.5)
        with written_aside(file) as aside:
            figure.savefig(aside, dpi=150)
