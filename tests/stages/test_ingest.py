"""Stage ingest on hand-made hostile folders: every fault by name, all at once, and nothing lost in silence."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import Config, dump_config, load_config
from pipeline.records.case import IGNORED, Case, read_cases
from pipeline.records.findings import Finding, read_findings
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, read_label
from pipeline.records.raw import RawFolder
from pipeline.records.rle import encode
from pipeline.runner import run as run_stage
from pipeline.stages import ingest

SHAPE = (20, 30)
GENERATOR = np.random.default_rng(0)


def png(array: np.ndarray) -> bytes:
    return cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 and array.shape[2] == 3 else array)[1].tobytes()


def image(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return GENERATOR.integers(0, 256, (*shape, 3)).astype(np.uint8)


def square(top: int, left: int, size: int, value: int = 255, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[top : top + size, left : left + size] = value
    return mask


class Raw:
    """A raw folder in the making, and the stage run over it."""

    def __init__(self, root: Path, *settings: str) -> None:
        self.config: Config = load_config(None, ["dataset=made", *settings])
        self.paths = Paths.of(self.config, root)
        self.paths.raw.mkdir(parents=True, exist_ok=True)

    def put(self, files: dict[str, bytes | np.ndarray | str]) -> Raw:
        for name, content in files.items():
            file = self.paths.raw / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, np.ndarray):
                content = png(content)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
        return self

    def run(self, *settings: str) -> list[str]:
        config = load_config(None, ["dataset=made", *settings]) if settings else self.config
        return ingest.run(config, self.paths)

    def refusal(self, *settings: str) -> str:
        with pytest.raises(ValueError) as caught:
            self.run(*settings)
        assert not self.paths.cases.exists()
        return str(caught.value)

    @property
    def cases(self) -> dict[str, Case]:
        return {case.case_id: case for case in read_cases(self.paths.cases)}

    @property
    def findings(self) -> list[Finding]:
        return read_findings(self.paths.findings)

    def label(self, case_id: str) -> np.ndarray:
        return read_label(self.paths.ingest / str(self.cases[case_id].label))

    def written(self) -> dict[str, str]:
        folder = self.paths.ingest
        files = [file for file in folder.rglob("*") if file.is_file()]
        return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def competition(case_ids: str = "abc") -> dict[str, bytes | np.ndarray | str]:
    """Files in the Data Science Bowl's layout: three nuclei an image, and a test image."""
    files: dict[str, bytes | np.ndarray | str] = {}
    rows = ["ImageId,EncodedPixels"]
    masks = [square(1, 1, 4), square(8, 8, 5), square(2, 20, 6)]
    for case_id in case_ids:
        files[f"stage1_train/{case_id}/images/{case_id}.png"] = image()
        for number, mask in enumerate(masks):
            files[f"stage1_train/{case_id}/masks/{number}.png"] = mask
            rows.append(f"{case_id},{encode(mask > 0)}")
    files["stage1_test/t/images/t.png"] = image()
    files["stage1_train_labels.csv"] = "\n".join(rows) + "\n"
    files["stage1_sample_submission.csv"] = "ImageId,EncodedPixels\nt,1 1\n"
    files["classes.csv"] = "filename,foreground,background\n" + "".join(
        f"{name}.png,purple,white\n" for name in [*case_ids, "t"]
    )
    return files


def pairs(count: int = 4, value: int = 255) -> dict[str, bytes | np.ndarray | str]:
    files: dict[str, bytes | np.ndarray | str] = {}
    for number in range(count):
        files[f"images/{number}.png"] = image()
        files[f"masks/{number}.png"] = square(number, 2, 4, value) + square(number, 12, 5, value)
    return files


# --- What is written ------------------------------------------------------------------------------------------------


