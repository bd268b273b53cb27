"""The embedded pairs: the sample's own tissue under other laboratories, the same every time, whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline import sample_pairs
from pipeline.config import load_config
from pipeline.laboratories import LABORATORIES
from pipeline.metrics.stain import psnr
from pipeline.records.case import read_cases
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image
from pipeline.sample import Section, render_sample
from pipeline.sample_pairs import INPUTS, TARGET, SamplePair, render_pairs, write_sample_pairs
from pipeline.stages import ingest


def first_pairs(count: int) -> list[SamplePair]:
    return list(itertools.islice(render_pairs(), count))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pairs of two patients, rendered and ingested by the stage."""
    root = tmp_path_factory.mktemp("pairs")
    config = load_config(None, ["dataset=sample_pairs", "ingest.group_csv=groups.csv"])
    every = sample_pairs.sections

    def few(*arguments: int, **named: int) -> Iterator[Section]:
        return (section for section in every(*arguments, **named) if section.patient in ("patient-01", "patient-06"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_pairs, "sections", few)
        ingest.prepare(config, Paths.of(config, root))
    ingest.run(config, Paths.of(config, root))
    return root


def digest(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def test_the_tissue_is_that_of_the_sample() -> None:
    pairs = first_pairs(3)
    images = list(itertools.islice(render_sample(), 4))
    assert {image.field for image in images} == {"patient-01-field-1"} and images[0].laboratory.name == "north"
    whole = np.zeros_like(pairs[0].tissue.concentrations)
    for image in images:
        height, width = image.tissue.label.shape
        whole[image.top : image.top + height, image.left : image.left + width] = image.tissue.concentrations
    for pair in pairs:
        assert np.array_equal(pair.tissue.concentrations, whole)
        assert np.array_equal(pair.target, pairs[0].target) and pair.image.shape == pair.target.shape


def test_image_and_target_show_the_same_place() -> None:
    for pair in first_pairs(3):
        greys = [cv2.cvtColor(side, cv2.COLOR_RGB2GRAY).astype(np.float32) for side in (pair.image, pair.target)]
        (right, down), _ = cv2.phaseCorrelate(*greys)
        assert max(abs(right), abs(down)) < 0.1 and psnr(pair.image, pair.target) < 25.0
        plain = LABORATORIES[TARGET].plain().scan(pair.tissue.concentrations, np.random.default_rng(0))
        assert psnr(pair.target, plain) > 26.0


def test_another_seed_is_other_tissue() -> None:
    (one,), (other,) = first_pairs(1), list(itertools.islice(render_pairs(7), 1))
    assert one.case_id == other.case_id and not np.array_equal(one.target, other.target)


def test_every_field_is_seen_by_every_laboratory_and_no_patient_alone(written: Path) -> None:
    config = load_config(None, ["dataset=sample_pairs"])
    paths = Paths.of(config, written)
    cases = read_cases(paths.cases)
    assert len(cases) == 2 * 3 * 3 and {case.label_kind for case in cases} == {"image"}
    assert Counter(case.stratum for case in cases) == dict.fromkeys(INPUTS, 6)
    assert {case.group for case in cases} == {"patient-01", "patient-06"}
    assert set(Counter(case.case_id.rpartition("-")[0] for case in cases).values()) == {3}
    assert all(case.case_id.startswith(f"{case.group}-") and case.case_id.endswith(str(case.stratum)) for case in cases)
    assert all(min(one.height, one.width) >= 128 and max(one.height, one.width) <= 288 for one in cases)
    case = cases[0]
    assert np.array_equal(
        read_image(paths.ingest / str(case.label)), read_image(paths.raw / "target" / f"{case.case_id}.png")
    )


def test_the_truth_lies_apart(written: Path) -> None:
    raw = written / "data" / "raw" / "sample_pairs"
    laboratories = json.loads((raw / "truth" / "laboratories.json").read_text())
    assert laboratories[TARGET]["stain_matrix"] == [list(row) for row in LABORATORIES[TARGET].stain_matrix]
    with (raw / "truth" / "pairs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["target"] for row in rows} == {TARGET} and {row["laboratory"] for row in rows} == set(INPUTS)
    assert {row["case_id"] for row in rows} == {file.stem for file in (raw / "input").iterdir()}


def test_writing_again_changes_nothing_and_another_version_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = first_pairs(3)
    monkeypatch.setattr(sample_pairs, "render_pairs", lambda *_: iter(few))
    folder, other = tmp_path / "pairs", tmp_path / "other"
    write_sample_pairs(folder)
    write_sample_pairs(other)
    assert digest(folder) == digest(other)
    stamp = (folder / "groups.csv").stat().st_mtime_ns
    write_sample_pairs(folder)
    assert (folder / "groups.csv").stat().st_mtime_ns == stamp
    monkeypatch.setattr(sample_pairs, "VERSION", 99)
    (folder / "input" / "left-over.png").write_bytes(b"")
    write_sample_pairs(folder)
    assert not (folder / "input" / "left-over.png").exists()
    assert json.loads((folder / "truth" / "sample_pairs.json").read_text())["version"] == 99


def test_a_killed_run_leaves_nothing_and_other_files_are_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = first_pairs(1)

    def killed(*_: int):  # type: ignore[no-untyped-def]
        yield few[0]
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_pairs, "render_pairs", killed)
    with pytest.raises(KeyboardInterrupt):
        write_sample_pairs(tmp_path / "pairs")
    assert not (tmp_path / "pairs").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mine.txt").write_text("mine")
    with pytest.raises(
        ValueError, match="expected a folder that is new, empty or an earlier sample, found other files"
    ):
        write_sample_pairs(tmp_path / "own")
    assert (tmp_path / "own" / "mine.txt").read_text() == "mine"
