"""Objects as polygons, before they are pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np


@dataclass(frozen=True, eq=False)
class Outline:
    """One object.

    rings: closed or open rings, (points, 2) float x and y in pixels, where the upper left pixel is the square from 0 to
    1; a pixel is inside where its centre is within an odd number of rings, so that inner rings are holes; parts: of how
    many rings, one after the other, each part of an object of several consists: what any part holds by that rule is
    inside; holes: outlines whose pixels are taken away after that.
    class_name: None where classes are not told apart; class_id: its number from 1 on, over the whole data set; ignored:
    what lies inside is unknown, not background.
    """

    rings: tuple[np.ndarray, ...]
    class_name: str | None = None
    class_id: int = 1
    ignored: bool = False
    parts: tuple[int, ...] = ()
    holes: tuple[Outline, ...] = ()

    def by_part(self) -> list[Outline]:
        """The rings of each part as an outline of its own."""
        rings = iter(self.rings)
        return [Outline(tuple(islice(rings, count))) for count in self.parts or (len(self.rings),)]

    def moved(self, left: float, top: float) -> Outline:
        """The same in an image whose upper left corner lies there."""
        return self._with(lambda ring: ring - (left, top))

    def smaller(self, times: float) -> Outline:
        """The same in an image so many times smaller."""
        return self._with(lambda ring: ring / times)

    def _with(self, change: Callable[[np.ndarray], np.ndarray]) -> Outline:
        holes = tuple(hole._with(change) for hole in self.holes)
        return replace(self, rings=tuple(map(change, self.rings)), holes=holes)
