"""Object scores: one table of overlaps gives AP, precision, recall, F1, PQ, AJI and the kinds of error.

Empty images: where there is no object in truth nor prediction every score is 1; where there are objects on one side
only every score is 0.

Ignored pixels (65535 in the truth: unknown, unsure, crowds) are removed from both sides before anything is compared. A
predicted object that then matches nothing, and had a larger share of its own pixels among them than the IoU that a
match must be above, is no false positive: `left_out` tells every score which those are. Panoptic quality has that rule
of void labels (Kirillov et al. 2019, doi:10.1109/CVPR.2019.00963), COCO's average precision of crowds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np

from pipeline.machine_code import compiled
from pipeline.records.case import IGNORED

THRESHOLDS = (0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95)
"""IoU thresholds of the 2018 Data Science Bowl."""

_BLOCK_PIXELS = 1 << 22


@dataclass(frozen=True)
class Overlaps:
    """Which objects of truth and prediction share pixels, and how many; every object score derives from it.

    truth_ids, truth_areas: (truth objects,) int64, ids rising, areas in pixels.
    predicted_ids, predicted_areas: (predicted objects,) int64, the same.
    predicted_ignored: (predicted objects,) int64 pixels that lie in ignored ones of the truth; no area holds them.
    pair_truth, pair_predicted: (pairs,) int64 positions in truth_ids and predicted_ids, by truth, then by prediction.
    intersections: (pairs,) int64 pixels, all above 0.
    """

    truth_ids: np.ndarray
    truth_areas: np.ndarray
    predicted_ids: np.ndarray
    predicted_areas: np.ndarray
    predicted_ignored: np.ndarray
    pair_truth: np.ndarray
    pair_predicted: np.ndarray
    intersections: np.ndarray

    @cached_property
    def unions(self) -> np.ndarray:
        """Pixels of both objects together: (pairs,) int64."""
        return self.truth_areas[self.pair_truth] + self.predicted_areas[self.pair_predicted] - self.intersections

    def between(self, truth: np.ndarray, predicted: np.ndarray) -> Overlaps:
        """Return the same of some objects alone: truth (truth objects,) and predicted (predicted objects,) bool."""
        pairs = truth[self.pair_truth] & predicted[self.pair_predicted]
        return Overlaps(
            self.truth_ids[truth],
            self.truth_areas[truth],
            self.predicted_ids[predicted],
            self.predicted_areas[predicted],
            self.predicted_ignored[predicted],
            (np.cumsum(truth) - 1)[self.pair_truth[pairs]],
            (np.cumsum(predicted) - 1)[self.pair_predicted[pairs]],
            self.intersections[pairs],
        )

    @property
    def both_empty(self) -> bool:
        """Whether there is no object on either side."""
        return not self.truth_ids.size and not self.predicted_ids.size


@dataclass(frozen=True)
class Detections:
    """Objects found (tp), spurious (fp) and not found (fn) at one IoU threshold; adds up to pooled counts."""

    tp: int
    fp: int
    fn: int

    def __add__(self, other: Detections) -> Detections:
        return Detections(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn)

    @property
    def accuracy(self) -> float:
        """TP / (TP + FP + FN), which the Data Science Bowl calls average precision at one threshold."""
        return self._share(self.tp, self.tp + self.fp + self.fn)

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return self._share(self.tp, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return self._share(self.tp, self.tp + self.fn)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN)."""
        return self._share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def _share(self, part: int, whole: int) -> float:
        if whole:
            return part / whole
        return 0.0 if self.tp + self.fp + self.fn else 1.0


@dataclass(frozen=True)
class PanopticQuality:
    """PQ = SQ * RQ; sq: mean IoU of the matches (0 where there are none); rq: F1 at IoU above 0.5; all in [0, 1]."""

    pq: float
    sq: float
    rq: float


@dataclass(frozen=True)
class Errors:
    """Ids of objects that went wrong, each (objects,) int64, rising.

    A match is IoU above 0.5. An object is a piece of another when more than half of it lies inside the other and it
    covers at least a tenth of the other.
    merged: predictions with two or more truth objects as pieces. split: truth objects with two or more predictions as
    pieces. missed: truth objects without match that are neither split nor a piece of a merged prediction.
    spurious: predictions without match that are neither merged nor a piece of a split truth object, nor left out.
    """

    missed: np.ndarray
    spurious: np.ndarray
    merged: np.ndarray
    split: np.ndarray


