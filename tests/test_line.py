"""The whole line on the sample, from the command line, as a user runs it: same bytes each time, killed or not."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pipeline.config import load_config
from pipeline.metrics.competition import score_submission
from pipeline.metrics.instance import average_precision, overlaps
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_label, read_probabilities
from pipeline.records.rle import decode_labels
from pipeline.stages import evaluate

ROOT = Path(__file__).parents[1]
CONFIG = """\
dataset: sample
run: tiny
ingest: {group_csv: truth/groups.csv}
split: {test_share: 0.25, validation_share: 0.25}
augment: {crop: 64}
train:
  network: {width: 8, depth: 2}
  loss: {boundary_weight: 1}
  learning_rate: 0.004
  average: 0.9
  steps: 48
  batch: 4
  validations: 4
"""

pytestmark = pytest.mark.slow


def command(root: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipeline", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "NO_ALBUMENTATIONS_UPDATE": "1"}


def run(root: Path, *arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        command(root, *arguments), cwd=root, env=environment(), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def fresh_root(folder: Path, sample: Path) -> Path:
    (folder / "data" / "raw").mkdir(parents=True)
    (folder / "data" / "raw" / "sample").symlink_to(sample)
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, sample_folder: Path) -> Path:
    """A root where the whole line ran once, without loader workers, never interrupted."""
    root = fresh_root(tmp_path_factory.mktemp("line"), sample_folder)
    run(root, "submit", "-c", "tiny.yaml", "--with-needs", "compute.workers=0")
    return root


def test_killed_and_with_workers_the_submission_has_the_same_bytes(
    root: Path, tmp_path: Path, sample_folder: Path
) -> None:
    other = fresh_root(tmp_path / "other", sample_folder)
    arguments = ("submit", "-c", "tiny.yaml", "--with-needs", "compute.workers=2")
    process = subprocess.Popen(
        command(other, *arguments),
        cwd=other,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        text=True,
    )
    checkpoint, deadline = other / "data/train/tiny/last.pt", time.monotonic() + 150
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=30)
    assert checkpoint.exists()
    assert not (other / "data/train/tiny/stage.json").exists(), "it was killed too late to prove anything"
    assert "carrying on" in run(other, *arguments)
    hashes = [
        hashlib.sha256((folder / "reports/tiny/submission.csv").read_bytes()).hexdigest() for folder in (root, other)
    ]
    assert hashes[0] == hashes[1]
    assert (root / "data/train/tiny/best.pt").read_bytes() == (other / "data/train/tiny/best.pt").read_bytes()


def test_a_second_run_does_nothing_says_so_and_is_quick(root: Path) -> None:
    started = time.monotonic()
    said = run(root, "submit", "-c", "tiny.yaml", "--with-needs")
    assert time.monotonic() - started < 5
    assert said.count("nothing to do") == 8


def test_one_changed_setting_redoes_only_what_depends_on_it(root: Path) -> None:
    said = run(root, "evaluate", "-c", "tiny.yaml", "--with-needs", "evaluate.resamples=2001")
    assert "settings.evaluate.resamples: 2000 -> 2001" in said
    assert said.count("nothing to do") == 6
    assert "taken back" in run(root, "evaluate", "-c", "tiny.yaml", "--with-needs")


def test_metrics_stand_at_their_places_and_follow_from_the_table(root: Path) -> None:
    metrics = json.loads((root / "reports/tiny/metrics.json").read_text())
    with (root / "reports/tiny/per_case.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for name in ("dice", "iou", "ap"):
        assert metrics["test"][name]["mean"] == pytest.approx(np.mean([float(row[name]) for row in rows]), abs=1e-5)
    assert metrics["test"]["dice"]["groups"] == metrics["groups"] == 4
    assert metrics["test"]["dice"]["low"] is None
    assert metrics["unscored"] == 16
    assert metrics["cases"] == len(rows) == 28
    chosen = json.loads((root / "data/train/tiny/thresholds.json").read_text())["chosen_on"]
    score, test = chosen["score"], metrics["test"]["ap"]["mean"]
    assert metrics["validation"] == {"metric": "ap", "score": score, "test": test, "gap": round(score - test, 6)}
    ranked = metrics["ranked"]
    # What is not found at any confidence is below no curve.
    assert 0.0 < ranked["ap_75"] <= metrics["test"]["recall_70_pooled"]["mean"]
    assert ranked["ap_75"] < ranked["ap_60"] < ranked["ap_50"] < 1.0
    bins = metrics["calibration"]["bins"]
    assert sum(one["pixels"] for one in bins) == sum(int(row["height"]) * int(row["width"]) for row in rows)
    seen = sum(one["pixels"] * one["seen"] for one in bins)
    assert seen == pytest.approx(sum(int(row["tp"]) + int(row["fn"]) for row in rows), abs=1)


def test_the_submission_scores_by_the_competitions_metric(root: Path, sample_folder: Path) -> None:
    """The score of the file is that of the masks it was written from, against the truth decoded here."""
    solution = sample_folder / "truth/stage1_solution.csv"
    rows: dict[str, list[dict[str, str]]] = {}
    with solution.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            rows.setdefault(row["ImageId"], []).append(row)
    scores = []
    for case_id, objects in rows.items():
        size = int(objects[0]["Height"]), int(objects[0]["Width"])
        truth = decode_labels([row["EncodedPixels"] for row in objects if row["EncodedPixels"]], *size)
        mask = read_label(root / f"reports/tiny/masks/{case_id}.png")
        scores.append(average_precision(overlaps(truth, mask)))
    scored = score_submission(solution, root / "reports/tiny/submission.csv")
    assert len(scored.images) == len(rows) == 16
    assert scored.mean == pytest.approx(np.mean(scores))
    assert f"{scored.mean:.6f}" in run(root, "score", str(solution), "reports/tiny/submission.csv")


def test_evaluation_refuses_cases_that_took_part(root: Path) -> None:
    """Were a test case among those that chose the thresholds or trained, no score of its patient would be written."""
    config = load_config(root / "tiny.yaml")
    paths = Paths.of(config, root)
    file = paths.train / "thresholds.json"
    before = file.read_text()
    with (paths.reports / "per_case.csv").open() as stream:
        tested = next(csv.DictReader(stream))["case_id"]
    try:
        for used in ("chosen_on", "trained_on"):
            chosen = json.loads(before)
            (chosen["chosen_on"]["cases"] if used == "chosen_on" else chosen["trained_on"]).append(tested)
            file.write_text(json.dumps(chosen))
            with pytest.raises(
                ValueError, match=f"took no part in training.*found 7 that did .*{tested}.*by other images"
            ):
                evaluate.run(config, paths)
    finally:
        file.write_text(before)


def test_a_trained_run_predicts_any_image(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(1).integers(0, 256, (90, 61, 4), dtype=np.uint8)
    cv2.imwrite(str(folder / "alpha.png"), noise)
    cv2.imwrite(str(folder / "grey.tif"), noise[..., 0])
    cv2.imwrite(str(folder / "photo.jpg"), noise[..., :3])
    cv2.imwrite(str(folder / "deep.png"), noise[..., 0].astype(np.uint16) * 257)
    (folder / "broken.png").write_bytes(b"no image")
    said = run(
        root, "predict", "--run", "tiny", "--images", str(folder), "--out", str(tmp_path / "out"), "--overlay", code=2
    )
    assert "broken.png" in said and "4 of 5 images" in said
    for stem in ("alpha", "grey", "photo", "deep"):
        mask = cv2.imread(str(tmp_path / "out" / f"{stem}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (90, 61) and mask.dtype == np.uint16
        assert cv2.imread(str(tmp_path / "out" / f"{stem}_overlay.png")).shape[2] == 3
    assert "there are the trained runs tiny" in run(
        root, "predict", "--run", "tony", "--images", str(folder), "--out", str(tmp_path / "out"), code=2
    )


def test_the_report_is_written(root: Path) -> None:
    run(root, "report", "-c", "tiny.yaml", "--with-needs")
    assert "<html" in (root / "reports/tiny/report.html").read_text()


def test_an_ensemble_is_the_mean_of_its_members_and_goes_to_the_end(root: Path) -> None:
    other = ("train.seed=2", "train.steps=8", "train.validations=1")
    run(root, "train", "-c", "tiny.yaml", "run=other", *other)
    (root / "both.yaml").write_text(CONFIG[: CONFIG.index("train:")] + "train: {members: [tiny, other]}\n")
    printed = run(root, "report", "-c", "both.yaml", "run=both", "--with-needs")
    assert "2 members, averaged" in printed
    chosen = json.loads((root / "data/train/both/thresholds.json").read_text())
    own = json.loads((root / "data/train/tiny/thresholds.json").read_text())
    assert chosen["chosen_on"]["cases"] == own["chosen_on"]["cases"] and chosen["trained_on"] == []
    assert set(chosen["inherited"]["cases"]["sample"]) >= set(own["trained_on"])
    run(root, "predict", "-c", "tiny.yaml", "run=other", *other)
    for file in sorted((root / "data/predict/both").glob("*.tif"))[:3]:
        parts = [read_probabilities(root / "data/predict" / member / file.name) for member in ("tiny", "other")]
        np.testing.assert_allclose(read_probabilities(file), np.mean(parts, axis=0), atol=2e-5)
    weights = root / "data/train/other/best.pt"
    own = weights.read_bytes()
    weights.write_bytes((root / "data/train/tiny/best.pt").read_bytes())
    images = root / "data/ingest/sample/images"
    told = run(root, "predict", "--run", "both", "--images", str(images), "--out", "found", code=2)
    assert "expected thresholds tuned on the maps of its members, found other trained anew since" in told
    weights.write_bytes(own[:1000])
    told = run(root, "predict", "--run", "other", "--images", str(images), "--out", "found", code=2)
    assert "other/best.pt: expected the weights of" in told and "Traceback" not in told
    weights.write_bytes(own)
    refused = run(root, "train", "-c", "both.yaml", "run=three", "train.members=[tiny,other]", "seed=5", code=2)
    assert "expected" in refused


TOGETHER = (
    "compute.device=cpu", "compute.precision=fp32", "compute.threads=1", "compute.workers=0", "train.validations=1",
    "train.average=0",
)  # fmt: skip
"""Two processes on two cores: threads of their own would wait for each other."""


def weights_of(root: Path, name: str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(root / "data/train" / name / "best.pt", weights_only=True)["network"]
    return weights


def torchrun(root: Path, *arguments: str, code: int = 0) -> str:
    """Start two processes of one command on this machine."""
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pipeline"]
    done = subprocess.run(
        [*started, *arguments], cwd=root, env=environment() | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=250,
    )  # fmt: skip
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def test_two_processes_train_what_one_does(root: Path) -> None:
    """With group norm, of 20 steps of the same batches; over gloo, started by torchrun and by the command itself.

    With the default loss, whose Dice is a ratio of sums over the whole batch. AdamW makes steps as long as the learning
    rate out of gradients that are nothing but rounding, so that is low.
    """
    settings = (
        "-c", "tiny.yaml", *TOGETHER, "train.learning_rate=0.0001", "train.network.normalisation=group",
        "train.steps=20",
    )  # fmt: skip
    run(root, "train", *settings, "run=one", "--with-needs")
    run(root, "train", *settings, "run=spawned", "compute.devices=2")
    printed = torchrun(root, "train", *settings, "run=launched", "compute.devices=2")
    assert printed.count("20 steps on") == 1
    one = weights_of(root, "one")
    for name in ("spawned", "launched"):
        other = weights_of(root, name)
        assert other.keys() == one.keys()
        apart = torch.cat([(one[key] - other[key]).abs().flatten() for key in one])
        assert float(apart.max()) < 1e-4 and float(apart.mean()) < 5e-6
    assert (root / "data/train/launched/thresholds.json").exists()
    assert "nothing to do" in torchrun(root, "train", *settings, "run=launched", "compute.devices=2")
    before = weights_of(root, "launched")
    printed = torchrun(root, "train", "--force", *settings, "run=launched", "compute.devices=2")
    assert "asked for with --force" in printed and printed.count("20 steps on") == 1
    after = weights_of(root, "launched")
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_batch_norm_over_two_processes_is_as_good(root: Path) -> None:
    """Each process normalises its half of the batch; both keep the mean of their statistics."""
    # Until then networks are half trained, and processors alone make them differ by more (0.04 after 48 steps).
    settings = ("-c", "tiny.yaml", *TOGETHER, "train.steps=160", "train.batch=8")
    scores = {}
    for name, devices in (("alone", 1), ("both", 2)):
        run(root, "evaluate", *settings, f"run={name}", f"compute.devices={devices}", "--with-needs")
        metrics = json.loads((root / "reports" / name / "metrics.json").read_text())
        scores[name] = metrics["test"]["dice"]["mean"]
    assert abs(scores["alone"] - scores["both"]) < 0.02 and scores["alone"] > 0.6


def test_torchrun_is_for_training_alone(root: Path) -> None:
    said = torchrun(root, "evaluate", "-c", "tiny.yaml", *TOGETHER, "run=never", "--with-needs", code=2)
    assert "expected stage train alone" in said
    said = torchrun(root, "train", "-c", "tiny.yaml", *TOGETHER, "run=never", "train.steps=20", code=2)
    assert "compute.devices: expected 2, the processes that torchrun started, found 1" in said


@pytest.mark.parametrize("target", ["classes", "binary"])
def test_a_folder_of_images_and_class_masks_goes_the_same_way(tmp_path: Path, target: str) -> None:
    """Two classes of discs, joined on the stem, grouped by a pattern, scored without objects."""
    for kind in ("images", "masks"):
        (tmp_path / "data/raw/mine" / kind).mkdir(parents=True)
    for number in range(24):
        generator = np.random.default_rng(number)
        image = generator.normal(200, 12, (80, 100, 3)).clip(0, 255).astype(np.uint8)
        mask = np.zeros((80, 100), np.uint8)
        for class_id, colour in ((1, (60, 90, 200)), (2, (180, 40, 60))):
            for _ in range(3):
                centre = int(generator.integers(10, 90)), int(generator.integers(10, 70))
                cv2.circle(image, centre, 9, colour, -1)
                cv2.circle(mask, centre, 9, class_id, -1)
        cv2.imwrite(str(tmp_path / f"data/raw/mine/images/P{number:02d}_a.png"), image)
        cv2.imwrite(str(tmp_path / f"data/raw/mine/masks/P{number:02d}_a.png"), mask)
    (tmp_path / "mine.yaml").write_text(
        "dataset: mine\ningest: {group_pattern: '^(P[0-9]+)_'}\naugment: {crop: 64}\n"
        "train: {network: {width: 8, depth: 2}, learning_rate: 0.005, average: 0.9, steps: 60, batch: 4}\n"
    )
    run(tmp_path, "evaluate", "-c", "mine.yaml", "--with-needs", f"train.target={target}")
    metrics = json.loads((tmp_path / "reports/mine/metrics.json").read_text())
    assert metrics["test"]["dice"]["mean"] > 0.9
    assert "ap" not in metrics["test"]
    assert metrics["validation"]["metric"] == "dice" and abs(metrics["validation"]["gap"]) < 0.1
    assert metrics["calibration"]["bins"][-1]["seen"] > 0.9
    mask = cv2.imread(str(next((tmp_path / "reports/mine/masks").glob("*.png"))), cv2.IMREAD_UNCHANGED)
    assert set(np.unique(mask)) <= ({0, 1, 2} if target == "classes" else {0, 1})
