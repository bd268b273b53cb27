"""Arrays of three folds: mapped, joined into objects with classes, held to the published folds, scored by class."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Config, ConfigError, IngestSettings, load_config
from pipeline.readers import READERS, RawDataset, layout_of
from pipeline.readers.pannuke import CLASSES
from pipeline.records.case import Case, read_cases
from pipeline.records.findings import read_findings
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, read_label
from pipeline.records.raw import RawFolder
from pipeline.records.split import read_parts
from pipeline.runner import run
from pipeline.stages import ingest, split
from pipeline.stages.evaluate import as_table
from pipeline.stages.predict import predict_images

TINY = [
    "augment.crop=32", "augment.elastic=0", "augment.scale=[1.0,1.0]",
    "train.network.name=unet", "train.network.arguments={}", "train.network.width=4", "train.network.depth=2",
    "train.steps=4", "train.batch=4",
    "train.validations=1", "compute.device=cpu", "compute.threads=1", "compute.workers=0",
]  # fmt: skip
SIDE, IMAGES = 40, 7


def pannuke(raw: Path, *, dtype: type = np.float64, folds: tuple[int, ...] = (1, 2, 3)) -> dict[str, np.ndarray]:
    """Three folds as the download nests them; returns their masks. Image 0 holds no object, image 1 one of each."""
    generator = np.random.default_rng(5)
    masks = {}
    for fold in folds:
        images = generator.integers(0, 256, (IMAGES, SIDE, SIDE, 3)).astype(dtype)
        planes = np.zeros((IMAGES, SIDE, SIDE, 6))
        for number in range(1, IMAGES):
            for plane in range(5) if number == 1 else {number % 5, (number + 2) % 5}:
                planes[number, 4 + 7 * plane : 9 + 7 * plane, 5:12, plane] = 3
                planes[number, 4 + 7 * plane : 9 + 7 * plane, 20:30, plane] = 9
        planes[..., 5] = planes[..., :5].sum(axis=-1) == 0
        put(raw / f"Fold {fold}" / "images" / f"fold{fold}" / "images.npy", images)
        put(raw / f"Fold {fold}" / "masks" / f"fold{fold}" / "masks.npy", planes)
        types = np.array([("Breast", "Bile-duct")[number % 2] for number in range(IMAGES)])
        put(raw / f"Fold {fold}" / "images" / f"fold{fold}" / "types.npy", types)
        masks[f"fold{fold}"] = planes
    return masks


def put(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, array)


def settings_of(root: Path, *overrides: str) -> tuple[Config, Paths]:
    config = load_config(Path(__file__).parents[2] / "configs" / "pannuke.yaml", [*TINY, *overrides])
    return config, Paths.of(config, root)


def read(folder: Path) -> RawDataset:
    with RawFolder(folder) as raw:
        assert layout_of(raw, "auto") == "pannuke"
        return READERS["pannuke"].read(raw, IngestSettings())


def ingested(root: Path) -> tuple[Paths, list[Case]]:
    config, paths = settings_of(root)
    ingest.run(config, paths)
    return paths, read_cases(paths.cases)


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, np.int16])
def test_objects_keep_their_pixels_and_classes(dtype: type, tmp_path: Path) -> None:
    masks = pannuke(tmp_path / "data" / "raw" / "pannuke", dtype=dtype)
    paths, cases = ingested(tmp_path)
    assert [case.case_id for case in cases[:2]] == ["fold1_0000", "fold1_0001"] and len(cases) == 3 * IMAGES
    whole = np.load(paths.raw / "Fold 2" / "images" / "fold2" / "images.npy")
    for case in cases:
        fold, _, number = case.case_id.partition("_")
        assert (case.part, case.group, case.mpp) == (fold, None, 0.25)
        assert case.stratum == ("Breast", "Bile-duct")[int(number) % 2]
        label, planes = read_label(paths.ingest / str(case.label)), masks[fold][int(number)]
        assert case.classes is not None and label.max() == len(case.classes)
        found = {(name, *np.argwhere(label == object_ + 1)[0]) for object_, name in enumerate(case.classes)}
        assert found == {
            (CLASSES[plane], *np.argwhere(planes[..., plane] == value)[0])
            for plane in range(5) for value in (3, 9) if (planes[..., plane] == value).any()
        }  # fmt: skip
        np.testing.assert_array_equal(label > 0, planes[..., 5] == 0)
    np.testing.assert_array_equal(read_image(paths.ingest / "images" / "fold2_0003.png"), whole[3])
    assert cases[0].classes == [] and cases[3].source == "Fold 1/images/fold1/images.npy[3]"
    assert [found.fault for found in read_findings(paths.findings)] == ["no patients"]


def test_pixels_of_two_planes_go_to_the_smaller_object_and_are_counted(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "pannuke"
    masks = pannuke(raw, folds=(1,))["fold1"]
    masks[0, 2:10, 2:10, 0], masks[0, 4:6, 4:6, 1], masks[0, 20:24, 20:24, 2] = 7, 7, 7
    masks[0, 21:22, 21:22, 3] = 1
    put(raw / "Fold 1" / "masks" / "fold1" / "masks.npy", masks)
    paths, (case, *_) = ingested(tmp_path)
    label = read_label(paths.ingest / str(case.label))
    assert case.classes == ["neoplastic", "inflammatory", "connective", "dead"]
    assert np.bincount(label.ravel())[1:].tolist() == [60, 4, 15, 1]
    assert [(found.fault, found.detail) for found in read_findings(paths.findings) if found.case_id] == [
        ("overlapping objects", "5 contested pixel(s) went to the smaller object")
    ]


@pytest.mark.parametrize("names", [
    ("fold1/images.npy", "fold1/masks.npy", "fold1/types.npy"),
    ("x/Fold_01/images.npy", "Fold 1/deep/masks.npy", "fold-1/types.npy"),
    ("fold_1/Fold 1/images/fold1/images.npy", "Fold 1/masks/fold1/masks.npy", "Fold 1/images/fold1/types.npy"),
])  # fmt: skip
def test_folders_may_be_nested_as_they_come(names: tuple[str, ...], tmp_path: Path) -> None:
    arrays = np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 8, 8, 6)), np.array(["Liver", "Skin"])
    for name, array in zip(names, arrays, strict=True):
        put(tmp_path / name, array)
    dataset = read(tmp_path)
    assert [(case.case_id, case.stratum, case.image) for case in dataset.cases] == [
        ("fold1_0000", "Liver", names[0]), ("fold1_0001", "Skin", names[0]),
    ]  # fmt: skip
    assert dataset.faults == ()


def test_every_array_that_does_not_fit_is_named_at_once(tmp_path: Path) -> None:
    pannuke(tmp_path)
    put(tmp_path / "Fold 1" / "masks" / "fold1" / "masks.npy", np.zeros((IMAGES, SIDE, SIDE, 5)))
    put(tmp_path / "Fold 2" / "images" / "fold2" / "types.npy", np.array(["Breast"]))
    put(tmp_path / "Fold 2" / "again" / "images.npy", np.zeros((1, 8, 8, 3)))
    (tmp_path / "Fold 3" / "masks" / "fold3" / "masks.npy").write_bytes(b"nothing")
    put(tmp_path / "Fold 4" / "images.npy", np.zeros((1, 8, 8, 3)))
    put(tmp_path / "other" / "masks.npy", np.zeros((1, 8, 8, 6)))
    dataset = read(tmp_path)
    assert sorted((fault.case_id, fault.fault) for fault in dataset.faults) == [
        ("fold1", "other shape"), ("fold2", "other shape"), ("fold2", "several arrays"), ("fold3", "no array"),
        ("fold4", "missing array"), ("masks.npy", "unknown fold"),
    ]  # fmt: skip
    assert dataset.cases == ()


def test_arrays_within_a_zip_are_refused_with_advice(tmp_path: Path) -> None:
    pannuke(tmp_path / "unpacked", folds=(1,))
    (tmp_path / "raw").mkdir()
    with zipfile.ZipFile(tmp_path / "raw" / "fold_1.zip", "w") as archive:
        for file in (tmp_path / "unpacked").rglob("*.npy"):
            archive.write(file, file.relative_to(tmp_path / "unpacked"))
    faults = read(tmp_path / "raw").faults
    assert {fault.fault for fault in faults} == {"not unpacked"} and "take the zip away" in str(faults[0])


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, np.nan])
def test_pixels_that_are_no_bytes_and_ids_that_are_none_are_faults(value: float, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "pannuke"
    masks = pannuke(raw, folds=(1,))["fold1"]
    images = np.zeros((IMAGES, SIDE, SIDE, 3))
    images[2, 0, 0, 0] = value
    put(raw / "Fold 1" / "images" / "fold1" / "images.npy", images)
    masks[4, 0, 0, 2] = value
    put(raw / "Fold 1" / "masks" / "fold1" / "masks.npy", masks)
    with pytest.raises(
        ValueError, match=r"(?s)fold1_0002: unknown range of values: Fold 1/images/.*0\.\.255"
    ) as raised:
        ingested(tmp_path)
    assert ("fold1_0004: unknown range of values" in str(raised.value)) == (value != 256.0)


def test_published_folds_are_the_parts(tmp_path: Path) -> None:
    pannuke(tmp_path / "data" / "raw" / "pannuke")
    paths, _ = ingested(tmp_path)
    config, paths = settings_of(tmp_path, "split.published={fold2: test, fold1: validation, fold3: train}")
    lines = split.run(config, paths)
    parts = read_parts(paths)
    assert {part: {case.part for case in cases} for part, cases in parts.items()} == {
        "train": {"fold3"}, "validation": {"fold1"}, "test": {"fold2"}, "unlabelled": set(),
    }  # fmt: skip
    assert not any("wanted" in line for line in lines)
    # One of the folds alone to test on: validation is drawn from the others.
    config, paths = settings_of(tmp_path, "split.published={fold2: test, fold1: train, fold3: train}")
    split.run(config, paths)
    parts = read_parts(paths)
    assert {case.part for case in parts["test"]} == {"fold2"} and len(parts["train"]) + len(parts["validation"]) == 14
    assert parts["validation"] and not {case.part for case in parts["train"]} - {"fold1", "fold3"}
    for wrong, found in (
        ("fold2: test, fold1: train", "nothing for fold3"),
        ("fold2: test, fold1: train, fold3: train, fold4: train", "fold4, which is none"),
    ):
        config, paths = settings_of(tmp_path, f"split.published={{{wrong}}}")
        with pytest.raises(ValueError, match=f"published in \\(fold1, fold2, fold3\\), found {found}"):
            split.run(config, paths)
    with pytest.raises(ConfigError, match="leave out test_share beside it"):
        settings_of(tmp_path, "split.test_share=0.3")
    with pytest.raises(ConfigError, match="expected a part that becomes train and one that becomes test"):
        settings_of(tmp_path, "split.published={fold1: train}")


def test_more_images_than_are_compared_are_divided_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pannuke(tmp_path / "data" / "raw" / "pannuke")
    ingested(tmp_path)
    monkeypatch.setattr(split, "MAXIMUM_IMAGES", 20)
    config, paths = settings_of(tmp_path, "split.published={}")
    lines = split.run(config, paths)
    assert any("compared for exact copies alone: given groups are trusted, and what has none" in line for line in lines)
    assert json.loads(paths.proof.read_text())["joins"]["compared_pixels"] is False
    assert len(read_parts(paths)["test"]) >= 2


def test_given_groups_across_published_parts_are_refused_before_anything_is_trained(tmp_path: Path) -> None:
    pannuke(tmp_path / "data" / "raw" / "pannuke")
    config, paths = settings_of(tmp_path, "ingest.group_pattern='_000([0-9])$'")
    ingest.run(config, paths)
    for groups in ("auto", "given"):
        config, paths = settings_of(tmp_path, f"split.groups={groups}")
        with pytest.raises(ValueError, match=r"expected each given group in one part, found \d+ in several, 0 in test"):
            split.run(config, paths)


def test_groups_across_published_parts_are_told_and_divided(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "pannuke"
    pannuke(raw, dtype=np.uint8)
    files = [raw / f"Fold {fold}" / "images" / f"fold{fold}" / "images.npy" for fold in (1, 3)]
    images = np.load(files[1])
    images[5] = np.load(files[0])[5]
    put(files[1], images)
    paths, _ = ingested(tmp_path)
    config, paths = settings_of(tmp_path)
    lines = split.run(config, paths)
    assert any("lie in different parts; they were published so" in line for line in lines)
    proof = json.loads(paths.proof.read_text())
    assert proof["groups_in_two_parts"] == [] and proof["identical_images_across_parts"] == [
        ["fold1_0005", "fold3_0005"]
    ]


def test_pannuke_goes_from_raw_files_to_a_report_with_scores_by_class(tmp_path: Path) -> None:
    config, paths = settings_of(tmp_path)
    pannuke(paths.raw)
    run("report", config, paths, with_needs=True)
    metrics = json.loads((paths.reports / "metrics.json").read_text())
    assert list(metrics["classes"].values()) == sorted(CLASSES)
    assert {"bpq", "mpq", "pq_class_1", "pq_class_5"} <= metrics["test"].keys()
    assert metrics["cases"] == IMAGES and metrics["test"]["mpq"]["cases"] == IMAGES - 1  # one has no object
    model = json.loads((paths.train / "model.json").read_text())
    assert model["channels"] == ["foreground", "down", "right", *(f"class {name}" for name in sorted(CLASSES))]
    with (paths.reports / "objects.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    counted = {name: sum(row["case_id"] == name for row in rows) for name in (f"fold3_{n:04}" for n in range(IMAGES))}
    assert counted == {
        name: int(read_label(paths.reports / "masks" / f"{name}.png").max(initial=0)) for name in counted
    }  # fmt: skip
    predict_images(str(paths.train), paths.ingest / "images" / "fold1_0001.png", tmp_path / "out")
    told = (tmp_path / "out" / "objects.csv").read_text().splitlines()
    assert len(told) == 1 + int(read_label(tmp_path / "out" / "fold1_0001.png").max(initial=0))
    page = (paths.reports / "report.html").read_text()
    assert "mPQ" in page and "PQ, neoplastic" in page


def test_figures_of_fewer_groups_than_the_rest_have_no_interval_in_the_table() -> None:
    bounded = {"mean": 0.5, "low": 0.25, "high": 0.75, "cases": 10}
    metrics = {"test": {"dice": bounded, "mpq": {**bounded, "low": None, "high": None}}, "cases": 10, "groups": 10}
    *_, low, high = as_table(metrics)
    assert low.split()[3:] == ["0.250", "-"] and high.split()[3:] == ["0.750", "-"]
