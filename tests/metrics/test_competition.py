"""The competitions' scores on closed cases, held against the per-pixel scores, and every fault by name."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pipeline.metrics.competition import _score_mask, print_score, score_submission
from pipeline.metrics.instance import average_precision, overlaps
from pipeline.metrics.pixel import confusion
from pipeline.records import rle


def lines(file: Path, *rows: str) -> Path:
    file.write_text("\n".join(rows) + "\n")
    return file


@pytest.fixture
def solution(tmp_path: Path) -> Path:
    """Image one: two nuclei in a 20 x 30 raster; image two: none; image three: not scored."""
    return lines(
        tmp_path / "solution.csv",
        "ImageId,EncodedPixels,Height,Width,Usage",
        "one,1 10 21 10,20,30,Public",
        "one,101 4,20,30,Public",
        "two,,20,30,Private",
        "three,1 1,0,0,Ignored",
    )


HEADER = "ImageId,EncodedPixels"


def test_perfect(tmp_path: Path, solution: Path) -> None:
    score = score_submission(
        solution, lines(tmp_path / "s.csv", HEADER, "two,", "one,101 4", "one,1 10 21 10", "three,7 1")
    )
    assert (score.format, score.mean, score.by_stratum) == ("dsb2018", 1.0, {})
    assert [(image.image_id, image.truth_objects, image.predicted_objects) for image in score.images] == [
        ("one", 2, 2),
        ("two", 0, 0),
    ]


def test_known_scores(tmp_path: Path, solution: Path) -> None:
    """IoU 14 / 20 = 0.7 matches at four thresholds (a tie is none): 1 TP, 1 FN; a nucleus in the empty image: 0."""
    score = score_submission(solution, lines(tmp_path / "s.csv", HEADER, "one,1 7 21 7", "two,1 1", "three,"))
    assert [image.score for image in score.images] == [pytest.approx(4 / 10 * 1 / 2), 0.0]
    assert score.mean == pytest.approx(0.1)


def test_strata(tmp_path: Path, solution: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes = lines(tmp_path / "classes.csv", "filename,foreground,background", "one.png,purple,white")
    submission = lines(tmp_path / "s.csv", HEADER, "one,1 10 21 10", "two,", "three,")
    assert score_submission(solution, submission, classes).by_stratum == {"purple/white": (0.5, 1), "unknown": (1.0, 1)}
    print_score(solution, submission, classes)
    printed = capsys.readouterr().out
    assert "0.750000 over 2 images (dsb2018)" in printed
    assert "purple/white  0.5000  1 images" in printed
    plain = lines(tmp_path / "plain.csv", "case_id,stratum", "one,a.b", "two,a.b")
    assert score_submission(solution, submission, plain).by_stratum == {"a.b": (0.75, 2)}


@pytest.mark.parametrize(
    ("rows", "messages"),
    [
        (["one,1 1", "three,"], ["missing id two"]),
        (["one,1 1", "two,", "three,", "four,1 1"], ["unknown id four"]),
        (["one,1 5", "one,3 1", "two,", "three,"], ["one: ", "both claim pixel 3"]),
        (["one,600 2", "two,", "three,"], ["one: ", "within 20 x 30 = 600"]),
        (
            ["one,5 1 1 1", "two,x", "four,"],
            ["missing id three", "unknown id four", "one: ", "falling", "two: ", "'x'"],
        ),
        (["one,1 1", "one,", "two,", "three,"], ["one: an empty cell beside other rows"]),
    ],
)
def test_all_faults_in_one_message(tmp_path: Path, solution: Path, rows: list[str], messages: list[str]) -> None:
    with pytest.raises(ValueError, match=r"s\.csv: \d+ faults") as caught:
        score_submission(solution, lines(tmp_path / "s.csv", HEADER, *rows))
    for message in messages:
        assert message in str(caught.value)


def test_faulty_headers_and_solutions(tmp_path: Path, solution: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the header ImageId,EncodedPixels.*found id,predicted"):
        score_submission(solution, lines(tmp_path / "s.csv", "id,predicted", "one,"))
    with pytest.raises(ValueError, match="then Height, Width"):
        score_submission(lines(tmp_path / "t.csv", HEADER, "one,1 1"), solution)
    bad = lines(tmp_path / "t.csv", f"{HEADER},Height,Width", "one,1 1,2,2", "one,2 9,2,2", "two,1 1,,2", "one,1 1,4,4")
    faults = (
        r"within 2 x 2.*two: expected whole pixels as Height and Width, found '' and '2'; mend.*one: rows of differing"
    )
    with pytest.raises(ValueError, match=faults):
        score_submission(bad, solution)
    with pytest.raises(ValueError, match="no image that is scored"):
        score_submission(lines(tmp_path / "t.csv", f"{HEADER},Height,Width,Usage", "one,1 1,2,2,Ignored"), solution)


def test_a_solution_whose_nuclei_overlap(tmp_path: Path) -> None:
    truth = lines(tmp_path / "t.csv", f"{HEADER},Height,Width", "one,1 10,20,30", "one,8 12,20,30")
    score = score_submission(truth, lines(tmp_path / "s.csv", HEADER, "one,1 10", "one,11 9"))
    both, only_first = 1.0, 1 / 3
    assert score.mean == pytest.approx((5 * both + 5 * only_first) / 10)  # the second: IoU 9 / 12


def test_dice_of_whole_images(tmp_path: Path) -> None:
    truth = lines(tmp_path / "t.csv", "id,expected,Width,Height", "a,1 10,6.0,5.0", "b,,6,5", "c,3 4,6,5", "d,,6,5")
    score = score_submission(truth, lines(tmp_path / "s.csv", "id,predicted", "a,6 10", "b,", "c,", "d,1 1"))
    assert [image.score for image in score.images] == [0.5, 1.0, 0.0, 0.0]
    assert (score.format, score.metric, score.mean) == ("hubmap2020", "mean Dice", 0.375)
    with pytest.raises(ValueError, match=r"missing id d.*a: expected one row, found 2"):
        score_submission(truth, lines(tmp_path / "s.csv", "id,predicted", "a,6 10", "a,1 1", "b,", "c,"))


MASKS = hnp.arrays(bool, (5, 6), elements=st.booleans())


@given(MASKS, MASKS)
def test_dice_from_runs_equals_dice_from_pixels(truth: np.ndarray, submitted: np.ndarray) -> None:
    score, *_ = _score_mask([rle.encode(truth)], [rle.encode(submitted)], 5, 6)
    assert score == pytest.approx(confusion(truth, submitted).dice)


@pytest.mark.real
def test_real_nuclei_score_as_the_rasters_do(dsb2018: Path, tmp_path: Path) -> None:
    with (dsb2018 / "stage1_train_labels.csv").open() as stream:
        rows = [tuple(row.values()) for row in csv.DictReader(stream)][:600]
    height = width = 256
    images: dict[str, list[str]] = {}
    for image, cell in rows[:-1]:
        images.setdefault(image, []).append(cell)
    truth_rows, given_rows, expected = [f"{HEADER},Height,Width"], [HEADER], []
    for image, cells in images.items():
        try:
            labels = rle.decode_labels(cells, height, width)
        except ValueError:  # of another size, or with nuclei that overlap
            continue
        shifted = cv2.erode(np.roll(labels, 1, axis=0), np.ones((2, 2), np.uint8))
        submitted = rle.encode_labels(shifted).values() or [""]
        truth_rows += [f"{image},{cell},{height},{width}" for cell in cells]
        given_rows += [f"{image},{cell}" for cell in submitted]
        expected.append(average_precision(overlaps(labels, shifted)))
    score = score_submission(lines(tmp_path / "t.csv", *truth_rows), lines(tmp_path / "s.csv", *given_rows))
    assert len(expected) > 5
    assert [image.score for image in score.images] == pytest.approx(expected)
    assert 0.2 < score.mean < 0.9
