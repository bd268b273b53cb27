"""Patches stitched to one image a patient: places, what is missing, and scores that count squares."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import Config, IngestSettings, load_config
from pipeline.instances import Thresholds, label_raster, tune
from pipeline.outputs import Outputs
from pipeline.readers import READERS
from pipeline.records.case import IGNORED, read_cases
from pipeline.records.findings import read_findings
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, read_label, read_probabilities
from pipeline.records.raw import RawFolder
from pipeline.runner import run
from pipeline.stages import ingest
from pipeline.targets import cell_classes, cell_means

COARSE = IngestSettings(label_kind="coarse")
SQUARES = Outputs("binary", ("foreground",), "sigmoid", "coarse", cell=50)
TINY = [
    "augment.crop=64", "augment.scale=[1.0,1.0]", "train.network.name=unet", "train.network.arguments={}",
    "train.network.width=4", "train.network.depth=2", "train.steps=4", "train.batch=4", "train.validations=1",
    "compute.device=cpu", "compute.threads=1", "compute.workers=0",
]  # fmt: skip


def put(
    folder: Path, patient: str, row: int, column: int, kind: int, colour: int = 0, size: tuple[int, int] = (50, 50)
) -> Path:
    """Write a patch at a place of the grid, as the download names it: x is the column, y the row."""
    name = f"{patient}_idx5_x{50 * column + 1}_y{50 * row + 1}_class{kind}.png"
    file = folder / patient / str(kind) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), np.full((*size, 3), colour, np.uint8))
    return file


def settings_of(root: Path, *overrides: str) -> tuple[Config, Paths]:
    config = load_config(Path(__file__).parents[2] / "configs" / "idc_slides.yaml", [*TINY, *overrides])
    return config, Paths.of(config, root)


def test_patches_lie_at_their_places_and_what_is_missing_is_unknown(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path)
    # The first row and two columns of the slide hold nothing; one patch at its end is smaller.
    put(paths.raw, "7", 1, 2, 0, 10)
    put(paths.raw, "7", 1, 4, 1, 20)
    put(paths.raw, "7", 2, 2, 1, 30, (31, 50))
    put(paths.raw / "IDC_regular_ps50_idx5", "7", 1, 3, 1, 40)
    lines = ingest.run(config, paths)
    assert lines[0].startswith("ingested 1 labelled and 0 unlabelled images of 3 patches, 2 of them of class 1")
    (case,) = read_cases(paths.cases)
    assert (case.case_id, case.group, case.label_kind, case.cell, case.source) == ("7", "7", "coarse", 50, "7")
    image, label = read_image(paths.ingest / case.image), read_label(paths.ingest / str(case.label))
    assert image.shape == (81, 150, 3) == (case.height, case.width, 3)
    assert [image[0, 0, 0], image[0, 60, 0], image[49, 149, 0], image[50, 0, 0], image[80, 120, 0]] == [
        10, 255, 20, 30, 255,
    ]  # fmt: skip
    assert cell_classes(label, 50).tolist() == [[0, IGNORED, 1], [1, IGNORED, IGNORED]]
    findings = {(found.fault, found.detail) for found in read_findings(paths.findings)}
    assert findings == {
        ("second copy", "IDC_regular_ps50_idx5/: 1 patches left unread, 1 of a name that is nowhere else: "
         "IDC_regular_ps50_idx5/7/1/7_idx5_x151_y51_class1.png"),
        ("small patches", "1 of 3, kept at their places"),
        ("squares without patch", "3 of 6 are unknown, and left out"),
    }  # fmt: skip


def test_what_cannot_be_placed_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path)
    put(paths.raw, "7", 0, 0, 0)
    wrong = put(paths.raw, "7", 0, 1, 0)
    wrong.rename(wrong.parent.parent / "0" / wrong.name.replace("class0", "class1"))
    shifted = put(paths.raw, "7", 0, 2, 0)
    shifted.rename(shifted.with_name(shifted.name.replace("x101", "x103")))
    put(paths.raw, "8", 0, 0, 1, size=(50, 51))
    with pytest.raises(ValueError, match="3 fault") as raised:
        ingest.run(config, paths)
    for words in (
        "class differs",
        "off the grid: 7/0/7_idx5_x103_y1_class0.png: expected x and y in steps of 50",
        "8: large patch: 8/1/8_idx5_x1_y1_class1.png: expected at most 50 x 50 pixels, found 50 x 51",
    ):
        assert words in str(raised.value)
    config, paths = settings_of(tmp_path, "ingest.exclude_faulty=true")
    ingest.run(config, paths)
    (case,) = read_cases(paths.cases)
    assert (case.case_id, case.width) == ("7", 50)


def test_no_other_layout_is_stitched(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "ingest.layout=auto")
    for folder in ("images", "masks"):
        (paths.raw / folder).mkdir(parents=True)
        cv2.imwrite(str(paths.raw / folder / "a.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(ValueError, match="expected patches to stitch, as the layout idc has, found the layout"):
        ingest.run(config, paths)


def test_both_readings_hold_the_same_patches(tmp_path: Path) -> None:
    for column in range(3):
        put(tmp_path, "7", column % 2, column, column % 2)
    with RawFolder(tmp_path) as raw:
        patches = READERS["idc"].read(raw, IngestSettings()).cases
        (slide,) = READERS["idc"].read(raw, COARSE).cases
    assert {case.image for case in patches} == {patch.name for patch in slide.patches}
    assert {(patch.top, patch.left, patch.class_id) for patch in slide.patches} == {
        (0, 0, 0), (50, 50, 1), (0, 100, 0),
    }  # fmt: skip


def test_a_square_is_what_its_mean_says() -> None:
    maps = np.zeros((1, 70, 100), np.float32)
    maps[0, :50, :50][::2] = 0.9  # half of the pixels: 0.45
    maps[0, :50, 50:] = 0.6
    maps[0, 50:, :50] = 0.7  # what there is of a square over the end
    np.testing.assert_allclose(cell_means(maps, 50), [[[0.45, 0.6], [0.7, 0.0]]], rtol=1e-6)
    mask = label_raster(maps, SQUARES, Thresholds(foreground=0.5))
    assert mask.shape == (70, 100) and mask.dtype == np.uint16
    assert cell_classes(mask, 50).tolist() == [[0, 1], [1, 0]]
    truth = np.zeros((70, 100), np.uint16)
    truth[:50, 50:], truth[50:, :50], truth[50:, 50:] = 1, IGNORED, 1
    row = SQUARES.score(truth, mask)
    assert (row["tp"], row["fp"], row["fn"]) == (1, 0, 1)  # squares, and the unknown one is none of them
    assert (row["dice"], row["iou"]) == (pytest.approx(2 / 3), 0.5)
    assert (row["height"], row["width"]) == (70, 100)


def test_tuning_looks_at_squares() -> None:
    random = np.random.default_rng(3)
    truth = random.integers(0, 2, (6, 8)).repeat(50, 0).repeat(50, 1).astype(np.uint16)
    # Single pixels say little; the mean of a square is near 0.3 or 0.4.
    maps = np.clip(0.3 + 0.1 * truth + random.normal(0, 0.15, truth.shape), 0, 1).astype(np.float32)[np.newaxis]
    thresholds, score = tune(lambda _: maps, lambda _: truth, [0], SQUARES)
    assert score == 1.0 and 0.3 < thresholds.foreground < 0.4
    assert SQUARES.score(truth, label_raster(maps, SQUARES, thresholds))["dice"] == 1.0


def test_patients_go_from_raw_patches_to_a_report_that_counts_squares(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "split.folds=2")
    random = np.random.default_rng(0)
    for patient in range(12):
        for row, column in np.ndindex(3, 4):
            kind = int((row + column + patient) % 3 == 0)
            if (row, column) != (1, patient % 4):
                put(paths.raw, f"{9000 + patient}", row, column, kind, int(random.integers(60, 120)) + 100 * kind)
    run("report", config, paths, with_needs=True)
    cases = {case.case_id: case for case in read_cases(paths.cases)}
    assert len(cases) == 12 and json.loads((paths.train / "model.json").read_text())["cell"] == 50
    metrics = json.loads((paths.reports / "metrics.json").read_text())
    assert metrics["cases"] == metrics["groups"] and metrics["cases"] >= 2
    rows = (paths.reports / "per_case.csv").read_text().splitlines()
    header = rows[0].split(",")
    for line in rows[1:]:
        row = dict(zip(header, line.split(","), strict=True))
        case = cases[row["case_id"]]
        truth = cell_classes(read_label(paths.ingest / str(case.label)), 50)
        means = cell_means(read_probabilities(paths.predict / f"{case.case_id}.tif"), 50)[0]
        predicted = means > json.loads((paths.train / "thresholds.json").read_text())["thresholds"]["foreground"]
        known = truth != IGNORED
        assert known.sum() == 11
        assert int(row["tp"]) == ((truth == 1) & predicted).sum()
        assert int(row["tp"]) + int(row["fp"]) == (predicted & known).sum()
        assert int(row["tp"]) + int(row["fn"]) == (truth == 1).sum()
    bins = metrics["calibration"]["bins"]
    assert sum(one["pixels"] for one in bins) == 11 * metrics["cases"]
    page = (paths.reports / "report.html").read_text()
    assert metrics["cell"] == 50 and "one class for each square of 50 x 50 pixels" in page


@pytest.mark.real
def test_the_real_patient_is_stitched_without_seams(idc_patient: Path, tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path)
    paths.raw.parent.mkdir(parents=True)
    paths.raw.symlink_to(idc_patient)
    ingest.run(config, paths)
    (case,) = read_cases(paths.cases)
    image, label = read_image(paths.ingest / case.image), read_label(paths.ingest / str(case.label))
    classes = cell_classes(label, 50)
    assert [(classes == value).sum() for value in (0, 1)] == [281, 197]
    assert (image[label == IGNORED] == 255).all()
    # Where patches that are neighbours meet, pixels differ hardly more than within a patch.
    known = label != IGNORED
    for axis in (0, 1):
        steps = np.abs(np.diff(image.astype(int), axis=axis)).mean(axis=2)
        both = np.delete(known, 0, axis) & np.delete(known, -1, axis)
        at_seam = (np.arange(steps.shape[axis]) % 50 == 49).reshape((-1, 1) if axis == 0 else (1, -1))
        seam, inside = (steps[both & np.broadcast_to(where, steps.shape)].mean() for where in (at_seam, ~at_seam))
        assert seam < 1.1 * inside