def test_a_sound_competition_folder(tmp_path: Path) -> None:
    files = competition()
    raw = Raw(tmp_path).put(files)
    lines = raw.run()
    assert lines[0] == "ingested 3 labelled and 1 unlabelled images, 9 objects (nothing to list; findings.csv)"
    assert lines[1] == "layout dsb2018" and raw.findings == []
    assert raw.cases["a"] == Case(
        "a", "made", "images/a.png", "labels/a.png", "instance", None, "purple/white", 20, 30, None,
        "stage1_train/a/images/a.png",
    )  # fmt: skip
    test = raw.cases["t"]
    assert (test.label, test.label_kind, test.stratum, test.source) == (
        None,
        "none",
        "purple/white",
        "stage1_test/t/images/t.png",
    )
    np.testing.assert_array_equal(read_image(raw.paths.ingest / "images/a.png"), files["stage1_train/a/images/a.png"])
    label = raw.label("a")
    assert label.dtype == np.uint16 and [int((label == number).sum()) for number in range(4)] == [523, 16, 25, 36]
    assert raw.paths.sample_submission.read_text() == files["stage1_sample_submission.csv"]
    assert not (raw.paths.ingest / "labels/t.png").exists()


def test_every_way_of_serving_gives_the_same_bytes_twice(tmp_path: Path) -> None:
    files = {name: png(part) if isinstance(part, np.ndarray) else part for name, part in competition().items()}
    unpacked = Raw(tmp_path / "unpacked").put(files)
    unpacked.run()
    expected = unpacked.written()
    unpacked.run()
    assert unpacked.written() == expected

    def packed(prefix: str) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for name, part in files.items():
                if name.startswith(prefix):
                    archive.writestr(name[len(prefix) :], part)
        return stream.getvalue()

    tables = {name: part for name, part in files.items() if name.endswith(".csv")}
    zips = {f"{name}.zip": packed(f"{name}/") for name in ("stage1_train", "stage1_test")}
    zipped = Raw(tmp_path / "zipped").put({**zips, **tables})
    zipped.run()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, part in {**zips, **tables}.items():
            archive.writestr(name, part)
    nested = Raw(tmp_path / "nested").put({"data-science-bowl-2018.zip": stream.getvalue()})
    nested.run()
    assert zipped.written() == nested.written() == expected


def test_the_runner_skips_it_until_a_raw_file_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw = Raw(tmp_path).put(competition())
    run_stage("ingest", raw.config, raw.paths)
    run_stage("ingest", raw.config, raw.paths)
    assert "nothing to do" in capsys.readouterr().out
    raw.put({"stage1_train/a/images/a.png": image()})
    run_stage("ingest", raw.config, raw.paths)
    assert "other content" in capsys.readouterr().out


def test_missing_raw_files_say_what_to_put_where(tmp_path: Path) -> None:
    config = load_config(None, ["dataset=dsb2018"])
    paths = Paths.of(config, tmp_path)
    wanted = (
        r"data/raw/dsb2018: expected the files of data-science-bowl-2018.*make data DATASET=dsb2018`(?s:.*)"
        r"stage1_train\.zip(?s:.*)FROM=<folder>"
    )
    for attempt in (ingest.prepare, ingest.run):
        with pytest.raises(ValueError, match=wanted):
            attempt(config, paths)
    other = load_config(None, ["dataset=mine"])
    with pytest.raises(ValueError, match=r"data/raw/mine: expected raw files, found none(?s:.*)images/<name>\.png"):
        ingest.prepare(other, Paths.of(other, tmp_path))


# --- Faults, by name ------------------------------------------------------------------------------------------------

