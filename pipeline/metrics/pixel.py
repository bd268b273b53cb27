"""Pixel scores: one confusion count gives Dice and IoU.

Empty masks: where truth and prediction are both empty a score is 1, where only one of them is empty it is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.records.case import IGNORED


@dataclass(frozen=True)
class Confusion:
    """Pixels counted against the truth, one entry a class; counts of several images add up to pooled ones.

    tp, fp, fn, tn: (classes,) int64, pixels: true and false positives, false and true negatives.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.tn + other.tn)

    @property
    def dice_by_class(self) -> np.ndarray:
        """Dice coefficient of each class: (classes,) float64 in [0, 1], 2 TP / (2 TP + FP + FN) (Dice 1945)."""
        return _share(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou_by_class(self) -> np.ndarray:
        """Intersection over union of each class: (classes,) float64 in [0, 1], TP / (TP + FP + FN) (Jaccard 1912)."""
        return _share(self.tp, self.tp + self.fp + self.fn)

    @property
    def present(self) -> np.ndarray:
        """Whether a class occurs in truth or prediction: (classes,) bool."""
        return self.tp + self.fp + self.fn > 0

    @property
    def dice(self) -> float:
        """Mean Dice over the classes present in truth or prediction; 1 where none is."""
        return self._mean(self.dice_by_class)

    @property
    def iou(self) -> float:
        """Mean IoU over the classes present in truth or prediction; 1 where none is."""
        return self._mean(self.iou_by_class)

    def _mean(self, scores: np.ndarray) -> float:
        return float(scores[self.present].mean()) if self.present.any() else 1.0


def confusion(truth: np.ndarray, prediction: np.ndarray, classes: int | None = None) -> Confusion:
    """Count foreground (any id above 0) as one class, or each of the class ids 1..classes against all others.

    truth, prediction: integer or bool rasters of one shape, 0 background; truth pixels of 65535 are left out. Raises
    ValueError where the shapes differ or, with classes given, an id is above it.
    """
    valid = _valid(truth, prediction)
    if classes is None:
        return _stack([_count((truth > 0) & valid, (prediction > 0) & valid, valid)])
    largest = max(int(labels.max(initial=0, where=valid)) for labels in (truth, prediction))
    if classes < 1 or largest > classes:
        raise ValueError(f"expected class ids 0..{classes}, found {largest}; give the data set's number of classes")
    numbers = range(1, classes + 1)
    return _stack([_count(truth == number, (prediction == number) & valid, valid) for number in numbers])


def _valid(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    if truth.shape != prediction.shape:
        raise ValueError(
            f"expected truth and prediction of one shape, found {truth.shape} and {prediction.shape}; "
            "bring the prediction back to the size of the label"
        )
    return truth != IGNORED


def _count(truth: np.ndarray, prediction: np.ndarray, valid: np.ndarray) -> tuple[int, int, int, int]:
    tp = int(np.count_nonzero(truth & prediction))
    fp = int(np.count_nonzero(prediction)) - tp
    fn = int(np.count_nonzero(truth)) - tp
    return tp, fp, fn, int(np.count_nonzero(valid)) - tp - fp - fn


def _stack(counts: list[tuple[int, int, int, int]]) -> Confusion:
    tp, fp, fn, tn = np.array(counts, np.int64).reshape(-1, 4).T
    return Confusion(tp, fp, fn, tn)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.ones(whole.shape), where=whole > 0)
