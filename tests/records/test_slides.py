"""Windows of slides: the same pixels whatever the file's order, tiles or level, and whatever the window."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.records.decode import decode, to_plane, to_rgb
from pipeline.records.findings import FaultyFile
from pipeline.records.rasters import write_png
from pipeline.records.slides import GRID, IdRaster, View, open_slide

HEIGHT, WIDTH = 300, 421


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    rough = np.random.default_rng(0).integers(0, 256, (30, 42, 3)).astype(np.uint8)
    return cv2.resize(rough, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)


def planes(picture: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(picture.transpose(2, 0, 1))


WRITERS = {
    "tiles": lambda file, p: tifffile.imwrite(file, p, tile=(64, 80), photometric="rgb", compression="zlib"),
    "strips": lambda file, p: tifffile.imwrite(file, p, rowsperstrip=7, photometric="rgb"),
    "one strip": lambda file, p: tifffile.imwrite(file, p, photometric="rgb"),
    "lzw": lambda file, p: tifffile.imwrite(file, p, rowsperstrip=16, photometric="rgb", compression="lzw"),
    "planes": lambda file, p: tifffile.imwrite(
        file, planes(p), tile=(64, 64), photometric="rgb", planarconfig="separate"
    ),
    "planes in strips": lambda file, p: tifffile.imwrite(
        file, planes(p), photometric="rgb", planarconfig="separate", rowsperstrip=11
    ),
    "(3, H, W) pages": lambda file, p: tifffile.imwrite(file, planes(p), photometric="minisblack"),
    "(1, 1, 3, H, W)": lambda file, p: tifffile.imwrite(file, planes(p)[None, None], photometric="minisblack"),
    "ome": lambda file, p: tifffile.imwrite(
        file, planes(p), ome=True, photometric="minisblack", tile=(64, 64),
        metadata={"axes": "CYX", "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"},
    ),
    "rgba": lambda file, p: tifffile.imwrite(
        file, np.dstack([p, np.full(p.shape[:2], 255, np.uint8)]), rowsperstrip=5, photometric="rgb",
        extrasamples=["unassalpha"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRITERS)
def test_every_order_of_axes_gives_the_same_windows(kind: str, picture: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / ("slide.ome.tif" if kind == "ome" else "slide.tif")
    WRITERS[kind](file, picture)
    with open_slide(file) as slide:
        assert (slide.levels[0].height, slide.levels[0].width) == (HEIGHT, WIDTH)
        for top, left, height, width in ((0, 0, HEIGHT, WIDTH), (60, 70, 33, 120), (299, 420, 1, 1), (130, 5, 1, 300)):
            found = slide.read(0, top, left, height, width)
            np.testing.assert_array_equal(found, picture[top : top + height, left : left + width])
        assert slide.mpp == (0.25 if kind == "ome" else None)


UNCOMPRESSED = ["strips", "one strip", "planes in strips", "(3, H, W) pages", "(1, 1, 3, H, W)", "rgba"]


@pytest.mark.parametrize("kind", UNCOMPRESSED)
def test_strips_too_large_to_be_read_whole_are_read_by_rows(
    kind: str, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.records.slides.LARGEST_SEGMENT", 1000)
    monkeypatch.setattr("pipeline.records.slides.STORED_ROWS", 50)
    file = tmp_path / "slide.tif"
    WRITERS[kind](file, picture)
    with open_slide(file) as slide:
        for top, left, height, width in ((0, 0, HEIGHT, WIDTH), (60, 70, 133, 120), (299, 420, 1, 1)):
            found = slide.read(0, top, left, height, width)
            np.testing.assert_array_equal(found, picture[top : top + height, left : left + width])
    tifffile.imwrite(file, 255 - picture[..., 0], photometric="miniswhite", byteorder=">")
    with open_slide(file) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, HEIGHT, WIDTH)[..., 1], picture[..., 0])
    file.write_bytes(file.read_bytes()[: HEIGHT * WIDTH // 2])
    with pytest.raises(FaultyFile, match=r"(?s)damaged slide|no TIFF"), open_slide(file) as slide:
        slide.read(0, 0, 0, HEIGHT, WIDTH)


@pytest.mark.parametrize("kind", ["tiles", "lzw"])
def test_large_strips_that_are_compressed_are_refused(
    kind: str, picture: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.records.slides.LARGEST_SEGMENT", 1000)
    WRITERS[kind](tmp_path / "slide.tif", picture)
    with pytest.raises(FaultyFile, match=r"too large segments.*at most 1,000 bytes.*tiles of 512, or uncompressed"):
        open_slide(tmp_path / "slide.tif")


def test_beyond_the_image_it_is_white(picture: np.ndarray, tmp_path: Path) -> None:
    WRITERS["tiles"](tmp_path / "a.tif", picture)
    with open_slide(tmp_path / "a.tif") as slide:
        found = slide.read(0, -3, WIDTH - 2, 8, 10)
        assert (found[:3] == 255).all() and (found[:, 2:] == 255).all()
        np.testing.assert_array_equal(found[3:, :2], picture[:5, -2:])
        assert (slide.read(0, HEIGHT + 5, 0, 4, 4) == 255).all()


def test_a_grey_slide_has_three_equal_channels(picture: np.ndarray, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture[..., 0], rowsperstrip=16)
    with open_slide(tmp_path / "a.tif") as slide:
        np.testing.assert_array_equal(slide.read(0, 3, 4, 50, 60), np.dstack([picture[3:53, 4:64, 0]] * 3))


@pytest.mark.parametrize("tag", [(254.0, 2), (100.0, 3)])
def test_the_resolution_comes_from_the_tags_unless_it_is_none(
    tag: tuple[float, int], picture: np.ndarray, tmp_path: Path
) -> None:
    per_unit, unit = tag[0] * 200, tag[1]
    tifffile.imwrite(
        tmp_path / "a.tif", picture, rowsperstrip=16, photometric="rgb", resolution=(per_unit,) * 2, resolutionunit=unit
    )
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp == pytest.approx(0.5)
    tifffile.imwrite(
        tmp_path / "b.tif", picture, rowsperstrip=16, photometric="rgb", resolution=(10, 10), resolutionunit=3
    )
    with (
        open_slide(tmp_path / "b.tif") as slide,
        pytest.raises(FaultyFile, match="expected a slide that tells"),
    ):
        View.at(slide, 0.5)


def pyramid(file: Path, picture: np.ndarray) -> None:
    with tifffile.TiffWriter(file) as writer:
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
        writer.write(picture, subifds=1, **options)
        half = cv2.resize(picture, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
        writer.write(half, subfiletype=1, **options)


def test_a_view_takes_the_level_that_is_just_finer(picture: np.ndarray, tmp_path: Path) -> None:
    pyramid(tmp_path / "a.ome.tif", picture)
    half = cv2.resize(picture, (WIDTH // 2, HEIGHT // 2), interpolation=cv2.INTER_AREA)
    with open_slide(tmp_path / "a.ome.tif") as slide:
        assert [(level.height, level.width) for level in slide.levels] == [(300, 421), (150, 210)]
        same = View(slide, slide.levels[1].downsample).window(10, 20, 30, 40)
        np.testing.assert_array_equal(same, half[10:40, 20:60])
        coarse = View(slide, 4.0)
        assert (coarse.height, coarse.width) == (75, 105)
        size = slide.levels[1]
        ratio = 4.0 / size.downsample
        box = (0.0, 0.0, 105 * ratio, 75 * ratio)
        whole = np.asarray(Image.fromarray(half).resize((105, 75), Image.Resampling.BILINEAR, box=box))
        inner = (slice(3, -3), slice(3, -3))
        assert np.abs(coarse.window(0, 0, 75, 105)[inner].astype(int) - whole[inner]).max() <= 1


@settings(deadline=None, max_examples=25)
@given(st.integers(-20, 700), st.integers(-20, 700), st.integers(1, 300), st.integers(1, 300))
def test_what_a_window_shows_does_not_depend_on_it(
    large: tuple[View, np.ndarray], top: int, left: int, height: int, width: int
) -> None:
    view, whole = large
    expected = np.full((height, width, 3), 255, np.uint8)
    rows, columns = slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0))
    inside = whole[rows, columns]
    expected[rows.start - top :, columns.start - left :][: inside.shape[0], : inside.shape[1]] = inside
    np.testing.assert_array_equal(view.window(top, left, height, width), expected)


@pytest.fixture(scope="module")
def large(picture: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> tuple[View, np.ndarray]:
    file = tmp_path_factory.mktemp("slides") / "large.tif"
    tifffile.imwrite(file, cv2.resize(picture, (1400, 1100)), tile=(256, 256), photometric="rgb")
    view = View(open_slide(file), 1.7)
    return view, view.window(0, 0, view.height, view.width)


def test_squares_meet_without_a_seam(large: tuple[View, np.ndarray]) -> None:
    view, whole = large
    assert whole.shape == (647, 824, 3) and view.width > GRID
    source = view.slide.read(0, 0, 0, 1100, 1400)
    box = (0.0, 0.0, 824 * 1.7, 647 * 1.7)
    reference = np.asarray(Image.fromarray(np.pad(source, ((0, 8), (0, 8), (0, 0)), mode="symmetric")).resize(
        (824, 647), Image.Resampling.BILINEAR, box=box
    ))  # fmt: skip
    assert np.abs(whole.astype(int) - reference)[3:-3, 3:-3].max() <= 1


def test_what_cannot_be_read_says_why(picture: np.ndarray, tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "deep.tif", picture.astype(np.uint16), photometric="rgb", rowsperstrip=16)
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 40, 50), np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "pages.tif", np.zeros((3, 40, 50), np.uint8), photometric="minisblack", metadata=None)
    (tmp_path / "text.tif").write_text("no picture")
    for name, told in (
        ("deep", "deep slide: expected 8 bits a channel, found uint16"),
        ("stack", r"unknown axes: .* found \(5, 40, 50\) as QYX in 5 page"),
        ("pages", "unknown axes"),
        ("text", "no TIFF"),
        ("absent", "missing file"),
    ):
        with pytest.raises(FaultyFile, match=told):
            open_slide(tmp_path / f"{name}.tif")
    WRITERS["lzw"](tmp_path / "cut.tif", picture)
    content = (tmp_path / "cut.tif").read_bytes()
    (tmp_path / "cut.tif").write_bytes(content[:2000] + bytes(len(content) - 4000) + content[-2000:])
    with open_slide(tmp_path / "cut.tif") as slide, pytest.raises(FaultyFile, match="damaged slide: expected segment"):
        slide.read(0, 0, 0, HEIGHT, WIDTH)


def test_where_white_is_zero_values_are_turned_round(tmp_path: Path) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (60, 70)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "grey.tif", 255 - grey, tile=(32, 32), photometric="miniswhite")
    with open_slide(tmp_path / "grey.tif") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, 60, 70)[..., 1], grey)
    mask = grey > 200
    tifffile.imwrite(tmp_path / "mask.tif", ~mask, photometric="miniswhite", rowsperstrip=16)
    ids = IdRaster(tmp_path / "mask.tif").read(0, 0, 60, 70)
    np.testing.assert_array_equal(ids > 0, mask)
    plane, _ = to_plane(decode("mask.tif", (tmp_path / "mask.tif").read_bytes(), "label"))
    np.testing.assert_array_equal(plane > 0, mask)


def test_damage_anywhere_is_told_as_a_fault(picture: np.ndarray, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    for kind in ("tiles", "lzw", "one strip"):
        WRITERS[kind](tmp_path / "a.tif", picture[:60, :70])
        content = (tmp_path / "a.tif").read_bytes()
        for _ in range(60):
            damaged = bytearray(content)
            for at in generator.integers(0, len(content), 4):
                damaged[at] = generator.integers(256)
            # Most tags stand in the first or the last few hundred bytes.
            damaged[int(generator.choice([4, 5, 6, 7, 8, len(content) - int(generator.integers(1, 300))]))] ^= 1
            (tmp_path / "a.tif").write_bytes(damaged)
            with suppress(FaultyFile), open_slide(tmp_path / "a.tif") as slide:
                if slide.levels[0].height * slide.levels[0].width < 1e6:
                    slide.read(0, 0, 0, slide.levels[0].height, slide.levels[0].width)
            with suppress(FaultyFile):
                to_rgb(decode("a.tif", bytes(damaged), "image"))


def test_a_png_is_a_small_slide(picture: np.ndarray, tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", picture)
    with open_slide(tmp_path / "a.png") as slide:
        np.testing.assert_array_equal(slide.read(0, 10, 20, 30, 40), picture[10:40, 20:60])


@pytest.mark.real
def test_real_slides_of_four_scanners_an_svs_and_a_dicom(real_data: Path) -> None:
    with open_slide(real_data / "wsi" / "CMU-1-Small-Region.svs") as slide:
        assert [(level.height, level.width) for level in slide.levels] == [(2967, 2220)]
        assert slide.mpp == pytest.approx(0.499)
        with tifffile.TiffFile(slide.file) as tiff:
            whole = tiff.series[0].asarray()
        window = slide.read(0, 1000, 700, 500, 640)
        assert np.abs(window.astype(int) - whole[1000:1500, 700:1340]).mean() < 1.5  # two decoders of JPEG
        view = View.at(slide, 2.0)
        assert (view.height, view.width) == (740, 554)
    with open_slide(real_data / "wsi" / "cptac-brca_911f6cbd.dcm") as slide:
        assert slide.mpp == pytest.approx(15.82, abs=0.01)
        assert slide.read(0, 700, 800, 64, 64).std() > 0
    for file in sorted((real_data / "scanner4_cytology").iterdir()):
        with open_slide(file) as slide:
            assert slide.mpp is None and len(slide.levels) == 6  # 1000 microns a pixel, the file says
            coarse, fine = View(slide, 8.0).window(100, 100, 200, 200), View(slide, 1.0).window(800, 800, 1600, 1600)
            averaged = fine.reshape(200, 8, 200, 8, 3).mean(axis=(1, 3))
            assert np.abs(coarse - averaged).mean() < 3.0
