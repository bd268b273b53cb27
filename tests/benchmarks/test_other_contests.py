"""Sides of inference, matching, run lengths and help do the same work, and the suites carry the aims."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.benchmarks import (
    NAMED_ONLY,
    SUITES,
    command_line,
    command_line_sides,
    inference,
    inference_sides,
    matching,
    matching_sides,
    run_length_sides,
    run_lengths,
)
from pipeline.benchmarks.timing import Pace
from pipeline.config import dump_config, load_config
from pipeline.metrics.instance import THRESHOLDS
from pipeline.networks import build_network
from pipeline.outputs import Outputs
from pipeline.records.files import write_json, write_text
from pipeline.records.paths import Paths

ONCE = Pace(turn_s=0.0, contest_s=0.0, least=1, most=1)


@pytest.fixture
def pair(tmp_path: Path) -> dict[str, str]:
    truth, prediction = matching.nuclei()
    files = {"truth": tmp_path / "truth.npy", "prediction": tmp_path / "prediction.npy"}
    np.save(files["truth"], truth)
    np.save(files["prediction"], prediction)
    return {name: str(file) for name, file in files.items()}


def test_what_is_matched_is_as_many_nuclei_as_the_table_says() -> None:
    truth, prediction = matching.nuclei()
    assert truth.max() == 306 and np.array_equal(np.unique(prediction), np.arange(prediction.max() + 1))
    assert 240 < prediction.max() < 306


@pytest.mark.parametrize("score", matching.MATCHES)
def test_the_plain_lines_and_monai_score_as_ours_does(score: str, pair: dict[str, str]) -> None:
    task = {"score": score, "thresholds": list(THRESHOLDS), **pair}
    ours = matching_sides.answer(**task, variant="ours")
    assert 0.3 < ours < 0.8
    assert matching_sides.answer(**task, variant="plain") == pytest.approx(ours, abs=1e-9)
    if score == "PQ":
        assert matching_sides.answer(**task, variant="monai") == pytest.approx(ours, abs=1e-6)


def test_run_lengths_are_those_of_the_plain_lines(tmp_path: Path) -> None:
    mask = run_lengths.glomeruli((300, 400))
    assert 0.05 < mask.mean() < 0.95
    np.save(tmp_path / "mask.npy", mask)
    assert run_length_sides.same(str(tmp_path / "mask.npy"))
    for variant in ("ours", "numpy"):
        decode = run_length_sides.prepare("decode", str(tmp_path / "mask.npy"), variant)
        assert np.array_equal(np.asarray(decode()).astype(bool), mask)


def test_the_help_of_ours_is_a_whole_process(capfd: pytest.CaptureFixture[str]) -> None:
    done = command_line_sides.prepare([sys.executable, "-c", "print('usage')"])()
    assert done.stdout == b"usage\n"
    with pytest.raises(Exception, match="exit status 3"):
        command_line_sides.prepare([sys.executable, "-c", "raise SystemExit(3)"])()
    findings = command_line.run(ONCE)
    assert {row.against for row in findings.rows} == set(command_line.COMMANDS)
    assert all(row.failed or row.aim in (None, command_line.TIMES) for row in findings.rows)
    assert findings.sides["stainseg"].startswith("started by Python")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A trained run as it stands on the disk, of a small network whose numbers are moderate."""
    settings = ["dataset=sample", "run=sample", "train.network.width=4", "train.network.depth=2"]
    config = load_config(None, settings)
    folder = Paths.of(config, tmp_path).train
    torch.manual_seed(5)
    network = build_network(config.train.network, 3, 1, pretrained=False)
    write_text(folder / "config.yaml", dump_config(config))
    write_json(folder / "model.json", Outputs("instance", ("foreground",), "sigmoid", "mask").as_dict())
    torch.save({"network": network.state_dict()}, folder / "best.pt")
    return folder


def test_every_side_of_inference_maps_the_same_image(run: Path, tmp_path: Path) -> None:
    image = inference.render_image(300)
    np.save(tmp_path / "image.npy", image)
    task = {"image": str(tmp_path / "image.npy"), "run": str(run), "threads": 1}
    variants = inference.VARIANTS | inference.JUDGED
    maps = {name: inference_sides.prepare(**task, variant=variant)() for name, variant in variants.items()}
    assert all(one.shape == (1, 300, 300) for name, one in maps.items() if not name.startswith("bare"))
    whole = inference_sides.prepare(**task, variant=inference.WHOLE)()
    np.testing.assert_allclose(maps["stainseg (pytorch, float32)"], whole, atol=1e-5)
    for name, one in maps.items():
        if not name.startswith("bare"):
            # MONAI's windows see zeros beyond their edges, ours the image.
            assert np.abs(one - whole).mean() < 0.02, name
    inference_sides.mask(str(tmp_path / "mask.npy"), **task, variant="pytorch")
    assert np.array_equal(np.load(tmp_path / "mask.npy"), maps[inference.PYTORCH][0] > 0.5)


@pytest.mark.slow
def test_masks_are_held_against_those_of_the_whole_image(run: Path, tmp_path: Path) -> None:
    findings = inference.run(
        ONCE, inference.Size(side=300, threads=1, compared=(inference.MONAI,)), root=run.parents[2]
    )
    assert not [row.failed for row in findings.rows if row.failed]
    found = {check.what: check for check in findings.checks}
    exact = found.pop("Dice of stainseg (pytorch, float32) and whole image")
    assert exact.met and exact.found is not None and exact.found > 0.9999
    assert [check.aim for check in found.values()] == [None] * (len(found) - 1) + [inference.ALIKE]
    assert all(check.found is not None and 0.5 < check.found <= 1 for check in found.values())


def test_inference_wants_a_trained_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a trained run, dsb2018 or sample, found none"):
        inference.run(ONCE, root=tmp_path)


def test_what_takes_very_long_runs_only_where_it_is_named() -> None:
    assert set(NAMED_ONLY) < set(SUITES)
    assert {"stains", "training", "inference", "matching", "run_lengths", "help"} == set(SUITES) - set(NAMED_ONLY)
    json.dumps(inference.VARIANTS)
