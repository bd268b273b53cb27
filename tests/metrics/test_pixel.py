"""Pixel scores against hand counts, scikit-learn and MONAI."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from pipeline.metrics.pixel import Confusion, confusion
from pipeline.records.case import IGNORED

EMPTY = np.zeros((3, 4), np.uint16)
FULL = np.ones((3, 4), np.uint16)


def test_four_pixels_counted_by_hand() -> None:
    counted = confusion(np.array([[3, 0], [1, 0]]), np.array([[1, 1], [0, 0]]))
    assert (counted.tp, counted.fp, counted.fn, counted.tn) == (1, 1, 1, 1)
    assert counted.dice == pytest.approx(1 / 2)
    assert counted.iou == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("truth", "prediction", "score"),
    [(EMPTY, EMPTY, 1.0), (EMPTY, FULL, 0.0), (FULL, EMPTY, 0.0), (FULL, FULL, 1.0)],
    ids=["both empty", "empty truth", "empty prediction", "both full"],
)
@pytest.mark.parametrize("classes", [None, 1, 4])
def test_empty_masks(truth: np.ndarray, prediction: np.ndarray, score: float, classes: int | None) -> None:
    counted = confusion(truth, prediction, classes)
    assert counted.dice == counted.iou == score


def test_foreground_against_scikit_learn_and_monai() -> None:
    import torch
    from monai.metrics.meandice import compute_dice
    from monai.metrics.meaniou import compute_iou

    random = np.random.default_rng(1)
    truth, prediction = random.integers(0, 3, (2, 40, 50)).astype(np.uint16)
    counted = confusion(truth, prediction)
    assert counted.dice == pytest.approx(f1_score(truth.ravel() > 0, prediction.ravel() > 0))
    assert counted.iou == pytest.approx(jaccard_score(truth.ravel() > 0, prediction.ravel() > 0))
    one_hot = [torch.from_numpy((labels > 0)[None, None].astype(np.float32)) for labels in (prediction, truth)]
    assert counted.dice == pytest.approx(compute_dice(*one_hot).item())
    assert counted.iou == pytest.approx(compute_iou(*one_hot).item())


def test_classes_against_scikit_learn() -> None:
    random = np.random.default_rng(2)
    truth, prediction = random.choice([0, 1, 2, 4], (2, 30, 20)).astype(np.uint16)
    counted = confusion(truth, prediction, 4)
    flat = truth.ravel(), prediction.ravel()
    table = confusion_matrix(*flat, labels=range(5))
    assert counted.tp.tolist() == np.diag(table)[1:].tolist()
    assert counted.fp.tolist() == (table.sum(0) - np.diag(table))[1:].tolist()
    assert counted.present.tolist() == [True, True, False, True]
    assert counted.dice == pytest.approx(f1_score(*flat, labels=[1, 2, 4], average="macro"))
    assert counted.iou == pytest.approx(jaccard_score(*flat, labels=[1, 2, 4], average="macro"))
    assert counted.dice_by_class[2] == 1.0


def test_ignored_pixels_count_nowhere() -> None:
    truth = np.array([[1, IGNORED, 0], [IGNORED, 2, 0]], np.uint16)
    prediction = np.array([[1, 1, 0], [0, 2, 2]], np.uint16)
    for classes in (None, 2):
        counted = confusion(truth, prediction, classes)
        assert (counted.tp + counted.fp + counted.fn + counted.tn == 4).all()
    assert confusion(truth, prediction).dice == pytest.approx(4 / 5)
    assert confusion(truth, prediction, 2).dice == pytest.approx((1 + 2 / 3) / 2)


def test_counts_add_up_to_one_large_image() -> None:
    truth, prediction = np.random.default_rng(3).integers(0, 3, (2, 8, 10)).astype(np.uint8)
    parts = [confusion(truth[rows], prediction[rows], 2) for rows in (slice(0, 3), slice(3, 8))]
    added, whole = parts[0] + parts[1], confusion(truth, prediction, 2)
    assert isinstance(added, Confusion)
    for name in ("tp", "fp", "fn", "tn"):
        assert getattr(added, name).dtype == np.int64
        assert np.array_equal(getattr(added, name), getattr(whole, name))


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match=r"one shape, found \(3, 4\) and \(4, 3\)"):
        confusion(EMPTY, EMPTY.T)
    with pytest.raises(ValueError, match=r"class ids 0\.\.2, found 3"):
        confusion(EMPTY, 3 * FULL, 2)
