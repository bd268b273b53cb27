"""Groups of images found from pixels: adjacent or overlapping crops of one field, and near-duplicates, also turned.

Two crops are adjacent where the last line of one goes on in the first line of the other. The evidence is a
log-likelihood ratio over frequency bands of the two lines: the correlation that neighbouring lines have within these
very images, against none (Fisher's z of each correlation, Bartlett's number of independent samples along the line).
Looks alike is not enough. A blank or noisy line, whose own neighbour does not resemble it, carries no evidence. The
step across the seam must be as small as the steps beside it. The two lines must be each other's best among all images;
what counts is the evidence beyond the runner-up and beyond every shifted position, and no single spot may carry it.
Weaker joins count where four of them close a 2 x 2 field. The images of a group must fit together without overlap, so
that one false join cannot chain fields.

Overlapping crops and near-duplicates (in any of eight orientations) are proposed by landmarks and by thumbnails, and
confirmed by the correlation of their detail, again without the spot that raises it most.

Fisher 1921, Metron 1, 3-32 (z of a correlation); Bartlett 1946, J. R. Stat. Soc. Suppl. 8, 27-41 (autocorrelation).
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

Kind = Literal["right-of", "below", "overlap", "duplicate"]
Name = TypeVar("Name", str, bytes)

BANDS = (1.0, 3.0, 9.0, 27.0)
"""Standard deviations, in pixels, of the Gaussians between which the bands of a line lie; coarser is illumination."""
SEAM = 2.2
"""Largest mean squared step across a seam, in units of the mean squared steps one line further in on both sides."""
LOUDEST_STEP = 3.0
"""The same where the steps are largest, for a join that counts by itself."""
STRONG = 12.0
"""Nats by which a join must exceed the runner-up to count by itself."""
SPREAD = 3.0
"""Nats that must be left when the spot that speaks loudest for a join, such as one nucleus by chance, is taken out."""
SQUARE = 20.0
"""Nats by which the four joins of a closed 2 x 2 field must together exceed their runners-up."""
LIKENESS = 0.5
"""Correlation of thumbnails from which a pair is looked at as a possible duplicate."""
SAME_PIXELS = 0.7
"""Correlation of the aligned images' detail from which a pair is a duplicate."""
MAXIMUM_IMAGES = 5_000
"""More images than this are not compared, as the time grows with their square."""

_THUMBNAIL, _DETAIL = 32, 256
"""Sides in pixels of the pictures that propose and that confirm a duplicate."""
_LANDMARKS, _PATCH, _SAME_LANDMARK = 40, 8, 0.93
"""Landmarks of an image, half a patch's side at half size, and the correlation from which two look the same."""
_PLACES, _APART, _TOLERANCE = 3, 32, 4
"""Places that must agree on a shift, the pixels between them (more than a nucleus), and how well they agree."""
_CELLS = 8
"""Squares a side into which a confirming picture is cut; 3 x 3 of them are a spot."""
_SHIFT, _SPOT, _STEP = 6, 40, 24
"""Pixels along a border: up to where a shift is no other position, a spot's length, the mean of a step."""
_NEAREST = 8
"""Partners kept of each line; more duplicates than this of one neighbour hide the runner-up."""
_BLOCK = 1024
"""Lines compared with all others at once, which bounds the memory."""
_VARIANCE_FLOOR = 3e-4
"""Variance, in squared roots of grey levels, below which a band of a line is flat."""
_CEILING = 0.98
"""Largest correlation that is told apart from 1."""


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


