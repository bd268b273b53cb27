"""Targets: channels by hand, touching objects, ignored pixels, and the place of a network's output."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage import measure

from pipeline.records.case import IGNORED
from pipeline.targets import (
    SIGMOID_CHANNELS,
    _distances,
    border_weights,
    channels_of,
    class_planes,
    fit_target,
    make_target,
)


def two_touching() -> np.ndarray:
    """Two squares of 9x9 side by side, without a gap."""
    label = np.zeros((15, 24), np.uint16)
    label[3:12, 3:12], label[3:12, 12:21] = 7, 9
    return label


def discs(seed: int, size: int = 96, count: int = 25) -> np.ndarray:
    generator = np.random.default_rng(seed)
    label = np.zeros((size, size), np.uint16)
    for identity in range(1, count + 1):
        row, column, radius = (*generator.integers(0, size, 2).tolist(), int(generator.integers(2, 9)))
        cv2.circle(label, (column, row), radius, identity, -1)
    return label


def test_names_of_channels() -> None:
    assert channels_of("binary") == ("foreground",)
    assert channels_of("boundary_distance") == ("foreground", "boundary", "distance")
    assert channels_of("classes", 2) == ("background", "class 1", "class 2")
    with pytest.raises(ValueError, match="expected one of classes, binary"):
        channels_of("auto")


@pytest.mark.parametrize("target", SIGMOID_CHANNELS)
def test_one_plane_a_channel(target: str) -> None:
    planes, valid = make_target(two_touching(), target)
    assert planes.shape == (len(channels_of(target)), 15, 24)
    assert planes.dtype == np.float32
    assert valid.all()
    np.testing.assert_array_equal(planes[0], two_touching() > 0)


def test_touching_objects_have_a_boundary_on_both_sides() -> None:
    (_, boundary), _ = make_target(two_touching(), "boundary")
    row = [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    np.testing.assert_array_equal(boundary[7], row)


def test_a_small_object_keeps_an_interior() -> None:
    for side in range(1, 8):
        label = np.zeros((12, 12), np.uint16)
        label[2 : 2 + side, 2 : 2 + side] = 1
        (foreground, boundary), _ = make_target(label, "boundary")
        assert (foreground > boundary).any()


def test_distance_is_the_same_wherever_the_raster_lies() -> None:
    """Bit for bit the root of a whole number, where OpenCV's own differs between two places in memory."""
    side = np.arange(320, dtype=np.float32) ** 2
    exact = np.sqrt(np.add.outer(side, side))
    for shift in range(0, 64, 7):
        inside = np.ones(exact.size + shift, np.uint8)[shift:].reshape(exact.shape)
        inside[0, 0] = 0
        np.testing.assert_array_equal(_distances(inside), exact)


def test_distance_of_touching_squares() -> None:
    (_, _, distance), _ = make_target(two_touching(), "boundary_distance")
    rise = (np.arange(5) + 0.5) / 4.5
    np.testing.assert_allclose(
        distance[7], np.concatenate([np.zeros(3), rise, rise[3::-1], rise, rise[3::-1], np.zeros(3)])
    )


@pytest.mark.parametrize("seed", range(3))
def test_distance_is_that_of_each_object_alone(seed: int) -> None:
    # A disc that another one cut in two is two objects.
    label = measure.label(discs(seed), background=0, connectivity=2).astype(np.uint16)
    (_, _, distance), _ = make_target(label, "boundary_distance")
    for identity in np.unique(label[label > 0]):
        alone = label == identity
        assert distance[alone].max() == 1.0
        # Alone, at three times the size: to the nearest pixel outside, in thirds of a pixel, edges included.
        large = cv2.copyMakeBorder(alone.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE).repeat(3, 0).repeat(3, 1)
        exact = (cv2.distanceTransform(large, cv2.DIST_L2, cv2.DIST_MASK_PRECISE) - 0.5)[1::3, 1::3][1:-1, 1:-1] / 3
        largest = exact[alone].max()
        np.testing.assert_allclose(distance[alone], exact[alone] / largest, rtol=0, atol=0.5 / largest)


def test_offsets_run_from_one_side_of_an_object_to_the_other() -> None:
    (_, down, right), _ = make_target(two_touching(), "offsets")
    across = (np.arange(9) - 4) / 4
    np.testing.assert_allclose(2 * right[7, 3:21] - 1, [*across, *across], atol=1e-6)
    np.testing.assert_allclose(2 * down[3:12, 7] - 1, across, atol=1e-6)


def test_each_piece_of_an_object_has_offsets_of_its_own() -> None:
    # A crop that shows more than the image mirrors what lies near the edge, under the same id.
    label = np.zeros((21, 40), np.uint16)
    label[6:15, 3:12] = label[6:15, 25:34] = 7
    (_, down, right), _ = make_target(label, "offsets")
    across = (np.arange(9) - 4) / 4
    for left in (3, 25):
        np.testing.assert_allclose(2 * right[10, left : left + 9] - 1, across, atol=1e-6)
    np.testing.assert_allclose(2 * down[6:15, 30] - 1, across, atol=1e-6)


def test_an_object_that_fills_the_raster() -> None:
    planes, _ = make_target(np.full((16, 16), 5, np.uint16), "boundary_distance")
    np.testing.assert_array_equal(planes[0], 1)
    np.testing.assert_array_equal(planes[1], 0)
    np.testing.assert_array_equal(planes[2], 1)


