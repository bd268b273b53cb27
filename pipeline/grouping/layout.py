"""Images of a group in one frame: what does not fit together is no group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.grouping.joins import Join, join_sets


def lay_out(joins: Iterable[Join], sizes: dict[str, tuple[int, int]]) -> list[dict[str, tuple[int, int]]]:
    """Place the images of every piece that joins hold together in one frame: name to (top, left) in pixels, from 0.

    sizes: (height, width) of each name. A turned or mirrored duplicate is a piece of its own.
    """
    layout = Layout(sizes)
    ordered = sorted(joins, key=lambda join: (not join.same_pixels, -join.score, join.first, join.second))
    same = [join for join in ordered if join.same_pixels]
    layout.fit(same, ordered[len(same) :], lambda line: None)
    return layout.pieces()


@dataclass
class Layout:
    """Pieces that grow join by join; one that lays an image over another, or contradicts an earlier one, is dropped."""

    sizes: dict[str, tuple[int, int]]
    _piece: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)

    def fit(self, same: Sequence[Join], adjacent: Sequence[Join], note: Callable[[str], None]) -> list[Join]:
        """Accept what shows the same pixels, then adjacent pairs from the strongest down; return what was accepted."""
        self._twins = join_sets(self.sizes, ((join.first, join.second) for join in same if join.aligned))
        for join in same:
            if join.aligned:
                self._merge(join)
        kept = list(same)
        for join in sorted(adjacent, key=lambda join: (-join.score, join.first, join.second)):
            if self._fits(join):
                self._merge(join)
                kept.append(join)
            else:
                note(
                    f"{join.second} {join.kind} {join.first} ({join.score} nats) does not fit its group and was dropped"
                )
        return kept

    def pieces(self) -> list[dict[str, tuple[int, int]]]:
        """Every piece with its corner at (0, 0), ordered by its smallest name."""
        unique = {min(piece): piece for piece in map(self._of, sorted(self.sizes))}
        laid = []
        for _, piece in sorted(unique.items()):
            top, left = (min(corner[axis] for corner in piece.values()) for axis in (0, 1))
            laid.append({name: (row - top, column - left) for name, (row, column) in sorted(piece.items())})
        return laid

    def _of(self, name: str) -> dict[str, tuple[int, int]]:
        return self._piece.setdefault(name, {name: (0, 0)})

    def _moved(self, join: Join) -> dict[str, tuple[int, int]]:
        """Second's piece in the frame of first's."""
        (top, left), (own_top, own_left) = self._of(join.first)[join.first], self._of(join.second)[join.second]
        down, along = top + join.rows - own_top, left + join.columns - own_left
        return {name: (row + down, column + along) for name, (row, column) in self._of(join.second).items()}

    def _fits(self, join: Join) -> bool:
        piece, moved = self._of(join.first), self._moved(join)
        if join.second in piece:
            return moved[join.second] == piece[join.second]
        return not any(self._overlap(a, piece[a], b, moved[b]) for a in piece for b in moved)

    def _overlap(self, a: str, at: tuple[int, int], b: str, bt: tuple[int, int]) -> bool:
        if self._twins[a] == self._twins[b]:
            return False
        return all(
            at[axis] < bt[axis] + self.sizes[b][axis] and bt[axis] < at[axis] + self.sizes[a][axis] for axis in (0, 1)
        )

    def _merge(self, join: Join) -> None:
        piece = self._of(join.first)
        if join.second not in piece:
            piece.update(self._moved(join))
            for name in piece:
                self._piece[name] = piece
