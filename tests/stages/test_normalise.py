"""Normalise: fitted on training cases only, every image comes out, and every fallback is counted."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.config import Config
from pipeline.records.case import Case, write_cases
from pipeline.records.files import write_text
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, write_png
from pipeline.stages import normalise
from pipeline.stains import METHODS, load
from pipeline.stains.tiles import JOURNAL

EAST = ((0.5588, 0.7184, 0.4143), (0.1886, 0.8383, 0.5116))
SOUTH = ((0.7622, 0.6098, 0.2172), (0.0900, 0.9400, 0.3290))
PARTS = {f"train-{n}": "train" for n in range(5)} | {"held-0": "validation", "held-1": "test", "free": ""}


def tissue(stains: tuple[tuple[float, ...], ...], seed: int, strength: float) -> np.ndarray:
    generator = np.random.default_rng(seed)
    amounts = generator.gamma(4.0, 0.08 * strength, (64, 64, 2)) * (generator.random((64, 64, 2)) > 0.15)
    light = 255.0 * 10.0 ** -(amounts @ np.array(stains)) + generator.normal(0.0, 1.0, (64, 64, 3))
    return np.rint(light.clip(0, 255)).astype(np.uint8)


def data_set(root: Path, blank: tuple[str, ...] = (), **settings: object) -> tuple[Config, Paths]:
    """Five training images of one laboratory, three others of another; those named blank are glass."""
    config = Config.model_validate({"dataset": "few", "run": "few", "normalise": {"method": "macenko"} | settings})
    paths = Paths.of(config, root)
    cases = []
    for seed, (name, part) in enumerate(PARTS.items()):
        image = tissue(EAST if part == "train" else SOUTH, seed, 0.6 + 0.2 * seed)
        if name in blank:
            image[:] = 255
        write_png(paths.ingest / "images" / f"{name}.png", image)
        label = f"labels/{name}.png" if part else None
        kind = "instance" if part else "none"
        cases.append(Case(name, "few", f"images/{name}.png", label, kind, name, None, 64, 64, None, f"{name}.png"))
    write_cases(paths.cases, cases)
    rows = [f"{name},{name},,{part},0" for name, part in PARTS.items() if part]
    write_text(paths.split_table, "\n".join(["case_id,group,stratum,part,fold", *rows]) + "\n")
    paths.normalise.mkdir(parents=True)
    return config, paths


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def statuses(paths: Paths) -> dict[str, tuple[str, str]]:
    with (paths.normalise / "status.csv").open(encoding="utf-8", newline="") as stream:
        return {row["case_id"]: (row["status"], row["fallback"]) for row in csv.DictReader(stream)}


@pytest.mark.parametrize("method", METHODS)
def test_every_image_comes_out_under_its_own_name(method: str, tmp_path: Path) -> None:
    config, paths = data_set(tmp_path, blank=("held-1",), method=method)
    lines = normalise.run(config, paths)
    assert set(contents(paths.normalise)) == {"stain.json", "status.csv"} | {f"images/{name}.png" for name in PARTS}
    found = statuses(paths)
    assert found.pop("held-1") == ("background", "identity")
    assert set(found) == set(PARTS) - {"held-1"}
    assert {status for status, _ in found.values()} <= {"ok", "clipped_gain"}
    assert {fallback for _, fallback in found.values()} == {""}
    assert "8 images" in lines[0] and "1 background" in lines[0] and "1 of them" in lines[1]
    assert lines[1].endswith("fell back (1 identity)")
    assert (read_image(paths.normalise / "images" / "held-1.png") == 255).all()


def test_images_are_what_the_kept_normaliser_makes_of_them(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path)
    normalise.run(config, paths)
    normaliser = load(paths.normalise / "stain.json")
    for name in PARTS:
        expected, _ = normaliser.transform(read_image(paths.ingest / "images" / f"{name}.png"))
        np.testing.assert_array_equal(read_image(paths.image(f"images/{name}.png")), expected)


def test_held_out_images_have_no_say_in_the_reference(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path / "one")
    _, other = data_set(tmp_path / "other", blank=("held-0", "held-1", "free"))
    normalise.run(config, paths)
    normalise.run(config, other)
    kept = (paths.normalise / "stain.json").read_bytes()
    assert kept == (other.normalise / "stain.json").read_bytes()
    content = json.loads(kept)
    assert content["reference_case"] in PARTS and PARTS[content["reference_case"]] == "train"
    assert content["fitted_on"] == 5


def test_a_reference_can_be_named_if_it_is_a_training_case(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path / "one", reference="train-4")
    assert "the stain of train-4" in normalise.run(config, paths)[0]
    config, paths = data_set(tmp_path / "other", reference="held-0")
    with pytest.raises(ValueError, match=r"expected the id of a training case, found 'held-0'; .*has 5: train-0"):
        normalise.run(config, paths)


def test_it_stops_when_too_many_fall_back(tmp_path: Path) -> None:
    blank = ("train-0", "train-1", "train-2", "train-3", "held-0")
    config, paths = data_set(tmp_path / "one", blank=blank)
    with pytest.raises(
        ValueError, match=r"at most 50% of the images to fall back, found 5 of 8 \(5 background, 3 ok\)"
    ):
        normalise.run(config, paths)
    assert not (paths.normalise / "status.csv").exists()
    config, paths = data_set(tmp_path / "other", blank=blank, fail_if_fallback_over=1.0)
    normalise.run(config, paths)
    assert sum(bool(fallback) for _, fallback in statuses(paths).values()) == 5


def test_a_killed_run_carries_on_and_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, whole = data_set(tmp_path / "whole")
    normalise.run(config, whole)
    _, killed = data_set(tmp_path / "killed")
    written = []

    def write(file: Path, image: np.ndarray) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        write_png(file, image)
        written.append(file)

    monkeypatch.setattr(normalise, "write_png", write)
    with pytest.raises(KeyboardInterrupt):
        normalise.run(config, killed)
    assert not (killed.normalise / "status.csv").exists()
    with (killed.normalise / JOURNAL).open("a") as stream:
        stream.write('["train-4", "o')
    before = {file: file.stat().st_mtime_ns for file in written}
    monkeypatch.setattr(normalise, "write_png", write_png)
    normalise.run(config, killed)
    assert contents(killed.normalise) == contents(whole.normalise)
    assert {file: file.stat().st_mtime_ns for file in written} == before, "finished images are not written again"


def test_none_writes_no_image_and_says_so(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path, method="none")
    assert "used as they are" in normalise.run(config, paths)[0]
    assert set(contents(paths.normalise)) == {"stain.json"}
    assert json.loads((paths.normalise / "stain.json").read_text())["method"] == "none"
    assert normalise.inputs(config, paths) == []


def test_an_image_that_cannot_be_measured_takes_the_stain_of_its_group(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path, groups={"train-3": "block", "train-4": "block"}, scarce=("train-4", "held-0"))
    lines = normalise.run(config, paths)
    found = statuses(paths)
    assert found["train-4"] == ("low_tissue", "slide")
    assert found["held-0"][0] == "low_tissue" and found["held-0"][1] in ("reference", "identity"), "alone in its group"
    assert found["train-3"] == ("ok", "")
    assert "2 of them" in lines[1] and "1 slide" in lines[1]
    normaliser = load(paths.normalise / "stain.json")
    seen = {name: read_image(paths.ingest / "images" / f"{name}.png") for name in ("train-3", "train-4")}
    _, pooled = normaliser.pool(seen.values())
    expected = normaliser.normalise(seen["train-4"], pooled).image
    np.testing.assert_array_equal(read_image(paths.image("images/train-4.png")), expected)


@pytest.mark.parametrize(
    ("settings", "pools"),
    [
        ({"statistics": "slide", "slide_pattern": "^(train|held|free)"}, ("train", "held", "free")),
        ({"statistics": "group"}, ("train-0", "train-1", "held-0")),
    ],
)
def test_statistics_are_shared_by_a_slide_or_group(settings: dict, pools: tuple[str, ...], tmp_path: Path) -> None:
    config, paths = data_set(tmp_path, groups={"train-1": "train-0"}, **settings)
    normalise.run(config, paths)
    normaliser = load(paths.normalise / "stain.json")
    images = {name: read_image(paths.ingest / "images" / f"{name}.png") for name in PARTS}
    for pool in pools:
        members = [
            name
            for name in PARTS
            if (name.startswith(pool) if "slide_pattern" in settings else GROUPS.get(name, name) == pool)
        ]
        members = members if "slide_pattern" in settings else [name for name in members if name != "train-1"]
        members += ["train-1"] if pool == "train-0" else []
        if pool == "train-1":
            continue
        _, pooled = normaliser.pool(images[name] for name in members)
        for name in members:
            expected = normaliser.normalise(images[name], pooled, prefer_pooled=True)
            np.testing.assert_array_equal(read_image(paths.image(f"images/{name}.png")), expected.image)
    assert json.loads((paths.normalise / "stain.json").read_text())["statistics"] == settings["statistics"]
