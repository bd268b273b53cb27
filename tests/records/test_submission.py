"""Submission files: laid out as the sample says, decoded back, and kept only when they hold the masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.records.case import IGNORED
from pipeline.records.rasters import write_png
from pipeline.records.submission import (
    LabelFiles,
    ScoredObjects,
    check_submission,
    read_sample_file,
    recognise_format,
    write_submission,
)


def text_file(file: Path, content: str) -> Path:
    file.write_bytes(content.encode())
    return file


@pytest.fixture
def labels() -> dict[str, np.ndarray]:
    two = np.zeros((4, 6), np.uint16)
    two[0:2, 0] = 9
    two[3, 4:6] = 3
    one = np.zeros((5, 3), np.uint16)
    one[:] = 1
    return {"b": two, "a": np.zeros((3, 3), np.uint16), "c": one}


@pytest.fixture
def sample_file(tmp_path: Path) -> Path:
    return text_file(tmp_path / "sample.csv", "ImageId,EncodedPixels\nb,1 1\na,1 1\nc,1 1\n")


def test_a_row_an_object(tmp_path: Path, sample_file: Path, labels: dict[str, np.ndarray]) -> None:
    file = tmp_path / "submission.csv"
    written = write_submission(file, labels, read_sample_file(sample_file))
    assert file.read_bytes() == b"ImageId,EncodedPixels\nb,20 1 24 1\nb,1 2\na,\nc,1 15\n"
    assert (written.format, written.images, written.rows, written.empty_images) == ("dsb2018", 3, 4, 1)
    assert [path.name for path in tmp_path.iterdir() if "part" in path.name] == []


@pytest.mark.parametrize("header", ["id,predicted", "id,expected", "img,pixels"])
def test_a_row_an_image_with_the_samples_own_header(tmp_path: Path, labels: dict[str, np.ndarray], header: str) -> None:
    sample = read_sample_file(text_file(tmp_path / "sample.csv", f"{header}\nc,\nb,\na,\n"))
    labels["b"][0, 5] = IGNORED
    written = write_submission(tmp_path / "submission.csv", labels, sample)
    assert (tmp_path / "submission.csv").read_text() == f"{header}\nc,1 15\nb,1 2 20 1 24 1\na,\n"
    assert (written.format, written.rows, written.empty_images) == ("hubmap2020", 3, 1)


def test_the_same_labels_give_the_same_bytes(tmp_path: Path, sample_file: Path, labels: dict[str, np.ndarray]) -> None:
    sample = read_sample_file(sample_file)
    contents = []
    for turn, mapping in enumerate((labels, dict(reversed(labels.items())))):
        write_submission(tmp_path / f"{turn}.csv", mapping, sample)
        contents.append((tmp_path / f"{turn}.csv").read_bytes())
    assert contents[0] == contents[1]
    assert b"\r" not in contents[0]


def test_sample_files_of_every_make(tmp_path: Path) -> None:
    for content in (
        "\ufeffid,predicted\r\nx,\r\ny,1 1\r\n",
        '"id","predicted"\n"x",""\n"y",""\n\n',
        "id,predicted\nx,\nx,\ny,",
    ):
        sample = read_sample_file(text_file(tmp_path / "sample.csv", content))
        assert (sample.header, sample.ids) == (("id", "predicted"), ("x", "y"))
    huge = read_sample_file(text_file(tmp_path / "sample.csv", f"id,predicted\nx,{'1 1 ' * 100_000}\n"))
    assert huge.ids == ("x",)


def test_several_rows_of_an_image_are_refused_where_the_format_has_one(
    tmp_path: Path, labels: dict[str, np.ndarray]
) -> None:
    sample = read_sample_file(text_file(tmp_path / "sample.csv", "id,rle\nb,\nb,\na,\nc,\nc,\n"))
    told = r"sample\.csv: expected a row an image, as the format hubmap2022 has, found several of b, c; download"
    with pytest.raises(ValueError, match=told):
        write_submission(tmp_path / "submission.csv", labels, sample)
    write_submission(tmp_path / "submission.csv", labels, sample, "dsb2018")


def test_sizes_that_are_not_the_images_own_are_told(tmp_path: Path, labels: dict[str, np.ndarray]) -> None:
    header = "id,height,width,prediction_string"
    sample = read_sample_file(text_file(tmp_path / "sample.csv", f"{header}\nb,6,4,\na,3,3,\nc,,,0 1.0 x\n"))
    objects = {name: ScoredObjects(label, {1: 0.5, 3: 0.5, 9: 0.25}) for name, label in labels.items()}
    written = write_submission(tmp_path / "submission.csv", objects, sample)
    assert written.other_sizes == ("b (4 x 6, not 6 x 4)",)
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in lines[1:]] == [["b", "4", "6"], ["a", "3", "3"], ["c", "5", "3"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "found an empty file"),
        ("id,predicted\n", "at least one row, found 2 and 0"),
        ("id\nx\n", "two columns"),
        ("id,predicted\nx,1\ny\nz,1,2\n", r"expected 2 cells a line.*line 3 has 1, line 4 has 3"),
        ("id,predicted\nx,\ny,\nx,\n,\n", "'x' comes back after other ids, an empty id"),
    ],
)
def test_bad_sample_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_sample_file(text_file(tmp_path / "sample.csv", content))


def test_a_missing_sample_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.csv: expected a CSV file"):
        read_sample_file(tmp_path / "absent.csv")


def test_formats_go_by_their_header() -> None:
    assert recognise_format(("ImageId", "EncodedPixels")) == "dsb2018"
    assert recognise_format(("id", "predicted")) == "hubmap2020"
    with pytest.raises(ValueError, match=r"'a,b': expected one of ImageId,EncodedPixels \(dsb2018\)"):
        recognise_format(("a", "b"))


def test_an_unknown_header_can_be_written_by_naming_the_format(tmp_path: Path, labels: dict[str, np.ndarray]) -> None:
    sample = read_sample_file(text_file(tmp_path / "sample.csv", "name,rle\nb,\na,\nc,\n"))
    with pytest.raises(ValueError, match="header 'name,rle'"):
        write_submission(tmp_path / "submission.csv", labels, sample)
    write_submission(tmp_path / "submission.csv", labels, sample, "hubmap2020")
    assert (tmp_path / "submission.csv").read_text().startswith("name,rle\nb,")
    with pytest.raises(
        ValueError, match="auto or one of dsb2018, hubmap2020, hubmap2022, hubmap2023, pcam, found 'coco'"
    ):
        write_submission(tmp_path / "submission.csv", labels, sample, "coco")


def test_missing_and_unknown_ids_are_listed_together(
    tmp_path: Path, sample_file: Path, labels: dict[str, np.ndarray]
) -> None:
    labels["z"] = labels.pop("a")
    del labels["c"]
    with pytest.raises(ValueError, match=r"3 ids, found no mask for a, c; not in the sample: z"):
        write_submission(tmp_path / "submission.csv", labels, read_sample_file(sample_file))
    assert not (tmp_path / "submission.csv").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,EncodedPixels\nb,20 1 24 1\nb,1 2\na,\nc,1 15\n", "header 'id,EncodedPixels'"),
        ("ImageId,EncodedPixels\nb,20 1 24 1\nb,1 2\nc,1 15\nd,1 1\n", "missing ids: a; unknown ids: d"),
        ("ImageId,EncodedPixels\na,\nb,20 1 24 1\nb,1 2\nc,1 15\n", "order from 'a' on, where 'b' was expected"),
        ("ImageId,EncodedPixels\nb,20 1 24 1\na,\nb,1 2\nc,1 15\n", "rows stand apart: b"),
        ("ImageId,EncodedPixels\nb,24 1 20 1\nb,1 2\na,\nc,1 15\n", "b: .*falling"),
        ("ImageId,EncodedPixels\nb,20 1 24 1\nb,1 2\na,\nc,1 16\n", "c: .*within 5 x 3 = 15"),
        ("ImageId,EncodedPixels\nb,20 1 24 1\nb,1 20\na,\nc,1 15\n", "b: .*both claim pixel 20"),
        ("ImageId,EncodedPixels\nb,20 1 24 1\nb,1 2\na,\nc,1 14\n", "c: 1 pixels differ"),
        ("ImageId,EncodedPixels\nb,20 1 24 1\nb,1 2\na,2 1\nc,1 15\n", "a: expected 0 objects, found 1"),
        ("ImageId,EncodedPixels\nb,20 1 24 1 \nb,1 2\nb,\na,\nc,1 15\n", "b: an empty cell beside other rows"),
        ("ImageId,EncodedPixels\nb,1 2\nb,20 1 24 1\na,\nc,1 15\n", "b: 4 pixels differ"),
        ("ImageId,EncodedPixels\nb,1\nb,1 2\na,1 1\nc,1 14\n", "b: .*odd.*; a: .*; c: "),
    ],
)
def test_a_file_that_differs_is_refused(
    tmp_path: Path, sample_file: Path, labels: dict[str, np.ndarray], content: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_submission(text_file(tmp_path / "bad.csv", content), read_sample_file(sample_file), labels)


def test_binary_rows_are_checked_too(tmp_path: Path, labels: dict[str, np.ndarray]) -> None:
    sample = read_sample_file(text_file(tmp_path / "sample.csv", "id,predicted\nb,\na,\nc,\n"))
    bad = text_file(tmp_path / "bad.csv", "id,predicted\nb,1 2\nb,20 1 24 1\na,1 1\nc,1 15 9\n")
    with pytest.raises(ValueError, match=r"b: expected one row, found 2; a: 1 pixels differ.*; c: .*odd"):
        check_submission(bad, sample, labels)


def test_nothing_is_kept_when_the_encoder_errs(
    tmp_path: Path, sample_file: Path, labels: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = text_file(tmp_path / "submission.csv", "an earlier one")
    monkeypatch.setattr("pipeline.records.rle.encode_labels", lambda raster: {1: "1 1"} if raster.any() else {})
    with pytest.raises(ValueError, match="not a valid submission: b: expected 2 objects, found 1; c: 14 pixels differ"):
        write_submission(file, labels, read_sample_file(sample_file))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sample.csv", "submission.csv"]
    assert file.read_text() == "an earlier one"


def test_masks_from_a_folder(tmp_path: Path, sample_file: Path, labels: dict[str, np.ndarray]) -> None:
    for name in ("b", "c"):
        write_png(tmp_path / "masks" / f"{name}.png", labels[name])
    write_png(tmp_path / "masks" / "other.png", labels["c"])
    sample = read_sample_file(sample_file)
    with pytest.raises(ValueError, match="no mask for a;"):
        write_submission(tmp_path / "submission.csv", LabelFiles(tmp_path / "masks", sample.ids), sample)
    write_png(tmp_path / "masks" / "a.png", labels["a"])
    written = write_submission(tmp_path / "submission.csv", LabelFiles(tmp_path / "masks", sample.ids), sample)
    assert written.rows == 4


@pytest.mark.real
def test_the_competitions_sample_file(dsb2018: Path) -> None:
    sample = read_sample_file(dsb2018 / "stage1_sample_submission.csv")
    assert recognise_format(sample.header) == "dsb2018"
    assert len(sample.ids) == len(set(sample.ids)) == 65


def test_probabilities_of_a_class_are_written_and_masks_in_their_place_are_refused(tmp_path: Path) -> None:
    sample = read_sample_file(text_file(tmp_path / "sample.csv", "id,label\nb,0\na,0\n"))
    file = tmp_path / "submission.csv"
    written = write_submission(file, {"a": 0.25, "b": 1.0}, sample)
    assert file.read_text() == "id,label\nb,1.000000\na,0.250000\n" and written.format == "pcam"
    with pytest.raises(ValueError, match=r"b: expected 0\.5, found '1\.000000'"):
        check_submission(file, sample, {"a": 0.25, "b": 0.5})
    with pytest.raises(ValueError, match="pcam: expected a probability for each image, found a mask"):
        write_submission(file, {name: np.zeros((2, 2), np.uint16) for name in "ab"}, sample)
    with pytest.raises(ValueError, match="hubmap2020: expected a mask for each image, found a probability"):
        write_submission(file, {"a": 0.25, "b": 1.0}, sample, "hubmap2020")
