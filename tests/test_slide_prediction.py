"""Slides by blocks: the masks are those of the whole, nothing depends on where a run was killed, glass is left out."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from pipeline.inference import Place
from pipeline.instances import Thresholds, label_raster
from pipeline.labels import from_outlines
from pipeline.networks.inside import NO_MARGINS, Margins
from pipeline.outputs import Outputs
from pipeline.records.blocks import blocks_of, find_tissue
from pipeline.records.outline import Outline
from pipeline.records.rasters import from_levels, to_levels
from pipeline.records.slides import View, open_slide
from pipeline.slide_prediction import _ahead, _Objects, write_slide
from pipeline.stitching import FoundObject
from pipeline.targets import channels_of

OBJECTS = Outputs("boundary", channels_of("boundary"), "sigmoid", "instance")
CLASSES = Outputs("classes", ("background", "a", "b"), "softmax", "semantic")
THRESHOLDS = Thresholds(0.5, 0.4, minimum_size=4)
REACH = 5


def maps_of(window: np.ndarray, off: Margins = NO_MARGINS, at: Place = (0, 0)) -> np.ndarray:
    """Maps that look REACH pixels around, as a network's do: wrong near the window's edge, right inside."""
    dark = 1.0 - cv2.blur(window, (2 * REACH + 1,) * 2).astype(np.float32).mean(axis=2) / 255.0
    inside = np.clip(2.0 * dark, 0, 1)
    return off.of(from_levels(to_levels(np.stack([inside, 1.0 - inside]))))


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Glass with an island of dark blobs across blocks, and one of them far away."""
    generator = np.random.default_rng(5)
    picture = np.full((2300, 3200, 3), 240, np.uint8)
    for row, column in generator.integers((600, 700), (1500, 1400), (300, 2)):
        cv2.circle(picture, (int(column), int(row)), int(generator.integers(6, 16)), (90, 40, 120), -1)
    cv2.circle(picture, (3100, 2200), 9, (90, 40, 120), -1)
    file = tmp_path_factory.mktemp("slide") / "made.tif"
    tifffile.imwrite(file, picture, tile=(256, 256), photometric="rgb", compression="zlib")
    return file


def test_masks_and_outlines_are_those_of_the_whole_image(slide: Path, tmp_path: Path) -> None:
    with open_slide(slide) as opened:
        view = View(opened)
        tissue = find_tissue(view, blocks_of(view))
        assert [block[:2] for block in tissue] == [(0, 0), (0, 1024), (1024, 0), (1024, 1024), (2048, 3072)]
        assert len(blocks_of(view)) == 12
        done = write_slide(view, maps_of, (REACH, 1), tissue, OBJECTS, THRESHOLDS, tmp_path, "made")
        whole = label_raster(maps_of(opened.read(0, 0, 0, 2300, 3200)), OBJECTS, THRESHOLDS)
    mask = tifffile.imread(tmp_path / "made.tif")
    assert mask.dtype == np.uint32 and (done.objects, done.tissue, done.blocks, done.cut) == (whole.max(), 5, 12, 0)
    assert ((mask > 0) == (whole > 0)).all()
    pairs, counts = np.unique(np.stack([mask.ravel(), whole.ravel()]), axis=1, return_counts=True)
    # Each object is one of the whole's, but for pixels where the evidence of two that touch ties.
    own = np.array([counts[pairs[0] == number].max() for number in range(1, whole.max() + 1)])
    assert own.sum() > 0.9999 * (whole > 0).sum()
    features = json.loads((tmp_path / "made.geojson").read_text())["features"]
    assert [feature["id"] for feature in features] == list(range(1, whole.max() + 1))
    rings = [np.array(feature["geometry"]["coordinates"][0]) for feature in features]
    assert all((ring[0] == ring[-1]).all() for ring in rings)
    filled = from_outlines([Outline((ring,)) for ring in rings], whole.shape).raster
    assert (filled == mask).mean() > 0.99999 and (filled > 0).sum() >= (mask > 0).sum()
    overview = cv2.imread(str(tmp_path / "made_overview.png"))
    assert max(overview.shape) == 1600 and not (tmp_path / "made.parts").exists()


def test_killed_it_carries_on_and_ends_with_the_same_bytes(slide: Path, tmp_path: Path) -> None:
    calls = []

    def dies(window: np.ndarray, off: Margins, at: Place) -> np.ndarray:
        calls.append(window.shape)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return maps_of(window, off)

    with open_slide(slide) as opened:
        view = View(opened)
        tissue = find_tissue(view, blocks_of(view))
        write_slide(view, maps_of, (REACH, 1), tissue, OBJECTS, THRESHOLDS, tmp_path / "at once", "made")
        with pytest.raises(KeyboardInterrupt):
            write_slide(view, dies, (REACH, 1), tissue, OBJECTS, THRESHOLDS, tmp_path / "killed", "made")
        calls.clear()
        calls.extend([(0, 0, 0)] * 3)
        write_slide(view, dies, (REACH, 1), tissue, OBJECTS, THRESHOLDS, tmp_path / "killed", "made")
        assert len(calls) == 3 + 3
    for name in ("made.tif", "made.geojson", "made_overview.png"):
        assert (tmp_path / "at once" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_classes_are_those_of_the_whole_image(slide: Path, tmp_path: Path) -> None:
    def three(window: np.ndarray, off: Margins = NO_MARGINS, at: Place = (0, 0)) -> np.ndarray:
        dark = maps_of(window, off)[0]
        return from_levels(to_levels(np.stack([1 - dark, dark * 0.9, dark**2])))

    with open_slide(slide) as opened:
        view = View(opened)
        done = write_slide(
            view, three, (REACH, 1), find_tissue(view, blocks_of(view)), CLASSES, THRESHOLDS, tmp_path, "made"
        )
        whole = label_raster(three(opened.read(0, 0, 0, 2300, 3200)), CLASSES, THRESHOLDS)
    assert done.objects is None and set(np.unique(whole)) == {0, 1, 2}
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "made.tif"), whole)


