"""Judging a run that makes images, with real pairs, spoilt images, and laboratories without pairs."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from pipeline.config import Config, dump_config
from pipeline.judging.unpaired import brought_to_one
from pipeline.metrics.stain import compare, psnr
from pipeline.networks import build_network
from pipeline.outputs import Outputs
from pipeline.pairs import Pairs
from pipeline.records.case import Case, write_cases
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, write_png
from pipeline.stages import evaluate
from pipeline.trained import open_run

SIDE = 64
STAINS = {
    "wanted": ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)),
    "other": ((0.50, 0.75, 0.43), (0.20, 0.90, 0.39)),
    "third": ((0.74, 0.62, 0.26), (0.10, 0.90, 0.42)),
}
CLASSICAL = ["reinhard", "macenko", "vahadane", "ruifrok"]
Build = Callable[..., tuple[Config, Paths]]


def tissue(seed: int, stain: str) -> np.ndarray:
    """The same structures for a seed, in one of STAINS."""
    generator = np.random.default_rng(seed)
    fields = [cv2.GaussianBlur(generator.random((SIDE, SIDE)), (0, 0), 2.0) for _ in range(2)]
    amounts = np.stack([np.clip((field - 0.5) * 12, 0, 1.4) for field in fields], axis=2)
    density = amounts @ np.array(STAINS[stain]) + generator.normal(0, 0.01, (SIDE, SIDE, 3))
    return np.clip(255 * 10**-density, 0, 255).astype(np.uint8)


def write_run(paths: Paths, config: Config, seed: int, trained_on: list[str]) -> None:
    """A run's folder as training leaves it, with weights that nothing was taught."""
    outputs = Outputs("image", ("red", "green", "blue"), "identity", "image")
    torch.manual_seed(seed)
    network = build_network(config.train.network, 3, 3)
    write_text(paths.train / "config.yaml", dump_config(config))
    write_json(paths.train / "model.json", outputs.as_dict())
    write_json(
        paths.train / "thresholds.json",
        {"chosen_on": {"cases": []}, "trained_on": trained_on, "thresholds": {}},
    )
    torch.save({"network": network.state_dict()}, paths.train / "best.pt")


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """A data set, its split and a run on it, below a folder of the test's own."""

    def made(
        kind: str, evaluated: dict[str, Any] | None = None, corruption: dict[str, Any] | None = None,
        reference_strata: tuple[str, ...] = (),
    ) -> tuple[Config, Paths]:  # fmt: skip
        train = {
            "task": "reconstruction",
            "network": {"name": "autoencoder:linear", "depth": 1, "code": 4},
            "corruption": corruption or {},
            "reconstruction": {"reference_strata": reference_strata},
        }
        evaluated_settings = {"dataset": "d", "run": "mine", "train": train, "evaluate": evaluated or {}}
        config = Config.model_validate(evaluated_settings | {"compute": {"precision": "fp32", "device": "cpu"}})
        paths = Paths.of(config, tmp_path)
        records, rows = [], []
        for number in range(12):
            part = "test" if number >= 6 else "validation" if number == 5 else "train"
            paired = kind == "paired"
            stratum = "wanted" if not paired and part != "test" else ("other", "third")[number % 2]
            stain = stratum if kind != "restored" else "wanted"
            case_id, stratum = f"c{number:02d}", stain
            write_png(paths.ingest / "images" / f"{case_id}.png", tissue(number, stain))
            if paired:
                write_png(paths.ingest / "labels" / f"{case_id}.png", tissue(number, "wanted"))
            label = f"labels/{case_id}.png" if paired else None
            records.append(
                Case(case_id, "d", f"images/{case_id}.png", label, "image" if paired else "none", f"g{number}", stratum,
                     SIDE, SIDE, None, case_id)
            )  # fmt: skip
            rows.append([case_id, f"g{number}", stratum, part, ""])
        write_cases(paths.cases, records)
        text = "\n".join(",".join(row) for row in [["case_id", "group", "stratum", "part", "fold"], *rows])
        write_text(paths.split_table, text + "\n")
        write_run(paths, config, 1, [record.case_id for record in records[:5]])
        # What stage predict would write is never asked what it shows: a grey of its own tells it from everything else.
        for record in records[6:]:
            write_png(paths.predict / f"{record.case_id}.png", np.full((SIDE, SIDE, 3), 140, np.uint8))
        return config, paths

    return made


