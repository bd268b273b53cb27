"""The run-length codec: known texts, faults by name, and round trips of whatever masks hypothesis finds."""

from __future__ import annotations

import re
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.records import rle
from pipeline.records.case import IGNORED

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=17)


def plain_encode(mask: np.ndarray) -> str:
    """Kaggle's definition, pixel by pixel."""
    runs: list[int] = []
    previous = -2
    for number in np.flatnonzero(mask.T.ravel()) + 1:
        if number > previous + 1:
            runs.extend((int(number), 0))
        runs[-1] += 1
        previous = int(number)
    return " ".join(map(str, runs))


def test_numbers_run_down_the_columns_from_one() -> None:
    mask = np.zeros((3, 4), bool)
    mask[1:, 0] = True
    mask[0, 1] = True
    mask[2, 3] = True
    assert rle.encode(mask) == "2 3 12 1"


@pytest.mark.parametrize(
    ("pixels", "text"),
    [([], ""), ([(0, 0)], "1 1"), ([(2, 4)], "15 1"), ([(0, 0), (2, 4)], "1 1 15 1"), ([(2, 0), (0, 1)], "3 2")],
    ids=["empty", "first pixel", "last pixel", "both ends", "over the column's end"],
)
def test_known_masks(pixels: list[tuple[int, int]], text: str) -> None:
    mask = np.zeros((3, 5), bool)
    for pixel in pixels:
        mask[pixel] = True
    assert rle.encode(mask) == text
    assert np.array_equal(rle.decode(text, 3, 5), mask)


def test_full_mask_is_one_run() -> None:
    assert rle.encode(np.ones((7, 3), bool)) == "1 21"
    assert rle.decode("1 21", 7, 3).all()


@given(hnp.arrays(bool, SHAPES))
def test_masks_come_back(mask: np.ndarray) -> None:
    text = rle.encode(mask)
    assert text == plain_encode(mask)
    assert np.array_equal(rle.decode(text, *mask.shape), mask)
    numbers = np.array(text.split(), int)
    starts, lengths = numbers[0::2], numbers[1::2]
    assert (starts[1:] > starts[:-1] + lengths[:-1]).all(), "starts rise, with gaps"
    assert lengths.sum() == mask.sum() <= mask.size


@given(hnp.arrays(np.uint16, SHAPES, elements=st.sampled_from([0, 0, 1, 2, 7, 300, 65534, IGNORED])))
def test_labels_come_back(labels: np.ndarray) -> None:
    rows = rle.encode_labels(labels)
    assert rows == {
        int(name): rle.encode(labels == name) for name in np.unique(labels) if name not in (0, IGNORED)
    }  # fmt: skip
    expected = np.where(labels == IGNORED, 0, labels)
    assert np.array_equal(rle.decode_labels(rows, *labels.shape), expected)
    renumbered = rle.decode_labels(rows.values(), *labels.shape)
    assert renumbered.dtype == np.uint16
    for number, name in enumerate(rows, start=1):
        assert np.array_equal(renumbered == number, labels == name)


@settings(max_examples=200)
@given(st.text(alphabet="0123456789 -.x\n", max_size=12))
def test_any_text_decodes_or_is_refused(text: str) -> None:
    try:
        mask = rle.decode(text, 4, 6)
    except ValueError:
        return
    assert mask.sum() == sum(map(int, text.split()[1::2]))


def test_blocks_of_columns_join(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(5).integers(0, 3, (6, 20)).astype(np.uint16)
    labels[:, 3:9] = 2
    whole = rle.encode_labels(labels)
    monkeypatch.setattr(rle, "_BLOCK_PIXELS", 13)
    assert rle.encode_labels(labels) == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2 3", "odd count of numbers, 3"),
        ("1 two", "'two'"),
        ("1 2.0", r"'2\.0'"),
        ("-1 2", "'-1'"),
        ("nan", "'nan'"),
        ("\u0661 2", "whole numbers"),
        ("1 " + "9" * 40, "whole numbers"),
        ("0 2", "1 and above, found '0 2'"),
        ("3 0", "1 and above, found '3 0'"),
        ("20 6", "within 4 x 6 = 24 pixels, found '20 6'"),
        ("25 1", "within 4 x 6 = 24 pixels, found '25 1'"),
        ("9 2 1 2", "falling runs: 9 2 then 1 2"),
        ("1 5 3 2", "overlapping runs: 1 5 then 3 2"),
        ("1 1 1 1", "overlapping runs: 1 1 then 1 1"),
    ],
)
def test_faults_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rle.decode(text, 4, 6)


def test_touching_runs_are_taken() -> None:
    assert np.flatnonzero(rle.decode("2 2 4 1", 4, 6).T.ravel()).tolist() == [1, 2, 3]


def test_overlapping_objects_are_named() -> None:
    with pytest.raises(ValueError, match=r"objects 1 and 2 both claim pixel 6 \(row 1, column 1\)"):
        rle.decode_labels(["1 8", "6 1"], 4, 6)
    with pytest.raises(ValueError, match="objects 1 and 3 both claim pixel 10"):
        rle.decode_labels(["1 12", "20 1", "10 1"], 4, 6)


def test_all_faulty_rows_are_listed() -> None:
    with pytest.raises(ValueError, match=r"object 1: .*odd.*object 3: .*'x'"):
        rle.decode_labels(["1", "3 1", "x 1"], 4, 6)


