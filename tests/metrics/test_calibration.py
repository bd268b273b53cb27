"""Calibration in closed form: said and seen shares, their distance, ignored pixels."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.metrics.calibration import Calibration
from pipeline.records.case import IGNORED


def test_probabilities_that_keep_their_word_have_no_error() -> None:
    calibration = Calibration()
    for said in (0.05, 0.25, 0.5, 0.75, 0.95):
        truth = np.zeros((10, 20), np.uint16)
        truth.flat[: round(said * 200)] = 3
        calibration.add(np.full(truth.shape, said, np.float32), truth)
    found = calibration.as_dict()
    assert found["error"] == pytest.approx(0.0, abs=1e-6)
    assert [one["seen"] for one in found["bins"]] == [0.05, 0.25, 0.5, 0.75, 0.95]
    assert found["brier"] == pytest.approx(np.mean([p * (1 - p) for p in (0.05, 0.25, 0.5, 0.75, 0.95)]), abs=1e-6)


def test_overconfidence_is_its_distance_from_what_is_seen() -> None:
    calibration = Calibration()
    truth = np.zeros((10, 10), np.uint16)
    truth[:6] = 1
    calibration.add(np.ones(truth.shape, np.float32), truth)
    found = calibration.as_dict()
    assert (found["error"], found["brier"]) == (pytest.approx(0.4), pytest.approx(0.4))
    assert found["bins"] == [{"said": 1.0, "seen": 0.6, "pixels": 100}]


def test_ignored_pixels_count_for_nothing() -> None:
    calibration = Calibration()
    truth = np.array([[1, IGNORED]], np.uint16)
    calibration.add(np.array([[1.0, 0.0]], np.float32), truth)
    assert calibration.as_dict()["bins"] == [{"said": 1.0, "seen": 1.0, "pixels": 1}]
    assert Calibration().as_dict() == {}


def test_cases_add_up_in_any_order_as_their_pixels_do_at_once() -> None:
    random = np.random.default_rng(0)
    probability = random.random((6, 8, 8)).astype(np.float32)
    truth = (random.random((6, 8, 8)) < probability).astype(np.uint16)
    truth[:, 0] = IGNORED
    together, apart = Calibration(), Calibration()
    together.add(probability.reshape(48, 8), truth.reshape(48, 8))
    for case in (3, 0, 5, 1, 4, 2):
        apart.add(probability[case], truth[case])
    assert apart.as_dict() == together.as_dict()
    assert sum(one["pixels"] for one in apart.as_dict()["bins"]) == 6 * 7 * 8


def test_plain_background_does_not_hide_the_error_of_what_is_unsure() -> None:
    calibration = Calibration()
    calibration.add(np.full((30, 30), 0.02, np.float32), np.zeros((30, 30), np.uint16))
    truth = np.zeros((10, 10), np.uint16)
    truth[:3] = 1
    calibration.add(np.full(truth.shape, 0.75, np.float32), truth)
    found = calibration.as_dict()
    assert found["error"] == pytest.approx(0.9 * 0.02 + 0.1 * 0.45)
    assert found["unsure"] == {"share": 0.1, "error": pytest.approx(0.45)}
    sure = Calibration()
    sure.add(np.ones((2, 2), np.float32), np.ones((2, 2), np.uint16))
    assert sure.as_dict()["unsure"] == {"share": 0.0, "error": None}
