"""Layers and pictures: closed shapes whose path is known, paths drawn back to the mask, bytes within a budget."""

from __future__ import annotations

import base64
import io
import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.records.case import IGNORED
from pipeline.reporting.overlays import PAINT, draw_outlines, embed_image, trace, trace_layers


def polygons(path: str) -> list[np.ndarray]:
    """Corners of each closed piece of a path, (n, 2) in units of half a pixel."""
    found = []
    for piece in path.split("z")[:-1]:
        start, _, steps = piece.removeprefix("M").partition("l")
        numbers = [int(number) for number in re.findall(r"-?\d+", start.removesuffix("h0") + " " + steps)]
        found.append(np.cumsum(np.reshape(numbers, (-1, 2)), axis=0))
    return found


def test_rectangle_has_the_path_worked_out_by_hand() -> None:
    labels = np.zeros((6, 8), np.uint16)
    labels[1:3, 2:5] = 7
    # Doubled, the object covers columns 4 to 9 and rows 2 to 5.
    assert trace(labels) == "M4 2l0 3 5 0 0-3z"


def test_one_pixel_is_a_square_and_a_hole_is_traced() -> None:
    labels = np.zeros((5, 5), np.uint16)
    labels[4, 4] = 1
    assert [len(corners) for corners in polygons(trace(labels, tolerance=0.0))] == [4]
    labels[:] = 1
    labels[2, 2] = 0
    assert len(polygons(trace(labels))) == 2


def test_only_the_wanted_ids_are_traced() -> None:
    labels = np.zeros((4, 9), np.uint16)
    labels[:, 0:2], labels[:, 3:5], labels[:, 6:8] = 3, 9, 40
    assert [corners[0].tolist() for corners in polygons(trace(labels, [9, 40]))] == [[6, 0], [12, 0]]
    assert trace(labels, []) == "" == trace(np.zeros((3, 3), np.uint16))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=8),
    st.sampled_from(["<u2", "<i4", "|u1"]),
)
def test_a_path_drawn_back_is_the_object(disks: list[tuple[int, int, int]], kind: str) -> None:
    labels = np.zeros((31, 41), kind)
    for number, (row, column, radius) in enumerate(disks, start=1):
        rows, columns = np.ogrid[:31, :41]
        labels[(rows - row) ** 2 + (columns - column) ** 2 <= radius**2] = number
    for number in np.unique(labels[labels > 0]):
        drawn = np.zeros((62, 82), np.uint8)
        doubled = (labels == number).repeat(2, axis=0).repeat(2, axis=1)
        pieces: list[np.ndarray] = []
        holes: list[np.ndarray] = []
        for corners in polygons(trace(labels, [int(number)], tolerance=0.0)):
            turning = cv2.contourArea(corners.astype(np.float32), oriented=True)
            (holes if turning > 0 else pieces).append(corners.astype(np.int32))
        for corners in pieces:
            cv2.fillPoly(drawn, [corners], 1)
        # The path of a hole runs along the object's own pixels, which stay inside.
        for corners in holes:
            hole = np.zeros_like(drawn)
            cv2.fillPoly(hole, [corners], 1)
            cv2.polylines(hole, [corners], True, 0)
            drawn[hole > 0] = 0
        assert drawn.any()
        # What another object inside a hole covers was cut out with the hole, which is right as well.
        assert np.array_equal(drawn[doubled], np.ones(doubled.sum(), np.uint8))
        assert not drawn[~doubled].any()


def test_each_kind_of_error_is_traced_on_its_own_side() -> None:
    truth, prediction = np.zeros((20, 60), np.uint16), np.zeros((20, 60), np.uint16)
    truth[2:8, 2:8] = 1  # missed
    prediction[12:18, 2:8] = 2  # spurious
    truth[2:8, 20:26], truth[2:8, 26:32] = 3, 4
    prediction[2:8, 20:32] = 5  # merged
    truth[2:8, 40:52] = 6  # split
    prediction[2:8, 40:46], prediction[2:8, 46:52] = 7, 8
    drawn = trace_layers(truth, prediction, objects=True)
    assert drawn.errors == {
        "missed": trace(truth, [1]),
        "spurious": trace(prediction, [2]),
        "merged": trace(prediction, [5]),
        "split": trace(truth, [6]),
    }
    assert (drawn.height, drawn.width) == (20, 60)
    assert drawn.truth == trace(truth) and drawn.prediction == trace(prediction) and drawn.ignored == ""


