"""Classification from raw patches to the report: learned, scored by patient, started from other runs, refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config import Config, dump_config
from pipeline.inference import ClassPredictor
from pipeline.networks import build_network
from pipeline.networks.classifier import build_classifier
from pipeline.outputs import Outputs
from pipeline.records.case import Case, read_cases
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, write_png
from pipeline.records.split import read_parts
from pipeline.runner import run
from pipeline.stages.predict import predict_images
from pipeline.stages.train import _refuse_missing_classes
from pipeline.tasks.classification import Classification, ClassifiedCrops, class_weights
from pipeline.trained import open_run

PATIENTS, PATCHES = 24, 4
SETTINGS: dict[str, Any] = {
    "dataset": "idc",
    "run": "unet",
    "split": {"groups": "given", "test_share": 0.42, "validation_share": 0.2, "folds": 2},
    "augment": {"recipe": "geometry", "crop": 32, "elastic": 0.0},
    "train": {
        "task": "classification",
        "network": {"name": "unet", "width": 4, "depth": 2},
        "learning_rate": 0.01,
        "average": 0.8,
        "steps": 40,
        "batch": 8,
        "validations": 2,
    },
    "compute": {"device": "cpu", "threads": 1, "workers": 0, "precision": "fp32"},
}


def settings(**changes: Any) -> Config:
    merged = json.loads(json.dumps(SETTINGS))
    for path, value in changes.items():
        *sections, key = path.split("__")
        node = merged
        for section in sections:
            node = node.setdefault(section, {})
        node[key] = value
    return Config.model_validate(merged)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> tuple[Paths, Config]:
    """Patches of patients whose glass differs: class 1 has dark specks, class 0 pale ones; some are border patches."""
    root = tmp_path_factory.mktemp("classification")
    generator = np.random.default_rng(1)
    config = settings()
    paths = Paths.of(config, root)
    for patient in range(PATIENTS):
        tint = generator.integers(-20, 20, 3)
        for patch in range(PATCHES):
            kind = (patient + patch) % 2
            height = 50 if patch else 31
            image = np.full((height, 50, 3), (205, 165, 195)) + tint
            for _ in range(12):
                y, x = generator.integers(0, (height - 6, 44))
                image[y : y + 6, x : x + 6] += -90 if kind else 30
            noisy = (image + generator.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)
            write_png(paths.raw / f"p{patient}" / str(kind) / f"p{patient}_idx5_x{patch}_y1_class{kind}.png", noisy)
    run("report", config, paths, with_needs=True)
    return paths, config


def test_the_line_learns_and_tells_with_intervals(line: tuple[Paths, Config]) -> None:
    paths, _ = line
    metrics = json.loads((paths.reports / "metrics.json").read_text())
    assert metrics["test"]["auc"]["mean"] > 0.9
    assert metrics["test"]["auc"]["low"] <= metrics["test"]["auc"]["mean"] <= metrics["test"]["auc"]["high"]
    assert metrics["groups"] >= 10 and metrics["groups_also_in_training"] == 0 and metrics["classes"] == ["0", "1"]
    assert sum(sum(row.values()) for row in metrics["confusion"].values()) == metrics["cases"]
    rows = list(csv.DictReader((paths.reports / "per_case.csv").open()))
    truth = {case.case_id: (case.class_name, case.group) for case in read_parts(paths)["test"]}
    assert {row["case_id"]: (row["class"], row["group"]) for row in rows} == truth
    for row in rows:
        assert float(row["p_0"]) + float(row["p_1"]) == pytest.approx(1, abs=2e-6)
        assert row["predicted"] == max("01", key=lambda name: float(row[f"p_{name}"]))
    history = list(csv.DictReader((paths.train / "history.csv").open()))
    assert [row["step"] for row in history] == ["20", "40"] and "validation_balanced_accuracy" in history[0]
    page = (paths.reports / "report.html").read_text()
    assert "Balanced accuracy" in page and "The most confident errors" in page


def test_images_together_are_classified_as_alone(line: tuple[Paths, Config]) -> None:
    paths, config = line
    trained = open_run(paths.train)
    predict = trained.predictor(config.predict, trained.config.compute)
    assert isinstance(predict, ClassPredictor)
    images = [read_image(paths.image(case.image)) for case in read_cases(paths.cases)[:7]]
    assert len({image.shape for image in images}) == 2
    together = predict.classify(images)
    np.testing.assert_allclose(together, [predict(image) for image in images], atol=1e-5)
    np.testing.assert_allclose(together.sum(axis=1), 1, atol=1e-5)
    flipped = trained.predictor(config.predict.model_copy(update={"flips": "all"}), trained.config.compute)
    turned = [flipped(np.ascontiguousarray(np.rot90(images[1], turns))) for turns in range(4)]
    np.testing.assert_allclose(turned, turned[:1] * 4, atol=1e-5)
    small = trained.predictor(config.predict.model_copy(update={"tile": 64}), trained.config.compute)
    large = np.vstack([np.hstack(images[1:3])] * 2)[:64]
    by_hand = np.mean([small(large[:64, start : start + 64]) for start in (0, 36)], axis=0)
    np.testing.assert_allclose(small(large), by_hand, atol=1e-5)


def test_images_of_a_folder_get_classes(line: tuple[Paths, Config], tmp_path: Path) -> None:
    paths, _ = line
    predict_images(str(paths.train), paths.raw / "p1" / "1", tmp_path / "out", overrides=["compute.threads=1"])
    rows = list(csv.DictReader((tmp_path / "out" / "classes.csv").open()))
    assert [row["case_id"] for row in rows] == sorted(file.stem for file in (paths.raw / "p1" / "1").iterdir())
    with pytest.raises(ValueError, match="--overlay shows masks"):
        predict_images(str(paths.train), paths.raw / "p1" / "1", tmp_path / "out", overlay=True)


def test_a_frozen_start_keeps_the_encoder_of_the_other_run(line: tuple[Paths, Config]) -> None:
    paths, _ = line
    config = settings(run="head", train__classification={"start": "unet", "frozen": True}, train__steps=4)
    own = Paths.of(config, paths.root)
    run("train", config, own)
    first, second = (torch.load(one.train / "best.pt", weights_only=True)["network"] for one in (paths, own))
    encoder = [name for name in first if name.startswith("encoder.")]
    assert encoder and all(torch.equal(first[name], second[name]) for name in encoder)
    assert not torch.equal(first["head.weight"], second["head.weight"])
    # What the other run learned from counts as learned from here.
    elsewhere, here = open_run(paths.train).seen, open_run(own.train).seen
    assert elsewhere.cases[config.dataset] <= here.cases[config.dataset] and elsewhere.groups <= here.groups
    assert json.loads((own.train / "thresholds.json").read_text())["inherited"] == elsewhere.as_dict()


def test_a_start_that_learned_from_this_splits_test_part_is_refused(line: tuple[Paths, Config]) -> None:
    paths, _ = line
    config = settings(run="leak", split__name="other", seed=3, train__classification={"start": "unet"})
    own = Paths.of(config, paths.root)
    with pytest.raises(ValueError, match=r"found \d+ that did \(.*: train.classification.start=unet learned from them"):
        run("train", config, own, with_needs=True)
    assert not (own.train / "best.pt").exists()


def test_a_part_without_a_class_is_refused_before_training(line: tuple[Paths, Config]) -> None:
    paths, _ = line
    parts = {part: [one for one in cases if part != "validation" or one.class_name != "1"]
             for part, cases in read_parts(paths).items()}  # fmt: skip
    with pytest.raises(ValueError, match=r"images of every class \(0, 1\).*found none of 1 in validation; change seed"):
        _refuse_missing_classes(Outputs("class", ("0", "1"), "softmax", "class"), parts, paths)


def test_a_start_of_another_network_is_refused(line: tuple[Paths, Config]) -> None:
    paths, _ = line
    config = settings(run="other", train__classification={"start": "unet"}, train__network={"name": "unet", "width": 8})
    with pytest.raises(ValueError, match=r"found width 8 \(the run has 4\), depth 4 \(the run has 2\); copy"):
        Classification(config, paths, Outputs("class", ("0", "1"), "softmax", "class"), [], [])
    frozen = settings(train__classification={"frozen": True})
    with pytest.raises(ValueError, match="expected an encoder that was trained already, found random weights"):
        Classification(frozen, paths, Outputs("class", ("0", "1"), "softmax", "class"), [], [])


def test_a_residual_network_lends_its_encoder(tmp_path: Path) -> None:
    network = {"name": "unet", "width": 4, "depth": 2}
    restainer = settings(run="restainer", train__task="reconstruction", train__network=network | {"residual": True})
    config = settings(train__classification={"start": "restainer"}, train__network=network)
    there = Paths.of(restainer, tmp_path).train
    there.mkdir(parents=True)
    (there / "config.yaml").write_text(dump_config(restainer))
    made = Outputs("image", ("red", "green", "blue"), "sigmoid", "image")
    (there / "model.json").write_text(json.dumps(made.as_dict()))
    torch.save({"network": build_network(restainer.train.network, 3, 3).state_dict()}, there / "best.pt")
    outputs = Outputs("class", ("0", "1"), "softmax", "class")
    learned = Classification(config, Paths.of(config, tmp_path), outputs, [case(0, "0"), case(1, "1")], []).network
    # As it is opened after training, from the settings alone.
    opened = build_classifier(config.train.network, 3, 2, pretrained=False)
    opened.load_state_dict(learned.state_dict())
    lent = torch.load(there / "best.pt", weights_only=True)["network"]
    assert torch.equal(opened.state_dict()["encoder.bottleneck.0.weight"], lent["bottleneck.0.weight"])


def case(number: int, class_name: str | None, kind: Any = "class") -> Case:
    return Case(f"c{number}", "d", f"c{number}.png", None, kind, None, None, 9, 9, None, "", None, class_name)


def test_labels_and_tasks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    paths = Paths.of(settings(), tmp_path)
    classes = [case(0, "0"), case(1, "1")]
    assert Outputs.of(settings(), classes, paths) == Outputs("class", ("0", "1"), "softmax", "class")
    with pytest.raises(
        ValueError, match="classification needs one class an image, found cases with labels of the kind"
    ):
        Outputs.of(settings(), [case(0, None, "instance")], paths)
    with pytest.raises(ValueError, match="at least two classes to learn from, found only 1"):
        Outputs.of(settings(), [case(0, "1"), case(1, "1")], paths)
    with pytest.raises(ValueError, match="segmentation needs labels that are masks, found cases with class"):
        Outputs.of(settings(train__task="segmentation"), classes, paths)


def test_classes_are_evened_out_in_drawing_and_in_the_loss(tmp_path: Path) -> None:
    cases = [case(number, "0" if number < 9 else "1") for number in range(12)]
    outputs = Outputs("class", ("0", "1"), "softmax", "class")
    drawn = ClassifiedCrops(cases, Paths.of(settings(), tmp_path), settings(train__balance=1.0), outputs, 0)
    rare = [weight for weight, one in zip(drawn.weights, drawn.cases, strict=True) if one.class_name == "1"]
    assert sum(rare) == pytest.approx(0.5)
    torch.testing.assert_close(class_weights(cases, outputs, 0.0), torch.ones(2))
    torch.testing.assert_close(class_weights(cases, outputs, 1.0), torch.tensor([12 / 18, 12 / 6]))
    halfway = class_weights(cases, outputs, 0.5)
    assert float(0.75 * halfway[0] + 0.25 * halfway[1]) == pytest.approx(1)
    assert float(halfway[1] / halfway[0]) == pytest.approx(3**0.5)