def table_of(paths: Paths) -> list[dict[str, str]]:
    with (paths.reports / "per_case.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def metrics_of(paths: Paths) -> dict[str, Any]:
    return dict(json.loads((paths.reports / "metrics.json").read_text()))


def test_real_pairs_are_judged_beside_the_classical_methods(build: Build) -> None:
    config, paths = build("paired")
    lines = evaluate.run(config, paths)
    metrics, rows = metrics_of(paths), table_of(paths)
    assert metrics["kind"] == "paired" and list(metrics["methods"]) == ["input", *CLASSICAL, "mine"]
    assert len(rows) == 6 * 6 and metrics["cases"] == 6
    own = [float(row["psnr"]) for row in rows if row["method"] == "mine"]
    assert metrics["test"]["psnr"]["mean"] == pytest.approx(np.mean(own), abs=1e-5)
    # The run's row is what stage predict wrote, the input's the image as it was given.
    target = tissue(7, "wanted")
    given = {row["method"]: row for row in rows if row["case_id"] == "c07"}
    assert float(given["mine"]["psnr"]) == pytest.approx(psnr(np.full_like(target, 140), target), abs=1e-5)
    expected = compare(tissue(7, "third"), target)
    for name in ("psnr", "ssim", "ciede2000"):
        assert float(given["input"][name]) == pytest.approx(expected[name], abs=1e-5)
    for name in metrics["methods"]:
        made = read_image(paths.made_image(name, "c07"))
        assert float(given[name]["psnr"]) == pytest.approx(psnr(made, target), abs=1e-5)
    # The tissue is the same and its stain is not: what measures stain brings it nearer.
    assert metrics["methods"]["macenko"]["difference"]["ciede2000"]["mean"] < -2
    assert metrics["methods"]["macenko"]["difference"]["ciede2000"]["better_groups"] == 6
    # Classical references are training targets, never test images.
    assert {metrics["methods"][name]["reference_case"] for name in CLASSICAL} <= {f"c{n:02d}" for n in range(5)}
    assert set(json.loads((paths.reports / "timing.json").read_text())["megapixels_per_second"]) == {*CLASSICAL, "mine"}
    assert any("psnr beyond input" in line for line in lines) and any("6 test images" in line for line in lines)


def test_classical_methods_stand_beside_where_targets_are_stained(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    config, paths = build("paired")
    glowing = np.zeros((SIDE, SIDE, 3), np.uint8)
    glowing[20:40, 20:40] = (20, 200, 40)
    for number in range(12):
        write_png(paths.ingest / "labels" / f"c{number:02d}.png", glowing)
    evaluate.run(config, paths)
    assert list(metrics_of(paths)["methods"]) == ["input", "mine"]
    assert "noted: method macenko cannot be fitted to the training part" in capsys.readouterr().out
    named = config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"beside": ("macenko",)})})
    with pytest.raises(ValueError, match=r"evaluate\.beside: method macenko cannot be fitted .* found 5 background"):
        evaluate.run(named, paths)


def test_the_same_bytes_again(build: Build) -> None:
    config, paths = build("paired", {"beside": ["macenko"]})
    names = ("per_case.csv", "metrics.json", "normalised/macenko/c08.png", "normalised/input/c08.png")
    evaluate.run(config, paths)
    first = [(paths.reports / name).read_bytes() for name in names]
    evaluate.run(config, paths)
    assert first == [(paths.reports / name).read_bytes() for name in names]