def find_joins(
    case_ids: Iterable[str], load: Callable[[str], np.ndarray], note: Callable[[str], None] | None = None
) -> list[Join]:
    """Find adjacent crops and near-duplicates among images.

    case_ids: unique names; load: gives the (height, width, 3) uint8 RGB image of a name, called once each and again for
    possible duplicates, so that no image stays in memory. note: called with a line for each join that was dropped
    because its group would not fit together. Returns joins ordered by first and second; the order of the names never
    matters. Raises ValueError for more than MAXIMUM_IMAGES images.
    """
    names = sorted(set(case_ids))
    if len(names) > MAXIMUM_IMAGES:
        raise ValueError(
            f"expected at most {MAXIMUM_IMAGES} images to compare by their pixels, found {len(names)}; "
            "give the groups with the cases and set split.groups=given"
        )
    images = [_Signature.of(name, load(name)) for name in tqdm(names, desc="borders", unit="image", disable=None)]
    duplicates = _find_duplicates(images, load)
    alike = join_sets(names, ((join.first, join.second) for join in duplicates))
    overlaps = _find_overlaps(images, load, alike)
    candidates = [
        *_find_adjacent(images, alike, "right-of"),
        *_find_adjacent(images, alike, "below"),
    ]
    closing = _closing_squares(candidates, alike)
    adjacent = [join for join in candidates if join in closing or _stands_alone(join)]
    sizes = {image.name: (image.height, image.width) for image in images}
    joins = _Layout(sizes).fit([*duplicates, *overlaps], adjacent, note or (lambda line: None))
    return sorted(joins, key=lambda join: (join.first, join.second, join.kind))


def find_identical(case_ids: Iterable[str], load: Callable[[str], np.ndarray]) -> list[Join]:
    """Find images whose pixels are the same in one of eight orientations; plain ones of a single colour do not count.

    Arguments as for find_joins. Each set of n such images gives n - 1 joins, with its smallest name first.
    """
    names = sorted(set(case_ids))
    colours = {name: _colour_digest(load(name)) for name in tqdm(names, desc="identical", unit="image", disable=None)}
    return _identical(colours, load)


def lay_out(joins: Iterable[Join], sizes: dict[str, tuple[int, int]]) -> list[dict[str, tuple[int, int]]]:
    """Place the images of every piece that joins hold together in one frame: name to (top, left) in pixels, from 0.

    sizes: (height, width) of each name. A turned or mirrored duplicate is a piece of its own.
    """
    layout = _Layout(sizes)
    ordered = sorted(joins, key=lambda join: (not join.same_pixels, -join.score, join.first, join.second))
    same = [join for join in ordered if join.same_pixels]
    layout.fit(same, ordered[len(same) :], lambda line: None)
    return layout.pieces()


def oriented(image: np.ndarray, quarters: int, mirrored: bool) -> np.ndarray:
    """Mirror an image left to right where asked, then turn it counter-clockwise by quarters."""
    return np.rot90(image[:, ::-1] if mirrored else image, quarters)


# --- What is kept of an image -----------------------------------------------------------------------------------------

_FACING: dict[str, tuple[str, str]] = {"right-of": ("right", "left"), "below": ("bottom", "top")}
_ORIENTATIONS = [(quarters, mirrored) for mirrored in (False, True) for quarters in range(4)]


@dataclass(frozen=True)
class _Signature:
    """Border lines, outermost first, as (2, length, 3) square roots of intensity; a band-passed thumbnail;
    a hash of the colours; up to _LANDMARKS (row, column) and the unit patches around them."""

    name: str
    height: int
    width: int
    borders: dict[str, np.ndarray]
    thumbnail: np.ndarray
    colours: bytes
    landmarks: np.ndarray
    patches: np.ndarray

    @classmethod
    def of(cls, name: str, image: np.ndarray) -> _Signature:
        height, width = image.shape[:2]
        colours = _colour_digest(image)
        landmarks = _landmarks(image)
        if height < 2 or width < 2:
            return cls(name, height, width, {}, np.zeros((_THUMBNAIL, _THUMBNAIL), np.float32), colours, *landmarks)
        # The square root makes photon noise alike in bright and in dark places, so that dark borders count.
        lines = {
            "left": image[:, :2].swapaxes(0, 1),
            "right": image[:, :-3:-1].swapaxes(0, 1),
            "top": image[:2],
            "bottom": image[:-3:-1],
        }
        borders = {side: np.sqrt(pair.astype(np.float32)) for side, pair in lines.items()}
        return cls(name, height, width, borders, _thumbnail(image), colours, *landmarks)


