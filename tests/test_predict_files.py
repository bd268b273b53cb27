"""Predicting one's own files: nothing read is replaced, nothing left over is taken up, one fault stops no other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import yaml

from pipeline import slide_prediction
from pipeline.__main__ import main
from pipeline.instances import TooManyObjects
from pipeline.laboratories import LABORATORIES
from pipeline.records.images import Readings
from pipeline.stages import predict
from pipeline.stages.predict import predict_images, predict_slides
from pipeline.stains.macenko import Macenko
from pipeline.tissue import render_field
from pipeline.trained import open_run

EAST, SOUTH = LABORATORIES["east"], LABORATORIES["south"]
HERE = ["predict.engine=pytorch", "compute.device=cpu", "compute.threads=1"]


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Smooth colours, (height, width, 3) uint8."""
    small = np.random.default_rng(seed).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    return cv2.resize(small, (width, height))


def slide(file: Path, seed: int = 3, height: int = 1100, width: int = 160) -> Path:
    """A slide of two blocks."""
    file.parent.mkdir(exist_ok=True)
    tifffile.imwrite(file, picture(seed, height, width), tile=(128, 128), photometric="rgb")
    return file


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


# --- Images -------------------------------------------------------------------------------------------------------


def test_what_is_read_is_never_replaced(untrained_run: Path, tmp_path: Path) -> None:
    own, slides = tmp_path / "own", slide(tmp_path / "slides" / "a.tif").parent
    own.mkdir()
    cv2.imwrite(str(own / "mine.png"), picture(1, 40, 50))
    before = contents(own), contents(slides)
    with pytest.raises(ValueError, match=r"expected a folder apart from .*own, found the same"):
        predict_images(str(untrained_run), own, own, overrides=HERE)
    with pytest.raises(ValueError, match=r"expected to replace nothing that is read, found .*mine\.png"):
        predict_images(str(untrained_run), own / "mine.png", own, overrides=HERE)
    with pytest.raises(ValueError, match=r"expected to replace nothing that is read, found .*a\.tif"):
        predict_slides(str(untrained_run), slides / "a.tif", slides, overrides=HERE)
    assert before == (contents(own), contents(slides))
    predict_images(str(untrained_run), own, own / "masks", overrides=HERE)
    assert (own / "masks" / "mine.png").exists()


def test_deep_images_are_scaled_as_the_run_learned_them(untrained_run: Path, tmp_path: Path) -> None:
    alone, beside = tmp_path / "alone", tmp_path / "beside"
    dim = picture(1, 40, 50).astype(np.uint16) * 4
    for folder in (alone, beside):
        folder.mkdir()
        cv2.imwrite(str(folder / "dim.png"), dim)
    cv2.imwrite(str(beside / "hot.png"), dim * 16)
    config = yaml.safe_load((untrained_run / "config.yaml").read_text())
    config["ingest"]["depth"] = 12
    (untrained_run / "config.yaml").write_text(yaml.safe_dump(config))
    predict_images(str(untrained_run), alone, tmp_path / "one", overrides=HERE)
    with pytest.raises(ValueError, match=r"hot\.png: too deep: expected values of 0\.\.4095, as of the others"):
        predict_images(str(untrained_run), beside, tmp_path / "two", overrides=HERE)
    assert (tmp_path / "one" / "dim.png").read_bytes() == (tmp_path / "two" / "dim.png").read_bytes()


@pytest.mark.parametrize("statistics", ["image", "slide", "group"])
def test_stain_is_measured_over_what_the_run_measured_it_over(
    untrained_run: Path, tmp_path: Path, statistics: str
) -> None:
    images = {
        name: render_field(kind, 96, 96, laboratory, seed).image
        for seed, (name, kind, laboratory) in enumerate(
            [("p1_0", "gland", EAST), ("p1_1", "nest", EAST), ("p2_0", "gland", SOUTH), ("other", "nest", SOUTH)]
        )
    }
    (tmp_path / "own").mkdir()
    for name, image in images.items():
        cv2.imwrite(str(tmp_path / "own" / f"{name}.png"), image[..., ::-1])
    shutil.copytree(untrained_run, tmp_path / "run")
    pattern = "^(p[0-9]+)_" if statistics == "slide" else None
    settings = {"method": "macenko", "statistics": statistics, "slide_pattern": pattern}
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(config | {"normalise": settings}))
    normaliser = Macenko().fit([images["p2_0"]])
    normaliser.save(tmp_path / "run/stain.json")
    readings = Readings(tmp_path / "own", "predict")
    restained = predict._restaining(open_run(tmp_path / "run"), readings)
    slides = {name: name[:2] if name.startswith("p") and statistics == "slide" else "own" for name in images}
    for file, image in readings:
        pool = [images[name] for name in sorted(images) if slides[name] == slides[file.stem]]
        pooled = None if statistics == "image" else normaliser.pool(pool)[1]
        expected = normaliser.normalise(image, pooled, prefer_pooled=pooled is not None).image
        np.testing.assert_array_equal(restained(file, image), expected)
    noted = any("without a slide" in remark and "other.png" in remark for remark in readings.remarks)
    assert noted == (statistics == "slide")


def test_results_that_would_share_a_file_are_refused(untrained_run: Path, tmp_path: Path) -> None:
    for name in ("x.png", "x_overlay.png"):
        cv2.imwrite(str(tmp_path / name), picture(1, 40, 50))
    with pytest.raises(ValueError, match=r"found x_overlay\.png from x\.png and x_overlay\.png; rename them"):
        predict_images(str(untrained_run), tmp_path, tmp_path / "out", overlay=True, overrides=HERE)
    predict_images(str(untrained_run), tmp_path, tmp_path / "out", overrides=HERE)
    assert {*contents(tmp_path / "out")} == {"x.png", "x_overlay.png"}