def test_a_spoilt_image_is_its_own_target_and_stands_beside_its_input_alone(build: Build) -> None:
    config, paths = build("restored", corruption={"noise": 0.1})
    evaluate.run(config, paths)
    metrics = metrics_of(paths)
    assert metrics["kind"] == "restored" and list(metrics["methods"]) == ["input", "mine"]
    assert metrics["best_classical"] is None and metrics["beyond_classical"] == {}
    # Noise of a tenth of the range: 20 dB, a little more since levels are cut off at 0 and 255.
    assert 20 < metrics["methods"]["input"]["test"]["psnr"]["mean"] < 22
    case = next(case for case in evaluate.read_parts(paths)["test"] if case.case_id == "c09")
    given, _ = Pairs(open_run(paths.train).config, paths).given(case)
    assert np.array_equal(read_image(paths.made_image("input", "c09")), given)


def test_laboratories_without_pairs_are_compared_with_the_reference(build: Build) -> None:
    corruption = {"restain": 0.5}
    config, paths = build("unpaired", {"side": 48}, corruption, ("wanted",))
    evaluate.run(config, paths)
    metrics = metrics_of(paths)
    assert metrics["kind"] == "unpaired" and metrics["ranked_by"] == "excess_removed"
    assert metrics["reference"]["strata"] == ["wanted"] and metrics["reference"]["cases"] == 6
    assert metrics["reference"]["side"] == 48 and metrics["cases"] == 6
    assert metrics["methods"]["input"]["test"]["excess_removed"]["mean"] == 0.0
    assert metrics["methods"]["input"]["test"]["structure"]["mean"] == pytest.approx(1.0)
    best = metrics["methods"][metrics["best_classical"]]["test"]
    assert best["excess_removed"]["mean"] > 0.5
    assert set(metrics["by_stratum"]) == {"other", "third"}
    assert read_image(paths.made_image("macenko", "c06")).shape == (48, 48, 3)
    # Nothing was taught to the run, and it shows.
    assert metrics["test"]["structure"]["mean"] < best["structure"]["mean"]


def test_other_runs_are_judged_beside_and_unfit_ones_are_refused(build: Build, tmp_path: Path) -> None:
    config, paths = build("paired", {"beside": ["folder/second", "reinhard"]})
    with pytest.raises(
        ValueError, match=r"evaluate\.beside: expected classical.*\n.*folder/second: expected a trained run"
    ):
        evaluate.run(config, paths)
    other = config.model_copy(update={"run": "folder/second"})
    write_run(Paths.of(other, tmp_path), other, 2, ["c00"])
    evaluate.run(config, paths)
    metrics = metrics_of(paths)
    assert {name: entry["kind"] for name, entry in metrics["methods"].items()} == {
        "input": "input", "folder/second": "run", "reinhard": "classical", "mine": "run"
    }  # fmt: skip
    assert (paths.reports / "normalised" / "folder-second" / "c06.png").exists()
    assert tmp_path / "data/train/folder/second/stage.json" in evaluate.inputs(config, paths)
    write_run(Paths.of(other, tmp_path), other, 2, ["c07"])
    with pytest.raises(ValueError, match=r"took no part in training.*found 1 that did \(c07\)"):
        evaluate.run(config, paths)
    model = tmp_path / "data/train/folder/second/model.json"
    model.write_text(json.dumps(json.loads(model.read_text()) | {"label_kind": "instance"}))
    with pytest.raises(ValueError, match="makes no images"):
        evaluate.run(config, paths)


def test_a_run_whose_training_saw_test_cases_is_refused(build: Build) -> None:
    config, paths = build("paired")
    write_run(paths, config, 1, ["c00", "c11"])
    with pytest.raises(ValueError, match=r"found 1 that did \(c11\)"):
        evaluate.run(config, paths)