def test_regions_of_classes_that_differ() -> None:
    truth, prediction = np.zeros((20, 60), np.uint16), np.zeros((20, 60), np.uint16)
    truth[2:12, 2:12] = 1
    prediction[2:12, 20:30] = 1
    truth[2:12, 40:50], prediction[2:12, 40:50] = 1, 2
    truth[14:19, 2:30], prediction[14:19, 3:30] = 1, 1  # a seam of one pixel is no error to look at
    errors = trace_layers(truth, prediction, objects=False).errors
    assert {kind: len(polygons(path)) for kind, path in errors.items()} == {"missed": 1, "spurious": 1, "confused": 1}


@pytest.mark.parametrize("objects", [True, False])
def test_ignored_pixels_are_on_neither_side(objects: bool) -> None:
    truth, prediction = np.zeros((12, 12), np.uint16), np.zeros((12, 12), np.uint16)
    truth[2:10, 2:10] = IGNORED
    prediction[3:9, 3:9] = 1
    drawn = trace_layers(truth, prediction, objects=objects)
    assert drawn.truth == drawn.prediction == "" and set(drawn.errors.values()) == {""}
    assert len(polygons(drawn.ignored)) == 1
    prediction[3:11, 3:9] = 1
    drawn = trace_layers(truth, prediction, objects=objects)
    assert len(polygons(drawn.prediction)) == 1 and set(drawn.errors.values()) == {""}


def test_outlines_are_painted_inside_and_shaded_outside() -> None:
    image, labels = np.full((7, 9, 3), 200, np.uint8), np.zeros((7, 9), np.uint16)
    labels[2:5, 2:5], labels[2:5, 5:8] = 1, 2
    painted = draw_outlines(image, labels)
    bright = (painted == PAINT).all(axis=2)
    assert np.argwhere((labels > 0) & ~bright).tolist() == [[3, 3], [3, 6]]
    shaded = (painted == 100).all(axis=2)
    assert np.argwhere(shaded)[:, 0].tolist() == [1] * 6 + [2, 2, 3, 3, 4, 4] + [5] * 6
    assert (painted[~bright & ~shaded] == 200).all() and (image == 200).all()


def test_an_image_without_objects_or_full_of_one_is_not_painted() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    for value in (0, 1):
        assert np.array_equal(draw_outlines(image, np.full((5, 6), value, np.uint16)), image)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"one shape, found \(3, 4\) and \(4, 3\)"):
        trace_layers(np.zeros((3, 4), np.uint16), np.zeros((4, 3), np.uint16), objects=True)
    with pytest.raises(ValueError, match=r"size \(3, 4\), found \(4, 3\)"):
        draw_outlines(np.zeros((3, 4, 3), np.uint8), np.zeros((4, 3), np.uint16))


@pytest.mark.parametrize(("shape", "budget"), [((40, 60), 50_000), ((500, 1500), 30_000), ((3000, 900), 20_000)])
def test_pictures_fit_their_budget(shape: tuple[int, int], budget: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    uri, scale = embed_image(noise, budget)
    encoded = base64.b64decode(uri.removeprefix("data:image/webp;base64,"))
    assert len(encoded) <= budget
    with Image.open(io.BytesIO(encoded)) as shown:
        assert shown.format == "WEBP"
        assert shown.size == (round(shape[1] * scale), round(shape[0] * scale))
    assert (scale == 1.0) == (shape == (40, 60))
    assert embed_image(noise, budget) == (uri, scale)