def test_outlines_are_in_pixels_of_the_finest_level(slide: Path, tmp_path: Path) -> None:
    with open_slide(slide) as opened:
        view = View(opened, 2.0)
        write_slide(view, maps_of, (REACH, 1), blocks_of(view), OBJECTS, THRESHOLDS, tmp_path, "made")
    last = json.loads((tmp_path / "made.geojson").read_text())["features"][-1]
    assert np.abs(np.mean(last["geometry"]["coordinates"][0], axis=0) - (3100, 2200)).max() < 2


def test_the_outline_is_the_outer_edge_where_a_ragged_hole_has_more_points() -> None:
    comb = np.ones((36, 36), bool)
    comb[4:32, 4] = comb[4:32:2, 4:32] = False
    objects = _Objects()
    objects.add(FoundObject(10, 20, comb))
    ring = objects.ring(0)
    np.testing.assert_array_equal([ring.min(axis=0), ring.max(axis=0)], [[20, 10], [56, 46]])


def test_a_dark_slide_is_all_tissue(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "dark.tif", np.zeros((1100, 1100, 3), np.uint8), tile=(256, 256), photometric="rgb")
    with open_slide(tmp_path / "dark.tif") as opened:
        assert len(find_tissue(View(opened), blocks_of(View(opened)))) == 4


@pytest.mark.parametrize(
    ("shape", "place", "strip"),
    [((1031, 1500), (1026, 500), (1024, 0, 7, 1024)), ((1500, 1031), (500, 1026), (0, 1024, 1024, 7))],
)
def test_tissue_in_the_last_pixels_of_a_slide_is_found(
    shape: tuple[int, int], place: tuple[int, int], strip: tuple[int, int, int, int], tmp_path: Path
) -> None:
    # 1031 pixels are 64 times 16 and seven more, which a picture at 1/16 leaves over.
    picture = np.full((*shape, 3), 240, np.uint8)
    cv2.circle(picture, place[::-1], 4, (90, 40, 120), -1)
    tifffile.imwrite(tmp_path / "a.tif", picture, tile=(256, 256), photometric="rgb")
    with open_slide(tmp_path / "a.tif") as opened:
        assert find_tissue(View(opened), blocks_of(View(opened))) == [strip]


def test_the_next_block_is_read_while_one_is_looked_at() -> None:
    read = [threading.Event() for _ in range(3)]

    def reading(block: tuple[int, int, int, int]) -> np.ndarray:
        read[block[0]].set()
        return np.full(1, block[0])

    with ThreadPoolExecutor(1) as reader:
        windows = _ahead(reader, reading, [(number, 0, 1, 1) for number in range(3)])
        assert next(windows)[0] == 0
        assert read[1].wait(5) and not read[2].is_set()
        assert [int(window[0]) for window in windows] == [1, 2]


def test_a_page_shows_pieces_and_outlines_of_what_was_found(slide: Path, tmp_path: Path) -> None:
    with open_slide(slide) as opened:
        view = View(opened)
        done = write_slide(
            view, maps_of, (REACH, 1), find_tissue(view, blocks_of(view)), OBJECTS, THRESHOLDS, tmp_path, "made"
        )
        shown = opened.read(0, 1024, 0, 1024, 1024)
    page = (tmp_path / "made.html").read_text(encoding="utf-8")
    described = json.loads(re.search(r"const SLIDE = (\{.*?\});</script>", page, re.DOTALL)[1].replace("\\u003c", "<"))
    assert (described["height"], described["width"], described["mpp"]) == (2300, 3200, None)
    assert {block["name"] for block in described["blocks"]} == {"0_0", "0_1024", "1024_0", "1024_1024", "2048_3072"}
    pieces = {file.stem: cv2.imread(str(file)) for file in (tmp_path / "made_pieces").glob("*.jpg")}
    assert pieces.keys() == {block["name"] for block in described["blocks"]}
    assert np.abs(pieces["1024_0"][..., ::-1].astype(int) - shown).mean() < 3
    rings = [json.loads(file.read_text().partition(" = ")[2].rstrip(";\n"))
             for file in sorted((tmp_path / "made_pieces").glob("*.js"))]  # fmt: skip
    assert sum(map(len, rings)) == done.objects
    lone = np.array(rings[-1][0]).reshape(-1, 2)
    assert np.abs(lone.mean(axis=0) - (3100.5, 2200.5)).max() < 1.5


FREED = """
import sys
import numpy as np
from pipeline.device import give_freed_memory_back

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

if sys.argv[1] == "back":
    give_freed_memory_back()
np.ones(12 << 20, np.uint8)  # freed at once, from which glibc concludes that such arrays are better kept
before = resident()
kept = [np.ones(9 << 20, np.uint8) for _ in range(40)]
most = resident() - before
del kept[::2]
print((resident() - before) / most)
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_arrays_leave_the_process() -> None:
    def left(how: str) -> float:
        command, here = [sys.executable, "-c", FREED, how], Path(__file__).parents[1]
        # Dask sets MALLOC_TRIM_THRESHOLD_ for its workers and leaves it: glibc then draws no conclusions.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
        done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout)

    assert left("back") < 0.6
    assert left("kept") > 0.9