OTHER = {
    "truncated image": (
        {"stage1_train/a/images/a.png": png(image())[:-40]},
        "a: truncated file: stage1_train/a/images/a.png",
    ),
    "text for an image": (
        {"stage1_train/a/images/a.png": "oops"},
        "a: wrong file type: .* found text that begins 'oops'",
    ),
    "empty test image": (
        {"stage1_test/t/images/t.png": ""},
        "t: wrong file type: .* found an empty file; fetch the file again",
    ),
    "damaged mask": (
        {"stage1_train/b/masks/1.png": png(square(8, 8, 5))[:50]},
        "b: truncated file: stage1_train/b/masks/1.png",
    ),
    "size mismatch": (
        {"stage1_train/b/masks/1.png": square(0, 0, 3, shape=(20, 29))},
        "b: size mismatch: .*masks/1.png: expected the image's height x width 20 x 30, found 20 x 29",
    ),
    "transposed": (
        {"stage1_train/b/masks/1.png": square(0, 0, 3).T.copy()},
        r"b: transposed: .* found 30 x 20 \(transposed\)",
    ),
    "colour mask": ({"stage1_train/b/masks/1.png": image()}, "b: colour mask: .* expected one plane"),
    "two images": ({"stage1_train/b/images/again.png": image()}, r"b: several images: .* found 2 \(again.png, b.png\)"),
    "no image": (
        {"stage1_train/d/masks/1.png": square(0, 0, 3)},
        "d: missing image: stage1_train/d/images/: .* found none",
    ),
    "missing mask": (
        {"stage1_train/d/images/d.png": image()},
        "d: missing or empty mask: stage1_train/d/masks/: .* found neither; ingest.allow_empty=true",
    ),
    "ids in a mask of one object": (
        {"stage1_train/b/masks/1.png": square(1, 1, 4, 1) + square(8, 8, 5, 2) + square(2, 20, 6, 200)},
        "b: ids in a mask of one object: stage1_train/b/masks/1.png: .* found 3 even values up to 200",
    ),
    "empty masks": (
        {"stage1_train/d/images/d.png": image(), "stage1_train/d/masks/1.png": np.zeros(SHAPE, np.uint8)},
        "d: missing or empty mask: stage1_train/d/masks/",
    ),
    "same name but for capitals": (
        {"stage1_train/A/images/A.png": image(), "stage1_train/A/masks/1.png": square(0, 0, 3)},
        "a: repeated case id: .* expected names that differ not by capitals alone",
    ),
    "id in train and test": ({"stage1_test/a/images/a.png": image()}, "a: repeated case id"),
    "unusable name": (
        {"stage1_train/x:y/images/i.png": image(), "stage1_train/x:y/masks/1.png": square(0, 0, 3)},
        "x:y: unusable case id: .* found ':'",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_fault_is_refused_by_name_or_counted_as_excluded(name: str, tmp_path: Path) -> None:
    files, message = OTHER[name]
    raw = Raw(tmp_path).put({**competition(), **files})
    refusal = raw.refusal()
    assert re.search(message, refusal), refusal
    assert "ingest.exclude=[" in refusal and "ingest.exclude_faulty=true" in refusal
    (case_id,) = {line.strip().split(": ")[0] for line in refusal.splitlines()[1:-1]} - {"A"}
    kept = {"a", "b", "c", "t"} - {case_id}
    lines = raw.run("ingest.exclude_faulty=true")
    assert set(raw.cases) == kept and " excluded" in lines[0]
    excluded = [finding for finding in raw.findings if finding.action == "excluded"]
    assert {finding.case_id for finding in excluded} - {"A"} == {case_id}
    assert not list(raw.paths.ingest.rglob(f"{case_id}.png"))


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    everything = dict(competition("abcefg"))
    everything.update({
        "stage1_train/a/images/a.png": "oops",
        "stage1_train/b/masks/0.png": "", "stage1_train/b/masks/1.png": b"\x89PNG",
        "stage1_train/e/masks/2.png": square(0, 0, 3, shape=(30, 20)), "stage1_train/h/images/h.png": image(),
        "stage1_test/t/images/t.png": png(image())[:80],
    })  # fmt: skip
    refusal = Raw(tmp_path).put(everything).refusal()
    assert refusal.splitlines()[0].endswith("6 fault(s) in 5 of 8 cases (3 x wrong file type, 1 x transposed, "
                                            "1 x missing or empty mask, 1 x truncated file):")  # fmt: skip
    assert [line.strip().split(": ")[0] for line in refusal.splitlines()[1:-1]] == ["a", "b", "b", "e", "h", "t"]


def test_an_unreadable_image_does_not_hide_its_masks_faults(tmp_path: Path) -> None:
    files = {"stage1_train/a/images/a.png": "oops", "stage1_train/a/masks/0.png": "oops"}
    refusal = Raw(tmp_path).put({**competition(), **files}).refusal()
    assert "2 fault(s) in 1 of 4 cases" in refusal


def test_exclusion_by_name_is_counted_and_unknown_names_are_refused(tmp_path: Path) -> None:
    raw = Raw(tmp_path).put({**competition(), "stage1_train/a/images/a.png": "oops"})
    lines = raw.run("ingest.exclude=[a]")
    assert lines[0].startswith("ingested 2 labelled") and "1 excluded" in lines[0]
    assert raw.findings == [Finding("a", "excluded", "named in ingest.exclude", "not read")]
    with pytest.raises(
        ValueError, match=r"ingest\.exclude: expected case ids of the data set, found aa; did you mean a"
    ):
        raw.run("ingest.exclude=[aa]")
    with pytest.raises(ValueError, match="expected at least one case"):
        Raw(tmp_path / "all").put(competition("a")).run("ingest.exclude=[a,t]")


# --- What is repaired or noted --------------------------------------------------------------------------------------


def only(finding_list: list[Finding]) -> tuple[str, str, str]:
    (finding,) = finding_list
    return finding.case_id, finding.action, finding.fault


def test_overlaps_duplicates_empty_and_grey_masks_are_repaired_and_listed(tmp_path: Path) -> None:
    grey = square(8, 8, 5)
    grey[8, 8:13] = 60
    files = {
        "stage1_train/a/masks/3.png": square(2, 2, 2), "stage1_train/b/masks/3.png": square(1, 1, 4),
        "stage1_train/c/masks/3.png": np.zeros(SHAPE, np.uint8), "stage1_train/e/masks/1.png": grey,
    }  # fmt: skip
    everything = {**competition("abcef"), **files}
    del everything["stage1_train_labels.csv"]
    raw = Raw(tmp_path).put(everything)
    assert "16 objects (5 repaired, 1 noted" in raw.run()[0]
    assert [(found.case_id, found.fault) for found in raw.findings if found.action == "repaired"] == [
        ("a", "overlapping objects"), ("b", "covered object"), ("b", "overlapping objects"), ("c", "empty object mask"),
        ("e", "grey mask"),
    ]  # fmt: skip
    assert int((raw.label("a") == 4).sum()) == 4 and int(raw.label("b").max()) == 3
    assert int((raw.label("e") == 2).sum()) == 20


def test_masks_and_runs_are_compared_and_the_setting_decides(tmp_path: Path) -> None:
    raw = Raw(tmp_path).put({**competition(), "stage1_train/b/masks/2.png": square(2, 20, 7)})
    raw.run()
    assert only(raw.findings) == ("b", "noted", "masks and runs differ")
    assert (
        raw.findings[0].detail
        == "masks believed; against runs: 3 objects against 3, 13 pixels are foreground in one only"
    )
    assert int((raw.label("b") == 3).sum()) == 49
    raw.run("ingest.label_source=runs")
    assert raw.findings[0].detail.startswith("runs believed; against masks: 3 objects against 3, 13 pixels")
    assert int((raw.label("b") == 3).sum()) == 36


def test_faulty_runs_matter_only_where_they_are_believed(tmp_path: Path) -> None:
    files = competition()
    files["stage1_train_labels.csv"] = str(files["stage1_train_labels.csv"]).replace("c,", "c,9999 9 ", 1)
    raw = Raw(tmp_path).put(files)
    raw.run()
    assert only(raw.findings) == ("c", "noted", "faulty runs")
    with pytest.raises(
        ValueError,
        match=r"c: faulty run-length row: stage1_train_labels.csv: .*row 1: .*within 20 x 30.*; mend the row, or "
        "believe its masks: ingest.label_source=masks",
    ):
        raw.run("ingest.label_source=runs")


def test_an_image_said_to_be_empty_is_fine_and_one_without_masks_can_use_its_runs(tmp_path: Path) -> None:
    files = {**competition(), "stage1_train/d/images/d.png": image(), "stage1_train/e/images/e.png": image()}
    files["stage1_train_labels.csv"] = f"{files['stage1_train_labels.csv']}d,\ne,{encode(square(3, 3, 3) > 0)}\n"
    files["classes.csv"] = f"{files['classes.csv']}d.png,purple,white\ne.png,purple,white\n"
    raw = Raw(tmp_path).put(files)
    assert "10 objects" in raw.run()[0]
    assert not raw.label("d").any() and raw.cases["d"].label_kind == "instance"
    assert int(raw.label("e").sum()) == 9 and only(raw.findings) == ("e", "repaired", "missing mask")


def test_allow_empty_takes_images_without_masks(tmp_path: Path) -> None:
    raw = Raw(tmp_path).put({**competition(), "stage1_train/d/images/d.png": image()})
    raw.run("ingest.allow_empty=true")
    assert not raw.label("d").any() and raw.cases["d"].label == "labels/d.png"


def test_a_sample_submission_of_other_images_is_noted(tmp_path: Path) -> None:
    raw = Raw(tmp_path).put({**competition(), "stage1_sample_submission.csv": "ImageId,EncodedPixels\nu,1 1\n"})
    raw.run()
    assert only(raw.findings) == ("", "noted", "sample submission differs")
    assert "1 id(s) without an image, 1 image(s) without a row: u, t" in raw.findings[0].detail


# --- Folders of pairs -----------------------------------------------------------------------------------------------


def test_0_255_pairs_are_semantic_and_grey_edges_are_thresholded(tmp_path: Path) -> None:
    files = pairs()
    soft = square(3, 2, 6)
    soft[3, 2:8] = 90
    files["masks/1.png"], files["masks/2.png"] = soft, np.zeros(SHAPE, np.uint8)
    files["masks/3.png"] = np.dstack([square(0, 0, 4)] * 3 + [np.full(SHAPE, 255, np.uint8)])
    raw = Raw(tmp_path).put(files)
    lines = raw.run()
    assert lines[0] == "ingested 4 labelled and 0 unlabelled images (1 repaired, 1 noted; findings.csv)"
    assert "labels read as foreground" in lines[1]
    assert [(found.case_id, found.fault) for found in raw.findings] == [("1", "grey mask"), ("2", "empty label")]
    assert {case.label_kind for case in raw.cases.values()} == {"semantic"}
    assert [int(raw.label(name).sum()) for name in "0123"] == [41, 30, 0, 16]


def test_ids_that_could_be_of_either_kind_are_noted(tmp_path: Path) -> None:
    files = pairs(3)
    for number in range(3):
        files[f"masks/{number}.png"] = square(2, 2, 6, value=1) + square(10, 10, 6, value=2)
    raw = Raw(tmp_path).put(files)
    raw.run()
    assert {case.label_kind for case in raw.cases.values()} == {"semantic"}
    (noted,) = (finding for finding in raw.findings if finding.fault == "class or object ids")
    assert noted.action == "noted" and "read as class ids (values up to 2" in noted.detail
    assert "set ingest.label_kind=instance if" in noted.detail
    raw.run("ingest.label_kind=semantic")
    assert "class or object ids" not in {finding.fault for finding in raw.findings}


def test_flat_levels_are_refused_by_name_until_it_is_said_what_they_are(tmp_path: Path) -> None:
    files = pairs(4)
    files["masks/1.png"] = square(2, 2, 6, value=128) + square(10, 10, 6)
    raw = Raw(tmp_path).put(files)
    assert "masks/1.png: expected 0 and 255, with shades along edges alone, or class ids, found the" in raw.refusal()
    raw.run("ingest.label_kind=semantic")
    assert np.unique(raw.label("1")).tolist() == [0, 1, 2]
    # Settings that were written out whole, as a run keeps them, say no more than those that were given.
    (tmp_path / "whole.yaml").write_text(dump_config(raw.config))
    whole = Raw(tmp_path / "whole").put(files)
    whole.config = load_config(tmp_path / "whole.yaml")
    assert "expected 0 and 255, with shades along edges alone" in whole.refusal()
    Raw(tmp_path / "set").put(files).run("ingest.threshold=127")
    assert np.unique(Raw(tmp_path / "set").label("1")).tolist() == [0, 1]


def test_a_0_1_mask_among_0_255_masks_is_refused_by_name(tmp_path: Path) -> None:
    raw = Raw(tmp_path).put({**pairs(), "masks/2.png": square(2, 2, 4, 1)})
    assert (
        "2: 0/255 against ids: masks/2.png: expected 0 and 255 as in the other labels, found values up to 1"
        in raw.refusal()
    )
    raw.run("ingest.exclude_faulty=true")
    assert set(raw.cases) == {"0", "1", "3"} and not (raw.paths.ingest / "images/2.png").exists()


def test_a_data_set_of_0_1_masks_is_one_class(tmp_path: Path) -> None:
    raw = Raw(tmp_path).put(pairs(value=1))
    raw.run()
    assert raw.findings == [] and int(raw.label("0").max()) == 1 and raw.cases["0"].label_kind == "semantic"


def test_16_bit_object_ids(tmp_path: Path) -> None:
    files = pairs(3)
    for number in range(3):
        ids = np.zeros(SHAPE, np.uint16)
        for count in range(number + 2):
            ids[4 * count : 4 * count + 3, 3:6] = 300 + count
        files[f"masks/{number}.png"] = ids
    raw = Raw(tmp_path).put(files)
    assert "9 objects" in raw.run()[0]
    assert raw.cases["2"].label_kind == "instance" and np.unique(raw.label("2")).tolist() == [0, 1, 2, 3, 4]


def test_class_ids_with_an_ignored_value(tmp_path: Path) -> None:
    files = pairs(2)
    for number in range(2):
        files[f"masks/{number}.png"] = (
            square(0, 0, 3, 1) + square(0, 8, 3, 1) + square(8, 8, 4, 2) + square(8, 20, 4, 2) + square(15, 0, 2)
        )
    raw = Raw(tmp_path).put(files)
    raw.run()
    assert np.unique(raw.label("0")).tolist() == [0, 1, 2, IGNORED] and raw.cases["0"].label_kind == "semantic"
    assert [found.fault for found in raw.findings] == ["ignored pixels", "ignored pixels"]


def test_deep_images_are_scaled_alike_over_the_data_set(tmp_path: Path) -> None:
    files = pairs(2)
    for number, top in enumerate((1000, 4095)):
        deep = np.full((*SHAPE, 3), 100, np.uint16)
        deep[0, 0] = top
        files[f"images/{number}.png"] = deep
    raw = Raw(tmp_path).put(files)
    raw.run()
    for name in "01":
        assert (read_image(raw.paths.ingest / f"images/{name}.png")[1:] == round(100 * 255 / 4095)).all()
    assert [found.fault for found in raw.findings] == ["deep image", "deep image"]
    assert [case.bits for case in read_cases(raw.paths.cases)] == [12, 12]
    wider = Raw(tmp_path, "ingest.depth=14")
    wider.run()
    assert (read_image(raw.paths.ingest / "images/0.png")[1:] == round(100 * 255 / 16383)).all()
    expected = r"too deep: images/1\.png: expected values of 0\.\.1023, as of the others, found.*4095.*ingest\.depth"
    with pytest.raises(ValueError, match=expected):
        Raw(tmp_path, "ingest.depth=10").run()


def test_images_of_other_formats_are_named_and_a_cover_is_not(tmp_path: Path) -> None:
    raw = Raw(tmp_path).put(pairs(2) | {"cover.webp": b"RIFF", "images/8.webp": b"RIFF", "masks/8.gif": b"GIF89a"})
    expected = r"2 fault\(s\)[\s\S]*unread format: images/8\.webp: expected an image as \.png.*found \.webp"
    with pytest.raises(ValueError, match=expected):
        raw.run()
    Raw(tmp_path, "ingest.exclude_faulty=true").run()
    assert [case.case_id for case in read_cases(raw.paths.cases)] == ["0", "1"]
    assert {(found.action, found.fault) for found in raw.findings} >= {("excluded", "unread format")}


def test_pairs_tell_all_faults_at_once(tmp_path: Path) -> None:
    files = pairs(6)
    del files["masks/0.png"]
    files["masks/1.png"], files["masks/2.png"] = square(0, 0, 3).T.copy(), png(square(0, 0, 3))[:60]
    files["masks/orphan.png"], files["images/3.png"] = square(0, 0, 3), "oops"
    refusal = Raw(tmp_path).put(files).refusal()
    faults = [": ".join(line.strip().split(": ")[:2]) for line in refusal.splitlines()[1:-1]]
    assert faults == [
        "0: missing or empty mask", "1: transposed", "2: truncated file", "3: wrong file type", "orphan: missing image",
    ]  # fmt: skip


def test_groups_reach_the_cases_and_a_table_elsewhere_is_an_input(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("case_id,group\n0,p\n1,q\n")
    raw = Raw(tmp_path, f"ingest.group_csv={table}").put(pairs(2))
    raw.run()
    assert {name: case.group for name, case in raw.cases.items()} == {"0": "p", "1": "q"}
    assert ingest.inputs(raw.config, raw.paths) == [raw.paths.raw, table]


def test_a_name_that_a_mac_writes_in_two_ways_is_one(tmp_path: Path) -> None:
    apart, whole = "Mu\u0308ller", "M\u00fcller"
    table = tmp_path / "groups.csv"
    files = {name.replace("1.png", f"{apart}.png"): content for name, content in pairs(3).items()}
    raw = Raw(tmp_path, f"ingest.group_csv={table}").put(files)
    table.write_text(f"case_id,group\n0,{apart}\n{apart},{whole}\n2,x\n", encoding="utf-8")
    raw.run()
    assert {name: case.group for name, case in raw.cases.items()} == {"0": whole, whole: whole, "2": "x"}
    Raw(tmp_path, f"ingest.group_csv={table}", f"ingest.exclude=[{apart}]").run()
    assert list(raw.cases) == ["0", "2"]


def test_groups_of_another_spelling_are_understood_and_of_other_images_refused(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    raw = Raw(tmp_path, f"ingest.group_csv={table}").put(pairs(2))
    table.write_text("case_id,group\n0.png,p\n1.0,q\n")
    raw.run()
    assert {name: case.group for name, case in raw.cases.items()} == {"0": "p", "1": "q"}
    raw.paths.cases.unlink()
    table.write_text("case_id,group\nx7,p\nx8,q\n")
    assert "such as '0', found none of them in 2 rows, such as 'x7'" in raw.refusal(f"ingest.group_csv={table}")
    table.write_bytes("case_id,group\n0,Müller\n".encode("latin-1"))
    assert re.search(r"groups\.csv: expected CSV in UTF-8, found .*0xfc", raw.refusal(f"ingest.group_csv={table}"))


def test_a_stratum_that_would_be_taken_for_the_whole_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_text("case_id,group,stratum\n0,p,all\n1,q,other\n")
    refusal = Raw(tmp_path, f"ingest.group_csv={table}").put(pairs(2)).refusal(f"ingest.group_csv={table}")
    assert "expected strata of other names than 'all'" in refusal


@pytest.mark.parametrize("value", [128, 200, 254])
def test_one_value_that_no_small_class_has_is_foreground(tmp_path: Path, value: int) -> None:
    raw = Raw(tmp_path).put(pairs(3, value))
    lines = raw.run()
    assert f"labels read as foreground (0 and {value}, which is taken for white)" in lines[1]
    assert {int(np.unique(raw.label(name)).max()) for name in raw.cases} == {1}


def test_labels_that_are_all_empty_are_refused_unless_wanted(tmp_path: Path) -> None:
    raw = Raw(tmp_path).put(pairs(3, 0))
    assert "expected labels that hold something, found 3 that are all empty" in raw.refusal()
    raw.run("ingest.allow_empty=true")
    assert len(raw.cases) == 3


def test_a_mask_of_another_format_is_named_and_its_image_not_taken_for_empty(tmp_path: Path) -> None:
    refusal = Raw(tmp_path).put(pairs(2) | {"images/9.png": image(), "masks/9.gif": "GIF89a"}).refusal()
    assert re.search(r"9: missing or empty mask: .*found neither, but masks/9\.gif; save masks as \.png", refusal)


def test_parts_that_number_their_images_alike_leave_the_test_ids_as_they_are(tmp_path: Path) -> None:
    files = {f"train/{name}": content for name, content in pairs(3).items()}
    files |= {f"test/images/{number}.png": image() for number in range(2)}
    raw = Raw(tmp_path).put(files | {"sample_submission.csv": "id,rle\n0,\n1,\n"})
    raw.run()
    assert {name for name, case in raw.cases.items() if case.label is None} == {"0", "1"}
    assert not [found for found in raw.findings if "id" in found.fault]


def test_a_zip_unpacked_into_a_folder_of_its_name_is_read(tmp_path: Path) -> None:
    twice = {name.replace("stage1_train/", "stage1_train/stage1_train/"): one for name, one in competition().items()}
    raw = Raw(tmp_path).put(twice)
    raw.run()
    assert {*raw.cases} == {"a", "b", "c", "t"}


def test_a_test_image_that_is_left_out_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    raw = Raw(tmp_path).put(competition() | {"stage1_test/t/images/t.png": "oops"})
    lines = raw.run("ingest.exclude_faulty=true")
    assert lines[-1] == "noted: 1 test image(s) left out, so that submit will refuse: t"


def test_a_folder_that_cannot_be_listed_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Raw(tmp_path).put(pairs(2))
    walk = os.walk

    def denied(top: Path, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
        onerror(PermissionError(13, "Permission denied", str(Path(top) / "P2")))
        return walk(top)

    monkeypatch.setattr(os, "walk", denied)
    assert re.search(r"P2: expected a folder that can be read, found: Permission denied", raw.refusal())


# --- Real data ------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_a_part_of_the_competitions_own_zip(dsb2018: Path, tmp_path: Path) -> None:
    raw = Raw(tmp_path)
    with RawFolder(dsb2018) as whole:
        names = whole.files()
        ids = sorted({name.split("/")[1] for name in names if name.startswith("stage1_train/")})[:12]
        with zipfile.ZipFile(raw.paths.raw / "stage1_train.zip", "w") as archive:
            for name in names:
                if name.startswith("stage1_train/") and name.split("/")[1] in ids:
                    archive.writestr(name.removeprefix("stage1_train/"), whole.read(name))
        masks = sum("/masks/" in name and name.split("/")[1] in ids for name in names)
        (raw.paths.raw / "classes.csv").write_bytes(whole.read("classes.csv"))
        header, *rows = whole.read("stage1_train_labels.csv").decode().splitlines()
    runs = raw.paths.raw / "stage1_train_labels.csv"
    runs.write_text("\n".join([header, *rows]) + "\n")
    with pytest.raises(ValueError, match=r"602 x missing image.*\n.* \(and 601 more cases"):
        raw.run()
    runs.write_text("\n".join([header, *(row for row in rows if row.partition(",")[0] in ids)]) + "\n")
    lines = raw.run()
    assert lines[0].startswith(f"ingested 12 labelled and 0 unlabelled images, {masks} objects")
    assert {case.stratum for case in raw.cases.values()} <= {
        "white/black",
        "purple/purple",
        "purple/white",
        "black/white",
    }
    assert not [found for found in raw.findings if found.fault == "masks and runs differ"]


@pytest.mark.real
def test_real_pairs(real_data: Path, tmp_path: Path) -> None:
    raw = Raw(tmp_path)
    for kind in ("images", "masks"):
        for file in sorted((real_data / "nuinsseg_human" / kind).iterdir())[:6]:
            raw.put({f"{kind}/{file.name}": file.read_bytes()})
    raw.run()
    assert len(raw.cases) == 6 and raw.findings == []
    name = next(iter(raw.cases))
    own = cv2.imread(str(real_data / "nuinsseg_human" / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(raw.label(name), own > 127)


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        (competition, ["ingest.label_kind=semantic"], "ingest.label_kind=semantic: expected instance, which all"),
        (competition, ["ingest.label_kind=coarse"], "ingest.label_kind=coarse: expected patches to stitch"),
        (competition, ["ingest.window=[0, 9]"], "ingest.window=(0.0, 9.0): expected the layout nifti, found dsb2018"),
        (pairs, ["ingest.competition_stage=2", "ingest.label_source=runs"],
         "ingest.competition_stage=2: expected the layout dsb2018, found folder_pairs; leave it out\n"
         "ingest.label_source=runs: expected the layout dsb2018"),
    ],
)  # fmt: skip
def test_settings_of_another_layout_are_refused(
    files: Callable[[], dict[str, bytes | np.ndarray | str]], settings: list[str], message: str, tmp_path: Path
) -> None:
    assert message in Raw(tmp_path).put(files()).refusal(*settings)
