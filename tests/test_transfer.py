"""A run on a data set that it never saw: its own thresholds, references from its training images, and no leak."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from pipeline.__main__ import main
from pipeline.config import Config, dump_config
from pipeline.metrics.pixel import confusion
from pipeline.networks import build_network
from pipeline.outputs import Outputs
from pipeline.records.case import Case, write_cases
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, read_label, write_png
from pipeline.stages.predict import predict_images
from pipeline.stains import METHODS
from pipeline.transfer import run_transfer

ROOT = Path(__file__).parents[1]
SIDE, CASES = 64, 10
STAINS = {"home": ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)), "abroad": ((0.50, 0.75, 0.43), (0.20, 0.90, 0.39))}
OBJECTS = Outputs("boundary", ("foreground", "boundary"), "sigmoid", "instance")
ABROAD = "dataset: abroad\ningest: {layout: folder_pairs, label_kind: semantic}\nsplit: {groups: none}\n"
QUICK = ("compute.threads=1", "compute.device=cpu", "compute.precision=fp32")
LEARNED_FROM = ["h00", "h01", "h02"]
Build = Callable[..., None]


def tissue(seed: int, stain: str) -> tuple[np.ndarray, np.ndarray]:
    """Stained tissue of structures that the seed says, and where its first stain is strong."""
    generator = np.random.default_rng(seed)
    fields = [cv2.GaussianBlur(generator.random((SIDE, SIDE)), (0, 0), 2.0) for _ in range(2)]
    amounts = np.stack([np.clip((field - 0.5) * 12, 0, 1.4) for field in fields], axis=2)
    density = amounts @ np.array(STAINS[stain]) + generator.normal(0, 0.01, (SIDE, SIDE, 3))
    return np.clip(255 * 10**-density, 0, 255).astype(np.uint8), amounts[..., 0] > 0.5


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A run of untaught weights at home, and the raw files of a data set abroad, in the current folder."""

    def made(outputs: Outputs = OBJECTS, **record: Any) -> None:
        config = Config.model_validate(
            {"dataset": "home", "run": "seg", "train": {"network": {"name": "unet", "width": 8, "depth": 2}},
             "compute": {"precision": "fp32", "device": "cpu"}}
        )  # fmt: skip
        paths = Paths.of(config)
        cases = []
        for number in range(6):
            name = f"h{number:02d}"
            write_png(paths.ingest / "images" / f"{name}.png", tissue(number, "home")[0])
            cases.append(
                Case(
                    name,
                    "home",
                    f"images/{name}.png",
                    None,
                    "none",
                    f"P{number}",
                    "even" if number % 2 == 0 else "odd",
                    SIDE,
                    SIDE,
                    None,
                    name,
                )
            )
        write_cases(paths.cases, cases)
        torch.manual_seed(3)
        network = build_network(config.train.network, 3, len(outputs.channels))
        write_text(paths.train / "config.yaml", dump_config(config))
        write_json(paths.train / "model.json", outputs.as_dict())
        chosen = {"trained_on": LEARNED_FROM, "chosen_on": {"cases": ["h03"]}, "thresholds": {"foreground": 0.45}}
        write_json(paths.train / "thresholds.json", chosen | record)
        torch.save({"network": network.state_dict()}, paths.train / "best.pt")
        for number in range(CASES):
            image, nuclei = tissue(100 + number, "abroad")
            write_png(Path(f"data/raw/abroad/images/a{number}.png"), image)
            write_png(Path(f"data/raw/abroad/masks/a{number}.png"), nuclei.astype(np.uint8) * 255)
        write_text(Path("abroad.yaml"), ABROAD)

    monkeypatch.chdir(tmp_path)
    return made


def with_objects() -> None:
    """Give the raw masks abroad an id an object."""
    for number in range(CASES):
        _, labels = cv2.connectedComponents(tissue(100 + number, "abroad")[1].astype(np.uint8), connectivity=4)
        write_png(Path(f"data/raw/abroad/masks/a{number}.png"), labels.astype(np.uint16))


def metrics_of() -> dict[str, Any]:
    return dict(json.loads(Path("reports/transfer/seg--abroad/metrics.json").read_text()))


