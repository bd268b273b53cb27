"""Layouts whose truth stands in a table: HuBMAP 2022, PatchCamelyon and GlaS, written to their specifications."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import Config, IngestSettings, load_config
from pipeline.hidden_test import submit_hidden_test
from pipeline.readers import READERS, RawDataset
from pipeline.records.case import read_cases
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_label, write_png
from pipeline.records.raw import RawFolder
from pipeline.records.rle import decode, encode
from pipeline.stages import ingest, run

TINY = [
    "augment.crop=32", "augment.elastic=0", "augment.scale=[1.0,1.0]", "predict.scales=[1.0]",
    "train.network.name=unet", "train.network.arguments={}", "train.network.width=4", "train.network.depth=2",
    "train.steps=4", "train.batch=4",
    "train.validations=1", "evaluate.resamples=2000", "compute.device=cpu", "compute.threads=1", "compute.workers=0",
]  # fmt: skip


def read(folder: Path, layout: str) -> RawDataset:
    with RawFolder(folder) as raw:
        return READERS[layout].read(raw, IngestSettings())


def settings_of(root: Path, dataset: str) -> tuple[Config, Paths]:
    config = load_config(Path(__file__).parents[2] / "configs" / f"{dataset}.yaml", TINY)
    return config, Paths.of(config, root)


def submitted_anew(paths: Paths) -> bytes:
    """What the run alone submits for the competition's folder, as a notebook on Kaggle does."""
    out = paths.root / "anew.csv"
    submit_hidden_test(str(paths.train), paths.raw, out, ["compute.device=cpu", "compute.threads=1"])
    return out.read_bytes()


def picture(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    return generator.integers(0, 256, (height, width, 3)).astype(np.uint8)


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(file), pixels[..., ::-1] if pixels.ndim == 3 else pixels)


# --- HuBMAP + HPA 2022 -----------------------------------------------------------------------------------------------

HUBMAP = "id,organ,data_source,img_height,img_width,pixel_size,tissue_thickness,rle,age,sex"


def hubmap(raw: Path) -> dict[str, np.ndarray]:
    """Eighteen training images that are higher than wide, and two test images; returns the masks."""
    generator = np.random.default_rng(2)
    rows, masks = [HUBMAP], {}
    for number in range(18):
        case_id, mask = str(10_000 + number), np.zeros((64, 48), np.uint8)
        mask[number : number + 20, 3:30] = number != 5  # one image without any unit
        masks[case_id] = mask
        save(raw / "train_images" / f"{case_id}.tiff", picture(generator, 64, 48))
        organ = ("lung", "kidney")[number % 2]
        rows.append(f"{case_id},{organ},HPA,64,48,0.4,4,{encode(mask > 0)},70.0,Male")
    (raw / "train.csv").write_text("\n".join(rows) + "\n")
    tests = ["id,organ,data_source,img_height,img_width,pixel_size,tissue_thickness"]
    for case_id in ("9", "8"):
        save(raw / "test_images" / f"{case_id}.tiff", picture(generator, 48, 64))
        tests.append(f"{case_id},lung,Hubmap,48,64,0.5,10")
    (raw / "test.csv").write_text("\n".join(tests) + "\n")
    (raw / "sample_submission.csv").write_text("id,rle\n9,1 1\n8,1 1\n")
    return masks


def test_hubmap2022_goes_from_raw_files_to_a_submission(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "hubmap2022")
    masks = hubmap(paths.raw)
    run("submit", config, paths, with_needs=True)
    run("report", config, paths, with_needs=True)
    cases = {case.case_id: case for case in read_cases(paths.cases)}
    for case_id, mask in masks.items():
        assert (read_label(paths.ingest / str(cases[case_id].label)) == mask).all()
    assert {case.label_kind for case in cases.values()} == {"semantic", "none"}
    assert (cases["10001"].stratum, cases["10001"].mpp, cases["8"].mpp) == ("kidney", 0.4, 0.5)
    lines = (paths.reports / "submission.csv").read_text().splitlines()
    assert lines[0] == "id,rle" and [line.partition(",")[0] for line in lines[1:]] == ["9", "8"]
    made = read_label(paths.reports / "masks" / "9.png")
    assert (decode(lines[1].partition(",")[2], 48, 64) == (made > 0)).all()
    assert (paths.reports / "report.html").stat().st_size > 10_000
    assert submitted_anew(paths) == (paths.reports / "submission.csv").read_bytes()


def test_a_side_that_differs_from_the_table_is_refused_and_so_is_what_is_no_number(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "hubmap2022")
    hubmap(paths.raw)
    table = paths.raw / "train.csv"
    text = table.read_text().replace("10003,kidney,HPA,64,48", "10003,kidney,HPA,48,64").replace(",0.4,", ",,", 1)
    table.write_text(text + "10001,kidney,HPA,64,48,0.4,4,,1,Male\nnowhere,lung,HPA,1,1,0.4,4,,1,Male\n")
    with pytest.raises(ValueError) as told:
        ingest.run(config, paths)
    message = str(told.value)
    assert "10003: size mismatch: train_images/10003.tiff: expected 48 x 64 pixels (height x width)" in message
    assert "10000: no number: train.csv: expected a pixel_size above 0, found ''" in message
    assert "10001: repeated row: train.csv: expected one row an id, found 2 rows" in message


