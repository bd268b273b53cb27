"""Images that show the same pixels: near-duplicates in any of eight orientations, and overlapping crops.

Thumbnails and landmarks propose them; the correlation of their detail confirms them, without the spot that raises it
most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import cv2
import numpy as np
from tqdm import tqdm

from pipeline.grouping.joins import Join, members_of, oriented
from pipeline.grouping.signatures import PATCH, Signature, colour_digest, grey_roots

LIKENESS = 0.5
"""Correlation of thumbnails from which a pair is looked at as a possible duplicate."""
SAME_PIXELS = 0.7
"""Correlation of the aligned images' detail from which a pair is a duplicate."""

_DETAIL, _CELLS = 256, 8
"""Side in pixels of the pictures that confirm, and squares a side into which they are cut; 3 x 3 of them are a spot."""
_SAME_LANDMARK = 0.93
"""Correlation of patches from which two landmarks look the same."""
_PLACES, _APART, _TOLERANCE = 3, 32, 4
"""Places that must agree on a shift, the pixels between them (more than a nucleus), and how well they agree."""
_BLOCK = 1024
"""Images or landmarks compared with all others at once, which bounds the memory."""
_ORIENTATIONS = [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)]


def find_identical(case_ids: Iterable[str], load: Callable[[str], np.ndarray]) -> list[Join]:
    """Find images whose pixels are the same in one of eight orientations; plain ones of a single colour do not count.

    Arguments as for find_joins. Each set of n such images gives n - 1 joins, with its smallest name first.
    """
    names = sorted(set(case_ids))
    colours = {name: colour_digest(load(name)) for name in tqdm(names, desc="identical", unit="image", disable=None)}
    return _identical(colours, load)


def _identical(colours: dict[str, bytes], load: Callable[[str], np.ndarray]) -> list[Join]:
    joins = []
    for digest, names in members_of(colours).items():
        while digest and len(names) > 1:
            first, *others = names
            found = [join for name in others if (join := _turned_copy(first, name, load))]
            joins += found
            names = [name for name in others if name not in {join.second for join in found}]
    return joins


def _turned_copy(first: str, second: str, load: Callable[[str], np.ndarray]) -> Join | None:
    image, other = load(first), load(second)
    for quarters, mirrored in _ORIENTATIONS:
        if np.array_equal(image, oriented(other, quarters, mirrored)):
            return Join(first, second, "duplicate", 1.0, quarters=quarters, mirrored=mirrored)
    return None


def find_duplicates(images: Sequence[Signature], load: Callable[[str], np.ndarray]) -> list[Join]:
    """Propose pairs by the correlation of thumbnails in eight orientations; keep those whose pixels agree."""
    if len(images) < 2:
        return []
    joins = _identical({image.name: image.colours for image in images}, load)
    identical = {(join.first, join.second) for join in joins}
    flat = np.stack([image.thumbnail.ravel() for image in images])
    proposed: dict[tuple[int, int], tuple[float, int, bool]] = {}
    for quarters, mirrored in _ORIENTATIONS:
        turned = np.stack([oriented(image.thumbnail, quarters, mirrored).ravel() for image in images])
        for start in range(0, len(images), _BLOCK):
            block = flat[start : start + _BLOCK] @ turned.T
            for row, column in np.argwhere(block >= LIKENESS):
                first, second = start + int(row), int(column)
                known = proposed.get((first, second), (-1.0, 0, False))
                if (
                    first < second
                    and _same_shape(images[first], images[second], quarters)
                    and block[row, column] > known[0]
                ):
                    proposed[first, second] = (float(block[row, column]), quarters, mirrored)
    for (first, second), (_, quarters, mirrored) in tqdm(
        sorted(proposed.items()), desc="duplicates", unit="pair", disable=None, leave=False
    ):
        one, other = images[first].name, images[second].name
        if (one, other) in identical:
            continue
        score = _detail_correlation(load(one), oriented(load(other), quarters, mirrored))
        if score >= SAME_PIXELS:
            joins.append(Join(one, other, "duplicate", round(score, 4), quarters=quarters, mirrored=mirrored))
    return joins


def _same_shape(first: Signature, second: Signature, quarters: int) -> bool:
    height, width = (second.height, second.width) if quarters % 2 == 0 else (second.width, second.height)
    return abs(np.log(first.height * width / (first.width * height))) < 0.05


