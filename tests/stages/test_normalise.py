"""Normalise: fitted on training cases only, every image comes out, and every fallback is counted."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.__main__ import main
from pipeline.config import Config, ConfigError, load_config
from pipeline.records.case import Case, write_cases
from pipeline.records.files import write_text
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, write_png
from pipeline.stages import normalise
from pipeline.stains import METHODS, load
from pipeline.stains.normaliser import StatisticalNormaliser
from pipeline.stains.tiles import JOURNAL

EAST = ((0.5588, 0.7184, 0.4143), (0.1886, 0.8383, 0.5116))
SOUTH = ((0.7622, 0.6098, 0.2172), (0.0900, 0.9400, 0.3290))
PARTS = {f"train-{n}": "train" for n in range(5)} | {"held-0": "validation", "held-1": "test", "free": ""}


def tissue(stains: tuple[tuple[float, ...], ...], seed: int, strength: float) -> np.ndarray:
    generator = np.random.default_rng(seed)
    amounts = generator.gamma(4.0, 0.08 * strength, (64, 64, 2)) * (generator.random((64, 64, 2)) > 0.15)
    light = 255.0 * 10.0 ** -(amounts @ np.array(stains)) + generator.normal(0.0, 1.0, (64, 64, 3))
    return np.rint(light.clip(0, 255)).astype(np.uint8)


def data_set(
    root: Path,
    blank: tuple[str, ...] = (),
    scarce: tuple[str, ...] = (),
    groups: dict[str, str] | None = None,
    **settings: object,
) -> tuple[Config, Paths]:
    """Five training images of one laboratory, three others of another; blank: glass alone; scarce: but for a corner."""
    config = Config.model_validate({"dataset": "few", "run": "few", "normalise": {"method": "macenko"} | settings})
    paths = Paths.of(config, root)
    cases = []
    for seed, (name, part) in enumerate(PARTS.items()):
        image = tissue(EAST if part == "train" else SOUTH, seed, 0.6 + 0.2 * seed)
        if name in blank:
            image[:] = 255
        if name in scarce:
            image[8:] = image[:, 12:] = 255
        write_png(paths.ingest / "images" / f"{name}.png", image)
        label = f"labels/{name}.png" if part else None
        kind = "instance" if part else "none"
        cases.append(Case(name, "few", f"images/{name}.png", label, kind, name, None, 64, 64, None, f"{name}.png"))
    write_cases(paths.cases, cases)
    rows = [f"{name},{(groups or {}).get(name, name)},,{part},0" for name, part in PARTS.items() if part]
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
        # Several threads write: more than three may be done when the next one looks.
        if len(written) >= 3:
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


def seen(paths: Paths, *names: str) -> list[np.ndarray]:
    return [read_image(paths.ingest / "images" / f"{name}.png") for name in names]


@pytest.mark.parametrize("method", METHODS)
def test_an_image_that_cannot_be_measured_takes_the_statistics_of_its_group(method: str, tmp_path: Path) -> None:
    groups = {"train-3": "block", "train-4": "block"}
    config, paths = data_set(tmp_path, groups=groups, scarce=("train-4", "held-0"), method=method)
    lines = normalise.run(config, paths)
    found = statuses(paths)
    assert found["train-3"] == ("ok", "") and found["train-4"] == ("low_tissue", "group")
    assert found["held-0"][0] == "low_tissue" and found["held-0"][1] in ("reference", "identity"), "it is its own group"
    assert "2 of them" in lines[1] and "1 group" in lines[1]
    normaliser = load(paths.normalise / "stain.json")
    assert isinstance(normaliser, StatisticalNormaliser)
    _, pooled = normaliser.pool(seen(paths, "train-3", "train-4"))
    expected = normaliser.normalise(*seen(paths, "train-4"), pooled).image
    np.testing.assert_array_equal(read_image(paths.image("images/train-4.png")), expected)
    assert (expected != seen(paths, "train-4")[0]).any()


def test_no_statistics_are_shared_where_no_image_asks_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        StatisticalNormaliser, "pool", lambda self, images: asked.append(images) or ("background", None)
    )
    config, paths = data_set(tmp_path, groups=dict.fromkeys(PARTS, "one"), blank=("train-0",))
    normalise.run(config, paths)
    assert not asked, "a blank image has nothing that a group could tell of"
    config, paths = data_set(tmp_path / "other", groups=dict.fromkeys(PARTS, "one"), scarce=("train-0", "held-1"))
    assert any("could not be measured: one (background)" in line for line in normalise.run(config, paths))
    assert len(asked) == 1


SLIDES = {"statistics": "slide", "slide_pattern": "^(train|held|free)"}


@pytest.mark.parametrize(
    ("settings", "pool"),
    [(SLIDES, ["held-0", "held-1"]), (SLIDES, ["free"]), ({"statistics": "group"}, ["train-0", "train-3"])],
)
def test_statistics_are_shared_by_slide_or_group(settings: dict, pool: list[str], tmp_path: Path) -> None:
    config, paths = data_set(tmp_path, groups={"train-3": "train-0"}, **settings)
    normalise.run(config, paths)
    normaliser = load(paths.normalise / "stain.json")
    assert isinstance(normaliser, StatisticalNormaliser)
    _, pooled = normaliser.pool(seen(paths, *pool))
    for name, image in zip(pool, seen(paths, *pool), strict=True):
        expected = normaliser.normalise(image, pooled, prefer_pooled=True).image
        np.testing.assert_array_equal(read_image(paths.image(f"images/{name}.png")), expected)
        alone = normaliser.normalise(image).image
        assert (alone != expected).any() == (len(pool) > 1)
    assert json.loads((paths.normalise / "stain.json").read_text())["statistics"] == settings["statistics"]


def test_a_group_that_cannot_be_measured_is_a_fallback_of_all_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StatisticalNormaliser, "pool", lambda self, images: ("degenerate", None))
    config, paths = data_set(tmp_path, statistics="group", fail_if_fallback_over=1.0)
    lines = normalise.run(config, paths)
    assert set(statuses(paths).values()) == {("ok", "image")}
    assert "8 of them could not be normalised by the statistics of their group and fell back (8 image)" in lines[1]
    config, paths = data_set(tmp_path / "other", statistics="group")
    with pytest.raises(ValueError, match="at most 50% of the images to fall back, found 8 of 8"):
        normalise.run(config, paths)


def test_scarce_tissue_is_told_whatever_its_group_knows(tmp_path: Path) -> None:
    groups = {"train-3": "block", "train-4": "block"}
    config, paths = data_set(tmp_path, groups=groups, scarce=("train-4",), statistics="group")
    normalise.run(config, paths)
    found = statuses(paths)
    assert found["train-3"] == ("ok", "") and found["train-4"] == ("low_tissue", "")


def test_a_name_without_a_slide_is_told(tmp_path: Path) -> None:
    config, paths = data_set(tmp_path, statistics="slide", slide_pattern="^(train|held)-")
    with pytest.raises(ValueError, match=r"to find a slide in every name, found none in 1 of 8: free; widen it"):
        normalise.run(config, paths)


@pytest.mark.parametrize("threads", [1, 8])
def test_the_bytes_do_not_depend_on_the_number_of_threads(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"scarce": ("train-4", "held-0"), "groups": {"train-3": "block", "train-4": "block"}}
    config, paths = data_set(tmp_path / "as it is", **options)
    normalise.run(config, paths)
    monkeypatch.setattr("os.cpu_count", lambda: threads)
    _, other = data_set(tmp_path / "otherwise", **options)
    normalise.run(config, other)
    assert contents(other.normalise) == contents(paths.normalise)


@pytest.mark.parametrize("white", ["[256,240,240]", "[0,0,0]", "[0.94,0.94,0.94]", "[.nan,250,250]"])
def test_glass_that_no_image_can_show_is_refused(white: str) -> None:
    with pytest.raises(ConfigError, match=r"normalise\.white_point"):
        load_config(None, [f"normalise.white_point={white}"])


def test_the_white_point_is_handed_on(tmp_path: Path) -> None:
    for white in ("measured", [250.0, 240.0, 245.0]):
        config, paths = data_set(tmp_path / str(white), white_point=white)
        normalise.run(config, paths)
        assert json.loads((paths.normalise / "stain.json").read_text())["white_point"] == white


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "learned"}, "method learned needs normalise.run"),
        ({"method": "macenko", "run": "pix2pix"}, "run is used by method learned alone, not by macenko"),
        ({"method": "learned", "run": "../elsewhere"}, "a folder below data/train/"),
        ({"method": "learned", "run": "pix2pix", "statistics": "group"}, "nothing that method learned has"),
        ({"method": "learned", "run": "pix2pix", "reference": "a"}, "nothing that method learned has"),
        ({"method": "macenko", "statistics": "slide"}, "statistics slide needs normalise.slide_pattern"),
        ({"method": "macenko", "slide_pattern": "^(a)"}, "slide_pattern is used with statistics slide, not with image"),
        ({"method": "macenko", "statistics": "slide", "slide_pattern": "^a"}, "needs one group in parentheses"),
        ({"method": "macenko", "statistics": "slide", "slide_pattern": "^(a"}, "not a regular expression"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, [f"normalise.{name}={value}" for name, value in settings.items()])


def test_a_learned_normaliser_has_a_folder_of_its_runs_name(tmp_path: Path) -> None:
    config = load_config(None, ["normalise.method=learned", "normalise.run=east/pix2pix", "dataset=few"])
    paths = Paths.of(config, tmp_path)
    assert paths.normalise == tmp_path / "data/normalise/few/east-pix2pix"
    assert paths.learned_normaliser == tmp_path / "data/train/east/pix2pix"
    assert paths.learned_normaliser / "stage.json" in normalise.inputs(config, paths)
    with pytest.raises(ValueError, match=r"east/pix2pix: expected a trained run"):
        data_set(tmp_path, method="learned", run="east/pix2pix")
        normalise.run(config, paths)


HOSTILE = {
    "white": np.full((64, 64, 3), 255, np.uint8),
    "black": np.zeros((64, 64, 3), np.uint8),
    "pink": np.full((64, 64, 3), (220, 130, 190), np.uint8),
    "dot": np.full((1, 1, 3), (120, 60, 140), np.uint8),
    "grey": np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8),
    "deep": np.random.default_rng(0).integers(0, 65536, (64, 64, 3), np.uint16),
    "noise": np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8),
    "pen": tissue(EAST, 3, 1.0),
}
HOSTILE["pen"][10:40, 5:50] = (20, 120, 40)
HOSTILE["pen"][45:50] = 0


@pytest.mark.parametrize("method", METHODS)
def test_hostile_images_come_through_the_whole_command(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    raw = tmp_path / "data" / "raw" / "odd"
    images = {f"tissue{n}": tissue(EAST, n, 0.6 + 0.1 * n) for n in range(9)} | HOSTILE
    for name, image in images.items():
        write_png(raw / "images" / f"{name}.png", image)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[: len(mask) // 2 + 1] = 255
        write_png(raw / "masks" / f"{name}.png", mask)
    settings = ["dataset=odd", "split.groups=none", f"normalise.method={method}"]
    (tmp_path / "odd.yaml").write_text("{}")
    done = main(["normalise", "-c", "odd.yaml", "--with-needs", *settings])
    told = capsys.readouterr()
    assert done == 0, told.err
    paths = Paths.of(load_config(None, settings))
    found = statuses(paths)
    assert set(found) == set(images)
    assert found["white"] == found["black"] == found["grey"] == ("background", "identity")
    assert found["dot"][0] == "low_tissue"
    for name, (_, fallback) in found.items():
        before, after = read_image(paths.ingest / f"images/{name}.png"), read_image(paths.image(f"images/{name}.png"))
        assert after.shape == before.shape
        assert np.array_equal(after, before) or fallback != "identity", f"{name} was changed, and nothing says so"
    assert {found[f"tissue{n}"][1] for n in range(9)} == {""}
