"""Augment: the sheet shows training cases of every stratum, and copies are the same each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.augmentation import SHEET_CROPS, SHEET_GAP, SHEET_TILE
from pipeline.config import Config, CorruptionSettings, ReconstructionSettings, TrainSettings
from pipeline.records import rasters
from pipeline.records.case import Case, write_cases
from pipeline.records.files import write_text
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, read_label, write_png
from pipeline.stages import augment

PARTS = {"a-1": "train", "a-2": "train", "b-1": "train", "b-2": "validation", "c-1": "test", "d-1": ""}


def case(name: str, labelled: bool = True) -> Case:
    label = f"labels/{name}.png" if labelled else None
    kind = "instance" if labelled else "none"
    return Case(name, "few", f"images/{name}.png", label, kind, name, name[0], 70, 90, None, f"{name}.png")


def data_set(root: Path, **settings: object) -> tuple[Config, Paths]:
    """Images of which only those for training have pixels other than black, so that a leak would show."""
    config = Config.model_validate({"dataset": "few", "run": "few", "augment": {"crop": 48} | settings})
    paths = Paths.of(config, root)
    for seed, (name, part) in enumerate(PARTS.items()):
        generator = np.random.default_rng(seed)
        label = np.zeros((70, 90), np.uint16)
        for number in range(1, 13):
            cv2.circle(label, tuple(generator.integers(0, 80, 2).tolist()), 7, number * 5000, -1)
        image = np.where(label[..., np.newaxis] > 0, [110, 60, 150], [230, 200, 225]).astype(np.uint8)
        write_png(paths.ingest / "images" / f"{name}.png", image if part == "train" else image * 0)
        if part:
            write_png(paths.ingest / "labels" / f"{name}.png", label)
    write_cases(paths.cases, [case(name, bool(part)) for name, part in PARTS.items()])
    rows = [f"{name},{name},{name[0]},{part},0" for name, part in PARTS.items() if part]
    write_text(paths.split_table, "\n".join(["case_id,group,stratum,part,fold", *rows]) + "\n")
    paths.augment.mkdir(parents=True)
    return config, paths


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_sheet_has_a_row_for_each_training_case(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path, recipe="geometry")
    lines = augment.run(config, paths)
    assert set(contents(paths.augment)) == {"contact_sheet.png"} and "3 training images" in lines[0]
    sheet = read_image(paths.augment / "contact_sheet.png")
    side = SHEET_TILE + SHEET_GAP
    assert sheet.shape == (SHEET_GAP + 3 * side, SHEET_GAP + (1 + SHEET_CROPS) * side, 3)
    assert (sheet == 0).all(axis=2).mean() < 0.05, "cases that are not for training would be black"


def test_the_sheet_and_copies_have_the_same_bytes_each_time_and_other_ones_for_another_seed(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path / "one", copies=2)
    _, again = data_set(tmp_path / "again", copies=2)
    augment.run(config, paths)
    augment.run(config, again)
    assert contents(paths.augment) == contents(again.augment)
    other_config, other = data_set(tmp_path / "other", copies=2)
    augment.run(other_config.model_copy(update={"seed": 7}), other)
    assert all(contents(other.augment)[name] != content for name, content in contents(paths.augment).items())


def test_copies_are_pairs_of_training_cases_only(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path, copies=3)
    lines = augment.run(config, paths)
    assert lines[1].startswith("9 augmented copies of 3 training images")
    names = {f"{name}_{number:02d}.png" for name in ("a-1", "a-2", "b-1") for number in range(3)}
    for folder in ("images", "labels"):
        assert {file.name for file in (paths.augment / "copies" / folder).iterdir()} == names
    for name in names:
        image = read_image(paths.augment / "copies" / "images" / name)
        label = read_label(paths.augment / "copies" / "labels" / name)
        assert image.shape == (48, 48, 3) and label.shape == (48, 48)
        assert set(np.unique(label)) <= set(range(0, 65535, 5000))


def test_of_a_run_that_makes_images_pairs_of_the_reference_strata_are_shown_and_copied(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path, copies=2, recipe="geometry")
    corruption, wanted = CorruptionSettings(grey=True), ReconstructionSettings(reference_strata=("a",))
    train = TrainSettings(task="reconstruction", corruption=corruption, reconstruction=wanted)
    write_cases(paths.cases, [case(name, labelled=False) for name in PARTS])
    lines = augment.run(config.model_copy(update={"train": train}), paths)
    assert lines[0].startswith("2 training images") and lines[1].startswith("4 augmented copies of 2 training images")
    for file in (paths.augment / "copies" / "images").iterdir():
        given, target = read_image(file), read_image(paths.augment / "copies" / "labels" / file.name)
        assert (given[..., 0] == given[..., 2]).all()
        np.testing.assert_array_equal(given[..., 0], cv2.cvtColor(target, cv2.COLOR_RGB2GRAY))
        assert (target[..., 0] != target[..., 2]).any(), "the colours that are to be brought back"


def test_a_killed_run_carries_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, whole = data_set(tmp_path / "whole", copies=2)
    augment.run(config, whole)
    _, killed = data_set(tmp_path / "killed", copies=2)
    written: list[Path] = []

    def write(file: Path, raster: np.ndarray) -> None:
        if len(written) == 6:
            raise KeyboardInterrupt
        write_png(file, raster)
        written.append(file)

    monkeypatch.setattr(rasters, "write_png", write)
    with pytest.raises(KeyboardInterrupt):
        augment.run(config, killed)
    before = {file: file.stat().st_mtime_ns for file in written if "a-1" in file.name}
    monkeypatch.setattr(rasters, "write_png", write_png)
    augment.run(config, killed)
    assert contents(killed.augment) == contents(whole.augment)
    assert before and {file: file.stat().st_mtime_ns for file in before} == before


def test_every_stratum_is_shown_before_one_is_shown_twice() -> None:
    cases = [
        case(f"{stratum}-{number}") for stratum, count in (("a", 20), ("b", 3), ("c", 1)) for number in range(count)
    ]
    for count, expected in ((2, "ab"), (3, "abc"), (5, "aabbc"), (8, "aaaabbbc"), (50, "a" * 20 + "bbbc")):
        chosen = augment.choose_cases(cases, 1412, count)
        assert "".join(found.case_id[0] for found in chosen) == expected
        assert len({found.case_id for found in chosen}) == len(chosen)
    assert augment.choose_cases(cases, 1, 5) != augment.choose_cases(cases, 2, 5)


def test_nothing_to_train_on_says_so(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path)
    write_cases(paths.cases, [case("c-1")])
    with pytest.raises(ValueError, match="expected cases in the part train, found none"):
        augment.run(config, paths)


@pytest.mark.parametrize(
    ("task", "settings", "idle"),
    [
        ("segmentation", {"recipe": "tissue", "tint": 0.5, "elastic": 0.3}, None),
        ("segmentation", {"recipe": "geometry", "tint": 0.5, "grey": 0.0, "elastic": 0.3}, "augment.tint"),
        ("segmentation", {"recipe": "none", "tint": 0.5, "elastic": 0.3}, "augment.elastic, augment.tint"),
        ("reconstruction", {"recipe": "tissue", "noise": 0.5}, "augment.noise"),
    ],
)
def test_settings_that_the_recipe_leaves_out_are_noted(
    task: str, settings: dict[str, object], idle: str | None, tmp_path: Path
) -> None:
    config, paths = data_set(tmp_path, **settings)
    config = config.model_copy(update={"train": TrainSettings(task=task)})
    noted = [line for line in augment.run(config, paths) if line.startswith("noted: ")]
    assert [line.partition(" without effect")[0] for line in noted] == ([] if idle is None else [f"noted: {idle}"])


def test_copies_of_images_with_a_class_have_no_label(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path, copies=1)
    cases = [
        replace(case(name), label=None, label_kind="class", class_name="a") for name, part in PARTS.items() if part
    ]
    write_cases(paths.cases, cases)
    augment.run(config, paths)
    names = {"copies/images/a-1_00.png", "copies/images/a-2_00.png", "copies/images/b-1_00.png"}
    assert set(contents(paths.augment)) == {"contact_sheet.png", *names}