@pytest.mark.parametrize("beside", [["reinhard", "reinhard"], ["input"], ["mine"]])
def test_each_method_has_a_name_of_its_own(build: Build, tmp_path: Path, beside: list[str]) -> None:
    config, paths = build("paired", {"beside": beside})
    other = config.model_copy(update={"run": "input"})
    write_run(Paths.of(other, tmp_path), other, 2, [])
    with pytest.raises(ValueError, match="expected each method once"):
        evaluate.run(config, paths)


def test_a_name_that_leaves_the_folder_of_runs_is_refused() -> None:
    for name in ("../other", "/etc", ""):
        with pytest.raises(ValueError, match="below data/train/"):
            Config.model_validate({"evaluate": {"beside": [name]}})
        with pytest.raises(ValueError, match="below data/train/"):
            Config.model_validate({"evaluate": {"segmenter": name}})


def test_masks_before_and_after_are_compared(build: Build, tmp_path: Path) -> None:
    config, paths = build("paired", {"beside": ["macenko"], "segmenter": "cells"})
    with pytest.raises(ValueError, match=r"evaluate\.segmenter: expected a trained segmentation, found 'cells'"):
        evaluate.run(config, paths)
    cells = config.model_copy(update={"run": "cells", "train": Config().train, "evaluate": Config().evaluate})
    network = Config.model_validate({"train": {"network": {"width": 2, "depth": 1}}}).train.network
    cells = cells.model_copy(update={"train": cells.train.model_copy(update={"network": network})})
    at = Paths.of(cells, tmp_path)
    write_run(at, cells, 3, [])
    outputs = Outputs("boundary", ("foreground", "boundary"), "sigmoid", "instance")
    torch.manual_seed(3)
    write_json(at.train / "model.json", outputs.as_dict())
    torch.save({"network": build_network(network, 3, 2).state_dict()}, at.train / "best.pt")
    evaluate.run(config, paths)
    rows = table_of(paths)
    assert {row["mask_dice"] for row in rows if row["method"] == "input"} == {"1.000000"}
    assert all(row["objects_before"] == row["objects_after"] for row in rows if row["method"] == "input")
    assert metrics_of(paths)["segmenter"] == "cells"
    write_json(at.train / "thresholds.json", {"chosen_on": {"cases": []}, "trained_on": ["c06"], "thresholds": {}})
    with pytest.raises(ValueError, match=r"found 1 that did \(c06\), by the run in .*cells"):
        evaluate.run(config, paths)
    # Data sets without common names for patients: nobody can tell, and so it is told.
    assert "seen_unchecked" not in metrics_of(paths)
    write_json(at.train / "thresholds.json", {"chosen_on": {"cases": []}, "trained_on": ["c06"], "thresholds": {}})
    write_text(at.train / "config.yaml", dump_config(cells.model_copy(update={"dataset": "elsewhere"})))
    assert "noted: cells: whether images of elsewhere" in evaluate.run(config, paths)[-1]
    assert metrics_of(paths)["seen_unchecked"][0].startswith("cells: whether images of elsewhere")
    # One grey everywhere has other masks than tissue has.
    assert any(float(row["mask_dice"]) < 1 for row in rows if row["method"] == "mine")


def test_images_are_brought_to_one_size_and_one_format() -> None:
    image = cv2.resize(tissue(1, "wanted"), (160, 96), interpolation=cv2.INTER_CUBIC)
    smaller = brought_to_one(image, 48, 90)
    assert smaller.shape == (48, 80, 3)
    assert abs(float(smaller.mean()) - float(image.mean())) < 2
    assert brought_to_one(image, 96, 90).shape == image.shape
    # Once through JPEG, a second time changes little.
    once = brought_to_one(image, 96, 90)
    assert psnr(brought_to_one(once, 96, 90), once) > psnr(once, image)
    assert brought_to_one(image, 128, 90).shape == (128, 213, 3)
