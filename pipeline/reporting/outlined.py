"""Cases as a picture: rows of the same piece of an image by several methods, with outlines of truth and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np

from pipeline.records.files import written_aside
from pipeline.reporting.overlays import PAINT, draw_outlines

TRUTH = (255, 255, 255)
"""RGB of painted outlines of the truth, the page's colour of it."""
INCHES, DOTS, LETTERS = 2.5, 150, 26
"""Side of a panel, dots an inch, and letters of a caption's line that find room over a panel."""


@dataclass(frozen=True)
class Panel:
    """One picture: caption, image (height, width, 3) uint8 RGB, and integer label rasters of its size, 0 background."""

    caption: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray | None


def outlined(panel: Panel) -> np.ndarray:
    """Paint the outlines of the truth and over them those of the prediction; (height, width, 3) uint8 RGB."""
    painted = draw_outlines(panel.image, panel.truth, TRUTH)
    return painted if panel.prediction is None else draw_outlines(painted, panel.prediction, PAINT)


def draw_outlined(title: str, rows: Mapping[str, Sequence[Panel]], file: Path) -> None:
    """Draw named rows of panels, all rows of one length, into a PNG."""
    import matplotlib
    from matplotlib.figure import Figure

    columns = len(next(iter(rows.values())))
    with matplotlib.rc_context({"font.size": 9.0, "font.family": "DejaVu Sans", "text.parse_math": False}):
        figure = Figure(figsize=(INCHES * columns, (INCHES + 0.35) * len(rows) + 0.4), layout="constrained")
        drawn = figure.subplots(len(rows), columns, squeeze=False)
        for line, (name, panels) in zip(drawn, rows.items(), strict=True):
            for axes, panel in zip(line, panels, strict=True):
                axes.imshow(outlined(panel))
                caption = "\n".join(fill(text, LETTERS) for text in panel.caption.split("\n"))
                axes.set_title(caption, fontsize=9.0)
                axes.set(xticks=[], yticks=[])
            line[0].set_ylabel(name)
        figure.suptitle(title, fontsize=11)
        with written_aside(file) as aside:
            figure.savefig(aside, dpi=DOTS)
