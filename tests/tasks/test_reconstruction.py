"""Every learned normaliser trains, predicts and is applied; the same contract for each committed config."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.config import Config, load_config
from pipeline.intensity import as_input
from pipeline.metrics.stain import psnr
from pipeline.outputs import Outputs, to_pixels
from pipeline.pairs import Pairs, learnable
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, write_png
from pipeline.records.split import read_parts
from pipeline.runner import run
from pipeline.sample_pairs import render_pairs
from pipeline.stains import load, normaliser_files
from pipeline.stains.learned import Learned
from pipeline.tasks.translation import Translation
from pipeline.trained import open_run

ROOT = Path(__file__).parents[2]
CONFIGS = ["linear", "convolutional", "denoising", "sparse", "variational", "unet", "pix2pix"]
SMALL = ("dataset=pairs", "ingest.group_pattern=^(patient-[0-9]+)", "ingest.group_csv=", "split.folds=2",
         "split.validation_share=0.25", "split.test_share=0.25", "augment.crop=48", "train.steps=6", "train.batch=2",
         "train.validations=2", "compute.device=cpu", "compute.precision=fp32",
         "compute.threads=1", "predict.tile=64")  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One trained normaliser."""

    config: Config
    paths: Paths


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve small pairs of four patients, in the layout of image pairs."""
    root = tmp_path_factory.mktemp("home")
    raw = root / "data" / "raw" / "pairs"
    seen: dict[str, int] = {}
    for pair in render_pairs():
        if len(seen) == 4 and pair.patient not in seen:
            break
        if seen.setdefault(pair.patient, 0) < 3:
            seen[pair.patient] += 1
            write_png(raw / "input" / f"{pair.case_id}.png", np.ascontiguousarray(pair.image[:80, :72]))
            write_png(raw / "target" / f"{pair.case_id}.png", np.ascontiguousarray(pair.target[:80, :72]))
    return root


def settings_of(name: str) -> tuple[str, ...]:
    discriminator = ("train.translation.width=4", "train.translation.depth=1") if name == "pix2pix" else ()
    return (*SMALL, *discriminator, *(() if name == "linear" else ("train.network.width=4",)))


@pytest.fixture(scope="module", params=CONFIGS)
def trained(request: pytest.FixtureRequest, home: Path) -> Run:
    config = load_config(ROOT / "configs" / "normalisers" / f"{request.param}.yaml", settings_of(request.param))
    paths = Paths.of(config, home)
    run("predict", config, paths, with_needs=True)
    return Run(config, paths)


def test_it_trains_and_makes_an_image_of_every_test_case(trained: Run) -> None:
    parts = read_parts(trained.paths)
    assert {case.group for case in parts["test"]}.isdisjoint(case.group for case in parts["train"])
    assert parts["test"]
    for case in parts["test"]:
        assert read_image(trained.paths.predict / f"{case.case_id}.png").shape == (case.height, case.width, 3)
    with (trained.paths.train / "history.csv").open() as stream:
        (*_, last) = csv.DictReader(stream)
    assert float(last["validation_psnr"]) == float(last["validation_score"]) > 5.0
    assert ("loss_discriminator" in last) == (trained.config.train.task == "translation")
    kind = trained.config.train.network.name.rpartition(":")[2]
    assert {"sparse": "active_share", "variational": "active_latents"}.get(kind, "loss") in last


def test_validation_and_use_see_the_same_network(trained: Run) -> None:
    run = open_run(trained.paths.train)
    predict, pairs = run.predictor(run.config.predict, run.config.compute), Pairs(run.config, trained.paths)
    given = [pairs.given(case) for case in read_parts(trained.paths)["validation"]]
    found = np.mean([psnr(to_pixels(predict(image)), target) for image, target in given])
    with (trained.paths.train / "history.csv").open() as stream:
        best = max(float(row["validation_psnr"]) for row in csv.DictReader(stream))
    assert found == pytest.approx(best, abs=1e-6)


def test_it_is_a_normaliser_that_stands_alone(trained: Run, tmp_path: Path) -> None:
    normaliser = Learned.of_run(trained.paths.train)
    case = read_parts(trained.paths)["test"][0]
    image = read_image(trained.paths.ingest / case.image)
    made, status = normaliser.transform(image)
    assert (status, made.shape, made.dtype) == ("ok", image.shape, np.uint8)
    normaliser.save(tmp_path / "stain.json", fitted_on=1)
    assert [file.name for file in normaliser_files(tmp_path)] == ["stain.json", "stain.pt"]
    again = load(tmp_path / "stain.json")
    np.testing.assert_array_equal(again.transform(image)[0], made)
    np.testing.assert_array_equal(again.transform(image)[0], made)
    # Any size will do, and glass is left as it is.
    assert again.transform(image[:33, :17])[0].shape == (33, 17, 3)
    glass = np.full((40, 50, 3), 244, np.uint8)
    blank, status = again.transform(glass)
    assert status == "background"
    np.testing.assert_array_equal(blank, glass)


def test_weights_that_do_not_belong_to_the_settings_are_refused(trained: Run, tmp_path: Path) -> None:
    Learned.of_run(trained.paths.train).save(tmp_path / "stain.json")
    (tmp_path / "stain.pt").write_bytes(b"others")
    with pytest.raises(ValueError, match=r"stain\.json: expected a learned normaliser.*other weights"):
        load(tmp_path / "stain.json")


def test_the_linear_autoencoder_gives_no_logits(home: Path) -> None:
    config = load_config(ROOT / "configs" / "normalisers" / "linear.yaml", settings_of("linear"))
    paths = Paths.of(config, home)
    run("train", config, paths, with_needs=True)
    assert open_run(paths.train).outputs.activation == "identity"


def test_pairs_are_spoilt_in_the_input_alone_and_the_same_each_time(home: Path) -> None:
    overrides = [*settings_of("unet"), "train.corruption.noise=0.1", "train.corruption.holes=2"]
    config = load_config(ROOT / "configs" / "normalisers" / "unet.yaml", overrides)
    paths = Paths.of(config, home)
    run("split", config, paths, with_needs=True)
    pairs = Pairs(config, paths)
    case = read_parts(paths)["train"][0]
    image, target = pairs.read(case)
    given, wanted = pairs.given(case)
    np.testing.assert_array_equal(wanted, target)
    np.testing.assert_array_equal(given, image)
    alone = replace(case, label=None, label_kind="none")
    given, wanted = pairs.given(alone)
    np.testing.assert_array_equal(wanted, image)
    assert not np.array_equal(given, image)
    np.testing.assert_array_equal(given, pairs.given(alone)[0])
    crop, crop_target = pairs.cut(image, target, 5)
    assert crop.shape == crop_target.shape == (48, 48, 3)


def test_a_crop_of_a_pair_shows_the_same_place_twice(home: Path) -> None:
    config = load_config(ROOT / "configs" / "normalisers" / "unet.yaml", settings_of("unet"))
    pairs = Pairs(config, Paths.of(config, home))
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    for seed in range(8):
        np.testing.assert_array_equal(*pairs.cut(image, image.copy(), seed))


def test_reference_strata_that_are_not_there_are_named(home: Path) -> None:
    config = load_config(None, ["train.task=reconstruction", "train.reconstruction.reference_strata=[nowhere]"])
    cases = read_parts(Paths.of(load_config(None, SMALL), home))["train"]
    assert learnable(cases, config) == cases
    images = [replace(case, label=None, label_kind="none", stratum="east") for case in cases]
    with pytest.raises(ValueError, match="expected strata of the data set, found nowhere; there are east"):
        learnable(images, config)
    east = load_config(None, ["train.task=reconstruction", "train.reconstruction.reference_strata=[east]"])
    assert learnable(images, east) == images


def test_an_interrupted_pix2pix_ends_with_the_same_bytes(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(ROOT / "configs" / "normalisers" / "pix2pix.yaml", [*settings_of("pix2pix"), "run=whole"])
    run("train", config, Paths.of(config, home), with_needs=True)
    steps = []
    step = Translation.step

    def cut(self, *arguments):
        steps.append(1)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)

    other = load_config(ROOT / "configs" / "normalisers" / "pix2pix.yaml", [*settings_of("pix2pix"), "run=cut"])
    monkeypatch.setattr(Translation, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        run("train", other, Paths.of(other, home), with_needs=True)
    monkeypatch.setattr(Translation, "step", step)
    run("train", other, Paths.of(other, home), with_needs=True)
    first, second = (Paths.of(one, home).train for one in (config, other))
    for name in ("best.pt", "last.pt", "history.csv"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize(("name", "expected"), [("autoencoder:linear", "identity"), ("unet", "sigmoid")])
def test_pix2pix_trains_through_the_activation_it_is_used_with(home: Path, name: str, expected: str) -> None:
    small = ["train.task=translation", f"train.network.name={name}", "train.network.depth=2",
             "train.translation.adversarial=0", "train.translation.absolute=1", "train.translation.width=4",
             "train.translation.depth=1"]  # fmt: skip
    config = load_config(None, small)
    paths = Paths.of(config, home)
    outputs = Outputs.of(config, [], paths)
    assert outputs.activation == expected
    task = Translation(config, paths, outputs, [], [])
    networks = {name: player.module.eval() for name, player in task.players.items()}
    with torch.no_grad():
        # An output beyond [0, 1] pulls back as far as it is out.
        networks["network"].get_submodule("output" if name == "unet" else "decoder.projection").bias.fill_(3.0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 2, 32, 32, 3), dtype=torch.uint8, generator=generator)
    losses = dict(task.step(networks, {"image": images[0], "target": images[1]}, 0.5))
    logits = networks["network"](as_input(images[0]))
    made = logits if expected == "identity" else logits.sigmoid()
    torch.testing.assert_close(losses["network"], (made - as_input(images[1])).abs().mean())


def test_a_segmenter_is_no_normaliser(home: Path) -> None:
    config = load_config(None, [*SMALL, "run=masks"])
    with pytest.raises(ValueError, match="segmentation needs labels that are masks, found cases with image"):
        run("train", config, Paths.of(config, home), with_needs=True)
