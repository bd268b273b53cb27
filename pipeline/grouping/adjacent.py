"""Adjacent crops: the last line of one goes on in the first line of the other.

The evidence is a log-likelihood ratio over frequency bands of the two lines: the correlation that neighbouring lines
have within these very images, against none (Fisher's z of each correlation, Bartlett's number of independent samples
along the line). Looks alike is not enough. A blank or noisy line, whose own neighbour does not resemble it, carries no
evidence. The step across the seam must be as small as the steps beside it. The two lines must be each other's best
among all images; what counts is the evidence beyond the runner-up and beyond every shifted position, and no single spot
may carry it. Weaker joins count where four of them close a 2 x 2 field.

Fisher 1921, Metron 1, 3-32 (z of a correlation); Bartlett 1946, J. R. Stat. Soc. Suppl. 8, 27-41 (autocorrelation).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.grouping.joins import Join, Kind
from pipeline.grouping.signatures import Signature

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
_FACING: dict[str, tuple[str, str]] = {"right-of": ("right", "left"), "below": ("bottom", "top")}


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


def find_adjacent(images: Sequence[Signature], alike: dict[str, str], kind: Kind) -> list[Join]:
    """Pairs that are each other's best, with the nats by which they exceed the runner-up and every shift."""
    near_side, far_side = _FACING[kind]
    by_length: dict[int, list[Signature]] = defaultdict(list)
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


def stands_alone(join: Join) -> bool:
    """Whether a join counts by itself."""
    return join.score >= STRONG and (join.spread or 0.0) >= SPREAD and (join.step or 0.0) <= LOUDEST_STEP


def closing_squares(candidates: Sequence[Join], alike: dict[str, str]) -> set[Join]:
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
