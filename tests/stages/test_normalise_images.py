"""Normalise --images: any folder of images, the same names out, and nothing changed, lost or replaced in silence."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.__main__ import main
from pipeline.config import dump_config, load_config
from pipeline.outputs import Outputs
from pipeline.records.decode import decode, to_rgb
from pipeline.stages import normalise
from pipeline.stains import METHODS, load
from pipeline.stains.normaliser import StatisticalNormaliser
from pipeline.stains.tiles import JOURNAL

EAST = ((0.5588, 0.7184, 0.4143), (0.1886, 0.8383, 0.5116))
SOUTH = ((0.7622, 0.6098, 0.2172), (0.0900, 0.9400, 0.3290))


def tissue(seed: int, stains: tuple[tuple[float, ...], ...] = EAST, side: int = 64) -> np.ndarray:
    generator = np.random.default_rng(seed)
    amounts = generator.gamma(4.0, 0.05 + 0.02 * (seed % 4), (side, side, 2))
    amounts *= generator.random((side, side, 2)) > 0.15
    light = 255.0 * 10.0 ** -(amounts @ np.array(stains)) + generator.normal(0.0, 1.0, (side, side, 3))
    return np.rint(light.clip(0, 255)).astype(np.uint8)


def scarce(seed: int) -> np.ndarray:
    image = tissue(seed)
    image[8:] = image[:, 12:] = 255
    return image


def saved(array: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(stream, kind, **options)
    return stream.getvalue()


def tiff(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def put(folder: Path, files: dict[str, np.ndarray | bytes]) -> Path:
    for name, content in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else saved(content, "PNG"))
    return folder


def run(images: Path, out: Path, *settings: str, method: str = "macenko") -> int:
    return main(["normalise", "--images", str(images), "--out", str(out), *settings, f"normalise.method={method}"])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def statuses(out: Path) -> dict[str, tuple[str, str]]:
    with (out / "status.csv").open(encoding="utf-8", newline="") as stream:
        return {row["file"]: (row["status"], row["fallback"]) for row in csv.DictReader(stream)}


def pixels(content: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(content)))


FEW = {
    f"{name}.png": tissue(n, stains)
    for n, (name, stains) in enumerate(zip("abcd", (EAST, EAST, EAST, SOUTH), strict=True))
}

# --- What comes out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_same_names_come_out_with_the_stain_of_one_of_them(method: str, tmp_path: Path, capsys) -> None:
    folder = put(tmp_path / "tiles", FEW)
    assert run(folder, tmp_path / "out", method=method) == 0
    out = contents(tmp_path / "out")
    assert set(out) == {*FEW, "status.csv", "stain.json"}
    assert statuses(tmp_path / "out") == dict.fromkeys(FEW, ("ok", ""))
    normaliser = load(tmp_path / "out" / "stain.json")
    for name, image in FEW.items():
        np.testing.assert_array_equal(pixels(out[name]), normaliser.normalise(image).image)
    content = json.loads(out["stain.json"])
    assert content["reference_image"] in FEW and content["fitted_on"] == 4
    told = capsys.readouterr().out
    assert f"4 images brought to the stain of {content['reference_image']} by {method}: 4 ok" in told
    assert "Written: 4 of 4 images" in told


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ruifrok"])
def test_a_reference_decides_the_stain(method: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "tiles", {f"{n}.png": tissue(n) for n in range(3)})
    put(tmp_path, {"wanted.png": tissue(9, SOUTH)})
    assert run(folder, tmp_path / "out", "--reference", str(tmp_path / "wanted.png"), method=method) == 0
    content = json.loads((tmp_path / "out" / "stain.json").read_text())
    assert content["reference_image"] == "wanted.png"
    wanted = tissue(9, SOUTH).mean(axis=(0, 1))
    for name in ("0.png", "1.png", "2.png"):
        before = np.abs(pixels((folder / name).read_bytes()).mean(axis=(0, 1)) - wanted).sum()
        assert np.abs(pixels((tmp_path / "out" / name).read_bytes()).mean(axis=(0, 1)) - wanted).sum() < before


def test_formats_are_kept_and_only_jpeg_loses_something(tmp_path: Path, capsys) -> None:
    image = tissue(0)
    files = {
        "a.png": saved(image, "PNG"),
        "a.tif": saved(image, "TIFF"),
        "b.tiff": tiff(image),
        "a.bmp": saved(image, "BMP"),
        "a.jpg": saved(image, "PNG"),
        "B.JPEG": saved(image, "JPEG", quality=95),
    }
    assert run(put(tmp_path / "tiles", files), tmp_path / "out") == 0
    out = contents(tmp_path / "out")
    assert set(out) == {*files, "status.csv", "stain.json"}
    kinds = {name: Image.open(io.BytesIO(out[name])).format for name in files}
    assert kinds == {
        "a.png": "PNG",
        "a.tif": "TIFF",
        "b.tiff": "TIFF",
        "a.bmp": "BMP",
        "a.jpg": "JPEG",
        "B.JPEG": "JPEG",
    }
    expected = load(tmp_path / "out" / "stain.json").normalise(image).image
    for name in ("a.png", "a.tif", "b.tiff", "a.bmp"):
        np.testing.assert_array_equal(pixels(out[name]), expected)
    assert np.abs(pixels(out["a.jpg"]).astype(int) - expected).mean() < 2.5
    assert Image.open(io.BytesIO(out["a.jpg"])).layer == [(1, 1, 1, 0), (2, 1, 1, 1), (3, 1, 1, 1)], (
        "colours at full size"
    )
    told = capsys.readouterr().out
    assert "2 JPEG files become JPEG again (quality 98" in told
    assert "other file type: 1 images (a.jpg)" in told


def test_subfolders_are_kept_and_are_the_groups(tmp_path: Path, capsys) -> None:
    files = {
        "east/1.png": tissue(1),
        "east/2.png": scarce(2),
        "south/deep/1.png": tissue(3, SOUTH),
        "top.png": scarce(4),
    }
    folder = put(tmp_path / "tiles", files | {"notes.txt": b"slide 12"})
    assert run(folder, tmp_path / "out") == 0
    assert set(contents(tmp_path / "out")) == {*files, "status.csv", "stain.json"}
    found = statuses(tmp_path / "out")
    assert found["east/2.png"] == ("low_tissue", "group")
    assert found["top.png"][0] == "low_tissue" and found["top.png"][1] in ("reference", "identity")
    assert "1 other files were passed over: notes.txt" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [("statistics=group",), ("statistics=slide", "slide_pattern=^(s[0-9])_")])
def test_statistics_of_a_slide_or_group(settings: tuple[str, ...], tmp_path: Path) -> None:
    named = "one/s1_" if settings[0] == "statistics=group" else "s1_"
    files = {f"{named}{n}.png": tissue(n) for n in range(3)} | {"two/s2_0.png": tissue(5, SOUTH)}
    folder = put(tmp_path / "tiles", files)
    assert run(folder, tmp_path / "out", *(f"normalise.{setting}" for setting in settings)) == 0
    normaliser = load(tmp_path / "out" / "stain.json")
    assert isinstance(normaliser, StatisticalNormaliser)
    _, pooled = normaliser.pool(tissue(n) for n in range(3))
    for n in range(3):
        expected = normaliser.normalise(tissue(n), pooled, prefer_pooled=True).image
        np.testing.assert_array_equal(pixels((tmp_path / "out" / f"{named}{n}.png").read_bytes()), expected)


def test_a_flat_folder_is_one_group(tmp_path: Path) -> None:
    folder = put(tmp_path / "tiles", FEW | {"few.png": scarce(2)})
    assert run(folder, tmp_path / "out") == 0
    assert statuses(tmp_path / "out")["few.png"] == ("low_tissue", "group")
    named = put(tmp_path / "named", {f"s1_{name}": image for name, image in FEW.items()} | {"s1_few.png": scarce(2)})
    by_slide = ("normalise.statistics=slide", "normalise.slide_pattern=^(s[0-9])_")
    assert run(named, tmp_path / "slide", *by_slide) == 0
    assert statuses(tmp_path / "slide")["s1_few.png"] == ("low_tissue", "")


def test_blank_tiles_get_the_light_of_their_slide(tmp_path: Path) -> None:
    dim = {name: np.rint(image * (220 / 255)).astype(np.uint8) for name, image in FEW.items()}
    folder = put(tmp_path / "tiles", dim | {"blank.png": np.full((64, 64, 3), 220, np.uint8)})
    put(tmp_path, {"wanted.png": np.rint(tissue(9) * (252 / 255)).astype(np.uint8)})
    settings = ("--reference", str(tmp_path / "wanted.png"), "normalise.white_point=measured")
    assert run(folder, tmp_path / "out", *settings, "normalise.statistics=group") == 0
    assert statuses(tmp_path / "out")["blank.png"] == ("background", "group")
    assert np.abs(pixels((tmp_path / "out" / "blank.png").read_bytes()).astype(int) - 252).max() <= 2


def test_one_image_alone(tmp_path: Path) -> None:
    folder = put(tmp_path / "tiles", {"a.png": tissue(1), "b.png": b"", "wanted.png": tissue(2, SOUTH)})
    assert run(folder / "a.png", tmp_path / "out", "--reference", str(folder / "wanted.png")) == 0
    assert set(contents(tmp_path / "out")) == {"a.png", "status.csv", "stain.json"}


def test_deep_images_are_scaled_alike_whatever_each_one_holds(tmp_path: Path, capsys) -> None:
    bright = tissue(0).astype(np.uint16) * 16
    dark = tissue(1).astype(np.uint16) * 4
    files = {
        "bright.tif": tiff(bright, photometric="rgb"),
        "dark.tif": tiff(dark, photometric="rgb"),
        "c.png": tissue(2),
    }
    assert (
        run(put(tmp_path / "tiles", files), tmp_path / "out", "normalise.fail_if_fallback_over=1", method="ruifrok")
        == 0
    )
    normaliser = load(tmp_path / "out" / "stain.json")
    for name, image in (("bright.tif", bright), ("dark.tif", dark)):
        expected = normaliser.normalise(np.rint(image * (255 / 4095)).astype(np.uint8)).image
        np.testing.assert_array_equal(pixels((tmp_path / "out" / name).read_bytes()), expected)
    assert "deep image: 2 images (bright.tif, dark.tif)" in capsys.readouterr().out


# --- Again, interrupted, in the way -------------------------------------------------------------------------------


def test_the_same_command_again_changes_nothing(tmp_path: Path) -> None:
    folder = put(tmp_path / "tiles", FEW | {"white.png": np.full((9, 9, 3), 255, np.uint8)})
    assert run(folder, tmp_path / "out") == 0
    before = contents(tmp_path / "out")
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.png")}
    assert run(folder, tmp_path / "out") == 0
    assert contents(tmp_path / "out") == before
    assert {file: file.stat().st_mtime_ns for file in times} == times


@pytest.mark.parametrize("threads", [1, 8])
def test_the_bytes_do_not_depend_on_the_number_of_threads(threads: int, tmp_path: Path, monkeypatch) -> None:
    folder = put(tmp_path / "tiles", FEW | {"few.png": scarce(7), "cut.png": saved(tissue(1), "PNG")[:500]})
    assert run(folder, tmp_path / "out") == 2
    monkeypatch.setattr(os, "cpu_count", lambda: threads)
    assert run(folder, tmp_path / "again") == 2
    assert contents(tmp_path / "again") == contents(tmp_path / "out")


def test_an_interrupted_run_carries_on(tmp_path: Path, monkeypatch) -> None:
    folder = put(tmp_path / "tiles", FEW)
    assert run(folder, tmp_path / "whole") == 0
    write = normalise._write_anew

    def interrupted(file: Path, image: np.ndarray) -> None:
        if file.name == "c.png":
            raise KeyboardInterrupt
        write(file, image)

    monkeypatch.setattr(normalise, "_write_anew", interrupted)
    assert run(folder, tmp_path / "out") == 130
    assert (tmp_path / "out" / JOURNAL).exists() and not (tmp_path / "out" / "status.csv").exists()
    written = []
    monkeypatch.setattr(normalise, "_write_anew", lambda file, image: (written.append(file.name), write(file, image)))
    assert run(folder, tmp_path / "out") == 0
    assert "c.png" in written and "a.png" not in written, "what is done is not done again"
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_interrupted_run_over_other_images_begins_anew(tmp_path: Path, monkeypatch, capsys) -> None:
    wanted = put(tmp_path, {"wanted.png": tissue(8, SOUTH)}) / "wanted.png"
    folder = put(tmp_path / "tiles", FEW)
    write = normalise._write_anew

    def interrupted(file: Path, image: np.ndarray) -> None:
        if file.name == "d.png":
            raise KeyboardInterrupt
        write(file, image)

    monkeypatch.setattr(normalise, "_write_anew", interrupted)
    assert run(folder, tmp_path / "out", "--reference", str(wanted)) == 130
    monkeypatch.setattr(normalise, "_write_anew", write)
    put(folder, {"a.png": tissue(20)})
    assert run(folder, tmp_path / "out", "--reference", str(wanted)) == 2
    assert "a.png: never overwritten" in capsys.readouterr().err
    assert statuses(tmp_path / "out")["d.png"] == ("ok", "")


def test_what_the_command_did_not_write_is_never_replaced(tmp_path: Path, capsys) -> None:
    folder = put(tmp_path / "tiles", FEW)
    for name in ("a.png", "status.csv", "notes.txt", "other/e.png"):
        out = put(tmp_path / f"out-{Path(name).stem}", {name: b"mine"})
        assert run(folder, out) == 2
        assert contents(out) == {name: b"mine"}
        assert f"1 other files: {name}" in capsys.readouterr().err


def test_other_settings_or_another_reference_need_another_folder(tmp_path: Path, capsys) -> None:
    folder, out = put(tmp_path / "tiles", FEW), tmp_path / "out"
    assert run(folder, out) == 0
    before = contents(out)
    others = [("normalise.maximum_gain=3",), ("normalise.statistics=group",), ("--reference", str(folder / "d.png"))]
    for settings in others:
        assert run(folder, out, *settings) == 2
        assert "found that of another reference or of other settings" in capsys.readouterr().err
    assert run(folder, out, method="reinhard") == 2
    assert contents(out) == before


def test_an_image_that_was_replaced_since_is_told_and_its_result_kept(tmp_path: Path, capsys) -> None:
    wanted = put(tmp_path, {"wanted.png": tissue(8, SOUTH)}) / "wanted.png"
    folder, out = put(tmp_path / "tiles", FEW), tmp_path / "out"
    assert run(folder, out, "--reference", str(wanted)) == 0
    before = contents(out)
    put(folder, {"b.png": tissue(30), "new.png": tissue(31)})
    capsys.readouterr()
    assert run(folder, out, "--reference", str(wanted)) == 2
    told = capsys.readouterr().err
    assert "1 of 5 images could not be read or written" in told and "b.png: never overwritten" in told
    after = contents(out)
    assert after["b.png"] == before["b.png"] and "new.png" in after


@pytest.mark.parametrize(
    ("images", "out", "message"),
    [
        ("tiles", "tiles", "a folder apart from"),
        ("tiles", "tiles/out", "a folder apart from"),
        ("tiles", ".", "a folder apart from"),
        ("tiles/a.png", "tiles", "a folder apart from"),
        ("tiles", "note", "expected a folder, found a file"),
        ("nothing", "out", "expected an image or a folder of images, found nothing"),
        ("note", "out", "expected a name that ends in .png"),
        ("empty", "out", "expected images (.png, .tif, .tiff, .jpg, .jpeg, .bmp), found none"),
    ],
)
def test_folders_that_cannot_be_used(images: str, out: str, message: str, tmp_path: Path, capsys) -> None:
    put(tmp_path / "tiles", FEW)
    put(tmp_path, {"note": b"text", "empty/readme.md": b"text"})
    before = contents(tmp_path)
    assert run(tmp_path / images, tmp_path / out) == 2
    assert message in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_two_images_of_one_output_are_refused(tmp_path: Path, capsys) -> None:
    folder = put(tmp_path / "tiles", {"a.png": tissue(0), "A.png": tissue(1), "b.png": tissue(2)})
    if len(list(folder.iterdir())) < 3:
        pytest.skip("this file system holds no two names that differ in capitals alone")
    assert run(folder, tmp_path / "out") == 2
    assert "from A.png and a.png; rename them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "tiles"], "--out is missing"),
        (["--reference", "tiles/a.png"], "--images, --out is missing"),
        (["--images", "tiles", "--out", "out"], "add e.g. normalise.method=macenko"),
        (["--images", "tiles", "--out", "out", "--force", "normalise.method=macenko"], "leave out --force"),
        (["--images", "tiles", "--out", "out", "normalise.method=macenko", "seed=3"], "leave out seed=3"),
        (["--images", "tiles", "--out", "out", "normalise.metod=macenko"], "did you mean normalise.method?"),
        (
            ["--images", "tiles", "--out", "out", "normalise.method=macenko", "normalise.reference=a"],
            "give a file with --reference",
        ),
        (
            ["--images", "tiles", "--out", "out", "--reference", "tiles", "normalise.method=macenko"],
            "--reference tiles: expected an image file, found a folder",
        ),
        (["--images", "tiles", "--out", "out", "normalise.method=learned", "normalise.run=x"], "expected a trained"),
        (
            ["--images", "tiles", "--out", "out", "--reference", "tiles/a.png", "normalise.method=learned",
             "normalise.run=x"],
            "leave it out",
        ),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit(arguments: list[str], message: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "tiles", FEW)
    assert main(["normalise", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- Hostile input ------------------------------------------------------------------------------------------------


def pen() -> np.ndarray:
    image = tissue(3)
    image[10:40, 5:50], image[45:50] = (20, 120, 40), 0
    return image


def transparent() -> np.ndarray:
    alpha = np.full((64, 64, 1), 255, np.uint8)
    alpha[:32] = 100
    return np.concatenate([tissue(2), alpha], axis=2)


GENERATOR = np.random.default_rng(0)
SOUND = {
    "white.png": np.full((64, 64, 3), 255, np.uint8),
    "black.png": np.zeros((64, 64, 3), np.uint8),
    "one_colour.png": np.full((64, 64, 3), (220, 130, 190), np.uint8),
    "one_pixel.png": np.full((1, 1, 3), (120, 60, 140), np.uint8),
    "line.png": tissue(1)[:1],
    "noise.png": GENERATOR.integers(0, 256, (64, 64, 3), np.uint8),
    "grey.png": GENERATOR.integers(0, 256, (64, 64), np.uint8),
    "grey.bmp": GENERATOR.integers(0, 256, (9, 7), np.uint8),
    "opaque.png": np.concatenate([tissue(2), np.full((64, 64, 1), 255, np.uint8)], axis=2),
    "transparent.png": transparent(),
    "deep.png": cv2.imencode(".png", tissue(4)[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
    "deep.tif": tiff(tissue(4).astype(np.uint16) * 257, photometric="rgb"),
    "deep_grey.tif": tiff(np.full((8, 8), 40000, np.uint16)),
    "floats.tif": tiff(tissue(5).astype(np.float32)[..., 0] / 255),
    "palette.png": saved(Image.fromarray(tissue(6)).quantize(16), "PNG"),
    "two_values.png": saved(Image.fromarray(tissue(6)).convert("1"), "PNG"),
    "cmyk.jpg": saved(Image.fromarray(tissue(7)).convert("CMYK"), "JPEG", quality=95),
    "pen.png": pen(),
    "sous-dossier/\u00e9t\u00e9 (1).png": tissue(8),
}
FAULTY = {
    "nan.tif": tiff(np.full((8, 8), np.nan, np.float32)),
    "infinite.tif": tiff(np.full((8, 8), np.inf, np.float32)),
    "large_floats.tif": tiff(np.full((8, 8), 3000.0, np.float32)),
    "cut.png": saved(tissue(0), "PNG")[:2000],
    "cut.jpg": saved(tissue(0), "JPEG")[:700],
    "cut.tif": saved(tissue(0), "TIFF")[:3000],
    "empty.png": b"",
    "page.png": b"<!DOCTYPE html><html>",
    "pointer.png": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "pages.tif": saved(Image.fromarray(tissue(0)), "TIFF", save_all=True, append_images=[Image.fromarray(tissue(1))]),
    "sous-dossier/six.tif": tiff(np.zeros((8, 8, 6), np.uint8)),
}


@pytest.mark.parametrize("method", METHODS)
def test_hostile_images_give_a_status_or_a_clear_error(method: str, tmp_path: Path, capsys) -> None:
    whole = {f"tissue{n}.png": tissue(10 + n) for n in range(20)}
    folder, out = put(tmp_path / "tiles", whole | SOUND | FAULTY), tmp_path / "out"
    assert run(folder, out, method=method) == 2
    told = capsys.readouterr()
    assert "Traceback" not in told.err
    assert f"{len(FAULTY)} of {len(whole | SOUND | FAULTY)} images could not be read or written" in told.err
    for name in FAULTY:
        assert f"\n  {name}: " in told.err
    found = statuses(out)
    assert set(found) == {*whole, *SOUND, *FAULTY}
    assert {name for name, outcome in found.items() if outcome == ("unreadable", "")} == set(FAULTY)
    assert {found[name] for name in whole} == {("ok", "")}
    for name in ("white.png", "black.png", "grey.png", "grey.bmp", "deep_grey.tif", "floats.tif", "two_values.png"):
        assert found[name] == ("background", "identity")
    results = contents(out)
    assert set(results) == {*whole, *SOUND, "status.csv", "stain.json"}
    for name in SOUND:
        before, _ = to_rgb(decode(name, (folder / name).read_bytes(), "image"))
        after = pixels(results[name])
        assert after.shape == before.shape and after.dtype == np.uint8
        if found[name][1] == "identity":
            np.testing.assert_array_equal(after, before)
    for change in ("transparent image: 1", "deep image: 3", "float image: 1", "colour space: 1"):
        assert f"noted: {change} images" in told.out


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*SOUND, *FAULTY])
def test_a_hostile_reference_is_used_or_refused(name: str, method: str, tmp_path: Path, capsys) -> None:
    folder = put(tmp_path / "tiles", {"a.png": tissue(0), "b.png": tissue(1)})
    hostile = put(tmp_path / "wanted", {name: (SOUND | FAULTY)[name]}) / name
    done = run(folder, tmp_path / "out", "--reference", str(hostile), method=method)
    if done:
        assert done == 2 and not (tmp_path / "out").exists()
        assert str(hostile) in (told := capsys.readouterr().err)
        assert name in SOUND or "1 of 1 images could not be read" in told
    else:
        assert name in SOUND and json.loads((tmp_path / "out" / "stain.json").read_text())["reference_image"]
        values = np.array(json.loads((tmp_path / "out" / "stain.json").read_text())["reference"]["white_point"])
        assert np.isfinite(values).all()


def test_a_learned_normaliser_takes_the_same_images(tmp_path: Path, monkeypatch, capsys) -> None:
    import torch

    from pipeline.networks import build_network

    monkeypatch.chdir(tmp_path)
    small = ["name=autoencoder:convolutional", "width=4", "depth=1", "code=4"]
    config = load_config(None, ["train.task=reconstruction", *(f"train.network.{setting}" for setting in small)])
    outputs = Outputs("image", ("red", "green", "blue"), "identity", "image")
    torch.manual_seed(0)
    network = build_network(config.train.network, 3, 3, pretrained=False)
    torch.save({"network": network.state_dict()}, put(tmp_path / "data/train/made", {"best.pt": b""}) / "best.pt")
    put(tmp_path / "data/train/made", {"config.yaml": dump_config(config).encode()})
    put(tmp_path / "data/train/made", {"model.json": json.dumps(outputs.as_dict()).encode()})
    folder, out = put(tmp_path / "tiles", {"a.png": tissue(0)} | SOUND | FAULTY), tmp_path / "out"
    runs = []
    settings = ("normalise.run=made", "normalise.fail_if_fallback_over=1", "compute.device=cpu", "compute.threads=1")
    for _ in range(2):
        assert run(folder, out, *settings, method="learned") == 2
        told = capsys.readouterr()
        assert f"{len(FAULTY)} of" in told.err and "changed by the trained run made" in told.out
        runs.append(contents(out))
    results, found = runs[0], statuses(out)
    assert normalise._loaded(out / "stain.json", load_config(None, ["compute.threads=1"])).compute.threads == 1
    assert set(results) == {"a.png", *SOUND, "status.csv", "stain.json", "stain.pt"} and runs[1] == results
    assert found["a.png"] == ("ok", "") and found["white.png"] == found["black.png"] == ("background", "identity")
    for name in SOUND:
        image, _ = to_rgb(decode(name, (folder / name).read_bytes(), "image"))
        after = pixels(results[name])
        assert after.shape == image.shape
        assert found[name][1] != "identity" or np.array_equal(after, image)


@pytest.mark.parametrize("method", METHODS)
def test_a_folder_without_any_tissue_cannot_be_fitted_to(method: str, tmp_path: Path, capsys) -> None:
    folder = put(tmp_path / "tiles", {"white.png": SOUND["white.png"], "cut.png": FAULTY["cut.png"]})
    assert run(folder, tmp_path / "out", method=method) == 2
    told = capsys.readouterr().err
    assert "found 1 background" in told and "cut.png: " in told
    # Neither normalise.reference nor the method none is taken beside --images.
    assert "--reference beside --images" in told and "none for a data set" in told
    assert not (tmp_path / "out").exists()
    folder = put(tmp_path / "faults", FAULTY)
    assert run(folder, tmp_path / "out", method=method) == 2
    told = capsys.readouterr().err
    assert "found none that can be read" in told and all(f"\n  {name}: " in told for name in FAULTY)


def test_too_many_that_fall_back_are_told_after_all_was_written(tmp_path: Path, capsys) -> None:
    files = {"a.png": tissue(0), "w1.png": SOUND["white.png"], "w2.png": SOUND["white.png"], "bad.png": b""}
    folder, out = put(tmp_path / "tiles", files), tmp_path / "out"
    assert run(folder, out) == 2
    told = capsys.readouterr().err
    assert (
        "at most 50% of the images to fall back, found 2 of 3 (2 background, 1 ok); the first are w1.png, w2.png"
        in told
    )
    assert "1 of 4 images could not be read or written" in told and "bad.png: wrong file type" in told
    before = contents(out)
    assert set(before) == {"a.png", "w1.png", "w2.png", "status.csv", "stain.json"}
    (folder / "bad.png").unlink()
    assert run(folder, out, "normalise.fail_if_fallback_over=0.7") == 0
    after = contents(out)
    assert statuses(out) == {
        "a.png": ("ok", ""),
        "w1.png": ("background", "identity"),
        "w2.png": ("background", "identity"),
    }
    assert {name for name in after if after[name] != before[name]} == {"status.csv"}


@pytest.mark.real
@pytest.mark.parametrize("method", [method for method in METHODS if method != "ruifrok"])
def test_the_colours_of_centres_come_nearer_to_each_other(method: str, real_data: Path, tmp_path: Path) -> None:
    for centre in range(3):
        for file in sorted((real_data / f"camelyon17_centres/center_{centre}").glob("*.png"))[:3]:
            small = cv2.resize(cv2.imread(str(file)), (256, 256), interpolation=cv2.INTER_AREA)[..., ::-1]
            put(tmp_path / "tiles", {f"{centre}/{file.name}": np.ascontiguousarray(small)})
    assert run(tmp_path / "tiles", tmp_path / "out", method=method) == 0

    def spread(folder: Path) -> float:
        """Largest angle between the mean optical densities of two centres, in degrees."""
        colours = []
        for centre in range(3):
            images = [pixels(file.read_bytes()) for file in sorted((folder / str(centre)).iterdir())]
            density = np.concatenate([-np.log10(np.maximum(image, 1) / 255).reshape(-1, 3) for image in images])
            colour = density[density.mean(axis=1) > 0.1].mean(axis=0)
            colours.append(colour / np.linalg.norm(colour))
        return float(np.degrees(np.arccos(np.clip(np.stack(colours) @ np.stack(colours).T, -1.0, 1.0))).max())

    assert spread(tmp_path / "out") < 0.5 * spread(tmp_path / "tiles")
