"""Patches with a class: folder and name must agree, the second copy stays unread, ingest keeps class and patient."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import IngestSettings, load_config
from pipeline.readers import READERS, RawDataset
from pipeline.records.case import read_cases
from pipeline.records.findings import read_findings
from pipeline.records.paths import Paths
from pipeline.records.raw import RawFolder
from pipeline.records.split import read_parts
from pipeline.stages import ingest, split


def png(seed: int, height: int = 50, width: int = 50) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


def patch(patient: str, x: int, y: int, kind: int, folder: str | None = None, in_folder: int | None = None) -> str:
    where = kind if in_folder is None else in_folder
    return f"{folder or patient}/{where}/{patient}_idx5_x{x}_y{y}_class{kind}.png"


def put(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(seed))


def read(folder: Path) -> RawDataset:
    with RawFolder(folder) as raw:
        return READERS["idc"].read(raw, IngestSettings())


def test_a_patch_keeps_its_place_class_and_patient(tmp_path: Path) -> None:
    put(tmp_path, patch("8863", 51, 1251, 1), patch("8863", 101, 1251, 0), patch("9135", 1, 1, 0))
    dataset = read(tmp_path)
    assert dataset.label_kind == "class" and dataset.faults == () and dataset.findings == ()
    assert [(case.case_id, case.class_name, case.group, case.segmented) for case in dataset.cases] == [
        ("8863_idx5_x101_y1251", "0", "8863", False),
        ("8863_idx5_x51_y1251", "1", "8863", False),
        ("9135_idx5_x1_y1", "0", "9135", False),
    ]


def test_the_second_copy_is_left_unread_and_counted(tmp_path: Path) -> None:
    names = (patch("8863", 51, 1251, 1), patch("8863", 101, 1251, 0))
    put(tmp_path, *names, *(f"IDC_regular_ps50_idx5/{name}" for name in names))
    dataset = read(tmp_path)
    assert len(dataset.cases) == 2 and not any("IDC_regular" in case.image for case in dataset.cases)
    (found,) = dataset.findings
    assert found.detail == "IDC_regular_ps50_idx5/: 2 patches left unread, each of a name that was read"
    put(tmp_path, f"IDC_regular_ps50_idx5/{patch('1', 1, 1, 1)}")
    (found,) = read(tmp_path).findings
    assert found.detail.endswith("3 patches left unread, 1 of a name that is nowhere else: "
                                 "IDC_regular_ps50_idx5/1/1/1_idx5_x1_y1_class1.png")  # fmt: skip


def test_a_sole_copy_is_read_wherever_it_lies(tmp_path: Path) -> None:
    put(tmp_path, f"IDC_regular_ps50_idx5/{patch('8863', 51, 1251, 1)}")
    assert [case.group for case in read(tmp_path).cases] == ["8863"] and read(tmp_path).findings == ()


def test_what_contradicts_itself_is_named_all_at_once(tmp_path: Path) -> None:
    put(
        tmp_path,
        patch("1", 1, 1, 1, in_folder=0),
        patch("1", 51, 1, 1, folder="2"),
        patch("1", 101, 1, 0),
        patch("1", 101, 1, 1),
        patch("3", 1, 1, 0, in_folder=2),
        "4/1/unknown.png",
        "overview/slide.png",
    )
    dataset = read(tmp_path)
    assert sorted((fault.case_id, fault.fault, fault.found) for fault in dataset.faults) == [
        ("1_idx5_x101_y1", "repeated case id", "1/0/1_idx5_x101_y1_class0.png, 1/1/1_idx5_x101_y1_class1.png"),
        ("1_idx5_x1_y1", "class differs", "1 in its name"),
        ("1_idx5_x51_y1", "patient differs", "1 in its name"),
        ("3_idx5_x1_y1", "class differs", "0 in its name"),
        ("unknown", "unknown name", "unknown.png"),
    ]
    assert [found.detail for found in dataset.findings] == [
        "1 image(s) in no folder of a class left unread: overview/slide.png"
    ]


def test_ingest_and_split_keep_patients_whole(tmp_path: Path) -> None:
    config = load_config(None, ["dataset=patches"])
    paths = Paths.of(config, tmp_path)
    names = [patch(str(patient), 50 * x + 1, 1, x % 2) for patient in range(10, 20) for x in range(4)]
    put(paths.raw, *names)
    border = paths.raw / names[0]
    border.write_bytes(png(0, 31, 50))
    lines = ingest.run(config, paths)
    assert lines[0].startswith("ingested 40 labelled and 0 unlabelled images, 20 of class 0, 20 of class 1 (")
    cases = read_cases(paths.cases)
    assert {(case.label, case.label_kind) for case in cases} == {(None, "class")}
    assert Counter(case.class_name for case in cases) == {"0": 20, "1": 20}
    assert Counter((case.height, case.width) for case in cases) == {(50, 50): 39, (31, 50): 1}
    assert not (paths.ingest / "labels").exists()
    paths.split.mkdir(parents=True)
    split.run(config, paths)
    parts = read_parts(paths)
    patients = [{case.case_id.split("_")[0] for case in parts[part]} for part in ("train", "validation", "test")]
    assert all(patients) and len(set.union(*patients)) == 10 == sum(map(len, patients)) and not parts["unlabelled"]


@pytest.mark.real
def test_the_real_patient(idc_patient: Path, tmp_path: Path) -> None:
    config = load_config(None, ["dataset=idc"])
    paths = Paths.of(config, tmp_path)
    paths.raw.parent.mkdir(parents=True)
    paths.raw.symlink_to(idc_patient)
    ingest.run(config, paths)
    cases = read_cases(paths.cases)
    assert Counter(case.class_name for case in cases) == {"0": 281, "1": 197}
    assert {case.group for case in cases} == {"14082"} and {(c.height, c.width) for c in cases} == {(50, 50)}
    assert read_findings(paths.findings) == []
