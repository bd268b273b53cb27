"""Images without labels: the topmost folder is the stratum, and all of them are divided into parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.readers import READERS, layout_of
from pipeline.records.case import read_cases
from pipeline.records.paths import Paths
from pipeline.records.rasters import write_png
from pipeline.records.raw import RawFolder
from pipeline.records.split import read_parts
from pipeline.runner import run


def write_images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        write_png(folder / name, noise)


def test_the_topmost_folder_is_the_stratum(tmp_path: Path) -> None:
    write_images(tmp_path, ["north/a.png", "south/P1/a.png"])
    raw = RawFolder(tmp_path)
    assert layout_of(raw, "images") == "images"
    with pytest.raises(ValueError, match=r"only where ingest\.layout=images asks"):
        layout_of(raw, "auto")
    cases = READERS["images"].read(raw, Config().ingest).cases
    assert [(case.case_id, case.stratum, case.labelled) for case in cases] == [
        ("north__a", "north", False), ("south__P1__a", "south", False)
    ]  # fmt: skip


def test_two_files_of_one_stem_are_a_fault(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "a.bmp").write_bytes((tmp_path / "a.png").read_bytes())
    (fault,) = READERS["images"].read(RawFolder(tmp_path), Config().ingest).faults
    assert "a.bmp" in str(fault)


@pytest.mark.parametrize("strata", [(), ("south",)])
def test_images_without_any_label_are_all_divided(tmp_path: Path, strata: tuple[str, ...]) -> None:
    names = [f"{folder}/{number}.png" for folder in ("north", "south") for number in range(6)]
    write_images(tmp_path / "data" / "raw" / "looks", names)
    config = Config.model_validate(
        {
            "dataset": "looks",
            "run": "looks",
            "ingest": {"layout": "images"},
            "split": {"folds": 2, "test_strata": strata, "test_share": 0.25},
        }
    )
    paths = Paths.of(config, tmp_path)
    run("split", config, paths, with_needs=True)
    assert {case.stratum for case in read_cases(paths.cases)} == {"north", "south"}
    parts = read_parts(paths)
    assert not parts["unlabelled"]
    assert all(parts[name] for name in ("train", "validation", "test"))
    assert sum(map(len, parts.values())) == 12
    if strata:
        assert {case.stratum for case in parts["test"]} == {"south"}
        assert len(parts["test"]) == 6


def test_strata_that_are_not_there_are_named(tmp_path: Path) -> None:
    names = [f"{folder}/{number}.png" for folder in ("north", "south") for number in range(6)]
    write_images(tmp_path / "data" / "raw" / "looks", names)
    settings = {"ingest": {"layout": "images"}, "split": {"test_strata": ["east"]}}
    config = Config.model_validate({"dataset": "looks", "run": "looks", **settings})
    with pytest.raises(ValueError, match=r"split\.test_strata: expected some of the strata north, south, found east"):
        run("split", config, Paths.of(config, tmp_path), with_needs=True)
