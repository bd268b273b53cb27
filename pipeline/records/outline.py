"""Objects as polygons, before they are pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Outline:
    """One object.

    rings: closed or open rings, (points, 2) float x and y in pixels, where the upper left pixel is the square from 0 to
    1; a pixel is inside where its centre is within an odd number of rings, so that inner rings are holes.
    class_name: None where classes are not told apart; class_id: its number from 1 on, over the whole data set; ignored:
    what lies inside is unknown, not background.
    """

    rings: tuple[np.ndarray, ...]
    class_name: str | None = None
    class_id: int = 1
    ignored: bool = False