def test_an_empty_raster() -> None:
    planes, valid = make_target(np.zeros((5, 6), np.uint16), "boundary_distance")
    assert valid.all()
    assert not planes.any()


def test_ignored_pixels_are_invalid_and_no_edge() -> None:
    label = np.full((9, 20), 3, np.uint16)
    label[:, :2], label[:, 12:] = 0, IGNORED
    planes, valid = make_target(label, "boundary_distance")
    np.testing.assert_array_equal(valid, label != IGNORED)
    assert not planes[:, ~valid].any()
    np.testing.assert_array_equal(planes[1, 4], [0, 0, 1, 1] + [0] * 16)
    assert planes[2, 4, 11] == 1.0


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.uint16, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.sampled_from([0, 1, 2, IGNORED])
    )
)
def test_planes_agree_with_each_other(label: np.ndarray) -> None:
    (foreground, boundary, distance), valid = make_target(label, "boundary_distance")
    np.testing.assert_array_equal(foreground > 0, (label > 0) & valid)
    assert ((boundary == 0) | (foreground == 1)).all()
    np.testing.assert_array_equal(distance > 0, foreground > 0)
    assert distance.max(initial=0) <= 1
    mirrored, _ = make_target(np.ascontiguousarray(label[::-1, ::-1]), "boundary_distance")
    np.testing.assert_allclose(mirrored[:, ::-1, ::-1], [foreground, boundary, distance])


def test_classes() -> None:
    label = np.array([[0, 1, 2], [IGNORED, 2, 0]], np.uint16)
    ids, valid = make_target(label, "classes", 2)
    assert ids.dtype == np.int64
    np.testing.assert_array_equal(ids, [[[0, 1, 2], [0, 2, 0]]])
    np.testing.assert_array_equal(valid, [[True, True, True], [False, True, True]])
    with pytest.raises(ValueError, match="class ids up to 1, found 2"):
        make_target(label, "classes", 1)


def test_class_planes_hold_the_objects_of_each_class() -> None:
    label = np.array([[0, 1, 2, 3, IGNORED]], np.uint16)
    planes = class_planes(label, ["b", "a", "c"], ["a", "b"])
    assert planes.dtype == np.float32
    np.testing.assert_array_equal(planes, [[[0, 0, 1, 0, 0]], [[0, 1, 0, 0, 0]]])
    with pytest.raises(ValueError, match="a class for every object, found 2 and the object 3"):
        class_planes(label, ["b", "a"], ["a", "b"])


@pytest.mark.parametrize("seed", range(2))
def test_border_weights_are_equation_2(seed: int) -> None:
    label = discs(seed, size=64, count=6)
    label[:3, :3] = IGNORED
    ids = [identity for identity in np.unique(label) if identity not in (0, IGNORED)]
    rows, columns = np.indices(label.shape)
    distances = []
    for identity in ids:
        inside = np.argwhere(label == identity)
        squared = (rows[..., np.newaxis] - inside[:, 0]) ** 2 + (columns[..., np.newaxis] - inside[:, 1]) ** 2
        distances.append(np.sqrt(squared.min(axis=-1)))
    first, second = np.sort(distances, axis=0)[:2]
    expected = np.exp(-((first + second) ** 2) / 50.0)
    expected[label == IGNORED] = 0
    np.testing.assert_allclose(border_weights(label), expected, atol=4e-4)
    assert border_weights(label).max() > 0.1


def test_border_weights_need_two_objects() -> None:
    label = np.zeros((32, 32), np.uint16)
    assert not border_weights(label).any()
    label[4:9, 4:9] = 1
    assert not border_weights(label).any()
    label[4:9, 9:14] = 2
    assert border_weights(label)[6, 8] == pytest.approx(np.exp(-1 / 50))


def test_unpadded_output_meets_the_label() -> None:
    target = np.arange(600, dtype=np.float32).reshape(1, 20, 30)
    valid = np.ones((20, 30), bool)
    cropped, kept = fit_target(target, valid, margin=4, stride=1, size=(11, 21))
    np.testing.assert_array_equal(cropped, target[:, 4:15, 4:25])
    assert kept.shape == (11, 21)


def test_coarse_output_is_the_mean_of_what_counts() -> None:
    target = np.zeros((1, 4, 5), np.float32)
    target[0, 0, :2] = 1
    target[0, :, 4] = 1
    valid = np.ones((4, 5), bool)
    valid[1, :2] = False
    valid[2:, 2:4] = False
    reduced, counted = fit_target(target, valid, margin=0, stride=2, size=(2, 3))
    np.testing.assert_array_equal(reduced, [[[1, 0, 1], [0, 0, 1]]])
    np.testing.assert_array_equal(counted, [[True, True, True], [True, False, True]])


def test_coarse_classes_are_the_most_frequent() -> None:
    ids = np.array([[[1, 1, 2, 0], [2, 0, 2, 0], [3, 3, 1, 2], [0, 0, 2, 1]]])
    valid = np.ones((4, 4), bool)
    valid[2, :2] = False
    reduced, counted = fit_target(ids, valid, margin=0, stride=2, size=(2, 2))
    np.testing.assert_array_equal(reduced, [[[1, 0], [0, 1]]])
    assert reduced.dtype == ids.dtype
    assert counted.all()


def test_output_beyond_the_label_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 21x9 pixels for an output of 21x9"):
        fit_target(np.zeros((1, 20, 30), np.float32), np.ones((20, 30), bool), margin=0, stride=1, size=(21, 9))