def test_an_empty_row_keeps_its_number() -> None:
    assert rle.decode_labels(["1 1", "", "3 1"], 2, 2).tolist() == [[1, 3], [0, 0]]
    assert not rle.decode_labels([], 2, 2).any()


def test_wrong_rasters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"bool mask, found uint8"):
        rle.encode(np.zeros((2, 2), np.uint8))
    with pytest.raises(ValueError, match=r"integer labels, found float32"):
        rle.encode_labels(np.zeros((2, 2), np.float32))
    with pytest.raises(ValueError, match="found -1"):
        rle.encode_labels(np.full((2, 2), -1))
    with pytest.raises(ValueError, match=r"expected 1\.\.65534"):
        rle.decode_labels({IGNORED: "1 1"}, 2, 2)


def test_a_crowded_image_takes_milliseconds() -> None:
    labels = np.zeros((1000, 1000), np.uint16)
    labels[:] = (np.arange(1000)[:, None] // 20 * 50 + np.arange(1000)[None] // 20 + 1).astype(np.uint16)
    labels[::20] = labels[:, ::20] = 0
    start = time.perf_counter()
    rows = rle.encode_labels(labels)
    assert len(rows) == 2500
    assert time.perf_counter() - start < 1.0


@pytest.mark.real
def test_the_competitions_own_runs_equal_its_masks(dsb2018: Path) -> None:
    wanted: dict[str, list[str]] = {}
    for line in (dsb2018 / "stage1_train_labels.csv").read_text().splitlines()[1:400]:
        name, text = line.split(",")
        wanted.setdefault(name, []).append(text)
    compared = 0
    with zipfile.ZipFile(dsb2018 / "stage1_train.zip") as archive:
        files = [name for name in archive.namelist() if "/masks/" in name and name.endswith(".png")]
        for image in list(wanted)[:3]:
            masks = [
                cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_GRAYSCALE) > 0
                for name in files
                if f"{image}/masks/" in name
            ]
            texts = {rle.encode(mask) for mask in masks}
            assert texts == set(wanted[image])
            compared += len(texts)
    assert compared > 20


@given(hnp.arrays(bool, SHAPES))
def test_cocos_letters_are_those_of_pycocotools_and_come_back(mask: np.ndarray) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    letters = rle.encode_coco(mask)
    assert letters == coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert (rle.decode_coco(letters, *mask.shape) == mask).all()


def test_cocos_letters_of_a_large_mask_need_several_each() -> None:
    mask = np.zeros((700, 900), bool)
    mask[100:650, 3:880] = True
    mask[200:210, 500:510] = False
    coco = pytest.importorskip("pycocotools.mask")
    letters = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    assert rle.encode_coco(mask) == letters
    assert (rle.decode_coco(letters, 700, 900) == mask).all()


@given(st.binary(max_size=12), st.integers(1, 9), st.integers(1, 9))
def test_any_letters_of_coco_decode_or_are_refused(letters: bytes, height: int, width: int) -> None:
    try:
        mask = rle.decode_coco(letters, height, width)
    except ValueError:
        return
    assert mask.shape == (height, width)


@pytest.mark.parametrize(
    ("letters", "found"),
    [
        (b"oooooooooooooooooooo0", "at most 12 letters, found one that begins b'ooooooooooooo'"),
        (b"5" + b"o" * 100_000 + b"0", "at most 12 letters, found one that begins b'ooooooooooooo'"),
        (b"oooooooooooO" * 2, "found -1, -1"),
        (b"ooooooooooo?" * 3, "6 x 4 pixels together, found"),
        (b"4D", "found -12"),
    ],
)
def test_numbers_of_cocos_letters_beyond_any_image_are_refused(letters: bytes, found: str) -> None:
    with pytest.raises(ValueError, match=re.escape(found)):
        rle.decode_coco(letters, 6, 4)


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ([1e30, 5], "expected runs of 6 x 4 pixels together, found 1e+30"),
        ([2**62, 2**62, 2**62, 2**62 + 24], "6 x 4 pixels together, found 1.84467440737096e+19"),
        ([10**400, 5], "6 x 4 pixels together, found one of more than 1e308"),
        ([float("inf"), 5], "6 x 4 pixels together, found inf"),
        ([float("nan"), None], "expected lengths that are whole numbers from 0 on, found nan, nan"),
        ([30, -6], "expected lengths that are whole numbers from 0 on, found -6"),
        ([10.5, 13.5], "expected lengths that are whole numbers from 0 on, found 10.5, 13.5"),
        ([20, 5], "expected runs of 6 x 4 pixels together, found 25"),
    ],
)
def test_listed_counts_that_no_image_of_the_size_has_are_refused(counts: list[float], found: str) -> None:
    with pytest.raises(ValueError, match=re.escape(found)):
        rle.decode_counts(counts, 6, 4)
    assert rle.decode_counts([10.0, 14], 6, 4).sum() == 14


@given(hnp.arrays(bool, SHAPES), st.integers(1, 4))
def test_few_pixels_are_decoded_as_of_the_whole(mask: np.ndarray, step: int) -> None:
    height, width = mask.shape
    shape = max(1, round(height / step)), max(1, round(width / step))
    rows, columns = (
        np.minimum(((np.arange(few) + 0.5) * many / few).astype(int), many - 1)
        for few, many in zip(shape, mask.shape, strict=True)
    )
    found = rle.decode_sampled(rle.encode(mask), height, width, shape)
    assert (found == mask[rows][:, columns]).all()