def overlaps(truth: np.ndarray, prediction: np.ndarray) -> Overlaps:
    """Count shared pixels of all objects; ids need not be contiguous.

    truth, prediction: (height, width) integer or bool labels of one shape, 0 background. Truth pixels of 65535 are
    removed from both sides, and with them the predicted objects that have no others. Raises ValueError for differing
    shapes, other dtypes, ids outside 0..65535, or 65535 in the prediction.
    """
    _check(truth, prediction)
    of_truth, of_prediction, counts = _count_pairs(truth, prediction)
    if of_prediction.max(initial=0) == IGNORED:
        raise ValueError(f"expected predicted ids below {IGNORED}, which means ignored, found it in the prediction")
    kept = of_truth != IGNORED
    hidden_ids, hidden_counts = of_prediction[~kept], counts[~kept]
    of_truth, of_prediction, counts = of_truth[kept], of_prediction[kept], counts[kept]
    truth_ids, truth_areas = _areas(of_truth, counts)
    predicted_ids, predicted_areas = _areas(of_prediction, counts)
    predicted_ignored = np.zeros_like(predicted_areas)
    if hidden_ids.size:
        partly = np.isin(hidden_ids, predicted_ids)
        predicted_ignored[np.searchsorted(predicted_ids, hidden_ids[partly])] = hidden_counts[partly]
    shared = (of_truth > 0) & (of_prediction > 0)
    return Overlaps(
        truth_ids,
        truth_areas,
        predicted_ids,
        predicted_areas,
        predicted_ignored,
        np.searchsorted(truth_ids, of_truth[shared]),
        np.searchsorted(predicted_ids, of_prediction[shared]),
        counts[shared],
    )


def detections(found: Overlaps, threshold: float) -> Detections:
    """Count matches at IoU strictly greater than a threshold in [0.5, 1), where a match is one to one."""
    tp, fp, fn = _detections(found, (threshold,))
    return Detections(int(tp[0]), int(fp[0]), int(fn[0]))


def average_precision(found: Overlaps, thresholds: Sequence[float] = THRESHOLDS) -> float:
    """Mean over thresholds of TP / (TP + FP + FN), matches at IoU strictly greater (2018 Data Science Bowl)."""
    if found.both_empty:
        return 1.0
    tp, fp, fn = _detections(found, thresholds)
    return float(np.mean(_shares(tp, tp + fp + fn)))


def average_precisions(found: Overlaps, kept: np.ndarray) -> np.ndarray:
    """Average precision for each of several choices among the predicted objects: (choices,) float64.

    kept: (choices, predicted objects) bool. To leave one out takes its pairs out of the table and changes no other. Of
    rasters, whose true objects share no pixels: each match is counted as an object found.
    """
    matched = _matched(found, THRESHOLDS)
    tp = kept[:, found.pair_predicted].astype(np.int64) @ matched.astype(np.int64)
    unheeded = left_out(found, THRESHOLDS)
    some = unheeded.any(axis=1)
    counted = kept.sum(axis=1)[:, None] - kept[:, some].astype(np.int64) @ unheeded[some].astype(np.int64)
    return _shares(tp, counted + found.truth_ids.size - tp).mean(axis=1)


def matched_predictions(found: Overlaps, thresholds: Sequence[float]) -> np.ndarray:
    """Tell which predicted objects match a true one at IoU strictly greater: (predicted objects, thresholds) bool."""
    pair, threshold = np.nonzero(_matched(found, thresholds))
    matched = np.zeros((found.predicted_ids.size, len(thresholds)), bool)
    matched[found.pair_predicted[pair], threshold] = True
    return matched


