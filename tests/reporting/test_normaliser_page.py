"""The page of a run that makes images: sound, small, the same bytes, and clear about what is missing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import Config, TrainSettings, dump_config
from pipeline.records.files import write_json
from pipeline.records.paths import Paths
from pipeline.reporting import normaliser_page
from pipeline.reporting.normaliser_page import applies, build_page, signed, verdict
from pipeline.reporting.side_by_side import busiest, detail_change, difference
from pipeline.stages import report

ROOT = Path(__file__).parents[2]
Judged = tuple[Paths, Config]
ReadPage = Callable[[str], Any]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, write_judged: Any) -> Judged:
    return write_judged(tmp_path_factory.mktemp("judged"))


def test_a_judged_normaliser(judged: Judged, assert_sound: ReadPage) -> None:
    page = assert_sound(build_page(*judged))
    metrics = json.loads((judged[0].reports / "metrics.json").read_text())
    entry = metrics["test"]["psnr"]
    assert f"PSNR {entry['mean']:.2f} dB {entry['low']:.2f} to {entry['high']:.2f} ▲ +" in page.text
    gain = metrics["methods"]["own/run"]["difference"]["psnr"]["mean"]
    assert f"▲ +{gain:.2f}" in page.text
    assert "Normaliser report" in page.text and "12 test images from 12 groups" in page.text
    assert "61.5" in page.text and "Discriminator's loss" in page.text and "Active latents" in page.text
    # 12 cases: the input and three methods with a difference each, and the target.
    assert page.tags["img"] == 12 * 9 + 2
    assert page.values("class").count("tile own") == 12
    assert page.tags["dialog"] == page.tags["script"] == 1
    assert "Codes, by stratum" in page.text and "Codes, by group" in page.text
    assert "Not there" not in page.text


def test_cases_are_ranked_by_what_they_gained(judged: Judged, assert_sound: ReadPage) -> None:
    page = assert_sound(build_page(*judged))
    # A miss of 8 + n after 40 + n gains most where n is least.
    shown = re.findall(r"case-(\d\d) PSNR [\d.]+ → [\d.]+", page.text)
    assert shown[0] == "11" and shown[8] == "00" and len(shown) == 12


def test_same_bytes_in_another_process(judged: Judged) -> None:
    paths, config = judged
    script = (
        "import sys; from pathlib import Path; from pipeline.config import Config;"
        "from pipeline.records.paths import Paths; from pipeline.reporting.normaliser_page import build_page;"
        "config = Config(dataset='flat', run='own/run');"
        "sys.stdout.buffer.write(build_page(Paths.of(config, Path(sys.argv[1])), config).encode())"
    )
    there = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"}
    done = subprocess.run(
        [sys.executable, "-c", script, str(paths.root)], cwd=ROOT, env=there, capture_output=True, check=True
    )
    assert done.stdout == build_page(paths, config).encode()


def test_the_stage_takes_the_page_that_fits(judged: Judged, finished_run: Judged, tmp_path: Path) -> None:
    for (source, config), title in ((judged, "normaliser report"), (finished_run, "segmentation report")):
        shutil.copytree(source.root, tmp_path, dirs_exist_ok=True)
        paths = Paths.of(config, tmp_path)
        assert applies(paths) == (title == "normaliser report")
        report.run(config, paths)
        assert f"{config.run}: {title}</title>" in (paths.reports / "report.html").read_text()


def test_unpaired_laboratories_have_a_page_of_their_figures(
    tmp_path: Path, write_judged: Any, assert_sound: ReadPage
) -> None:
    page = assert_sound(build_page(*write_judged(tmp_path, kind="unpaired")))
    assert "Excess removed" in page.text and "Structure kept" in page.text and "PSNR 3" not in page.text
    assert "compared with images of blue" in page.text and "shorter side of 40 pixels" in page.text
    assert "evaluate.segmenter=" in page.text
    assert page.tags["img"] == 12 * 8 + 2


def test_few_groups_are_said_to_be_few(tmp_path: Path, write_judged: Any, assert_sound: ReadPage) -> None:
    page = assert_sound(build_page(*write_judged(tmp_path, cases=6, groups=3)))
    assert "no interval" in page.text and "(better in 3 of 3 groups)" in page.text
    assert "The test part has 3 groups" in page.text


def test_one_stratum_is_not_shown_twice(
    tmp_path: Path, judged: Judged, write_judged: Any, assert_sound: ReadPage
) -> None:
    page = assert_sound(build_page(*write_judged(tmp_path, strata=("pink",))))
    assert "of one stratum (pink): its figures are those above" in page.text
    assert "PSNR by stratum" not in page.values("aria-label")
    assert "PSNR by stratum" in assert_sound(build_page(*judged)).values("aria-label")


@pytest.mark.parametrize("measured", [0, 9, 12])
def test_images_without_stain_vectors_are_counted(
    tmp_path: Path, write_judged: Any, assert_sound: ReadPage, measured: int
) -> None:
    paths, config = write_judged(tmp_path)
    metrics = json.loads((paths.reports / "metrics.json").read_text())
    angle = {"mean": 3.0, "low": 2.0, "high": 4.0, "groups": 12, "cases": 12}
    metrics["methods"]["input"]["test"]["haematoxylin_angle"] = angle
    if measured:
        metrics["test"]["haematoxylin_angle"] = angle | {"groups": measured, "cases": measured}
    write_json(paths.reports / "metrics.json", metrics)
    page = assert_sound(build_page(paths, config))
    assert (f"could not be measured in {12 - measured} images" in page.text) == (measured < 12)


@pytest.mark.parametrize(
    ("network", "told", "untold"),
    [
        ("unet", ("width", "depth"), ("beta", "code", "sparsity weight")),
        ("autoencoder:sparse", ("width", "sparsity weight"), ("beta", "code")),
        ("autoencoder:variational", ("width", "beta", "code"), ("sparsity weight",)),
        ("autoencoder:linear", ("depth",), ("width", "beta", "sparsity weight")),
        ("smp:Unet", (), ("width", "depth", "beta", "code", "sparsity weight")),
    ],
)
def test_settings_that_the_network_has_no_use_for_are_not_told(
    tmp_path: Path, judged: Judged, network: str, told: tuple[str, ...], untold: tuple[str, ...]
) -> None:
    shutil.copytree(judged[0].root, tmp_path, dirs_exist_ok=True)
    paths = Paths.of(judged[1], tmp_path)
    train = TrainSettings.model_validate({"task": "reconstruction", "network": {"name": network}})
    (paths.train / "config.yaml").write_text(dump_config(judged[1].model_copy(update={"train": train})))
    page = build_page(paths, judged[1])
    assert "<dt>loss</dt>" in page
    assert {*told} == {name for name in (*told, *untold) if f"<dt>{name}</dt>" in page}


OPTIONAL = {
    "cases.jsonl": "make ingest", "labels": "make ingest", "normalised": "make evaluate", "history.csv": "make train",
    "timing.json": "make evaluate", "contact_sheet.png": "make augment", "proof.json": "make split",
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_missing_file_is_named_with_what_makes_it(
    tmp_path: Path, judged: Judged, name: str, assert_sound: ReadPage
) -> None:
    shutil.copytree(judged[0].root, tmp_path, dirs_exist_ok=True)
    for found in list(tmp_path.rglob(name)):
        shutil.rmtree(found) if found.is_dir() else found.unlink()
    page = assert_sound(build_page(Paths.of(judged[1], tmp_path), judged[1]))
    named = re.findall(r"not there: (\S+) ?[.;] make it with (make \w+)", page.text, re.IGNORECASE)
    assert any(name in Path(file).parts and made_by == OPTIONAL[name] for file, made_by in named)


@pytest.mark.parametrize(("network", "named"), [("autoencoder:sparse", True), ("unet", False)])
def test_codes_are_asked_for_only_where_there_can_be_any(
    tmp_path: Path, judged: Judged, assert_sound: ReadPage, network: str, named: bool
) -> None:
    shutil.copytree(judged[0].root, tmp_path, dirs_exist_ok=True)
    paths = Paths.of(judged[1], tmp_path)
    (paths.reports / "codes.csv").unlink()
    (paths.train / "config.yaml").write_text(f"train: {{network: {{name: '{network}'}}}}\n")
    page = assert_sound(build_page(paths, judged[1]))
    assert ("reports/own/run/codes.csv" in page.text) == named


def test_whatever_the_files_hold_is_text(tmp_path: Path, write_judged: Any, assert_sound: ReadPage) -> None:
    evil = '<script>alert(1)<b>"&amp;'
    paths, config = write_judged(tmp_path, cases=4, groups=4, prefix=evil, strata=(evil + "stratum", "plain"))
    metrics = json.loads((paths.reports / "metrics.json").read_text())
    metrics["methods"]["reinhard"]["reference_case"] = evil + "reference"
    metrics["methods"]["reinhard"]["status"] = {evil + "status": 4}
    write_json(paths.reports / "metrics.json", metrics)
    html = build_page(paths, config)
    page = assert_sound(html)
    assert html.count("<script>") == 1 and page.tags["b"] == 0
    for name in ("stratum", "reference", "status"):
        assert evil + name in page.text


def test_pictures_keep_their_pixels_and_the_page_stays_small(
    tmp_path: Path, write_judged: Any, assert_sound: ReadPage
) -> None:
    paths, config = write_judged(tmp_path, cases=14, side=300, noise=60)
    html = build_page(paths, config)
    page = assert_sound(html)
    assert len(html.encode()) < 3_000_000
    widths = {int(value) for tag, name, value in page.attributes if tag == "img" and name == "width"}
    # Noise does not compress: pieces are smaller than the images, and not one of them is reduced.
    assert len(widths) == 1 and widths.pop() < 300
    assert "piece, " in page.text


def test_a_broken_table_is_an_error_that_says_what_to_do(tmp_path: Path, judged: Judged) -> None:
    shutil.copytree(judged[0].root, tmp_path, dirs_exist_ok=True)
    paths = Paths.of(judged[1], tmp_path)
    (paths.reports / "per_case.csv").write_text("case_id,dice\na,1\n")
    with pytest.raises(ValueError, match=r"columns case_id and method, found case_id, dice\nMake them with `make eval"):
        build_page(paths, judged[1])


def test_a_table_of_codes_without_places_is_refused(tmp_path: Path, judged: Judged) -> None:
    shutil.copytree(judged[0].root, tmp_path, dirs_exist_ok=True)
    paths = Paths.of(judged[1], tmp_path)
    (paths.reports / "codes.csv").write_text("image,bytes\na,1\n")
    with pytest.raises(ValueError, match=r"expected the columns case_id, x, y, stratum and group, found image, bytes"):
        build_page(paths, judged[1])


def test_differences_show_what_differs_and_nothing_else() -> None:
    image = np.random.default_rng(0).integers(60, 200, (64, 48, 3), dtype=np.uint8)
    assert not difference(image, image).any()
    assert np.array_equal(np.unique(difference(image, image + np.uint8(5))), [20])
    # Brighter all over is no change of detail; a seam is.
    assert np.array_equal(np.unique(detail_change(image, image)), [128])
    assert np.abs(detail_change(image, image + np.uint8(20)).astype(int) - 128).max() <= 4
    seam = image.copy()
    seam[:, 24] += 20
    change = np.abs(detail_change(image, seam).astype(int) - 128)
    assert change[:, 24].min() > 60 and change[:, :10].max() < 10


def test_the_piece_shown_is_the_busiest() -> None:
    image = np.full((100, 120, 3), 200, np.uint8)
    image[60:90:2, 80:110] = 20
    rows, columns = busiest(image, 40)
    assert rows.start <= 60 and rows.stop >= 90 and columns.start <= 80 and columns.stop >= 110
    assert busiest(image, 500) == (slice(0, 100), slice(0, 120))


def test_a_difference_is_told_in_a_word() -> None:
    assert verdict("psnr", {"mean": 1.0, "low": 0.5, "high": 1.5}) == "better"
    assert verdict("ciede2000", {"mean": 1.0, "low": 0.5, "high": 1.5}) == "worse"
    assert verdict("psnr", {"mean": 1.0, "low": -0.5, "high": 1.5}) == verdict("psnr", None) == "even"
    assert verdict("psnr", {"mean": 1.0, "low": None, "high": None}) == "even"
    assert (signed(-0.5, 1), signed(0.25, 2), signed(None)) == ("−0.5", "+0.25", "–")


def test_every_figure_that_is_drawn_has_a_title() -> None:
    shown = {name for names in normaliser_page.COLUMNS.values() for name in names}
    assert shown == set(normaliser_page.TITLES)
