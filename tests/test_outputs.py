"""What a network's channels mean, and which settings cannot make an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Config, load_config
from pipeline.outputs import IMAGE_TASKS, Outputs
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.records.rasters import write_png


def settings(task: str, *overrides: str) -> Config:
    return load_config(None, [f"train.task={task}", *overrides])


def case(label_kind: str) -> Case:
    return Case("a", "few", "images/a.png", None, label_kind, "a", None, 8, 8, None, "a.png")


@pytest.mark.parametrize("task", IMAGE_TASKS)
def test_settings_that_change_size_or_light_are_refused_together(task: str) -> None:
    config = settings(task, "train.network.padded=false", "train.network.output_stride=2", "train.intensity=stretch")
    with pytest.raises(ValueError, match=f"train.task={task}: an image must come out at the size") as raised:
        Outputs.of(config, [], Paths.of(config))
    told = str(raised.value)
    assert "train.network.padded: expected true, found false" in told
    assert "train.network.output_stride: expected 1, found 2" in told
    assert "train.intensity: expected stored, found stretch" in told


@pytest.mark.parametrize(("kinds", "paired"), [(["image", "none"], True), (["none"], False)])
def test_a_run_that_makes_images_remembers_whether_it_saw_pairs(kinds: list[str], paired: bool, tmp_path: Path) -> None:
    config = settings("reconstruction")
    outputs = Outputs.of(config, [case(kind) for kind in kinds], Paths.of(config, tmp_path))
    assert outputs.paired is paired
    assert Outputs.from_dict(outputs.as_dict()) == outputs
    older = {name: value for name, value in outputs.as_dict().items() if name != "paired"}
    assert Outputs.from_dict(older).paired is None
    assert "paired" not in Outputs("binary", ("foreground",), "sigmoid", "semantic").as_dict()


def objects(name: str, classes: list[str] | None) -> Case:
    return replace(case("instance"), case_id=name, label=f"labels/{name}.png", classes=classes)


def test_objects_of_several_classes_have_a_channel_each(tmp_path: Path) -> None:
    config = settings("segmentation")
    paths = Paths.of(config, tmp_path)
    outputs = Outputs.of(config, [objects("a", ["dead", "other"]), objects("b", []), objects("c", ["dead"])], paths)
    assert outputs.channels == ("foreground", "down", "right", "class dead", "class other")
    assert outputs.object_classes == ("dead", "other") and Outputs.from_dict(outputs.as_dict()) == outputs
    assert Outputs.of(config, [objects("a", ["dead"])], paths).object_classes == ()
    assert Outputs("classes", ("background", "class 1"), "softmax", "semantic").object_classes == ()
    with pytest.raises(ValueError, match=r"all tell the classes of their objects, found 1 that do not \(b\)"):
        Outputs.of(config, [objects("a", ["dead"]), objects("b", None)], paths)


def test_class_rasters_of_all_cases_say_how_many_classes_there_are(tmp_path: Path) -> None:
    config = settings("segmentation")
    paths = Paths.of(config, tmp_path)
    cases = [replace(case("semantic"), case_id=name, label=f"labels/{name}.png") for name in ("a", "b")]
    for number, one in enumerate(cases, start=2):
        write_png(paths.ingest / str(one.label), np.full((8, 8), number, np.uint16))
    assert Outputs.of(config, cases[:1], paths).channels == ("background", "class 1", "class 2")
    assert Outputs.of(config, cases[:1], paths, cases).channels == ("background", "class 1", "class 2", "class 3")