def test_an_image_of_too_many_objects_stops_no_other_and_others_are_told(
    untrained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import instances

    own = tmp_path / "own"
    own.mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(own / name), picture(1, 40, 50))
    (own / "c.webp").touch()
    (own / ".hidden").touch()
    made = instances.label_raster
    calls: list[int] = []

    def crowded(*given: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 1:
            raise TooManyObjects("expected at most 65,534 objects in one image, found more")
        return made(*given)

    monkeypatch.setattr(instances, "label_raster", crowded)
    with pytest.raises(ValueError, match=r"1 of 2 images could not be predicted:\n .*a\.png: expected at most"):
        predict_images(str(untrained_run), own, tmp_path / "out", overrides=HERE)
    assert {*contents(tmp_path / "out")} == {"b.png"}
    assert "1 other files were passed over: c.webp" in capsys.readouterr().out


@pytest.mark.parametrize("idle", ["train.steps=7", "predict={scales: [0.5]}", "--force"])
def test_what_would_change_nothing_is_refused(untrained_run: Path, idle: str, capsys) -> None:
    command = ["predict", "--run", str(untrained_run), "--images", "x.png", "--out", "out", idle]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "takes settings of predict and compute alone" in told and f"leave out {idle}" in told


# --- Slides -------------------------------------------------------------------------------------------------------


def killed_after_a_block(run: Path, slides: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    written = slide_prediction._write_block
    calls: list[int] = []

    def dies(*given: object) -> None:
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        written(*given)

    with monkeypatch.context() as patch:
        patch.setattr(slide_prediction, "_write_block", dies)
        with pytest.raises(KeyboardInterrupt):
            predict_slides(str(run), slides, out, overrides=[*HERE, *more])


def blocks_made(run: Path, slides: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> int:
    written = slide_prediction._write_block
    calls: list[int] = []

    def counted(*given: object) -> None:
        calls.append(1)
        written(*given)

    with monkeypatch.context() as patch:
        patch.setattr(slide_prediction, "_write_block", counted)
        predict_slides(str(run), slides, out, overrides=[*HERE, *more])
    return len(calls)


def test_blocks_of_other_settings_or_another_file_are_not_taken_up(
    untrained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = slide(tmp_path / "slides" / "a.tif").parent
    killed_after_a_block(untrained_run, slides, tmp_path / "out", monkeypatch)
    assert (tmp_path / "out" / "a.parts").exists()
    assert blocks_made(untrained_run, slides, tmp_path / "out", monkeypatch, "predict.flips=mirror") == 2
    assert blocks_made(untrained_run, slides, tmp_path / "clean", monkeypatch, "predict.flips=mirror") == 2
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")
    killed_after_a_block(untrained_run, slides, tmp_path / "out", monkeypatch)
    slide(slides / "a.tif", seed=4)
    assert blocks_made(untrained_run, slides, tmp_path / "out", monkeypatch) == 2


def test_a_killed_folder_carries_on_where_it_was(
    untrained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = slide(tmp_path / "slides" / "a.tif").parent
    predict_slides(str(untrained_run), slides, tmp_path / "out", overrides=HERE)
    slide(slides / "b.tif", seed=4)
    killed_after_a_block(untrained_run, slides, tmp_path / "out", monkeypatch)
    assert blocks_made(untrained_run, slides, tmp_path / "out", monkeypatch) == 1
    predict_slides(str(untrained_run), slides, tmp_path / "clean", overrides=HERE)
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")
    (tmp_path / "out" / "a.geojson").unlink()
    assert blocks_made(untrained_run, slides, tmp_path / "out", monkeypatch) == 2


def test_maps_of_a_slide_whose_call_was_killed_when_it_was_done_are_removed(
    untrained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides, out = slide(tmp_path / "slides" / "a.tif").parent, tmp_path / "out"

    def dies(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(slide_prediction.shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            predict_slides(str(untrained_run), slides, out, overrides=HERE)
    assert (out / ".a.done.json").exists() and (out / "a.parts").exists()
    assert blocks_made(untrained_run, slides, out, monkeypatch) == 0
    assert not (out / "a.parts").exists()


def test_a_blank_or_damaged_slide_stops_no_other_and_what_is_no_slide_is_told(
    untrained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slides = slide(tmp_path / "slides" / "c #3.tif").parent
    blank = np.full((300, 300, 3), 245, np.uint8)
    tifffile.imwrite(slides / "a.tif", blank, tile=(128, 128), photometric="rgb")
    (slides / "b.tif").write_bytes(b"II*\0" + b"\xff" * 40)
    for name in ("c #3.xml", "readme.txt", ".DS_Store"):
        (slides / name).touch()
    with pytest.raises(ValueError, match=r"1 of 3 slides failed:\n .*b\.tif: no TIFF"):
        predict_slides(str(untrained_run), slides, tmp_path / "out", overrides=HERE)
    told = capsys.readouterr().out
    assert (
        "2 other files were passed over: c #3.xml, readme.txt" in told and "a.tif: 300 x 300 pixels, 0 objects" in told
    )
    assert tifffile.imread(tmp_path / "out" / "a.tif").max() == 0
    # A browser takes what follows # for a place in the page.
    page = (tmp_path / "out" / "c #3.html").read_text()
    assert '"file": "c%20%233_pieces/0_0.jpg"' in page and (tmp_path / "out" / "c #3_pieces" / "0_0.jpg").exists()
    assert json.loads((tmp_path / "out" / ".a.done.json").read_text())["prediction"]["objects"] == 0
