"""Pairs of images: joined on the stem, faults all at once, and written by ingest as image and target."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.config import IngestSettings, load_config
from pipeline.readers import READERS, RawDataset, layout_of
from pipeline.records.case import Case, read_cases
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image
from pipeline.records.raw import RawFolder
from pipeline.stages import ingest, split


def picture(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def put(folder: Path, **files: np.ndarray) -> None:
    """Write files; __ in a name stands for a slash, and PNG is written unless the name says another suffix."""
    for name, pixels in files.items():
        file = folder / (name.replace("__", "/") + ".png")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(cv2.imencode(".png", pixels[..., ::-1] if pixels.ndim == 3 else pixels)[1].tobytes())


def read(folder: Path) -> RawDataset:
    with RawFolder(folder) as raw:
        assert layout_of(raw, "auto") == "image_pairs"
        return READERS["image_pairs"].read(raw, IngestSettings())


def ingested(root: Path, *settings: str) -> tuple[Paths, list[Case], list[str]]:
    config = load_config(None, ["dataset=made", *settings])
    paths = Paths.of(config, root)
    lines = ingest.run(config, paths)
    return paths, read_cases(paths.cases), lines


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("input", "target"),
        ("inputs", "Targets"),
        ("source", "target"),
        ("trainA", "trainB"),
        ("deep/input", "deep/target"),
    ],
)
def test_two_folders_are_joined_on_the_stem(first: str, second: str, tmp_path: Path) -> None:
    for folder, names in ((first, ("b.jpg", "P1/a.png")), (second, ("b.png", "P1/a.tif"))):
        for name in names:
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / name).write_bytes(b"")
    dataset = read(tmp_path)
    assert dataset.faults == () and dataset.label_kind == "image"
    assert [(case.case_id, case.image, case.target) for case in dataset.cases] == [
        ("P1__a", f"{first}/P1/a.png", f"{second}/P1/a.tif"),
        ("b", f"{first}/b.jpg", f"{second}/b.png"),
    ]


def test_parts_of_a_translation_data_set_stay_apart_where_names_repeat(tmp_path: Path) -> None:
    put(tmp_path, trainA__1=picture(0), trainB__1=picture(1), testA__1=picture(2), testB__1=picture(3))
    assert [(case.case_id, case.target) for case in read(tmp_path).cases] == [
        ("test__1", "testB/1.png"), ("train__1", "trainB/1.png"),
    ]  # fmt: skip


def test_missing_and_repeated_partners_are_told_together(tmp_path: Path) -> None:
    put(
        tmp_path,
        input__a=picture(0),
        target__b=picture(0),
        input__c=picture(0),
        target__c=picture(1),
        pairs__c=picture(2),
    )
    (tmp_path / "input" / "d.png").write_bytes(b"")
    (tmp_path / "target" / "d.png").write_bytes(b"")
    (tmp_path / "target" / "d.tif").write_bytes(b"")
    dataset = read(tmp_path)
    assert dataset.cases == ()
    assert [(fault.case_id, fault.fault, fault.file) for fault in dataset.faults] == [
        ("a", "missing target", "input/a.png"),
        ("b", "missing input", "target/b.png"),
        ("c", "several inputs", "input/c.png"),
        ("c", "several targets", "target/c.png"),
        ("d", "several targets", "target/d.png"),
    ]


def test_ingest_writes_image_and_target(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "made"
    images = [picture(seed) for seed in range(4)]
    grey = picture(9)[..., 0]
    put(raw, input__a=images[0], target__a=images[1], input__b=images[2], target__b=grey)
    (raw / "groups.csv").write_text("case_id,group,stratum\na,P1,east\nb,P2,west\n")
    paths, (a, b), lines = ingested(tmp_path, "ingest.group_csv=groups.csv")
    assert (a.label_kind, a.label, a.group, a.stratum, a.classes) == ("image", "labels/a.png", "P1", "east", None)
    assert (a.height, a.width, a.source, b.group) == (20, 30, "input/a.png", "P2")
    assert np.array_equal(read_image(paths.ingest / a.image), images[0])
    assert np.array_equal(read_image(paths.ingest / str(a.label)), images[1])
    assert np.array_equal(read_image(paths.ingest / str(b.label)), np.repeat(grey[..., np.newaxis], 3, axis=2))
    assert lines[0].startswith("ingested 2 labelled and 0 unlabelled images (") and lines[1] == "layout image_pairs"


def test_side_by_side_files_are_cut_in_two(tmp_path: Path) -> None:
    both = np.concatenate([picture(0), picture(1)], axis=1)
    put(tmp_path / "data" / "raw" / "made", pairs__a=both)
    paths, (a,), _ = ingested(tmp_path)
    assert (a.case_id, a.height, a.width) == ("a", 20, 30)
    assert np.array_equal(read_image(paths.ingest / a.image), picture(0))
    assert np.array_equal(read_image(paths.ingest / str(a.label)), picture(1))


def test_images_of_16_bits_are_scaled_alike_on_both_sides(tmp_path: Path) -> None:
    deep = np.full((20, 30, 3), 1023, np.uint16)
    deep[0, 0] = 512
    put(
        tmp_path / "data" / "raw" / "made",
        input__a=deep // 2,
        target__a=deep,
        input__b=picture(0),
        target__b=picture(1),
    )
    paths, (a, b), _ = ingested(tmp_path)
    assert read_image(paths.ingest / a.image)[1, 1, 0] == round(511 * 255 / 1023)
    assert read_image(paths.ingest / str(a.label))[1, 1, 0] == 255
    assert np.array_equal(read_image(paths.ingest / str(b.label)), picture(1))


def test_faults_of_pixels_are_told_together(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "made"
    put(raw, input__a=picture(0), target__a=picture(0, 20, 31), input__b=picture(0), target__b=picture(0, 30, 20))
    put(raw, pairs__odd=picture(0, 20, 31), input__c=picture(0), target__c=picture(0), input__alone=picture(0))
    (raw / "target" / "c.png").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"5 fault\(s\) in 5 of 5 cases") as caught:
        ingested(tmp_path)
    for words in (
        "a: size mismatch: target/a.png: expected the image's height x width 20 x 30, found 20 x 31",
        "b: transposed: target/b.png",
        "c: wrong file type: target/c.png",
        "odd: odd width: pairs/odd.png: expected image and target side by side, of the same width, found 31 pixels",
        "alone: missing target: input/alone.png",
    ):
        assert words in str(caught.value)


def test_split_keeps_the_views_of_one_tissue_together(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "made"
    rows = ["case_id,group,stratum"]
    for number in range(24):
        put(raw, **{f"input__c{number:02d}": picture(number), f"target__c{number:02d}": picture(number // 2 + 100)})
        rows.append(f"c{number:02d},P{number // 2},{'east' if number % 2 else 'west'}")
    (raw / "groups.csv").write_text("\n".join(rows) + "\n")
    paths, cases, _ = ingested(tmp_path, "ingest.group_csv=groups.csv")
    config = load_config(None, ["dataset=made", "ingest.group_csv=groups.csv"])
    paths.split.mkdir(parents=True)
    split.run(config, paths)
    rows = [line.split(",") for line in paths.split_table.read_text().splitlines()[1:]]
    part = {row[0]: row[3] for row in rows}
    assert len(rows) == len(cases) == 24 and set(part.values()) == {"train", "validation", "test"}
    assert all(part[f"c{2 * pair:02d}"] == part[f"c{2 * pair + 1:02d}"] for pair in range(12))
