"""Layouts whose truth stands in a table: HuBMAP 2022, PatchCamelyon and GlaS, written to their specifications."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from pipeline.config import Config, IngestSettings, load_config
from pipeline.hidden_test import submit_hidden_test
from pipeline.readers import READERS, RawDataset
from pipeline.records.case import read_cases
from pipeline.records.findings import read_findings
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_label, write_png
from pipeline.records.raw import RawFolder
from pipeline.records.rle import decode, decode_coco, encode
from pipeline.runner import run
from pipeline.stages import ingest

TINY = [
    "augment.crop=32", "augment.elastic=0", "augment.scale=[1.0,1.0]", "predict.scales=[1.0]",
    "train.network.name=unet", "train.network.arguments={}", "train.network.width=4", "train.network.depth=2",
    "train.steps=4", "train.batch=4",
    "train.validations=1", "evaluate.resamples=2000", "compute.device=cpu", "compute.threads=1", "compute.workers=0",
]  # fmt: skip


def read(folder: Path, layout: str) -> RawDataset:
    with RawFolder(folder) as raw:
        return READERS[layout].read(raw, IngestSettings())


def settings_of(root: Path, dataset: str, *more: str) -> tuple[Config, Paths]:
    config = load_config(Path(__file__).parents[2] / "configs" / f"{dataset}.yaml", [*TINY, *more])
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
    text = re.sub(r"(10002,\w+,HPA,)64", r"\g<1>64.5", text)
    table.write_text(text + "10001,kidney,HPA,64,48,0.4,4,,1,Male\nnowhere,lung,HPA,1,1,0.4,4,,1,Male\n")
    with pytest.raises(ValueError) as told:
        ingest.run(config, paths)
    message = str(told.value)
    assert "10003: size mismatch: train_images/10003.tiff: expected 48 x 64 pixels (height x width)" in message
    assert "10000: no number: train.csv: expected a pixel_size above 0, found ''" in message
    assert "10002: no number: train.csv: expected a whole img_height above 0, found '64.5'" in message
    assert "nowhere: missing image: train.csv: expected its image in train_images/, found none; fetch it" in message
    assert "10001: repeated row: train.csv: expected one row an id, found 2 rows" in message


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "hubmap2022")
    hubmap(paths.raw)
    table = paths.raw / "train.csv"
    text = table.read_text()
    for changed in (text.replace("pixel_size", "mpp", 1), text.replace(",", ";")):
        table.write_text(changed)
        with pytest.raises(ValueError, match=r"train\.csv: expected the columns .*pixel_size"):
            ingest.run(config, paths)


def test_the_mask_of_a_class_is_of_as_many_pieces_as_it_likes(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "hubmap2022")
    hubmap(paths.raw)
    table = paths.raw / "train.csv"
    mask = np.zeros((64, 48), bool)
    mask[2:9, 2:9] = mask[20:30, 20:40] = True
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines[:-1], f"10017,kidney,HPA,64,48,0.4,4,{encode(mask)},70.0,Male"]) + "\n")
    ingest.run(config, paths)
    assert not read_findings(paths.findings)


def test_labels_of_hubmap_test_images_are_left_unread(tmp_path: Path) -> None:
    hubmap(tmp_path)
    (tmp_path / "test_images" / "9.json").write_text("[]")
    (found,) = read(tmp_path, "hubmap2022").findings
    assert found.case_id == "9" and "left unread" in found.detail


# --- HuBMAP 2020 -----------------------------------------------------------------------------------------------------

ORDERS = ("rows, columns, colours", "colours, rows, columns", "1, 1, colours, rows, columns")


def kidneys(raw: Path) -> dict[str, np.ndarray]:
    """Twelve images of twelve patients in every order of axes, and two test images; returns the masks."""
    generator = np.random.default_rng(8)
    rows, table, masks = ["id,encoding"], ["image_file,width_pixels,height_pixels,race,patient_number"], {}
    for number in range(14):
        name, height, width = f"kidney{number:02d}", 301 + number, 210
        pixels = cv2.resize(picture(generator, 10, 7), (width, height))
        mask = np.zeros((height, width), bool)
        mask[40 + number : 140, 60:150] = True
        pixels[mask] //= 4
        order = ORDERS[number % 3]
        stored = pixels if order == ORDERS[0] else pixels.transpose(2, 0, 1)
        part = "train" if number < 12 else "test"
        (raw / part).mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(
            raw / part / f"{name}.tiff", stored[None, None] if order == ORDERS[2] else stored, photometric="rgb",
            planarconfig=None if order == ORDERS[0] else "separate", metadata=None,
        )  # fmt: skip
        table.append(f"{name}.tiff,{width},{height},White,{60000 + number}")
        if part == "train":
            rows.append(f"{name},{encode(mask)}")
            masks[name] = mask
    (raw / "train.csv").write_text("\n".join(rows) + "\n")
    (raw / "HuBMAP-20-dataset_information.csv").write_text("\n".join(table) + "\n")
    (raw / "sample_submission.csv").write_text("id,predicted\nkidney13,\nkidney12,\n")
    return masks


def test_hubmap2020_goes_from_raw_files_to_a_submission_of_full_size(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "hubmap2020", "split.groups=given")
    masks = kidneys(paths.raw)
    run("submit", config, paths, with_needs=True)
    run("report", config, paths, with_needs=True)
    cases = {case.case_id: case for case in read_cases(paths.cases)}
    for name, mask in masks.items():
        case = cases[name]
        height, width = mask.shape
        assert (case.height, case.width, case.full) == (round(height / 4), round(width / 4), [height, width])
        label = read_label(paths.ingest / str(case.label))
        enlarged = label[np.arange(height) * label.shape[0] // height][:, np.arange(width) * label.shape[1] // width]
        assert (enlarged > 0).sum() == pytest.approx(mask.sum(), rel=0.06) and ((enlarged > 0) != mask).mean() < 0.02
        stored = cv2.imread(str(paths.ingest / case.image))
        assert stored[label > 0].mean() < 0.5 * stored[label == 0].mean()
    assert cases["kidney05"].group == "60005"
    header, *lines = (paths.reports / "submission.csv").read_text().splitlines()
    assert header == "id,predicted" and [line.partition(",")[0] for line in lines] == ["kidney13", "kidney12"]
    small = read_label(paths.reports / "masks" / "kidney13.png")
    whole = decode(lines[0].partition(",")[2], 314, 210)
    assert small.shape == (78, 52)
    assert (whole == (small > 0)[np.arange(314) * 78 // 314][:, np.arange(210) * 52 // 210]).all()
    assert submitted_anew(paths) == (paths.reports / "submission.csv").read_bytes()


def test_faults_of_hubmap2020_come_in_one_message(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "hubmap2020")
    kidneys(paths.raw)
    (paths.raw / "test" / "kidney12.json").write_text("[]")
    information = paths.raw / "HuBMAP-20-dataset_information.csv"
    information.write_text(
        information.read_text().replace("210,302,White,60001", "302,210,White,60001").replace("White,60002", "White,")
    )
    table = paths.raw / "train.csv"
    table.write_text(table.read_text().replace("kidney03,", "kidney03,999999 3 ").replace("kidney04,", "other,"))
    found = read(paths.raw, "hubmap2020").findings
    assert any(one.case_id == "kidney12" and "left unread" in one.detail for one in found)
    with pytest.raises(ValueError) as told:
        ingest.run(config, paths)
    message = str(told.value)
    told_of = ("kidney01: size mismatch", "kidney02: no patient", "kidney03: faulty runs: train.csv",
               "kidney04: missing row", "other: missing image: train.csv")  # fmt: skip
    for part in told_of:
        assert part in message


def test_shrinking_is_for_slides(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "hubmap2022", "ingest.shrink=2")
    hubmap(paths.raw)
    with pytest.raises(
        ValueError, match=r"ingest\.shrink=2: expected the layout hubmap2020 or slides, found hubmap2022"
    ):
        ingest.run(config, paths)


# --- HuBMAP 2023 -----------------------------------------------------------------------------------------------------


def vasculature(raw: Path) -> dict[str, np.ndarray]:
    """Twenty tiles of ten slides with two vessels each, one without a line, two test tiles; returns the vessels."""
    generator = np.random.default_rng(6)
    lines, tiles, masks = [], ["id,source_wsi,dataset,i,j"], {}
    for number in range(20):
        case_id, pixels = f"tile{number:02d}", picture(generator, 64, 64)
        corners = [[[10 + number, 10], [30 + number, 10], [30 + number, 24], [10 + number, 24]]]
        others = [[[5, 40], [20, 40], [20, 60], [5, 60]]], [[[40, 45], [60, 45], [60, 60], [40, 60]]]
        masks[case_id] = np.zeros((64, 64), np.uint16)
        # A corner names a pixel, which is the outline's own.
        masks[case_id][10:25, 10 + number : 31 + number] = 1
        masks[case_id][40:61, 5:21] = 2
        masks[case_id][45:61, 40:61] = 65535
        pixels[masks[case_id] > 0] //= 4
        named = zip((corners, *others), ("blood_vessel", "blood_vessel", "unsure"), strict=True)
        annotations = [{"type": kind, "coordinates": rings} for rings, kind in named]
        annotations.append({"type": "glomerulus", "coordinates": [[[0, 0], [9, 0], [9, 9]]]})
        if number < 18:
            lines.append(json.dumps({"id": case_id, "annotations": annotations}))
        save(raw / "train" / f"{case_id}.tif", pixels)
        tiles.append(f"{case_id},{number // 2 + 1},{1 + number % 2},0,{number * 512}")
    for case_id in ("testb", "testa"):
        save(raw / "test" / f"{case_id}.tif", picture(generator, 64, 64))
        tiles.append(f"{case_id},{99},2,0,0")
    (raw / "polygons.jsonl").write_text("\n".join(lines) + "\n")
    (raw / "tile_meta.csv").write_text("\n".join(tiles) + "\n")
    (raw / "sample_submission.csv").write_text("id,height,width,prediction_string\ntestb,64,64,\ntesta,64,64,0 1.0 x\n")
    return masks


def test_hubmap2023_goes_from_raw_files_to_a_submission(tmp_path: Path) -> None:
    # All tiles show much the same here, and would be taken for one field.
    config, paths = settings_of(tmp_path, "hubmap2023", "split.groups=given")
    masks = vasculature(paths.raw)
    run("submit", config, paths, with_needs=True)
    run("report", config, paths, with_needs=True)
    cases = {case.case_id: case for case in read_cases(paths.cases)}
    for case_id in list(masks)[:18]:
        assert (read_label(paths.ingest / str(cases[case_id].label)) == masks[case_id]).all()
    assert (cases["tile03"].group, cases["tile03"].stratum, "tile19" in cases) == ("2", "2", False)
    assert {found.fault: found.detail for found in read_findings(paths.findings)}["tiles without outlines"] == (
        "2 tile(s) of train/ without a line in polygons.jsonl, not read: nothing of them is asked for"
    )
    header, *lines = (paths.reports / "submission.csv").read_text().splitlines()
    assert header == "id,height,width,prediction_string" and [line[:11] for line in lines] == [
        "testb,64,64",
        "testa,64,64",
    ]
    labels = read_label(paths.reports / "masks" / "testb.png")
    words = lines[0].split(",")[3].split()
    assert len(words) == 3 * len(np.unique(labels[labels > 0])) and set(words[::3]) <= {"0"}
    painted = np.zeros((64, 64), bool)
    for confidence, packed in zip(words[1::3], words[2::3], strict=True):
        assert 0.0 < float(confidence) <= 1.0
        painted |= decode_coco(zlib.decompress(base64.b64decode(packed)), 64, 64)
    assert (painted == (labels > 0)).all()
    assert submitted_anew(paths) == (paths.reports / "submission.csv").read_bytes()


def test_every_bad_line_of_polygons_is_told_at_once(tmp_path: Path) -> None:
    vasculature(tmp_path)
    file = tmp_path / "polygons.jsonl"
    first, *others = file.read_text().splitlines()
    bad = [first, '{"id": "x"}', "no json", '{"id": "y", "annotations": [{"type": "nerve", "coordinates": []}]}']
    file.write_text("\n".join([first, *others, *bad]) + "\n")
    with pytest.raises(ValueError) as told:
        read(tmp_path, "hubmap2023")
    message = str(told.value)
    for part in (
        "line 19: ValueError a second line of tile00",
        "line 20: KeyError",
        "line 21",
        "line 22: ValueError type",
    ):
        assert part in message
    file.write_text("\n".join([*others, '{"id": "absent", "annotations": []}']) + "\n")
    dataset = read(tmp_path, "hubmap2023")
    assert [(fault.case_id, fault.fault) for fault in dataset.faults] == [("absent", "missing image")]
    assert "17 of glomerulus left out" in dataset.findings[0].detail


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


def test_a_missing_sample_submission_is_told_before_it_is_asked_for(tmp_path: Path) -> None:
    pcam(tmp_path / "patches")
    vasculature(tmp_path / "tiles")
    for folder, layout in (("patches", "pcam"), ("tiles", "hubmap2023")):
        (tmp_path / folder / "sample_submission.csv").unlink()
        dataset = read(tmp_path / folder, layout)
        assert dataset.sample_submission is None
        assert "no sample submission" in {found.fault for found in dataset.findings}


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
        ("none", "missing image"), ("p0", "repeated row"), ("p1", "unknown class"), ("p3", "missing class"),
    ]  # fmt: skip
    assert [found.fault for found in dataset.findings] == ["no patients"]


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


def test_glas_tells_patients_on_both_sides_and_images_without_one_or_without_objects(tmp_path: Path) -> None:
    glas(tmp_path)
    (found,) = read(tmp_path, "glas").findings
    assert found.detail == "8 of 8 patients of test A and B are in the training part too: all parts were pooled"
    write_png(tmp_path / "Warwick QU Dataset" / "train_99.bmp", picture(np.random.default_rng(0), 8, 8))
    (tmp_path / "Warwick QU Dataset" / "train_3_anno.bmp").unlink()
    assert [str(fault) for fault in read(tmp_path, "glas").faults] == [
        "train_3: missing raster: Warwick QU Dataset/train_3_anno.bmp: expected the objects of the image, found no "
        "file; add it",
        "train_99: no patient: Warwick QU Dataset/Grade.csv: expected a row with its patient, found none; add the row",
        "train_99: missing raster: Warwick QU Dataset/train_99_anno.bmp: expected the objects of the image, found no "
        "file; add it",
    ]


def test_glas_tells_an_image_that_is_gone_and_no_table(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path, "glas")
    glas(paths.raw)
    (paths.raw / "Warwick QU Dataset" / "train_3.bmp").unlink()
    assert [str(fault) for fault in read(paths.raw, "glas").faults] == [
        "train_3: missing image: Warwick QU Dataset/Grade.csv: expected its image in Warwick QU Dataset/, found none; "
        "fetch it again, or delete its rows",
        "train_3: missing image: Warwick QU Dataset/train_3_anno.bmp: expected its image, found none; "
        "fetch it again, or delete the raster",
    ]
    (paths.raw / "Warwick QU Dataset" / "Grade.csv").unlink()
    # Without it images and masks would be there still, and their patients would not.
    with pytest.raises(ValueError, match=r"none of the expected layouts:\n  glas: "):
        ingest.run(config, paths)