def table_of() -> pd.DataFrame:
    return pd.read_csv("reports/transfer/seg--abroad/per_case.csv", dtype={"case_id": str})


@pytest.mark.parametrize("own_normaliser", [False, True])
def test_without_a_normaliser_masks_are_those_of_predict(build: Build, own_normaliser: bool) -> None:
    build()
    if own_normaliser:
        METHODS["reinhard"]().fit([tissue(0, "home")[0]]).save(Path("data/train/seg/stain.json"))
    run_transfer("seg", Path("abroad.yaml"), QUICK, ["none"])
    predict_images("seg", Path("data/raw/abroad/images"), Path("out"), overrides=QUICK)
    table = table_of().set_index("case_id")
    assert [*table.index] == [f"a{number}" for number in range(CASES)] and {*table["arm"]} == {"none"}
    for name, row in table.iterrows():
        truth = tissue(100 + int(str(name)[1:]), "abroad")[1]
        found = confusion(truth.astype(np.uint16), (read_label(Path("out") / f"{name}.png") > 0).astype(np.uint16))
        assert (row["dice"], row["iou"]) == (pytest.approx(found.dice, abs=1e-6), pytest.approx(found.iou, abs=1e-6))
        assert (row["tp"], row["fp"], row["fn"]) == (found.tp[0], found.fp[0], found.fn[0])
    assert metrics_of()["thresholds"] == {"foreground": 0.45}


def test_every_method_is_held_against_none_and_brings_to_a_training_image(build: Build, capsys: Any) -> None:
    build()
    assert main(["transfer", "--run", "seg", "-c", "abroad.yaml", *QUICK]) == 0
    metrics, table = metrics_of(), table_of()
    assert [*metrics["arms"]] == ["none", *METHODS]
    assert (metrics["cases"], metrics["groups"], metrics["labels"]) == (CASES, CASES, "semantic")
    dice = table.pivot_table(index="case_id", columns="arm", values="dice")
    for name, arm in metrics["arms"].items():
        assert arm["test"]["dice"]["mean"] == pytest.approx(dice[name].mean(), abs=1e-6)
        assert sum(arm["statuses"].values()) == CASES and arm["calibration"]["error"] > 0
        if name != "none":
            assert arm["reference_case"] in LEARNED_FROM
            entry = arm["differences"]["all"]["dice"]
            assert entry["difference"] == pytest.approx((dice[name] - dice["none"]).mean(), abs=1e-6)
            assert entry["low"] <= entry["difference"] <= entry["high"] and dice[name].ne(dice["none"]).any()
    folder = Path("reports/transfer/seg--abroad")
    text = (folder / "table.md").read_text()
    assert text in capsys.readouterr().out
    # A pair of its rows is a difference to be seen.
    assert text.count(" | none: ") == len(METHODS) and "Made by `python -m pipeline transfer --run seg" in text
    assert read_image(folder / "cases.png").shape[1] > read_image(folder / "cases.png").shape[0]


def test_the_reference_may_be_named_and_is_a_training_image(build: Build) -> None:
    build()
    run_transfer("seg", Path("abroad.yaml"), (*QUICK, "normalise.reference=h01"), ["reinhard"])
    assert metrics_of()["arms"]["reinhard"]["reference_case"] == "h01"
    former = Path("reports/transfer/seg--abroad/metrics.json").read_bytes()
    # Of what it learned from, h01 is the one that is odd.
    run_transfer("seg", Path("abroad.yaml"), QUICK, ["macenko"], ["odd"])
    assert metrics_of()["arms"]["macenko"]["reference_case"] == "h01"
    (kept,) = Path("reports/transfer").glob("seg--abroad~*")
    assert (kept / "metrics.json").read_bytes() == former and (kept / "cases.png").is_file()
    with pytest.raises(ValueError, match=r"--reference-strata: expected some of .* even, odd, found strange"):
        run_transfer("seg", Path("abroad.yaml"), QUICK, ["macenko"], ["strange"])
    for wrong in ("h03", "a1"):
        with pytest.raises(ValueError, match=rf"normalise.reference: expected a case that .* found '{wrong}'"):
            run_transfer("seg", Path("abroad.yaml"), (f"normalise.reference={wrong}",), ["reinhard"])