def _detail_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two images' detail, at the best shift of a few pixels: 1 for the same, about 0 for others.

    Taken without the spot that raises it most, as a single nucleus in the same place is no evidence.
    """
    height, width = first.shape[:2]
    scale = min(1.0, _DETAIL / max(height, width))
    size = (max(8, round(width * scale)), max(8, round(height * scale)))
    details = []
    for image in (first, second):
        roots = cv2.GaussianBlur(grey_roots(np.ascontiguousarray(image), size), (0, 0), 1.0)
        details.append(roots - cv2.GaussianBlur(roots, (0, 0), 8.0))
    margin = min(4, min(size) // 8)
    inner = details[1][margin : size[1] - margin, margin : size[0] - margin]
    if inner.std() < 0.03 or details[0].std() < 0.03:
        return 0.0
    _, _, _, (left, top) = cv2.minMaxLoc(cv2.matchTemplate(details[0], inner, cv2.TM_CCOEFF_NORMED))
    facing = details[0][top : top + inner.shape[0], left : left + inner.shape[1]]
    products = (inner * facing, inner * inner, facing * facing)
    cells = [cv2.resize(product, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA) for product in products]
    windows = (np.lib.stride_tricks.sliding_window_view(cell, (3, 3)).sum((2, 3)) for cell in cells)
    across, own, other = (cell.sum() - window for cell, window in zip(cells, windows, strict=True))
    return float((across / np.sqrt((own + 1e-3) * (other + 1e-3))).min())


def find_overlaps(
    images: Sequence[Signature], load: Callable[[str], np.ndarray], alike: Mapping[str, str]
) -> list[Join]:
    """Propose pairs of which several landmarks agree on one shift; keep those whose common part agrees."""
    joins = []
    for (first, second), votes in _votes(images):
        one, other = images[first], images[second]
        shifts, places = votes[:, :2], votes[:, 2:]
        agreeing = np.abs(shifts[:, None] - shifts[None]).max(2) <= _TOLERANCE
        best = int(agreeing.sum(1).argmax())
        if alike[one.name] == alike[other.name] or _count_apart(places[agreeing[best]]) < _PLACES:
            continue
        rows, columns = (int(shift) for shift in shifts[best])
        part = _common_part((one.height, one.width), (other.height, other.width), rows, columns)
        if part is None:
            continue
        score = _detail_correlation(load(one.name)[part[0]], load(other.name)[part[1]])
        if score >= SAME_PIXELS:
            joins.append(Join(one.name, other.name, "overlap", round(score, 4), rows=rows, columns=columns))
    return joins


def _count_apart(places: np.ndarray) -> int:
    """How many of (N, 2) places are left when none may lie within _APART pixels of one before it."""
    kept: list[np.ndarray] = []
    for place in places:
        if all(np.abs(place - other).max() >= _APART for other in kept):
            kept.append(place)
    return len(kept)


def _votes(images: Sequence[Signature]) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Pairs of images with the shifts and places, (N, 4), where a landmark of one looks like one of the other."""
    owner = np.repeat(np.arange(len(images)), [len(image.landmarks) for image in images])
    if len(owner) == 0:
        return
    points, patches = (np.concatenate([getattr(image, name) for image in images]) for name in ("landmarks", "patches"))
    found = []
    for start in range(0, len(owner), _BLOCK):
        chosen = slice(start, start + _BLOCK)
        likeness = patches[chosen] @ patches[start:].T
        likeness[owner[chosen, None] >= owner[None, start:]] = -1.0
        lines, columns = (found_at + start for found_at in np.nonzero(likeness >= _SAME_LANDMARK))
        found.append(np.column_stack([owner[lines], owner[columns], points[lines] - points[columns], points[lines]]))
    votes = np.concatenate(found)
    votes = votes[np.lexsort((votes[:, 1], votes[:, 0]))]
    pairs, starts = np.unique(votes[:, :2], axis=0, return_index=True)
    for (first, second), start, end in zip(pairs, starts, [*starts, len(votes)][1:], strict=True):
        if end - start >= _PLACES:
            yield (int(first), int(second)), votes[start:end, 2:]


def _common_part(
    first: tuple[int, int], second: tuple[int, int], rows: int, columns: int
) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """The overlap in either image of two of these sizes, the second shifted; None where it is narrower than a patch."""
    own, other = [], []
    for length, its_length, shift in zip(first, second, (rows, columns), strict=True):
        low, high = max(0, shift), min(length, its_length + shift)
        if high - low < 4 * PATCH:
            return None
        own.append(slice(low, high))
        other.append(slice(low - shift, high - shift))
    return (own[0], own[1]), (other[0], other[1])
