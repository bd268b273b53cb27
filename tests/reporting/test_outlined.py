"""Pictures of cases side by side: the words over one run neither into the next one's nor out of the picture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.reporting.outlined import Panel, draw_outlined
from pipeline.segmenters import SEGMENTERS


def test_long_names_of_methods_are_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *given, **more: (drawn.append(figure),
                                                                          save(figure, *given, **more)))  # fmt: skip
    labels = np.zeros((40, 60), np.uint16)
    names = ["normalisers/convolutional, scales=0.5+1+2", *(one.shown for one in SEGMENTERS.values())]
    panels = [Panel(f"{name}\nDice 0.50", np.zeros((40, 60, 3), np.uint8), labels, labels) for name in names]
    draw_outlined("title", {"worst: a": panels, "best: b": panels}, tmp_path / "cases.png")
    (figure,) = drawn
    boxes = [axes.title.get_window_extent() for axes in figure.axes[: len(names)]]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert boxes[0].x0 >= 0 and boxes[-1].x1 <= figure.bbox.x1
    assert [axes.get_title().replace("\n", " ") for axes in figure.axes[:1]] == [f"{names[0]} Dice 0.50"]