def _colour_digest(image: np.ndarray) -> bytes:
    """Hash of the histograms and the sides, the same in all eight orientations; empty for one plain colour."""
    planes = image.reshape(-1, image.shape[2])
    counts = [np.bincount(plane, minlength=256) for plane in planes.T]
    if all(count.max() == len(planes) for count in counts):
        return b""
    return hashlib.sha256(np.array(sorted(image.shape[:2])).tobytes() + np.stack(counts).tobytes()).digest()


def _grey_roots(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.sqrt(cv2.resize(grey, size, interpolation=cv2.INTER_AREA).astype(np.float32))


def _thumbnail(image: np.ndarray) -> np.ndarray:
    roots = _grey_roots(image, (_THUMBNAIL, _THUMBNAIL))
    detail = roots - cv2.GaussianBlur(roots, (0, 0), 4.0)
    # A nearly blank image keeps a short vector, hence a low correlation with everything.
    return detail / np.sqrt((detail**2).sum() + _THUMBNAIL**2 * 1e-3)


# --- Near-duplicates --------------------------------------------------------------------------------------------------


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


def _find_duplicates(images: Sequence[_Signature], load: Callable[[str], np.ndarray]) -> list[Join]:
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


def _same_shape(first: _Signature, second: _Signature, quarters: int) -> bool:
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
        roots = cv2.GaussianBlur(_grey_roots(np.ascontiguousarray(image), size), (0, 0), 1.0)
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


# --- Overlapping crops ------------------------------------------------------------------------------------------------


def _landmarks(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners that stand out, (N, 2) rows and columns in pixels, and the (N, side * side) unit patches around them."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    reach, side = _PATCH, 2 * _PATCH + 1
    if min(height, width) <= side:
        return np.zeros((0, 2), np.int64), np.zeros((0, side * side), np.float32)
    roots = cv2.GaussianBlur(_grey_roots(image, (width, height)), (0, 0), 1.0)
    detail = roots - cv2.GaussianBlur(roots, (0, 0), 8.0)
    inside = np.zeros(detail.shape, np.uint8)
    inside[reach:-reach, reach:-reach] = 1
    corners = cv2.goodFeaturesToTrack(detail, _LANDMARKS, 0.05, _PATCH / 2.0, mask=inside)
    points = np.zeros((0, 2), np.int64) if corners is None else corners.reshape(-1, 2)[:, ::-1].astype(np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(detail, (side, side))
    patches = windows[points[:, 0] - reach, points[:, 1] - reach].reshape(len(points), side * side)
    patches = patches - patches.mean(1, keepdims=True)
    return 2 * points, (patches / np.sqrt((patches**2).sum(1, keepdims=True) + 1e-3)).astype(np.float32)


def _find_overlaps(
    images: Sequence[_Signature], load: Callable[[str], np.ndarray], alike: Mapping[str, str]
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


def _votes(images: Sequence[_Signature]) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
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
        if high - low < 4 * _PATCH:
            return None
        own.append(slice(low, high))
        other.append(slice(low - shift, high - shift))
    return (own[0], own[1]), (other[0], other[1])


# --- Adjacent crops ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Band:
    """One frequency band of N lines: unit (N, length * 3), kinship with the next line inside (N), autocorrelation."""

    unit: np.ndarray
    kinship: np.ndarray
    autocorrelation: np.ndarray


@dataclass(frozen=True)
class _Lines:
    """N border lines of one length: raw (N, length * 3), power (N), step to the next line inside (N), and the bands."""

    length: int
    raw: np.ndarray
    power: np.ndarray
    step: np.ndarray
    bands: list[_Band]

    @classmethod
    def of(cls, borders: Sequence[np.ndarray]) -> _Lines:
        """Describe (2, length, 3) borders."""
        # In double precision no number that is written depends on how many threads a product is shared among.
        pairs = np.stack(borders).astype(np.float64)
        count, _, length, _ = pairs.shape
        raw = pairs[:, 0].reshape(count, -1)
        step = ((pairs[:, 0] - pairs[:, 1]) ** 2).mean((1, 2))
        return cls(length, raw, (raw**2).mean(1), step, [_describe_band(band) for band in _bands(pairs)])

    def rows(self, chosen: slice) -> _Lines:
        """Some of the lines."""
        bands = [_Band(b.unit[chosen], b.kinship[chosen], b.autocorrelation[chosen]) for b in self.bands]
        return _Lines(self.length, self.raw[chosen], self.power[chosen], self.step[chosen], bands)


def _bands(pairs: np.ndarray) -> list[np.ndarray]:
    """Cut (N, 2, length, 3) borders into frequency bands along their length."""
    from scipy.ndimage import gaussian_filter1d

    bands, finer = [], pairs.astype(np.float64)
    for sigma in BANDS:
        coarser = gaussian_filter1d(finer, sigma, axis=2, mode="nearest")
        bands.append(finer - coarser)
        finer = coarser
    return bands


def _autocorrelation(lines: np.ndarray) -> np.ndarray:
    """Autocorrelation of (N, length, 3) lines at the lags 1 to length - 1."""
    length = lines.shape[1]
    power = (np.abs(np.fft.rfft(lines, 2 * length, axis=1)) ** 2).sum(2)
    lags = np.fft.irfft(power, axis=1)[:, :length]
    return lags[:, 1:] / np.maximum(lags[:, :1], 1e-9)


def _describe_band(band: np.ndarray) -> _Band:
    count, _, length, _ = band.shape
    outer, inner = band[:, 0], band[:, 1]
    floor = _VARIANCE_FLOOR * 3 * length
    norm, inner_norm = (np.sqrt((line**2).sum((1, 2)) + floor) for line in (outer, inner))
    kinship = (outer * inner).sum((1, 2)) / (norm * inner_norm)
    unit = (outer / norm[:, None, None]).reshape(count, -1)
    return _Band(unit, np.clip(kinship, 0.0, _CEILING), _autocorrelation(outer))


def _likelihood_ratio(correlation: np.ndarray, expected: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Nats for a correlation about as expected against none, by Fisher's z with variance 1 / (samples - 3).

    The likeliest mean between half of what is expected and the whole, as crops that were each compressed by themselves
    resemble each other less across a seam than inside.
    """
    whole, found = np.arctanh(expected), np.arctanh(np.clip(correlation, -_CEILING, _CEILING))
    mean = np.clip(found, whole / 2.0, whole)
    return np.maximum(samples - 3.0, 0.0) * mean * (found - mean / 2.0)


def _samples(length: int, products: np.ndarray) -> np.ndarray:
    """Bartlett's number of independent samples, from the summed products of two autocorrelations."""
    return length / np.maximum(1.0 + 2.0 * products, 1.0)


def _evidence(first: _Lines, second: _Lines) -> np.ndarray:
    """Nats for each of N lines going on in each of M: (N, M)."""
    total = np.zeros((len(first.raw), len(second.raw)))
    for one, other in zip(first.bands, second.bands, strict=True):
        expected = np.minimum(one.kinship[:, None], other.kinship[None])
        samples = _samples(first.length, one.autocorrelation @ other.autocorrelation.T)
        total += _likelihood_ratio(one.unit @ other.unit.T, expected, samples)
    return total


def _seams(first: _Lines, second: _Lines) -> np.ndarray:
    """Mean squared step across each seam over the mean of those one line further in: (N, M), about 1 where true."""
    across = first.power[:, None] + second.power[None] - 2.0 * (first.raw @ second.raw.T) / first.raw.shape[1]
    return np.maximum(across, 0.0) / ((first.step[:, None] + second.step[None]) / 2.0 + 1e-3)


def _best_shifted(first: _Lines, second: _Lines, one: int, other: int) -> float:
    """Largest evidence for the same two lines slid along each other: what alikeness without continuity reaches."""
    length = first.length
    total = np.zeros(length)
    for a, b in zip(first.bands, second.bands, strict=True):
        lines = (band.unit[row].reshape(length, 3) for band, row in ((a, one), (b, other)))
        spectrum, facing = (np.fft.rfft(line, axis=0) for line in lines)
        correlation = np.fft.irfft((spectrum * facing.conj()).sum(1), length)
        expected = np.minimum(a.kinship[one], b.kinship[other])
        total += _likelihood_ratio(
            correlation, expected, _samples(length, a.autocorrelation[one] @ b.autocorrelation[other])
        )
    far = total[_SHIFT : length - _SHIFT]
    return float(far.max()) if far.size else 0.0


def _loudest_step(first: np.ndarray, second: np.ndarray) -> float:
    """Largest squared step across the seam, as a mean over a short window, over the largest one beside the seam.

    Two nuclei that meet by chance differ in shape or brightness where they meet, however calm the rest of the seam is.
    """
    across = ((first[0] - second[0]) ** 2).mean(1)
    beside = (((first[0] - first[1]) ** 2).mean(1) + ((second[0] - second[1]) ** 2).mean(1)) / 2.0
    window = np.full(min(_STEP, len(across)), 1.0 / min(_STEP, len(across)))
    loudest = (np.convolve(steps, window, "valid").max() for steps in (across, beside))
    return float(next(loudest) / (next(loudest) + 1e-3))


def _without_loudest_spot(first: np.ndarray, second: np.ndarray) -> float:
    """Smallest evidence that two (2, length, 3) borders keep when any one window along the seam is taken out."""
    length = first.shape[1]
    window = min(_SPOT, length // 4)
    left = length - window
    total = np.zeros(1)
    for one, other in zip(_bands(first[None]), _bands(second[None]), strict=True):
        (outer, inner), (facing, behind) = one[0], other[0]
        kept = {
            name: _sums_without_window(a * b, window)
            for name, a, b in (
                ("across", outer, facing), ("outer", outer, outer), ("inner", inner, inner), ("beside", outer, inner),
                ("facing", facing, facing), ("behind", behind, behind), ("beyond", facing, behind),
            )
        }  # fmt: skip
        floor = _VARIANCE_FLOOR * 3 * left
        norms = {name: np.sqrt(kept[name] + floor) for name in ("outer", "inner", "facing", "behind")}
        kinship = np.minimum(
            kept["beside"] / (norms["outer"] * norms["inner"]), kept["beyond"] / (norms["facing"] * norms["behind"])
        )
        samples = _samples(length, _autocorrelation(outer[None])[0] @ _autocorrelation(facing[None])[0]) * left / length
        correlation = kept["across"] / (norms["outer"] * norms["facing"])
        total = total + _likelihood_ratio(correlation, np.clip(kinship, 0.0, _CEILING), samples)
    return float(total.min())


def _sums_without_window(products: np.ndarray, window: int) -> np.ndarray:
    """Sums of (length, 3) products with each window along the line left out, a quarter of a window apart."""
    running = np.concatenate([[0.0], np.cumsum(products.sum(1), dtype=np.float64)])
    starts = np.arange(0, len(products) - window + 1, max(1, window // 4))
    return running[-1] - (running[starts + window] - running[starts])


def _nearest(first: _Lines, second: _Lines, barred: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The _NEAREST best partners of each first line: their evidence and index, both (N, up to _NEAREST), best first.

    barred: a label for each line of first and of second; lines with the same label are never partners.
    """
    values, indices = [], []
    for start in range(0, len(first.raw), _BLOCK):
        chosen = slice(start, start + _BLOCK)
        block = first.rows(chosen)
        evidence = _evidence(block, second)
        evidence[_seams(block, second) > SEAM] = 0.0
        evidence[barred[0][chosen, None] == barred[1][None]] = -np.inf
        order = np.argsort(-evidence, axis=1, kind="stable")[:, :_NEAREST]
        indices.append(order)
        values.append(np.take_along_axis(evidence, order, axis=1))
    return np.concatenate(values), np.concatenate(indices)


def _find_adjacent(images: Sequence[_Signature], alike: dict[str, str], kind: Kind) -> list[Join]:
    """Pairs that are each other's best, with the nats by which they exceed the runner-up and every shift."""
    near_side, far_side = _FACING[kind]
    by_length: dict[int, list[_Signature]] = defaultdict(list)
    for image in images:
        if image.borders:
            by_length[image.height if kind == "right-of" else image.width].append(image)
    joins = []
    for _, same in sorted(by_length.items()):
        if len(same) < 2:
            continue
        first = _Lines.of([image.borders[near_side] for image in same])
        second = _Lines.of([image.borders[far_side] for image in same])
        labels = np.unique([alike[image.name] for image in same], return_inverse=True)[1]
        onward = _nearest(first, second, (labels, labels))
        backward = _nearest(second, first, (labels, labels))
        rivals = _Rivals(first, second, labels, onward, backward)
        for one in range(len(same)):
            other = int(onward[1][one, 0])
            score = rivals.margin(one, other)
            if score > 0.0:
                a, b = same[one], same[other]
                borders = a.borders[near_side], b.borders[far_side]
                seam = _seams(first.rows(slice(one, one + 1)), second.rows(slice(other, other + 1)))[0, 0]
                evidence = (score, _without_loudest_spot(*borders), float(seam), _loudest_step(*borders))
                score, spread, seam, step = (round(value, 2) for value in evidence)
                rows, columns = (0, a.width) if kind == "right-of" else (a.height, 0)
                joins.append(Join(a.name, b.name, kind, score, spread, seam, step, rows, columns))
    return joins


@dataclass(frozen=True)
class _Rivals:
    """The best partners of both sides, for the margin of a pair over its runner-up."""

    first: _Lines
    second: _Lines
    labels: np.ndarray
    onward: tuple[np.ndarray, np.ndarray]
    backward: tuple[np.ndarray, np.ndarray]

    def margin(self, one: int, other: int) -> float:
        """Nats beyond every rival and shift; 0 or less where the two are not each other's best."""
        evidence = float(self.onward[0][one, 0])
        if evidence <= 0.0:
            return 0.0
        rivals = max(self._rival(self.onward, one, other), self._rival(self.backward, other, one), 0.0)
        if evidence <= rivals:
            return 0.0
        return evidence - max(rivals, _best_shifted(self.first, self.second, one, other))

    def _rival(self, nearest: tuple[np.ndarray, np.ndarray], line: int, partner: int) -> float:
        """Best evidence for a partner that is not the partner nor a duplicate of it."""
        values, indices = nearest
        others = self.labels[indices[line]] != self.labels[partner]
        return float(values[line][others].max(initial=0.0))


def _stands_alone(join: Join) -> bool:
    return join.score >= STRONG and (join.spread or 0.0) >= SPREAD and (join.step or 0.0) <= LOUDEST_STEP


def _closing_squares(candidates: Sequence[Join], alike: dict[str, str]) -> set[Join]:
    """Joins whose four close a 2 x 2 field; that chance closes one is rare, so that each may be weak by itself."""
    right = {join.first: join for join in candidates if join.kind == "right-of"}
    below = {join.first: join for join in candidates if join.kind == "below"}
    closing: set[Join] = set()
    for top in right.values():
        left, opposite = below.get(top.first), below.get(top.second)
        bottom = right.get(left.second) if left else None
        if left and opposite and bottom and alike[bottom.second] == alike[opposite.second]:
            square = (top, left, opposite, bottom)
            if sum(join.score for join in square) >= SQUARE:
                closing.update(square)
    return closing


# --- Groups that fit together -----------------------------------------------------------------------------------------


@dataclass
class _Layout:
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


# --- The contact sheet ------------------------------------------------------------------------------------------------


def draw_groups(
    joins: Sequence[Join], load: Callable[[str], np.ndarray], sizes: dict[str, tuple[int, int]], shown: int = 20
) -> np.ndarray:
    """Draw joined groups, each fitted together in its found positions: (height, width, 3) uint8 RGB.

    Shown are groups from the weakest join to the strongest, evenly spaced, so that what may be false is among them.
    Turned duplicates are turned back and stand beside the image that they copy. Dark images are brightened.
    """
    grouped = join_sets(sizes, ((join.first, join.second) for join in joins))
    by_group: dict[str, list[Join]] = defaultdict(list)
    for join in joins:
        by_group[grouped[join.first]].append(join)
    ordered = sorted(by_group.items(), key=lambda entry: (min(_strength(join) for join in entry[1]), entry[0]))
    evenly = np.linspace(0, len(ordered) - 1, min(shown, len(ordered))).astype(int)
    chosen = [ordered[index] for index in evenly]
    columns = 5
    sheet = np.full((max(1, -(-len(chosen) // columns)) * (_CELL + _CAPTION), columns * _CELL, 3), 40, np.uint8)
    if not chosen:
        _write(sheet, "no two images belong together by their pixels", 0, 0)
    for number, (name, evidence) in enumerate(chosen):
        top, left = number // columns * (_CELL + _CAPTION), number % columns * _CELL
        picture = _draw_group(evidence, load, sizes)
        count = len({join.first for join in evidence} | {join.second for join in evidence})
        _write(sheet, f"{name[:12]}: {count}, weakest {min(_strength(join) for join in evidence):.1f}", top, left)
        top += _CAPTION
        sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


_CELL = 320
_CAPTION = 18


def _strength(join: Join) -> float:
    """Score on one scale: the correlation of the same pixels is shown as a hundredfold."""
    return 100.0 * join.score if join.same_pixels else join.score


def _write(sheet: np.ndarray, text: str, top: int, left: int) -> None:
    cv2.putText(sheet, text, (left + 4, top + 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)


def _draw_group(
    joins: Sequence[Join], load: Callable[[str], np.ndarray], sizes: Mapping[str, tuple[int, int]]
) -> np.ndarray:
    members = sorted({join.first for join in joins} | {join.second for join in joins})
    turns = _turns(members, joins)
    images = {name: oriented(load(name), *turns[name]) for name in members}
    pieces = lay_out(joins, {name: sizes[name] for name in members})
    pictures = [_draw_piece(piece, images) for piece in pieces]
    gap, height = 12, max(picture.shape[0] for picture in pictures)
    width = sum(picture.shape[1] for picture in pictures) + gap * (len(pictures) - 1)
    canvas = np.full((height, width, 3), 40, np.uint8)
    left = 0
    for picture in pictures:
        canvas[: picture.shape[0], left : left + picture.shape[1]] = picture
        left += picture.shape[1] + gap
    scale = (_CELL - 6) / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)


def _turns(members: Sequence[str], joins: Sequence[Join]) -> dict[str, tuple[int, bool]]:
    """How to turn each image for show: a turned duplicate that stands alone looks like what it copies."""
    turns = dict.fromkeys(members, (0, False))
    placed = {name for join in joins if join.aligned for name in (join.first, join.second)}
    for join in joins:
        if join.kind == "duplicate" and join.second not in placed:
            turns[join.second] = (join.quarters, join.mirrored)
    return turns


def _draw_piece(piece: Mapping[str, tuple[int, int]], images: Mapping[str, np.ndarray]) -> np.ndarray:
    height = max(top + images[name].shape[0] for name, (top, _) in piece.items())
    width = max(left + images[name].shape[1] for name, (_, left) in piece.items())
    canvas = np.full((height, width, 3), 110, np.uint8)
    everything = np.concatenate([images[name].reshape(-1, 3)[::7] for name in piece]).astype(np.float32)
    dark, bright = np.percentile(np.sqrt(everything), (0.5, 99.7))
    levels = np.clip((np.sqrt(np.arange(256)) - dark) / max(bright - dark, 2.0), 0.0, 1.0)
    table = np.rint(255.0 * levels).astype(np.uint8) if everything.mean() < 80.0 else np.arange(256, dtype=np.uint8)
    for name, (top, left) in piece.items():
        image = images[name]
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = table[image]
    return canvas
