"""Object scores: shifted shapes with known IoU, slow plain references, MONAI, and the rule for each kind of error."""

from __future__ import annotations

import math
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.metrics import instance
from pipeline.metrics.instance import (
    THRESHOLDS,
    Detections,
    aggregated_jaccard,
    average_precision,
    average_precisions,
    detections,
    errors,
    left_out,
    overlaps,
    panoptic_quality,
)
from pipeline.records.case import IGNORED

EMPTY = np.zeros((20, 30), np.uint16)


def square(side: int, left: int, identity: int = 1, size: int = 60) -> np.ndarray:
    labels = np.zeros((size, size), np.uint16)
    labels[5 : 5 + side, left : left + side] = identity
    return labels


def nuclei(random: np.random.Generator, count: int = 25, side: int = 96) -> np.ndarray:
    """Discs that touch and hide one another, with gaps in their ids."""
    labels = np.zeros((side, side), np.uint16)
    for identity in random.choice(np.arange(1, 60_000), count, replace=False):
        centre = tuple(int(value) for value in random.integers(0, side, 2))
        disc = cv2.circle(np.zeros((side, side), np.uint8), centre, int(random.integers(2, 12)), 1, -1)
        labels[disc > 0] = identity
    return labels


def disturbed(labels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Shifted, with some nuclei lost, some joined and some invented."""
    moved = np.roll(labels, random.integers(-2, 3, 2), axis=(0, 1))
    for identity in np.unique(moved)[1:]:
        fate = random.random()
        if fate < 0.15:
            moved[moved == identity] = 0
        elif fate < 0.3:
            moved[moved == identity] = np.unique(moved)[-1]
    moved[:5, :5] = 61_000
    return moved


def plain_ious(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """(truth objects, predicted objects) IoU, mask by mask."""
    prediction = np.where(truth == IGNORED, 0, prediction)
    truth = np.where(truth == IGNORED, 0, truth)
    masks = [[labels == identity for identity in np.unique(labels) if identity] for labels in (truth, prediction)]
    table = np.zeros((len(masks[0]), len(masks[1])))
    for row, a in enumerate(masks[0]):
        for column, b in enumerate(masks[1]):
            table[row, column] = (a & b).sum() / (a | b).sum()
    return table


def plain_ap(ious: np.ndarray, thresholds: tuple[float, ...] = THRESHOLDS) -> float:
    scores = []
    for threshold in thresholds:
        tp = int((ious > threshold + 1e-9).sum())
        scores.append(tp / (ious.shape[0] + ious.shape[1] - tp))
    return float(np.mean(scores))


def plain_aji(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Kumar 2017, algorithm 1, line by line."""
    shared = joined = 0
    used = set()
    for a in np.unique(truth)[1:]:
        best, best_iou = None, 0.0
        for b in np.unique(prediction[truth == a]):
            iou = ((truth == a) & (prediction == b)).sum() / ((truth == a) | (prediction == b)).sum()
            if b and iou > best_iou:
                best, best_iou = b, iou
        if best is None:
            joined += (truth == a).sum()
            continue
        shared += ((truth == a) & (prediction == best)).sum()
        joined += ((truth == a) | (prediction == best)).sum()
        used.add(best)
    joined += sum((prediction == b).sum() for b in np.unique(prediction)[1:] if b not in used)
    return float(shared / joined)


@pytest.mark.parametrize("shift", range(11))
def test_shifted_squares(shift: int) -> None:
    found = overlaps(square(10, 8), square(10, 8 + shift))
    iou = (10 - shift) / (10 + shift)
    assert average_precision(found) == pytest.approx(sum(iou > t + 1e-9 for t in THRESHOLDS) / 10)
    assert panoptic_quality(found).pq == pytest.approx(iou if iou > 0.5 else 0.0)
    assert aggregated_jaccard(found) == pytest.approx(iou)


@pytest.mark.parametrize(("side", "shift", "tie"), [(9, 3, 0.50), (17, 3, 0.70), (19, 1, 0.90), (39, 1, 0.95)])
def test_a_tie_is_no_match(side: int, shift: int, tie: float) -> None:
    found = overlaps(square(side, 2), square(side, 2 + shift))
    assert (found.intersections / found.unions)[0] == pytest.approx(tie)
    assert detections(found, tie) == Detections(tp=0, fp=1, fn=1)
    if tie > 0.5:
        assert detections(found, tie - 0.0001) == Detections(tp=1, fp=0, fn=0)


@pytest.mark.parametrize("shift", [5, 15, 25])
def test_shifted_circles(shift: int) -> None:
    radius = 60
    canvas = np.zeros((200, 240), np.uint8)
    truth = cv2.circle(canvas.copy(), (100, 100), radius, 1, -1)
    prediction = cv2.circle(canvas.copy(), (100 + shift, 100), radius, 7, -1)
    lens = 2 * radius**2 * math.acos(shift / 2 / radius) - shift / 2 * math.sqrt(4 * radius**2 - shift**2)
    iou = lens / (2 * math.pi * radius**2 - lens)
    assert panoptic_quality(overlaps(truth, prediction)).sq == pytest.approx(iou, abs=0.004)


def test_known_small_set() -> None:
    """Three true, three predicted: one exact, one at IoU 0.6, one missed and one spurious."""
    truth, prediction = EMPTY.copy(), EMPTY.copy()
    truth[0:4, 0:5], prediction[0:4, 0:5] = 5, 900
    truth[6:8, 0:8], prediction[6:8, 2:10] = 9, 3
    truth[12:14, 0:5] = 40
    prediction[16:18, 0:5] = 41
    found = overlaps(truth, prediction)
    assert found.truth_ids.tolist() == [5, 9, 40]
    assert found.truth_areas.tolist() == [20, 16, 10]
    assert found.predicted_ids.tolist() == [3, 41, 900]
    assert found.predicted_areas.tolist() == [16, 10, 20]
    assert found.intersections.tolist() == [20, 12]
    assert found.unions.tolist() == [20, 20]
    half = detections(found, 0.5)
    assert half == Detections(tp=2, fp=1, fn=1)
    assert (half.precision, half.recall, half.f1, half.accuracy) == pytest.approx((2 / 3, 2 / 3, 2 / 3, 1 / 2))
    assert average_precision(found) == pytest.approx((2 * 0.5 + 8 * 0.2) / 10)  # 12 / 20 = 0.6 is a tie at 0.60
    quality = panoptic_quality(found)
    assert (quality.pq, quality.sq, quality.rq) == pytest.approx((0.8 * 2 / 3, 0.8, 2 / 3))
    assert aggregated_jaccard(found) == pytest.approx(32 / (20 + 20 + 10 + 10))


def test_several_true_nuclei_may_take_one_prediction() -> None:
    truth, prediction = EMPTY.copy(), EMPTY.copy()
    truth[0:4, 0:4], truth[0:4, 4:8] = 1, 2
    prediction[0:4, 0:8] = 1
    assert aggregated_jaccard(overlaps(truth, prediction)) == pytest.approx(32 / 64)


def test_empty_images() -> None:
    some = square(10, 3)[:20, :30]
    nothing, invented, lost = overlaps(EMPTY, EMPTY), overlaps(EMPTY, some), overlaps(some, EMPTY)
    for found, score in ((nothing, 1.0), (invented, 0.0), (lost, 0.0)):
        half = detections(found, 0.5)
        quality = panoptic_quality(found)
        scores = [average_precision(found), aggregated_jaccard(found), half.precision, half.recall, half.f1]
        assert {*scores, half.accuracy, quality.pq, quality.sq, quality.rq} == {score}
    assert errors(invented).spurious.tolist() == [1]
    assert errors(lost).missed.tolist() == [1]


def test_ignored_pixels_leave_both_sides() -> None:
    truth, prediction = square(10, 8), square(10, 8)
    truth[5:15, 14:18] = IGNORED
    prediction[30:40, 30:40] = 2
    truth[25:45, 25:45] = IGNORED
    found = overlaps(truth, prediction)
    assert found.truth_areas.tolist() == found.predicted_areas.tolist() == found.intersections.tolist() == [60]
    assert average_precision(found) == 1.0


def test_a_prediction_mostly_within_ignored_pixels_is_no_false_positive() -> None:
    truth = square(20, 8, size=90)
    truth[50:80, 50:80] = IGNORED
    prediction = square(20, 8, size=90)
    prediction[50:81, 50:80] = 2  # sticks out by one row of 31
    found = overlaps(truth, prediction)
    assert (found.predicted_areas.tolist(), found.predicted_ignored.tolist()) == ([400, 30], [0, 900])
    assert average_precision(found) == panoptic_quality(found).pq == aggregated_jaccard(found) == 1.0
    assert detections(found, 0.95) == Detections(tp=1, fp=0, fn=0)
    assert errors(found).spurious.size == 0
    of_a_class = found.between(np.array([False]), np.array([False, True]))
    assert panoptic_quality(of_a_class).pq == 1.0
    assert average_precisions(found, np.array([[True, True], [True, False], [False, True]])).tolist() == [1, 1, 0]
    truth[truth == 1] = 0
    alone = overlaps(truth, np.where(prediction == 2, prediction, 0))
    assert average_precision(alone) == panoptic_quality(alone).pq == aggregated_jaccard(alone) == 1.0


@pytest.mark.parametrize(("rows", "spurious_at"), [(60, 10), (59, 9), (40, 5), (31, 0)])
def test_how_much_must_be_ignored_is_how_much_a_match_must_share(rows: int, spurious_at: int) -> None:
    truth, prediction = np.zeros((120, 90), np.uint16), np.zeros((120, 90), np.uint16)
    truth[50:80, 50:80] = IGNORED
    prediction[50 : 50 + rows, 50:80] = 1  # 30 rows of them ignored; exactly half, or 0.75, is not more
    found = overlaps(truth, prediction)
    assert sum(detections(found, threshold).fp for threshold in THRESHOLDS) == spurious_at
    assert average_precision(found) == (10 - spurious_at) / 10
    assert average_precisions(found, np.array([[True], [False]])).tolist() == [(10 - spurious_at) / 10, 1.0]


def test_a_match_is_kept_however_much_of_it_is_ignored() -> None:
    truth, prediction = np.full((20, 20), IGNORED, np.uint16), np.ones((20, 20), np.uint16)
    truth[0, :10] = 7
    found = overlaps(truth, prediction)
    assert not left_out(found, THRESHOLDS).any()
    assert average_precision(found) == panoptic_quality(found).pq == aggregated_jaccard(found) == 1.0
    truth[1, :10], truth[0, :10] = 0, np.where(np.arange(10) < 4, 7, 0)  # 4 of 20 known pixels: too few to match
    found = overlaps(truth, prediction)
    assert left_out(found, THRESHOLDS)[:, :9].all() and detections(found, 0.5) == Detections(tp=0, fp=0, fn=1)
    assert errors(found).spurious.size == 0


@pytest.mark.parametrize("seed", range(8))
def test_slow_references(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = nuclei(random)
    prediction = disturbed(truth, random)
    ious = plain_ious(truth, prediction)
    found = overlaps(truth, prediction)
    assert average_precision(found) == pytest.approx(plain_ap(ious), abs=1e-12)
    assert aggregated_jaccard(found) == pytest.approx(plain_aji(truth, prediction), abs=1e-12)
    for threshold in (0.5, 0.7, 0.75, 0.9):
        counted = detections(found, threshold)
        assert counted.tp == (ious > threshold + 1e-9).sum()
        assert (counted.tp + counted.fn, counted.tp + counted.fp) == ious.shape
    assert 0.0 < average_precision(found) < 1.0, "the images are neither trivial nor hopeless"


@pytest.mark.parametrize("seed", range(3))
def test_panoptic_quality_equals_monai(seed: int) -> None:
    import torch
    from monai.metrics.panoptic_quality import compute_panoptic_quality

    random = np.random.default_rng(seed)
    truth = nuclei(random)
    prediction = disturbed(truth, random)
    found = panoptic_quality(overlaps(truth, prediction))
    tensors = [torch.from_numpy(labels.astype(np.int64)) for labels in (prediction, truth)]
    for name, value in (("pq", found.pq), ("sq", found.sq), ("rq", found.rq)):
        assert value == pytest.approx(compute_panoptic_quality(*tensors, metric_name=name).item(), abs=1e-5)


LABELS = hnp.arrays(np.uint16, (9, 7), elements=st.sampled_from([0, 0, 1, 2, 3, 500, IGNORED]))


@settings(max_examples=60)
@given(LABELS, LABELS)
def test_any_labels(truth: np.ndarray, prediction: np.ndarray) -> None:
    prediction[prediction == IGNORED] = 0
    found = overlaps(truth, prediction)
    ious = plain_ious(truth, prediction)
    table = np.zeros_like(ious)
    table[found.pair_truth, found.pair_predicted] = found.intersections / found.unions
    assert np.array_equal(table, ious)
    quality = panoptic_quality(found)
    assert quality.pq == pytest.approx(quality.sq * quality.rq)
    for score in (average_precision(found), aggregated_jaccard(found), quality.pq):
        assert 0.0 <= score <= 1.0
    wrong, half = errors(found), detections(found, 0.5)
    assert wrong.missed.size <= half.fn
    assert wrong.spurious.size <= half.fp
    assert set(wrong.split) | set(wrong.missed) <= set(found.truth_ids)
    itself = overlaps(prediction, prediction)
    assert average_precision(itself) == aggregated_jaccard(itself) == panoptic_quality(itself).pq == 1.0


@settings(max_examples=60)
@given(LABELS, LABELS, st.integers(0, 2**32 - 1))
def test_what_is_left_out_counts_as_if_it_had_not_been_predicted(
    truth: np.ndarray, prediction: np.ndarray, seed: int
) -> None:
    prediction[prediction == IGNORED] = 0
    found = overlaps(truth, prediction)
    kept = np.random.default_rng(seed).random((5, found.predicted_ids.size)) < 0.6
    expected = [
        average_precision(overlaps(truth, np.where(np.isin(prediction, found.predicted_ids[own]), prediction, 0)))
        for own in kept
    ]
    np.testing.assert_allclose(average_precisions(found, kept), expected, rtol=1e-12)


def test_blocks_of_rows_join(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(4)
    truth = nuclei(random)
    prediction = disturbed(truth, random)
    whole = overlaps(truth, prediction)
    monkeypatch.setattr(instance, "_BLOCK_PIXELS", 200)
    blocks = overlaps(truth, prediction)
    for name in ("truth_areas", "predicted_areas", "pair_truth", "pair_predicted", "intersections"):
        assert np.array_equal(getattr(blocks, name), getattr(whole, name))


@pytest.mark.parametrize("kind", [bool, np.uint8, np.int16, np.int32, np.int64, np.uint32])
def test_every_integer_dtype(kind: type) -> None:
    truth, prediction = square(10, 3), square(10, 5)
    expected = overlaps(truth, prediction)
    for a, b in ((truth.astype(kind), prediction), (truth, prediction.astype(kind))):
        assert overlaps(a, b).intersections.tolist() == expected.intersections.tolist()


def _errors(truth: np.ndarray, prediction: np.ndarray) -> dict[str, list[int]]:
    found = errors(overlaps(truth, prediction))
    return {name: getattr(found, name).tolist() for name in ("missed", "spurious", "merged", "split")}


def test_each_kind_of_error() -> None:
    truth, prediction = EMPTY.copy(), EMPTY.copy()
    truth[0:4, 0:4], truth[0:4, 4:8] = 11, 12
    prediction[0:4, 0:8] = 21  # merges 11 and 12
    truth[6:10, 0:10] = 13
    prediction[6:10, 0:5], prediction[6:10, 5:10] = 22, 23  # split 13
    truth[12:15, 0:5] = 14  # missed
    prediction[16:19, 0:5] = 24  # spurious
    truth[12:16, 20:24], prediction[12:16, 20:24] = 15, 25
    assert _errors(truth, prediction) == {"missed": [14], "spurious": [24], "merged": [21], "split": [13]}


def test_a_poor_outline_is_missed_and_spurious() -> None:
    assert _errors(square(10, 3), square(10, 9, 4)) == {"missed": [1], "spurious": [4], "merged": [], "split": []}


def test_crumbs_do_not_make_a_split_or_a_merge() -> None:
    truth, prediction = square(20, 5), square(20, 5, 2)
    prediction[5:7, 5:7] = 3
    assert _errors(truth, prediction) == {"missed": [], "spurious": [3], "merged": [], "split": []}
    assert _errors(prediction, truth) == {"missed": [3], "spurious": [], "merged": [], "split": []}


def test_a_merge_may_still_match_its_larger_nucleus() -> None:
    truth, prediction = EMPTY.copy(), EMPTY.copy()
    truth[0:10, 0:10], truth[0:10, 10:14] = 1, 2
    prediction[0:10, 0:14] = 8
    assert _errors(truth, prediction) == {"missed": [], "spurious": [], "merged": [8], "split": []}
    assert detections(overlaps(truth, prediction), 0.5) == Detections(tp=1, fp=0, fn=1)


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="one shape"):
        overlaps(EMPTY, EMPTY.T)
    with pytest.raises(ValueError, match="prediction: expected integer labels, found float32"):
        overlaps(EMPTY, EMPTY.astype(np.float32))
    with pytest.raises(ValueError, match=r"truth: expected ids 0\.\.65535, as 16-bit labels hold, found -1"):
        overlaps(np.full((2, 2), -1), np.zeros((2, 2), int))
    with pytest.raises(ValueError, match=r"prediction: .*found 70000"):
        overlaps(np.zeros((2, 2), int), np.full((2, 2), 70_000))
    with pytest.raises(ValueError, match="predicted ids below 65535"):
        overlaps(EMPTY, np.full_like(EMPTY, IGNORED))
    with pytest.raises(ValueError, match=r"0\.5 and above, below 1.*0\.4"):
        detections(overlaps(EMPTY, EMPTY), 0.4)


def test_three_hundred_nuclei_take_about_a_millisecond() -> None:
    labels = np.zeros((256, 320), np.uint16)
    labels[:255] = (np.arange(255)[:, None] // 15 * 22 + np.arange(320)[None] // 15 + 1).astype(np.uint16)
    labels[::15] = labels[:, ::15] = 0
    prediction = np.roll(labels, 1, axis=1)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        found = overlaps(labels, prediction)
        scores = average_precision(found), panoptic_quality(found), aggregated_jaccard(found)
        seconds.append(time.perf_counter() - start)
    assert found.truth_ids.size > 300
    assert scores[0] > 0.5
    assert min(seconds) < 0.01  # 0.5 ms on a quiet core; the slack is for a busy one


@pytest.mark.real
def test_real_nuclei_against_the_slow_references(dsb2018: Path) -> None:
    with zipfile.ZipFile(dsb2018 / "stage1_train.zip") as archive:
        files = [name for name in archive.namelist() if "/masks/" in name and name.endswith(".png")]
        image = files[0].split("/")[0]
        masks = [
            cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_GRAYSCALE) > 0
            for name in files
            if name.startswith(image)
        ]
    truth = np.zeros(masks[0].shape, np.uint16)
    for identity, mask in enumerate(masks, start=1):
        truth[mask] = identity
    prediction = disturbed(truth, np.random.default_rng(0))
    found = overlaps(truth, prediction)
    assert found.truth_ids.size == len(masks) > 5
    assert average_precision(found) == pytest.approx(plain_ap(plain_ious(truth, prediction)))
    assert aggregated_jaccard(found) == pytest.approx(plain_aji(truth, prediction))