def test_settings_of_predict_are_further_rows(build: Build) -> None:
    build()
    run_transfer("seg", Path("abroad.yaml"), (*QUICK, "predict.scales=[0.5]"), ["none", "reinhard"])
    metrics = metrics_of()
    against = {name: arm["against"] for name, arm in metrics["arms"].items()}
    assert against == {
        "none": None, "reinhard": "none", "none, scales=0.5": "none", "reinhard, scales=0.5": "none, scales=0.5",
    }  # fmt: skip
    assert metrics["laid_over"] == {"scales": [0.5]} and metrics["predict"]["scales"] == [1.0]
    first = metrics["arms"]["none"]["test"]["dice"]
    run_transfer("seg", Path("abroad.yaml"), (*QUICK, "predict.scales=[1.0]"), ["none"])
    assert [*metrics_of()["arms"]] == ["none"] and metrics_of()["arms"]["none"]["test"]["dice"] == first


def test_objects_are_scored_where_the_truth_has_them(build: Build) -> None:
    build()
    with_objects()
    run_transfer("seg", Path("abroad.yaml"), (*QUICK, "ingest.label_kind=instance"), ["none"])
    assert metrics_of()["labels"] == "instance" and "ap" in metrics_of()["arms"]["none"]["test"]


def refused(message: str, *settings: str, methods: tuple[str, ...] = ("none",), run: str = "seg") -> None:
    with pytest.raises(ValueError, match=message):
        run_transfer(run, Path("abroad.yaml"), (*QUICK, *settings), methods)
    assert not Path("reports").exists()


def test_cases_that_the_run_saw_are_refused(build: Build) -> None:
    build(inherited={"cases": {"abroad": ["a4"]}, "groups": []})
    refused(r"found 1 that did \(a4\)")
    build(groups=["a"])
    refused(r"found 10 that did .* of the groups a", "ingest.group_pattern=^(a)")
    build()
    write_png(Path("data/raw/abroad/images/a7.png"), tissue(2, "home")[0])
    refused(r"found copies of some that did: 1 \(a7 is h02 of home\)", "seed=2", "ingest.exclude=[a9]")
    write_png(Path("data/raw/abroad/images/a7.png"), tissue(5, "home")[0])
    run_transfer("seg", Path("abroad.yaml"), QUICK, ["none"])


def test_what_cannot_be_scored_is_refused(build: Build) -> None:
    build()
    refused("--methods: expected none, reinhard, .* or runs that change stain, found 'makenko'", methods=("makenko",))
    refused("--methods: .*found 'seg'.*makes? .*images", methods=("seg",))
    refused("--run: data/train/absent: expected a trained run", run="absent")
    refused(r"train.steps=3: expected a setting of dataset, .* leave it out", "train.steps=3")
    refused("normalise.method: expected none, found macenko", "normalise.method=macenko")
    build(Outputs("classes", ("background", "one", "two"), "softmax", "semantic"))
    refused("masks of as many classes as the run has, 2, found 1")
    with_objects()
    refused("expected masks of the run's 2 classes, found objects", "ingest.label_kind=instance")
    build(replace(OBJECTS, label_kind="image", channels=("red", "green", "blue")))
    refused("--run: data/train/seg: expected a segmentation")
    Path("data/ingest/home/cases.jsonl").unlink()
    build()
    Path("data/ingest/home/cases.jsonl").unlink()
    refused("expected the 3 cases that data/train/seg learned from", methods=("reinhard",))


@pytest.mark.slow
def test_real_tissue_of_another_data_set_is_scored(build: Build, real_data: Path) -> None:
    build()
    Path("data/raw/nuinsseg_human").symlink_to((real_data / "nuinsseg_human").resolve())
    run_transfer("seg", ROOT / "configs/nuinsseg_human.yaml", QUICK, ["none", "reinhard"])
    metrics = json.loads(Path("reports/transfer/seg--nuinsseg_human/metrics.json").read_text())
    assert (metrics["cases"], metrics["labels"], metrics["unscored"]) == (40, "semantic", 0)
    assert metrics["groups"] >= 30 and metrics["arms"]["reinhard"]["differences"]["all"]["dice"]["low"] is not None
