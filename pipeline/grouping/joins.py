"""What holds two images of one field together, and the sets that follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

Kind = Literal["right-of", "below", "overlap", "duplicate"]


Name = TypeVar("Name", str, bytes)


@dataclass(frozen=True)
class Join:
    """Two images of one field and what speaks for it.

    kind: second is right-of or below first, overlaps it, or is a duplicate of it. score: nats beyond the runner-up
    (right-of, below), or correlation of detail (overlap, duplicate). spread: nats that are left without the spot that
    speaks loudest; seam: mean squared step across the seam over those beside it; step: the same where the steps are
    largest; these three are None for an overlap or a duplicate. rows, columns: position of second's top left corner
    from first's, in pixels. quarters, mirrored: second, mirrored left to right where mirrored and then turned
    counter-clockwise by quarters, looks like first.
    """

    first: str
    second: str
    kind: Kind
    score: float
    spread: float | None = None
    seam: float | None = None
    step: float | None = None
    rows: int = 0
    columns: int = 0
    quarters: int = 0
    mirrored: bool = False

    @property
    def same_pixels(self) -> bool:
        """Whether the two show the same place, wholly or in part."""
        return self.kind in ("duplicate", "overlap")

    @property
    def aligned(self) -> bool:
        """Whether both images lie in one frame, with second at (rows, columns)."""
        return self.quarters == 0 and not self.mirrored


def join_sets(members: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Map each member to the smallest member that it is joined with, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names = sorted(members)
    index = {name: number for number, name in enumerate(names)}
    edges = np.array([(index[first], index[second]) for first, second in pairs], np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(len(names), len(names)))
    labels = connected_components(graph, directed=False)[1]
    smallest: dict[int, str] = {}
    return {name: smallest.setdefault(int(label), name) for name, label in zip(names, labels, strict=True)}


def members_of(groups: Mapping[str, Name]) -> dict[Name, list[str]]:
    """Turn member to group into group to its members, each in order."""
    members: dict[Name, list[str]] = {}
    for member, group in sorted(groups.items()):
        members.setdefault(group, []).append(member)
    return members


def oriented(image: np.ndarray, quarters: int, mirrored: bool) -> np.ndarray:
    """Mirror an image left to right where asked, then turn it counter-clockwise by quarters."""
    return np.rot90(image[:, ::-1] if mirrored else image, quarters)
