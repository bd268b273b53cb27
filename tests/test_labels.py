"""Masks to label rasters: closed cases for every rule, and parity with a plain way of doing the same."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.label_values import Meaning, check_values, survey
from pipeline.labels import check_size, difference, from_object_masks, from_outlines, from_raster, from_runs, refuse_ids
from pipeline.records.findings import FaultyFile
from pipeline.records.outline import Outline
from pipeline.records.rle import encode

WHITE = Meaning("white", None, "")
CLASSES = Meaning("classes", None, "")
OBJECTS = Meaning("objects", None, "")


def square(top: int, left: int, size: int, value: int = 255, shape: tuple[int, int] = (12, 16)) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[top : top + size, left : left + size] = value
    return mask


def joined(*masks: np.ndarray, threshold: int = 127):
    return from_object_masks(((f"{number}.png", mask) for number, mask in enumerate(masks)), masks[0].shape, threshold)


def faults(label) -> list[tuple[str, str]]:
    return [(remark.action, remark.fault) for remark in label.remarks]


def test_objects_are_numbered_in_their_order_without_a_remark() -> None:
    label = joined(square(0, 0, 3), square(5, 5, 2), square(8, 10, 4))
    assert label.count == 3 and label.remarks == () and label.raster.dtype == np.uint16
    assert [int((label.raster == number).sum()) for number in (1, 2, 3)] == [9, 4, 16]


@pytest.mark.parametrize("order", [1, -1])
def test_a_contested_pixel_goes_to_the_smaller_object(order: int) -> None:
    label = joined(*[square(0, 0, 6), square(2, 2, 2)][::order])
    small, large = (2, 1) if order == 1 else (1, 2)
    assert (label.raster[2:4, 2:4] == small).all() and int((label.raster == large).sum()) == 32
    assert faults(label) == [("repaired", "overlapping objects")]
    assert "4 contested pixel(s) went to the smaller object" in label.remarks[0].detail


def test_of_equal_objects_the_first_keeps_the_pixels_and_the_other_is_dropped_and_listed() -> None:
    label = joined(square(0, 0, 3), square(0, 0, 3), square(6, 6, 2))
    assert label.count == 2 and sorted(np.unique(label.raster)) == [0, 1, 2]
    assert faults(label) == [("repaired", "overlapping objects"), ("repaired", "covered object")]
    assert label.remarks[1].detail.startswith("1.png: others hold every pixel")


def test_one_copy_among_many_objects_is_found_in_the_time_that_they_take() -> None:
    corners = [(float(x), float(y)) for y in range(0, 330, 3) for x in range(0, 330, 3)]
    outlines = [Outline((np.array([(x, y), (x + 2, y), (x + 2, y + 2), (x, y + 2)]),)) for x, y in corners]

    def seconds(outlines: list[Outline]) -> float:
        start = time.process_time()
        assert from_outlines(outlines, (330, 330)).count == len(corners)
        return time.process_time() - start

    # Asked of each of n objects which of n are kept, it took ten times as long.
    assert seconds([*outlines, outlines[0]]) < 3 * seconds(outlines) + 0.5


def test_an_object_of_several_pieces_is_noted_and_stays_one() -> None:
    label = joined(square(0, 0, 2) + square(6, 6, 2), square(0, 10, 2))
    assert label.count == 2 and int((label.raster == 1).sum()) == 8
    assert faults(label) == [("noted", "object in pieces")]


def test_pieces_that_touch_at_a_corner_are_one() -> None:
    assert joined(square(0, 0, 2) + square(2, 2, 2)).remarks == ()


def test_an_empty_object_mask_is_dropped_and_listed() -> None:
    label = joined(square(0, 0, 2), np.zeros((12, 16), np.uint8))
    assert label.count == 1 and faults(label) == [("repaired", "empty object mask")]
    assert "1.png: dropped" in label.remarks[0].detail


def test_an_anti_aliased_mask_is_thresholded_and_listed() -> None:
    mask = square(2, 2, 4)
    mask[2, 2:6], mask[5, 2:6] = 127, 128
    label = joined(mask)
    assert int((label.raster > 0).sum()) == 12 and faults(label) == [("repaired", "grey mask")]
    assert int((joined(mask, threshold=100).raster > 0).sum()) == 16


@pytest.mark.parametrize("value", [1, 7])
def test_an_object_mask_with_one_other_value_is_read_as_foreground_and_listed(value: int) -> None:
    label = joined(square(0, 0, 2, value))
    assert label.count == 1 and faults(label) == [("repaired", "other foreground value")]


@pytest.mark.parametrize(
    ("mask", "listed"),
    [
        (square(0, 0, 2) > 0, []),
        (square(0, 0, 2).astype(np.uint16) * 257, []),
        (square(0, 0, 2).astype(np.float32) / 255, [("repaired", "grey mask")]),
        (square(0, 0, 2).astype(np.int32), []),
    ],
    ids=["bool", "uint16", "float32", "int32"],
)
def test_object_masks_of_other_dtypes(mask: np.ndarray, listed: list[tuple[str, str]]) -> None:
    label = joined(mask)
    assert int(label.raster.sum()) == 4 and [entry for entry in faults(label) if entry[1] == "grey mask"] == listed


def test_no_objects_give_an_empty_label() -> None:
    label = from_object_masks([], (3, 4))
    assert label.raster.shape == (3, 4) and not label.raster.any() and label.count == 0


def test_more_objects_than_16_bits_hold_are_refused() -> None:
    one = np.full((1, 1), 255, np.uint8)
    with pytest.raises(FaultyFile, match="at most 65,534, as 16 bits hold, found 65,535; cut the image"):
        from_object_masks((("m", one) for _ in range(65_535)), (1, 1))


@settings(deadline=None)
@given(arrays(np.bool_, st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 7))))
def test_parity_with_a_plain_loop(stack: np.ndarray) -> None:
    label = joined(*(mask.astype(np.uint8) * 255 for mask in stack))
    areas = stack.sum((1, 2))
    plain = np.zeros(stack.shape[1:], int)
    for y, x in np.ndindex(plain.shape):
        claims = [number for number in range(len(stack)) if stack[number, y, x]]
        if claims:
            plain[y, x] = 1 + min(claims, key=lambda number: (areas[number], number))
    kept = np.unique(plain[plain > 0])
    expected = np.zeros_like(plain)
    for new, old in enumerate(kept, start=1):
        expected[plain == old] = new
    np.testing.assert_array_equal(label.raster, expected)
    assert label.count == kept.size


@pytest.mark.parametrize(
    ("shape", "fault", "found"),
    [((16, 12), "transposed", r"16 x 12 \(transposed\)"), ((12, 15), "size mismatch", "12 x 15")],
)
def test_a_mask_of_another_size_is_refused(shape: tuple[int, int], fault: str, found: str) -> None:
    with pytest.raises(FaultyFile, match=rf"{fault}: expected the image's height x width 12 x 16, found {found}"):
        from_object_masks([("m", np.zeros(shape, np.uint8))], (12, 16))
    check_size((12, 16), (12, 16, 3))


def test_runs_give_what_masks_give() -> None:
    masks = [square(0, 0, 3), square(5, 5, 2), square(8, 10, 4)]
    runs = from_runs([encode(mask > 0) for mask in masks], (12, 16))
    np.testing.assert_array_equal(runs.raster, joined(*masks).raster)
    assert runs.count == 3 and runs.remarks == ()


def test_overlapping_runs_go_by_the_same_rule() -> None:
    masks = [square(0, 0, 6), square(2, 2, 2)]
    runs = from_runs([encode(mask > 0) for mask in masks], (12, 16))
    np.testing.assert_array_equal(runs.raster, joined(*masks).raster)
    assert faults(runs) == [("repaired", "overlapping objects")]


def test_empty_rows_are_no_objects_and_faulty_rows_are_refused() -> None:
    assert from_runs(["", " "], (4, 4)).count == 0
    with pytest.raises(FaultyFile, match=r"faulty run-length row: .*row 2: .*within 4 x 4 = 16 pixels.*row 3"):
        from_runs(["1 2", "16 2", "x"], (4, 4))


def test_the_same_objects_under_other_ids_do_not_differ() -> None:
    one = joined(square(0, 0, 3), square(5, 5, 2)).raster
    other = joined(square(5, 5, 2), square(0, 0, 3)).raster
    assert difference(one, one) is None and difference(one, other) is None


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ((square(0, 0, 3),), "2 objects against 1, 4 pixels are foreground in one only"),
        ((square(0, 0, 3), square(5, 5, 3)), "2 objects against 2, 5 pixels"),
        ((square(0, 0, 3) + square(5, 5, 2),), "2 objects against 1, 0 pixels"),
    ],
    ids=["missing", "larger", "merged"],
)
def test_how_two_labels_differ(masks: tuple[np.ndarray, ...], words: str) -> None:
    found = difference(joined(square(0, 0, 3), square(5, 5, 2)).raster, joined(*masks).raster)
    assert found is not None and words in found


def test_rasters_under_each_meaning() -> None:
    plane = np.zeros((6, 8), np.uint16)
    plane[0:2, 0:2], plane[3:5, 0:2], plane[3:5, 5:7] = 7, 300, 9
    objects = from_raster(plane, OBJECTS)
    assert objects.count == 3 and objects.remarks == () and objects.raster[0, 0] == 1 and objects.raster[3, 0] == 3
    classes = from_raster(np.minimum(plane, 9), CLASSES)
    assert sorted(np.unique(classes.raster)) == [0, 7, 9] and classes.count == 2
    white = from_raster((plane > 0).astype(np.uint8) * 255, WHITE)
    assert sorted(np.unique(white.raster)) == [0, 1] and white.count == 1 and white.remarks == ()
    assert int(from_raster((plane > 0).astype(np.uint16) * 65535, WHITE).raster.sum()) == 12


def test_grey_rasters_are_thresholded_and_listed_and_empty_ones_noted() -> None:
    plane = np.array([[0, 100, 200, 255]], np.uint8)
    label = from_raster(plane, WHITE)
    assert label.raster.tolist() == [[0, 0, 1, 1]] and faults(label) == [("repaired", "grey mask")]
    assert "2 pixel(s) between black and white, thresholded above 127" in label.remarks[0].detail
    assert from_raster(plane, WHITE, threshold=99).raster.tolist() == [[0, 1, 1, 1]]
    for meaning in (WHITE, CLASSES, OBJECTS):
        assert faults(from_raster(np.zeros((2, 2), np.uint8), meaning)) == [("noted", "empty label")]


@pytest.mark.parametrize("quality", [75, 90, 95, 97, 98, 99])
def test_small_masks_of_jpeg_and_soft_edges_are_of_one_object(quality: int) -> None:
    generator = np.random.default_rng(quality)
    for number in range(60):
        mask = np.zeros((128, 128), np.uint8)
        axes = [int(side) for side in generator.integers(1, 7, 2)]
        place = tuple(int(side) for side in generator.integers(12, 116, 2))
        cv2.ellipse(mask, place, axes, float(generator.uniform(0, 180)), 0, 360, 255, -1)
        packed = cv2.imencode(".jpg", mask, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        refuse_ids(cv2.imdecode(packed, cv2.IMREAD_GRAYSCALE))
        soft = cv2.GaussianBlur(mask, (0, 0), 1.0) if number % 2 else cv2.resize(cv2.resize(mask, (96, 96)), (128, 128))
        refuse_ids(soft)
        refuse_ids((soft * (200 / 255)).astype(np.uint8))
    fibre = np.zeros((40, 60), np.uint8)
    fibre[10, 5:45], fibre[11, 5:45] = 120, 200
    refuse_ids(fibre)
    refuse_ids(fibre.T)


@pytest.mark.parametrize("count", [2, 5, 40, 250, 1000])
def test_ids_of_several_objects_are_told_from_shades(count: int) -> None:
    side = 4 * int(np.ceil(np.sqrt(count)))
    rows, columns = np.mgrid[:side, :side] // 4
    ids = rows * (side // 4) + columns + 1
    raster = np.where((ids <= count) & (np.mgrid[:side, :side] % 4 < 3).all(axis=0), ids, 0).astype(np.uint16)
    with pytest.raises(FaultyFile, match="ids in a mask of one object"):
        refuse_ids(raster if count > 255 else raster.astype(np.uint8))


def test_ids_beyond_16_bits_are_renumbered_and_too_many_are_refused() -> None:
    plane = np.array([[0, 70_000, 1_000_000]], np.int32)
    assert from_raster(plane, OBJECTS).raster.tolist() == [[0, 1, 2]]
    with pytest.raises(FaultyFile, match="too many objects: expected at most 65,534"):
        check_values(survey(np.arange(65_536, dtype=np.int32).reshape(256, 256)), OBJECTS)


def test_an_object_id_in_pieces_is_noted() -> None:
    plane = np.array([[1, 0, 1, 0, 2]], np.uint16)
    assert faults(from_raster(plane, OBJECTS)) == [("noted", "object in pieces")]


@settings(deadline=None, max_examples=50)
@given(arrays(np.uint16, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(0, 65534)))
def test_renumbering_keeps_the_objects(plane: np.ndarray) -> None:
    label = from_raster(plane, Meaning("objects", None, "")) if not survey(plane).only_white else None
    if label is not None:
        assert difference(label.raster, plane) is None
        assert sorted(np.unique(label.raster[label.raster > 0])) == list(range(1, label.count + 1))