def left_out(found: Overlaps, thresholds: Sequence[float]) -> np.ndarray:
    """Tell which predicted objects count for nothing, nor as false positives: (predicted objects, thresholds) bool.

    Those without a match at IoU strictly greater than a threshold of whose pixels a share strictly greater than it is
    ignored in the truth.
    """
    if not found.predicted_ignored.any():
        return np.zeros((found.predicted_ids.size, len(thresholds)), bool)
    above, below = _in_whole_numbers(tuple(thresholds))
    whole = found.predicted_areas + found.predicted_ignored
    mostly_ignored = found.predicted_ignored[:, None] * below > whole[:, None] * above
    return mostly_ignored & ~matched_predictions(found, thresholds)


def panoptic_quality(found: Overlaps) -> PanopticQuality:
    """Panoptic quality of one class, matches at IoU above 0.5 (Kirillov et al. 2019, doi:10.1109/CVPR.2019.00963)."""
    objects = found.truth_ids.size + found.predicted_ids.size - int(np.count_nonzero(left_out(found, (0.5,))))
    if not objects:
        return PanopticQuality(1.0, 1.0, 1.0)
    matched = _matched(found, (0.5,))[:, 0]
    count = int(np.count_nonzero(matched))
    quality = float(np.mean(found.intersections[matched] / found.unions[matched])) if count else 0.0
    recognition = 2 * count / objects
    return PanopticQuality(quality * recognition, quality, recognition)


def aggregated_jaccard(found: Overlaps) -> float:
    """Aggregated Jaccard index (Kumar et al. 2017, doi:10.1109/TMI.2017.2677499, algorithm 1).

    Each truth object takes the prediction of largest IoU (the lowest id where several tie), used before or not; their
    intersections and unions add up. Truth objects that nothing overlaps and predictions never taken add their area to
    the unions, but for predictions that are left out at IoU 0.5.
    """
    if found.both_empty:
        return 1.0
    order = np.lexsort((found.pair_predicted, -(found.intersections / found.unions), found.pair_truth))
    by_truth = found.pair_truth[order]
    best = order[np.flatnonzero(np.diff(by_truth, prepend=-1))]
    untouched = np.ones(found.truth_ids.size, bool)
    untouched[found.pair_truth[best]] = False
    unused = ~left_out(found, (0.5,))[:, 0]
    unused[found.pair_predicted[best]] = False
    union = found.unions[best].sum() + found.truth_areas[untouched].sum() + found.predicted_areas[unused].sum()
    return float(found.intersections[best].sum() / union) if union else 1.0


def errors(found: Overlaps) -> Errors:
    """Name the missed, spurious, merged and split objects by the rule that Errors states."""
    shared, pair_truth, pair_predicted = found.intersections, found.pair_truth, found.pair_predicted
    truth_area, predicted_area = found.truth_areas[pair_truth], found.predicted_areas[pair_predicted]
    truth_is_piece = (2 * shared > truth_area) & (10 * shared >= predicted_area)
    predicted_is_piece = (2 * shared > predicted_area) & (10 * shared >= truth_area)
    merged = np.bincount(pair_predicted[truth_is_piece], minlength=found.predicted_ids.size) >= 2
    split = np.bincount(pair_truth[predicted_is_piece], minlength=found.truth_ids.size) >= 2
    matched = _matched(found, (0.5,))[:, 0]
    truth_explained, predicted_explained = split.copy(), merged | left_out(found, (0.5,))[:, 0]
    truth_explained[pair_truth[matched | (truth_is_piece & merged[pair_predicted])]] = True
    predicted_explained[pair_predicted[matched | (predicted_is_piece & split[pair_truth])]] = True
    return Errors(
        missed=found.truth_ids[~truth_explained],
        spurious=found.predicted_ids[~predicted_explained],
        merged=found.predicted_ids[merged],
        split=found.truth_ids[split],
    )


def _check(truth: np.ndarray, prediction: np.ndarray) -> None:
    if truth.shape != prediction.shape or truth.ndim != 2:
        raise ValueError(
            f"expected (height, width) truth and prediction of one shape, found {truth.shape} and {prediction.shape}"
        )
    for name, labels in (("truth", truth), ("prediction", prediction)):
        if labels.dtype.kind not in "bui":
            raise ValueError(f"{name}: expected integer labels, found {labels.dtype}")
        if labels.size and labels.dtype not in (np.bool_, np.uint8, np.uint16):
            wrong = [int(limit) for limit in (labels.min(), labels.max()) if not 0 <= limit <= IGNORED]
            if wrong:
                raise ValueError(f"{name}: expected ids 0..{IGNORED}, as 16-bit labels hold, found {wrong[0]}")