def test_labels_of_hubmap_test_images_are_left_unread(tmp_path: Path) -> None:
    hubmap(tmp_path)
    (tmp_path / "test_images" / "9.json").write_text("[]")
    (found,) = read(tmp_path, "hubmap2022").findings
    assert found.case_id == "9" and "left unread" in found.detail


# --- PatchCamelyon ---------------------------------------------------------------------------------------------------


def pcam(raw: Path, number: int = 24) -> None:
    generator = np.random.default_rng(3)
    for index in range(number):
        pixels = picture(generator, 96, 96)
        pixels[32:64, 32:64] = 40 if index % 2 else 220
        save(raw / "train" / f"p{index}.tif", pixels)
    for name in ("t1", "t0"):
        save(raw / "test" / f"{name}.tif", picture(generator, 96, 96))
    rows = "".join(f"p{index},{index % 2}\n" for index in range(number))
    (raw / "train_labels.csv").write_text("id,label\n" + rows)
    (raw / "sample_submission.csv").write_text("id,label\nt1,0\nt0,0\n")


def test_pcam_goes_from_raw_files_to_a_submission_of_probabilities(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "pcam")
    pcam(paths.raw)
    run("submit", config, paths, with_needs=True)
    run("report", config, paths, with_needs=True)
    lines = (paths.reports / "submission.csv").read_text().splitlines()
    predicted = {line.split(",")[0]: line.split(",")[2] for line in paths.classes.read_text().splitlines()}
    assert predicted["case_id"] == "p_1"
    assert lines == ["id,label", f"t1,{predicted['t1']}", f"t0,{predicted['t0']}"]
    assert all(0 < float(line.split(",")[1]) < 1 for line in lines[1:])
    assert submitted_anew(paths) == (paths.reports / "submission.csv").read_bytes()


def test_what_is_wrong_with_pcams_table_is_told_at_once(tmp_path: Path) -> None:
    pcam(tmp_path, 4)
    (tmp_path / "train_labels.csv").write_text("id,label\np0,0\np0,1\np1,2\np2,1\nnone,1\n")
    dataset = read(tmp_path, "pcam")
    assert sorted((fault.case_id, fault.fault) for fault in dataset.faults) == [
        ("p0", "repeated row"), ("p1", "unknown class"), ("p3", "missing class"),
    ]  # fmt: skip
    assert [found.fault for found in dataset.findings] == ["no patients", "class without image"]


@pytest.mark.parametrize("layout", ["pcam", "hubmap2022"])
def test_two_images_of_one_id_are_refused(layout: str, tmp_path: Path) -> None:
    {"pcam": pcam, "hubmap2022": hubmap}[layout](tmp_path)
    folder, name = {"pcam": ("train", "p0.tif"), "hubmap2022": ("train_images", "10000.tiff")}[layout]
    (tmp_path / folder / "again").mkdir()
    (tmp_path / folder / "again" / name).write_bytes((tmp_path / folder / name).read_bytes())
    (fault,) = read(tmp_path, layout).faults
    assert fault.fault == "several images" and "again" in fault.found


# --- GlaS ------------------------------------------------------------------------------------------------------------


def glas(raw: Path) -> None:
    generator = np.random.default_rng(4)
    rows = ["name,patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for number in range(24):
        part = "train" if number < 16 else "testA" if number < 20 else "testB"
        name, raster = f"{part}_{number}", np.zeros((64, 80), np.uint8)
        raster[5:30, 5:30], raster[5:30, 30:60], raster[40:60, 10:40] = 1, 2, 3
        save(raw / "Warwick QU Dataset" / f"{name}.bmp", picture(generator, 64, 80))
        save(raw / "Warwick QU Dataset" / f"{name}_anno.bmp", raster)
        rows.append(f"{name}, {number % 12}, {('benign', 'malignant')[number % 2]}, adenomatous")
    (raw / "Warwick QU Dataset" / "Grade.csv").write_text("\n".join(rows) + "\n")


def test_glas_goes_from_raw_files_to_a_report_with_patients_whole(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "glas")
    glas(paths.raw)
    run("report", config, paths, with_needs=True)
    cases = read_cases(paths.cases)
    assert len(cases) == 24 and {case.label_kind for case in cases} == {"instance"}
    assert (read_label(paths.ingest / str(cases[0].label)).max(), cases[0].group, cases[0].stratum) == (
        3,
        "4",
        "benign",
    )
    parts: dict[str, set[str]] = {}
    for line in paths.split_table.read_text().splitlines()[1:]:
        _, group, _, part, _ = line.split(",")
        parts.setdefault(part, set()).add(group)
    assert len(parts) == 3 and sum(map(len, parts.values())) == 12
    assert "pq" in (paths.reports / "metrics.json").read_text()


def test_glas_tells_patients_on_both_sides_and_images_without_one(tmp_path: Path) -> None:
    glas(tmp_path)
    (found,) = read(tmp_path, "glas").findings
    assert found.detail == "8 of 8 patients of test A and B are in the training part too: all parts were pooled"
    write_png(tmp_path / "Warwick QU Dataset" / "train_99.bmp", picture(np.random.default_rng(0), 8, 8))
    (fault,) = read(tmp_path, "glas").faults
    assert (fault.case_id, fault.fault) == ("train_99", "no patient")
