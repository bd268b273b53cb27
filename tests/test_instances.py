"""Probability maps to objects, in closed cases; tuning finds what the truth was made with."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed

from pipeline.instances import Thresholds, drop_objects, flood, grow_objects, label_raster, object_classes, tune
from pipeline.outputs import Outputs
from pipeline.records.case import IGNORED
from pipeline.targets import channels_of, make_target

BOUNDARY = Outputs("boundary", ("foreground", "boundary"), "sigmoid", "instance")
BINARY = Outputs("binary", ("foreground",), "sigmoid", "semantic")
OBJECTS_OF_BINARY = Outputs("binary", ("foreground",), "sigmoid", "instance")
CLASSES = Outputs("classes", ("background", "one", "two"), "softmax", "semantic")


def two_touching() -> tuple[np.ndarray, np.ndarray]:
    """Two 10 x 10 squares side by side: truth, and perfect maps of foreground and inner rim."""
    truth = np.zeros((20, 30), np.uint16)
    truth[5:15, 5:15], truth[5:15, 15:25] = 1, 2
    boundary = (truth > 0).astype(np.float32)
    boundary[6:14, 6:14] = boundary[6:14, 16:24] = 0
    return truth, np.stack([(truth > 0).astype(np.float32), boundary])


def test_touching_objects_come_apart_along_their_boundary() -> None:
    truth, maps = two_touching()
    np.testing.assert_array_equal(label_raster(maps, BOUNDARY, Thresholds()), truth)


def test_without_a_boundary_they_are_one() -> None:
    truth, maps = two_touching()
    found = label_raster(maps[:1], OBJECTS_OF_BINARY, Thresholds())
    np.testing.assert_array_equal(found, truth > 0)


@pytest.mark.parametrize("target", ["boundary", "boundary_distance", "offsets"])
def test_every_formulation_gives_back_the_objects_that_it_was_made_from(target: str) -> None:
    truth = np.zeros((90, 120), np.uint16)
    for identity, (row, column, radius) in enumerate([(30, 25, 14), (30, 52, 13), (55, 40, 14), (65, 90, 20)], 1):
        disc = np.zeros(truth.shape, np.uint8)
        cv2.circle(disc, (column, row), radius, 1, -1)
        truth[(disc > 0) & (truth == 0)] = identity
    planes, _ = make_target(truth, target)
    blurred = np.stack([cv2.GaussianBlur(plane, (0, 0), 1.0) for plane in planes])
    outputs = Outputs(target, channels_of(target), "sigmoid", "instance")
    assert outputs.score(truth, label_raster(blurred, outputs, Thresholds()))["ap_75"] == 1.0


def test_a_speck_without_interior_is_an_object_of_its_own() -> None:
    truth, maps = two_touching()
    maps[:, 1:3, 1:3] = 1.0
    found = grow_objects(maps, BOUNDARY.channels, Thresholds())
    assert len(np.unique(found)) == 4
    assert (drop_objects(found, maps[0], 5) == truth).all()


def test_small_objects_go_and_ids_stay_contiguous() -> None:
    objects = np.array([[7, 7, 7, 0], [3, 0, 9, 9]], np.int32)
    found = drop_objects(objects, np.ones(objects.shape, np.float32), 2)
    np.testing.assert_array_equal(found, [[1, 1, 1, 0], [0, 0, 2, 2]])


def test_doubtful_objects_go() -> None:
    objects = np.array([[1, 1, 0, 2, 2]], np.int32)
    foreground = np.array([[0.8, 0.6, 0.1, 0.6, 0.7]], np.float32)
    np.testing.assert_array_equal(drop_objects(objects, foreground, certainty=0.68), [[1, 1, 0, 0, 0]])
    assert not drop_objects(objects, foreground, certainty=0.8).any()


@given(st.integers(0, 6))
@settings(max_examples=20, deadline=None)
def test_objects_stay_inside_the_foreground_and_are_numbered(seed: int) -> None:
    maps = np.random.default_rng(seed).random((2, 24, 31)).astype(np.float32)
    found = label_raster(maps, BOUNDARY, Thresholds(0.4, 0.3, 2))
    assert found.dtype == np.uint16
    assert not found[maps[0] <= 0.4].any()
    assert sorted(np.unique(found)) == list(range(found.max() + 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.3, 0.7), st.floats(0.3, 0.9), st.sampled_from([1.0, 2.0, 4.0]))
def test_objects_are_those_of_a_watershed_over_everything(
    seed: int, foreground: float, core: float, coarseness: float
) -> None:
    """Pieces of one core are not flooded: nothing may tell. Ids too: cores first, then pieces without one, by rows."""
    noise = np.random.default_rng(seed).random((2, 48, 64)).astype(np.float32)
    maps = np.stack(
        [cv2.normalize(cv2.GaussianBlur(one, (0, 0), coarseness), None, 0, 1, cv2.NORM_MINMAX) for one in noise]
    )
    inside = maps[0] > foreground
    markers, count = ndimage.label((maps[1] > core) & inside)
    pieces, _ = ndimage.label(inside)
    without = np.setdiff1d(pieces[inside], pieces[markers > 0])
    for number, piece in enumerate(without, start=count + 1):
        markers[pieces == piece] = number
    expected = watershed(-maps[1], markers=markers, mask=inside)
    np.testing.assert_array_equal(flood(maps[0], maps[1], Thresholds(foreground, core)), expected)


def test_too_many_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 65,534 objects"):
        drop_objects(np.arange(70_000, dtype=np.int32).reshape(700, 100), np.ones((700, 100)))


def test_classes_are_the_most_probable() -> None:
    maps = np.array([[[0.5, 0.2]], [[0.3, 0.2]], [[0.2, 0.6]]], np.float32)
    np.testing.assert_array_equal(label_raster(maps, CLASSES, Thresholds()), [[0, 2]])


def test_tuning_finds_the_threshold_that_the_truth_was_made_with() -> None:
    maps = np.random.default_rng(1).random((3, 1, 40, 40)).astype(np.float32)
    truths = [(one[0] > 0.7).astype(np.uint16) for one in maps]
    thresholds, score = tune(maps.__getitem__, truths.__getitem__, range(3), BINARY)
    assert thresholds.foreground == pytest.approx(0.7)
    assert score == 1.0


def test_tuning_drops_specks_that_the_truth_has_not() -> None:
    truth, maps = two_touching()
    maps[0, 1:3, 1:6] = 1.0
    thresholds, score = tune([maps].__getitem__, [truth].__getitem__, range(1), BOUNDARY)
    assert 10 < thresholds.minimum_size <= 100
    assert score == 1.0


def test_tuning_drops_pale_objects_that_the_truth_has_not() -> None:
    truth, maps = two_touching()
    truth[truth == 2] = 0
    maps[0, 5:15, 15:25] = 0.82
    thresholds, score = tune([maps].__getitem__, [truth].__getitem__, range(1), BOUNDARY)
    assert score == 1.0
    # Either way the pale one goes, and the other stays.
    assert thresholds.certainty in (0.85, 0.9) or thresholds.foreground >= 0.82


def test_what_tuning_scores_is_what_the_thresholds_give() -> None:
    rng = np.random.default_rng(7)
    truth = np.zeros((60, 60), np.uint16)
    for identity, (row, column) in enumerate([(5, 5), (5, 30), (30, 8), (32, 34)], 1):
        truth[row : row + 16, column : column + 15] = identity
    truth[50:, :] = IGNORED
    planes, _ = make_target(truth, "boundary")
    maps = np.clip(cv2.GaussianBlur(planes.transpose(1, 2, 0), (0, 0), 1.5).transpose(2, 0, 1) * 0.95, 0, 1)
    maps[0, 20:27, 50:58] = maps[0, 52:58, 3:20] = 0.8
    maps += 0.05 * rng.random(maps.shape).astype(np.float32)
    maps = np.clip(maps, 0, 1)
    thresholds, score = tune([maps].__getitem__, [truth].__getitem__, range(1), BOUNDARY)
    assert BOUNDARY.score(truth, label_raster(maps, BOUNDARY, thresholds))["ap"] == pytest.approx(score, abs=1e-6)


def test_thresholds_at_which_a_map_is_noise_lose_instead_of_ending_the_tuning() -> None:
    truth = np.zeros((600, 600), np.uint16)
    truth[200:240, 200:240] = 1
    maps = np.zeros((1, 600, 600), np.float32)
    maps[0, ::2, ::2] = 0.6  # 90,000 specks
    maps[0, 200:240, 200:240] = 1.0
    thresholds, score = tune([maps].__getitem__, [truth].__getitem__, range(1), OBJECTS_OF_BINARY)
    assert thresholds.foreground >= 0.6
    assert score == 1.0


def test_ignored_pixels_do_not_count() -> None:
    truth, maps = two_touching()
    truth[truth == 2] = IGNORED
    mask = label_raster(maps, BOUNDARY, Thresholds())
    assert BOUNDARY.score(truth, mask)["ap"] == 1.0
    assert BINARY.score(truth, (mask > 0).astype(np.uint16))["dice"] == 1.0


def test_an_object_takes_the_class_of_the_largest_mean() -> None:
    outputs = Outputs("binary", ("foreground", "class a", "class b"), "sigmoid", "instance")
    objects = np.array([[1, 1, 0], [0, 2, 2]], np.uint16)
    one, other = [[0.9, 0.2, 1], [1, 0.5, 0.1]], [[0.3, 0.4, 0], [0, 0.3, 0.5]]
    maps = np.array([objects > 0, one, other], np.float32)
    assert object_classes(objects, maps, outputs) == [("a", pytest.approx(0.55)), ("b", pytest.approx(0.4))]
    assert object_classes(np.zeros((2, 3), np.uint16), maps, outputs) == []
    assert object_classes(objects, maps[:1], OBJECTS_OF_BINARY) == []


def test_classes_change_nothing_about_the_thresholds() -> None:
    truth, maps = two_touching()
    outputs = Outputs("boundary", ("foreground", "boundary", "class a", "class b"), "sigmoid", "instance")
    more = np.concatenate([maps, np.random.default_rng(0).random((2, *truth.shape)).astype(np.float32)])
    with_classes, without = (
        tune(lambda _, planes=planes: planes, lambda _: truth, [0], one)  # type: ignore[misc]
        for planes, one in ((more, outputs), (maps, BOUNDARY))
    )
    assert with_classes == without and with_classes[1] == 1.0
