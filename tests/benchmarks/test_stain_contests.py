"""The plain transforms are right, ours give their pixels, and peers that are absent are told."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pipeline import segmenters
from pipeline.benchmarks import agreement, peers, plain, stains, tiles
from pipeline.benchmarks.stain_sides import GAIN, VECTORS, prepare
from pipeline.benchmarks.timing import Contest, Pace, Row
from pipeline.laboratories import LABORATORIES
from pipeline.stains import METHODS
from pipeline.stains.optical_density import mix, sample_pixels
from pipeline.tissue import render_field

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stack() -> np.ndarray:
    return np.stack([render_field("nest", 192, 224, LABORATORIES[name], 3).image for name in ("north", "east")])


@pytest.fixture(scope="module")
def reference() -> np.ndarray:
    return render_field("gland", 160, 192, LABORATORIES["south"], 4).image


def test_plain_exchange_is_the_law_of_beer_and_lambert() -> None:
    vectors = np.array([[0.6, 0.7, 0.3], [0.1, 0.9, 0.3]])
    amounts = np.array([[0.5, 0.0], [0.0, 0.4], [0.3, 0.2]])
    light = 255.0 * 10.0 ** -(amounts @ vectors)
    image = np.rint(light).astype(np.uint8)[np.newaxis]
    doubled = 255.0 * 10.0 ** -(amounts * [1.0, 2.0] @ vectors[::-1])
    np.testing.assert_allclose(
        plain.exchange(image, vectors, vectors[::-1], np.array([1.0, 2.0]))[0], doubled, atol=2.0
    )


def test_plain_exchange_with_its_rest_and_no_gain_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    np.testing.assert_array_equal(plain.exchange(image, VECTORS, VECTORS, np.ones(2), rest=1.0), image)


def test_plain_nonnegative_concentrations_are_those_of_scipy() -> None:
    from scipy.optimize import nnls

    image = np.random.default_rng(1).integers(5, 250, (6, 20, 3), np.uint8)
    made = plain.exchange(image, VECTORS, VECTORS, np.ones(2), nonnegative=True)
    amounts = np.stack([nnls(VECTORS.T, pixel)[0] for pixel in plain.density(image).reshape(-1, 3)])
    expected = np.rint(255.0 * np.exp(-amounts @ VECTORS)).reshape(image.shape)
    assert (amounts == 0.0).any(axis=1).mean() > 0.2
    np.testing.assert_array_equal(made, expected)


def test_angles_and_shares_in_closed_form() -> None:
    turned = np.array([[np.cos(0.01), np.sin(0.01), 0.0], [0.0, 0.0, 2.0]])
    np.testing.assert_allclose(plain.angle(np.eye(3)[[0, 2]], turned), [np.degrees(0.01), 0.0], atol=1e-9)
    apart = np.array([[[0, 0, 0], [9, 1, 0], [9, 9, 11], [0, 0, 2]]], np.uint8)
    same = np.array([[[0, 0, 0], [9, 0, 1], [9, 9, 9], [0, 0, 0]]], np.uint8)
    assert plain.share_within(apart, same) == 0.5


def test_the_fixed_matrix_of_both_sides_is_one_transform(
    stack: np.ndarray, reference: np.ndarray, tmp_path: Path
) -> None:
    matrix = plain.exchange_matrix(VECTORS, VECTORS, GAIN)
    for tile in stack:
        assert plain.share_within(mix(tile, matrix), plain.exchange(tile, VECTORS, VECTORS, GAIN)) >= 0.999
    np.save(tmp_path / "tiles.npy", stack)
    np.save(tmp_path / "reference.npy", reference)
    files = str(tmp_path / "tiles.npy"), str(tmp_path / "reference.npy")
    passes = [prepare("fixed matrix", *files, 2, variant)() for variant in ("stainseg", "numpy")]
    assert plain.share_within(np.stack(passes[0]), np.stack(passes[1])) >= 0.999  # type: ignore[call-overload]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_pixels_of_its_definition(method: str, stack: np.ndarray, reference: np.ndarray) -> None:
    check = agreement.with_plain(method, [stack], reference)
    assert check.found is not None and check.met, check


def test_the_full_estimate_takes_every_pixel_and_a_small_tile_loses_nothing(stack: np.ndarray) -> None:
    large = np.tile(stack[0], (6, 6, 1))
    assert len(sample_pixels(large)) < large[..., 0].size
    with agreement._every_pixel(large):
        assert len(sample_pixels(large, METHODS["reinhard"].sampled)) == large[..., 0].size
    assert len(sample_pixels(large)) < large[..., 0].size
    check = agreement.of_a_subsample("macenko", [large[np.newaxis]])
    assert check.found is not None and 0.0 < check.found < 2.0 and check.at_most


def test_a_tile_of_glass_measures_nothing(reference: np.ndarray) -> None:
    glass = np.full((1, 64, 64, 3), 250, np.uint8)
    assert agreement.with_plain("macenko", [glass], reference).found is None
    assert agreement.of_a_subsample("macenko", [glass]).met is None


def test_torchstain_agrees_where_it_adds_one_and_cuts_off(stack: np.ndarray) -> None:
    """Its lines, written out: natural logarithm of (level + 1) over 240, least squares, and truncation."""
    own = {"vectors": [[0.60, 0.70, 0.35], [0.15, 0.90, 0.35]], "largest": [1.9, 1.0]}
    target = {"vectors": [[0.55, 0.72, 0.41], [0.21, 0.80, 0.56]], "largest": [1.6, 1.3]}
    densities = -np.log((stack.reshape(-1, 3).astype(float) + 1) / 240)
    amounts = np.linalg.lstsq(np.array(own["vectors"]).T, densities.T, rcond=None)[0]
    amounts *= (np.array(target["largest"]) / np.array(own["largest"]))[:, np.newaxis]
    light = 240 * np.exp(-np.array(target["vectors"]).T @ amounts)
    made = np.minimum(light, 255).T.reshape(stack.shape).astype(np.uint8)
    transform, vectors = agreement.with_torchstain(stack, made, {"reference": target, "tiles": [own, own]})
    assert transform.met and transform.found is not None and transform.found > 99.9
    assert vectors.found is not None and vectors.aim is None


# --- Peers ------------------------------------------------------------------------------------------------------------


def test_peers_are_named_once_in_the_project_with_exact_versions() -> None:
    wanted = peers.requirements(ROOT / "pyproject.toml")
    required = {requirement for one in wanted.values() for requirement in one}
    assert wanted.keys() == peers.PEERS.keys() and all("==" in requirement for requirement in required)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert sorted(extras["peers"]) == sorted(required)
    raced = {file.stem for file in (ROOT / "pipeline" / "benchmarks" / "peers").glob("[a-z]*.py")}
    assert peers.PEERS.keys() == raced | segmenters.SEGMENTERS.keys()
    assert all((segmenters.SCRIPTS / f"{name}.py").is_file() for name in segmenters.SEGMENTERS)


def test_absent_and_broken_peers_say_what_to_do(tmp_path: Path) -> None:
    assert peers.missing("torchstain", tmp_path) == "not installed: make bench-peers"
    (tmp_path / "torchstain.error").write_text("ERROR: No matching distribution found\n", encoding="utf-8")
    assert peers.missing("torchstain", tmp_path) == "did not install: ERROR: No matching distribution found"


def test_a_peer_that_does_not_install_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    class Done:
        def __init__(self, returncode: int, stderr: str = "") -> None:
            self.returncode, self.stderr, self.stdout = returncode, stderr, ""

    def pretend(command: list[str], **_: object) -> Done:
        broken = "pip" in command and "tiatoolbox==9" in command
        return (
            Done(1, "Collecting tiatoolbox\nERROR: No matching distribution found for tiatoolbox==9\n")
            if broken
            else Done(0)
        )

    project = tmp_path / "pyproject.toml"
    project.write_text('[project.optional-dependencies]\npeers = ["tiatoolbox==9", "torchstain[torch]==1"]\n')
    monkeypatch.setattr(peers.subprocess, "run", pretend)
    outcome = peers.install(tmp_path / "peers", project)
    error = "did not install: ERROR: No matching distribution found for tiatoolbox==9"
    assert outcome == {"torchstain": "", "tiatoolbox": error}
    assert f"tiatoolbox: {error}" in capsys.readouterr().out
    peers.install(tmp_path / "peers", project)
    said = capsys.readouterr().out
    assert "torchstain: installing" not in said and "tiatoolbox: installing" in said


def test_the_suite_runs_without_peers_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "missing", lambda name: peers.INSTALL)
    monkeypatch.setattr(tiles, "RENDERED", {(96, 128): (("nest", "north"),)})
    monkeypatch.setattr(tiles, "REAL", {(96, 128): ()})
    monkeypatch.setattr(stains, "SIZES", ((96, 128),))
    found = stains.run(Pace(turn_s=0.01, contest_s=0.0, least=2, most=2, settle_s=0.0))
    by_row = {(row.what, row.against): row for row in found.rows}
    own = by_row["fixed matrix", "plain NumPy"]
    assert own.ratio is not None and own.ratio > 1.0 and own.rounds == 2
    others = [row for row in found.rows if row.against != "plain NumPy"]
    assert others and all(row.failed == peers.INSTALL and row.ratio is None for row in others)
    assert found.sides["tiatoolbox"] == peers.INSTALL and "numba" in found.sides["stainseg"]
    checks = {check.what: check for check in found.checks}
    assert checks["macenko as plain NumPy"].met
    assert checks["transform as torchstain"].detail == peers.INSTALL
    assert found.items.startswith("1 of 96x128 (")


def test_what_is_written_of_a_row_can_be_read_again() -> None:
    row = Row("macenko", "256x320", "stainseg", "a", "MP/s", failed="no")
    assert Row(**json.loads(json.dumps(row.__dict__))) == row
    assert Contest("a", "b", {}, "ours", ("ours",), 1.0, "MP/s").aim is None