def _count_pairs(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct pairs of ids: true id (rising), predicted id (rising for each), pixels; int64 each.

    Neighbours along a row mostly share both ids, so whole runs are counted; a block at a time, to bound memory.
    """
    flat = [np.ascontiguousarray(labels, np.uint16).ravel() for labels in (truth, prediction)]
    runs = [np.zeros(0, np.int64)]
    for start in range(0, truth.size, _BLOCK_PIXELS):
        block, other = (labels[start : start + _BLOCK_PIXELS] for labels in flat)
        found = np.empty(block.size, np.int64)
        runs.append(found[: _fill_runs(block, other, found)].copy())
    ordered = np.sort(np.concatenate(runs))
    pairs, lengths = ordered >> 31, ordered & ((1 << 31) - 1)
    first = np.flatnonzero(np.diff(pairs, prepend=-1))
    counts = np.add.reduceat(lengths, first) if first.size else lengths
    return pairs[first] >> 16, pairs[first] & 0xFFFF, counts


@compiled
def _fill_runs(truth: np.ndarray, prediction: np.ndarray, runs: np.ndarray) -> int:
    """Write runs of pixels that share both ids, ids above and length below in one number; return how many there are.

    Sorting numbers is several times faster than sorting positions.
    """
    count, start = 0, 0
    own, other = truth[0], prediction[0]
    for at in range(1, truth.size):
        # Told apart in one comparison: most pixels are like the one before.
        if (truth[at] ^ own) | (prediction[at] ^ other):
            runs[count] = (((np.int64(own) << 16) | np.int64(other)) << 31) | np.int64(at - start)
            count, start = count + 1, at
            own, other = truth[at], prediction[at]
    runs[count] = (((np.int64(own) << 16) | np.int64(other)) << 31) | np.int64(truth.size - start)
    return count + 1


def _areas(ids: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct ids above 0, rising, and their pixels."""
    distinct, position = np.unique(ids, return_inverse=True)
    areas = np.zeros(distinct.size, np.int64)
    np.add.at(areas, position, counts)
    objects = distinct > 0
    return distinct[objects], areas[objects]


def _matched(found: Overlaps, thresholds: Sequence[float]) -> np.ndarray:
    """(pairs, thresholds) bool: IoU strictly greater, in whole numbers so that ties fall on the right side."""
    above, below = _in_whole_numbers(tuple(thresholds))
    return found.intersections[:, None] * below > found.unions[:, None] * above


@lru_cache(maxsize=16)
def _in_whole_numbers(thresholds: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators of IoU thresholds, int64; tuning asks for the same ones thousands of times."""
    wrong = [threshold for threshold in thresholds if not 0.5 <= threshold < 1.0]
    if wrong:
        raise ValueError(
            f"IoU threshold: expected 0.5 and above, below 1, so that matches are one to one, found {wrong}"
        )
    exact = [Fraction(threshold).limit_denominator(10_000) for threshold in thresholds]
    return (
        np.array([fraction.numerator for fraction in exact], np.int64),
        np.array([fraction.denominator for fraction in exact], np.int64),
    )


def _detections(found: Overlaps, thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True positives, false positives and false negatives: (thresholds,) int64 each."""
    pair, threshold = np.nonzero(_matched(found, thresholds))
    # Objects are marked rather than matches counted: run-length truth of a competition may overlap itself.
    truth = np.zeros((found.truth_ids.size, len(thresholds)), bool)
    truth[found.pair_truth[pair], threshold] = True
    tp = np.count_nonzero(truth, axis=0)
    heeded = ~(matched_predictions(found, thresholds) | left_out(found, thresholds))
    return tp, np.count_nonzero(heeded, axis=0), found.truth_ids.size - tp


def _shares(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    """Parts of wholes, 1 where there is nothing: all that was predicted may be left out."""
    return np.where(wholes > 0, parts / np.maximum(wholes, 1), 1.0)
