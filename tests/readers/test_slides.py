"""Slides to train on: tiles at the wanted resolution, labels where they were drawn or painted, nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile

from pipeline.config import Config, IngestSettings, load_config
from pipeline.labels import from_outlines
from pipeline.readers import READERS, RawDataset, layout_of
from pipeline.records.case import IGNORED, Case, read_cases
from pipeline.records.findings import FaultyFile, read_findings
from pipeline.records.outline import Outline
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, read_label
from pipeline.records.raw import RawFolder
from pipeline.records.slides import IdRaster, View, open_slide
from pipeline.runner import run
from pipeline.stages import ingest

HEIGHT, WIDTH = 1504, 2208
NUCLEI = [(300, 300, 40), (420, 700, 30), (760, 1010, 50), (1000, 1030, 60)]
"""Row, column and radius, in pixels of the finest level; one lies across tiles of 512 at half the resolution."""


def polygon(row: float, column: float, radius: float, corners: int = 64) -> list[list[float]]:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([column + radius * np.cos(angles), row + radius * np.sin(angles)], axis=1).tolist()


def feature(ring: list[list[float]], name: str | None = None) -> dict[str, Any]:
    properties = {"classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


def rectangle(top: float, left: float, below: float, right: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, below], [left, below]]


def picture() -> np.ndarray:
    """Glass; pink tissue with purple nuclei in its left half."""
    made = np.full((HEIGHT, WIDTH, 3), 242, np.uint8)
    cv2.rectangle(made, (100, 100), (1150, 1200), (226, 170, 200), -1)
    for row, column, radius in NUCLEI:
        cv2.circle(made, (column, row), radius, (90, 50, 130), -1)
    return made


def save(file: Path, pixels: np.ndarray, **more: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    photometric = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(file, pixels, tile=(256, 256), photometric=photometric, compression="zlib", **more)


def put(raw: Path, features: list[dict[str, Any]] | None, name: str = "a") -> None:
    save(raw / "slides" / f"{name}.tif", picture(), resolution=(40_000, 40_000), resolutionunit=3)
    if features is not None:
        (raw / "annotations").mkdir(exist_ok=True)
        (raw / "annotations" / f"{name}.geojson").write_text(json.dumps(features))


def settings_of(root: Path, *more: str) -> tuple[Config, Paths]:
    config = load_config(None, ["dataset=slides", "ingest.tile=512", *(more or ("ingest.mpp=0.5",))])
    return config, Paths.of(config, root)


def ingested(root: Path, *more: str) -> tuple[Paths, list[Case]]:
    config, paths = settings_of(root, *more)
    ingest.run(config, paths)
    return paths, read_cases(paths.cases)


def place(case: Case) -> tuple[slice, slice]:
    top, left = (int(part[1:]) for part in case.case_id.split("_")[-2:])
    return slice(top, top + case.height), slice(left, left + case.width)


def test_tiles_are_the_slide_at_the_wanted_resolution_with_labels_in_place(tmp_path: Path) -> None:
    put(tmp_path / "data" / "raw" / "slides", [feature(polygon(*nucleus)) for nucleus in NUCLEI])
    paths, cases = ingested(tmp_path)
    assert {(case.group, case.label_kind, round(float(case.mpp or 0), 6)) for case in cases} == {("a", "instance", 0.5)}
    # Two rows of 376 and three columns of 368 pixels; the right one shows glass alone.
    assert [case.case_id for case in cases] == [f"a_y{y:06d}_x{x:06d}" for y in (0, 376) for x in (0, 368)]
    halved = [Outline((np.array(polygon(*nucleus)) / 2,)) for nucleus in NUCLEI]
    whole = from_outlines(halved, (HEIGHT // 2, WIDTH // 2)).raster
    with open_slide(tmp_path / "data" / "raw" / "slides" / "slides" / "a.tif") as slide:
        seen = View.at(slide, 0.5).window(0, 0, HEIGHT // 2, WIDTH // 2)
    for case in cases:
        label = read_label(paths.ingest / str(case.label))
        np.testing.assert_array_equal(read_image(paths.ingest / case.image), seen[place(case)])
        np.testing.assert_array_equal(label > 0, whole[place(case)] > 0)
        assert label.max() == np.unique(whole[place(case)][whole[place(case)] > 0]).size


def test_an_outline_beside_a_tile_is_no_repair(tmp_path: Path) -> None:
    # Its box meets the lower right tile, none of its pixels does.
    corner = [[740.0, 700.0], [830.0, 700.0], [740.0, 830.0]]
    put(tmp_path / "data" / "raw" / "slides", [feature(polygon(*NUCLEI[0])), feature(corner)])
    paths, cases = ingested(tmp_path)
    assert len(cases) == 4
    assert [finding.fault for finding in read_findings(paths.findings)] == ["tiles left out"]


def test_regions_say_what_was_looked_at(tmp_path: Path) -> None:
    region = rectangle(200, 200, 700, 800)
    nuclei = [feature(polygon(*nucleus), "Tumor") for nucleus in NUCLEI]
    put(tmp_path / "data" / "raw" / "slides", [feature(region, "Region*"), *nuclei])
    paths, cases = ingested(tmp_path)
    assert [case.case_id for case in cases] == ["a_y000000_x000000", "a_y000000_x000368"]
    first, second = (read_label(paths.ingest / str(case.label)) for case in cases)
    inside = np.zeros(first.shape, bool)
    inside[100:350, 100:] = True
    assert (first[inside] != IGNORED).all() and first[inside].max() == 2
    assert (first[~inside] == IGNORED).all()
    assert (second[100:350, : 400 - 368] == 0).all() and (second[:, 400 - 368 :][second[:, 32:] != 1] == IGNORED).all()


@pytest.mark.parametrize("overlap", [0, 100, 500])
def test_what_lies_in_several_regions_was_looked_at(overlap: int, tmp_path: Path) -> None:
    regions = [rectangle(200, 200, 700, 700), rectangle(200, 700 - overlap, 700, 1200 - overlap)]
    drawn = [*(feature(region, "Region*") for region in regions), feature(polygon(*NUCLEI[0]), "Tumor")]
    put(tmp_path / "data" / "raw" / "slides", drawn)
    paths, cases = ingested(tmp_path)
    known = np.zeros((HEIGHT // 2, WIDTH // 2), bool)
    known[100:350, 100 : 600 - overlap // 2] = True
    for case in cases:
        label = read_label(paths.ingest / str(case.label))
        np.testing.assert_array_equal(label != IGNORED, known[place(case)])


def test_a_hole_in_a_region_was_not_looked_at(tmp_path: Path) -> None:
    def drawn(top: int, left: int, below: int, right: int, negative: int) -> str:
        vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in rectangle(top, left, below, right))
        return f'<Region NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'

    raw = tmp_path / "data" / "raw" / "slides"
    put(raw, None)
    (raw / "annotations").mkdir()
    regions = drawn(200, 200, 700, 700, 0) + drawn(300, 300, 400, 400, 1)
    (raw / "annotations" / "a.xml").write_text(
        f'<Annotations><Annotation Name="ROI"><Regions>{regions}</Regions></Annotation></Annotations>'
    )
    paths, cases = ingested(tmp_path, "ingest.mpp=0.5", "ingest.allow_empty=true")
    known = np.zeros((HEIGHT // 2, WIDTH // 2), bool)
    known[100:350, 100:350] = True
    known[150:200, 150:200] = False
    for case in cases:
        np.testing.assert_array_equal(read_label(paths.ingest / str(case.label)) != IGNORED, known[place(case)])


@pytest.mark.parametrize("shrink", [1, 2, 4, 8])
def test_masks_of_any_resolution_are_looked_up(shrink: int, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "slides"
    put(raw, None)
    painted = np.zeros((HEIGHT, WIDTH), np.uint8)
    painted[200:600, 160:800], painted[400:480, 400:560] = 1, 2
    save(raw / "masks" / "a.tif", painted[::shrink, ::shrink])
    paths, cases = ingested(tmp_path, "ingest.shrink=4")
    # At a quarter of the resolution the whole slide is two tiles.
    assert [case.case_id for case in cases] == ["a_y000000_x000000", "a_y000000_x000276"]
    for case in cases:
        assert case.label_kind == "semantic" and case.mpp == pytest.approx(1.0)
        np.testing.assert_array_equal(read_label(paths.ingest / str(case.label)), painted[::4, ::4][place(case)])


@pytest.mark.parametrize("kind", ["tif", "sparse", "averaged", "png", "one bit"])
def test_masks_of_every_kind_hold_the_same_ids(kind: str, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "slides"
    put(raw, None)
    painted = np.zeros((HEIGHT, WIDTH), np.uint16)
    painted[200:600, 160:800], painted[400:480, 400:560] = (1, 1) if kind == "one bit" else (300, 301)
    file = raw / "masks" / ("a.png" if kind == "png" else "a.tif")
    file.parent.mkdir()
    options = {"tile": (256, 256), "photometric": "minisblack"}
    if kind == "sparse":
        places = [(row, column) for row in range(0, HEIGHT, 256) for column in range(0, WIDTH, 256)]
        padded = np.pad(painted, ((0, 256), (0, 256)))
        tiles = (padded[row : row + 256, column : column + 256] for row, column in places)
        whole = (np.ascontiguousarray(tile) if tile.any() else None for tile in tiles)
        tifffile.imwrite(file, whole, shape=painted.shape, dtype=np.uint16, **options)
    elif kind == "averaged":
        with tifffile.TiffWriter(file) as writer:
            writer.write(painted, subifds=1, **options)
            halved = cv2.resize(painted, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
            writer.write(halved, subfiletype=1, **options)
    elif kind == "png":
        cv2.imwrite(str(file), painted)
    else:
        save(file, painted > 0 if kind == "one bit" else painted)
    paths, cases = ingested(tmp_path, "ingest.shrink=2")
    found = {case.case_id: read_label(paths.ingest / str(case.label)) for case in cases}
    for case in cases:
        np.testing.assert_array_equal(found[case.case_id] > 0, painted[::2, ::2][place(case)] > 0)
    assert max(label.max() for label in found.values()) == (1 if kind == "one bit" else 2)


def test_what_is_painted_where_no_tissue_is_seen_is_kept(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "slides"
    put(raw, None)
    painted = np.zeros((HEIGHT, WIDTH), np.uint8)
    painted[200:300, 2000:2100] = 1
    save(raw / "masks" / "a.tif", painted)
    paths, cases = ingested(tmp_path, "ingest.shrink=2")
    assert "a_y000000_x000736" in {case.case_id for case in cases} and len(cases) == 5
    (left_out,) = (found for found in read_findings(paths.findings) if found.fault == "tiles left out")
    assert "1 of 6 hold neither tissue nor label" in left_out.detail


def test_tiles_that_a_region_only_seems_to_meet_are_told_and_left_out(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "slides"
    # The letter L: its box is the whole slide, its strokes are the left and the lower edge.
    letter = [[0, 0], [40, 0], [40, 1460], [2208, 1460], [2208, 1504], [0, 1504]]
    put(raw, [feature(letter, "Region*"), feature(polygon(*NUCLEI[0]), "Tumor")])
    paths, cases = ingested(tmp_path)
    # The nucleus in the upper tile beyond the strokes is known, whatever was looked at.
    assert [case.case_id for case in cases] == [
        f"a_{place}" for place in ("y000000_x000000", "y000376_x000000", "y000376_x000368", "y000376_x000736")
    ]
    for case in cases:
        label = read_label(paths.ingest / str(case.label))
        assert 0 < (label != IGNORED).sum() < label.size
    told = {finding.case_id for finding in read_findings(paths.findings) if finding.fault == "unknown label"}
    assert told == {"a_y000000_x000368", "a_y000000_x000736"}
    assert not (paths.ingest / "labels" / "a_y000000_x000736.png").exists()


@pytest.mark.parametrize("name", ["a.geojson", "a.svs.geojson"])
def test_outlines_are_found_by_the_name_that_qupath_gives_them(name: str, tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.svs", picture())
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / name).write_text(json.dumps([feature(polygon(*NUCLEI[0]))]))
    assert {case.group for case in read(tmp_path).cases} == {"a"}


def test_outlines_for_some_slides_and_masks_for_others_are_refused(tmp_path: Path) -> None:
    put(tmp_path, [feature(polygon(*NUCLEI[0]))], "a")
    put(tmp_path, None, "b")
    save(tmp_path / "masks" / "b.tif", np.ones((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(ValueError, match=r"found masks for slides/b\.tif and outlines for others"):
        read(tmp_path)


def test_ids_of_a_mask_are_never_mixed(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    mask = generator.choice(np.array([0, 3, 200], np.uint8), (300, 440))
    save(tmp_path / "slide.tif", picture())
    save(tmp_path / "mask.tif", mask)
    with open_slide(tmp_path / "slide.tif") as slide:
        view, other = View(slide, 2.0), IdRaster(tmp_path / "mask.tif")
        whole = view.ids(other, 0, 0, view.height, view.width)
        part = view.ids(other, 101, 207, 64, 99)
    rows = ((np.arange(view.height) + 0.5) * 300 / view.height).astype(int)
    columns = ((np.arange(view.width) + 0.5) * 440 / view.width).astype(int)
    np.testing.assert_array_equal(whole, mask[np.ix_(rows, columns)])
    np.testing.assert_array_equal(part, whole[101 : 101 + 64, 207 : 207 + 99])


def read(raw: Path, **options: Any) -> RawDataset:
    with RawFolder(raw) as folder:
        assert layout_of(folder, "auto") == "slides"
        return READERS["slides"].read(folder, IngestSettings(**options))


def test_what_is_wrong_with_slides_is_told_at_once(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "slides"
    put(raw, [feature(polygon(*NUCLEI[0]))], "two_labels")
    save(raw / "masks" / "two_labels.tif", np.zeros((HEIGHT, WIDTH), np.uint8))
    put(raw, None, "without")
    put(raw, [feature(polygon(*NUCLEI[0]))], "sound")
    (raw / "annotations" / "no_slide.geojson").write_text("[]")
    put(raw, [], "broken")
    (raw / "annotations" / "broken.geojson").write_text("{")
    save(raw / "slides" / "unknown.tif", picture())
    (raw / "annotations" / "unknown.geojson").write_text("[]")
    dataset = read(raw, mpp=1.0)
    assert {(fault.case_id, fault.fault) for fault in dataset.faults} == {
        ("two_labels", "several files"), ("broken", "no JSON"), ("unknown", "unknown resolution"),
    }  # fmt: skip
    assert {case.group for case in dataset.cases} == {"sound"}
    told = {finding.fault: finding.detail for finding in dataset.findings}
    assert "slides/without.tif" in told["slide without outlines or mask"]
    assert "annotations/no_slide.geojson" in told["outlines or mask without slide"]


def test_a_mask_of_another_form_or_of_colours_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "slide.tif", picture())
    save(tmp_path / "turned.tif", np.zeros((WIDTH, HEIGHT), np.uint8))
    save(tmp_path / "colours.tif", picture())
    with open_slide(tmp_path / "slide.tif") as slide:
        with pytest.raises(FaultyFile, match="expected a mask of the slide's form"):
            View(slide).ids(IdRaster(tmp_path / "turned.tif"), 200, 200, 64, 64)
        with pytest.raises(FaultyFile, match=r"expected a mask of one channel of 8 or 16 bits, found 3 channel"):
            IdRaster(tmp_path / "colours.tif")


def test_outlines_off_the_slide_are_told(tmp_path: Path) -> None:
    put(tmp_path, [feature(rectangle(0, 5000, 10, 5100), "Region*")])
    with pytest.raises(ValueError, match=r"1 slide\(s\), none with outlines or a mask of its name that touch"):
        read(tmp_path)


def test_settings_of_slides_are_refused_elsewhere_and_together(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mpp and shrink both say how slides are looked at"):
        load_config(None, ["ingest.mpp=0.5", "ingest.shrink=2"])
    raw = tmp_path / "data" / "raw" / "pairs"
    for folder in ("images", "masks"):
        (raw / folder).mkdir(parents=True)
        cv2.imwrite(str(raw / folder / "a.png"), np.full((40, 40), 255, np.uint8))
    config = load_config(None, ["dataset=pairs", "ingest.mpp=0.5", "ingest.tile=256"])
    with pytest.raises(ValueError, match=r"ingest\.mpp=0\.5: expected the layout slides") as told:
        ingest.run(config, Paths.of(config, tmp_path))
    assert "ingest.tile=256" in str(told.value)


def test_slides_go_from_raw_files_to_a_report(tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "slides"
    for name in "abcdef":
        put(raw, [feature(polygon(*nucleus)) for nucleus in NUCLEI], name)
    tiny = [
        "ingest.mpp=1.0", "train.steps=2", "train.batch=2", "augment.crop=64", "train.network.name=unet",
        "train.network.arguments={}", "train.network.width=4", "train.network.depth=2", "train.validations=1",
        "compute.threads=1",
    ]  # fmt: skip
    config = load_config(Path(__file__).parents[2] / "configs" / "slides.yaml", tiny)
    paths = Paths.of(config, tmp_path)
    run("report", config, paths, with_needs=True)
    assert (paths.reports / "report.html").exists()
    split = (paths.split / "split.csv").read_text().splitlines()[1:]
    assert len({row.split(",")[1] for row in split}) == 6


@pytest.mark.parametrize(("name", "mpp"), [("CMU-1-Small-Region.svs", 1.0), ("cptac-brca_911f6cbd.dcm", 32.0)])
def test_real_slides_are_cut_at_the_wanted_resolution(name: str, mpp: float, real_data: Path, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "raw" / "real"
    raw.mkdir(parents=True)
    file = raw / name
    file.symlink_to(real_data / "wsi" / name)
    file.with_suffix(".geojson").write_text(json.dumps([feature(rectangle(400, 300, 700, 800), "Tumor")]))
    with RawFolder(raw) as folder:
        assert layout_of(folder, "auto") == "slides"
    config = load_config(None, ["dataset=real", f"ingest.mpp={mpp}", "ingest.tile=2048"])
    paths = Paths.of(config, tmp_path)
    ingest.run(config, paths)
    (case,) = read_cases(paths.cases)
    assert case.group == file.stem and case.mpp == pytest.approx(mpp)
    with open_slide(file) as slide:
        scale = View.at(slide, mpp).scale
        assert scale > 1.5
        sides = (round(side / scale) for side in (slide.levels[0].height, slide.levels[0].width))
        assert (case.height, case.width) == tuple(sides)
    label = read_label(paths.ingest / str(case.label))
    expected = 300 * 500 / scale**2
    assert abs((label == 1).sum() - expected) < 0.02 * expected
    assert read_image(paths.ingest / case.image).std() > 20


def test_a_slide_is_not_enlarged_without_limit(tmp_path: Path) -> None:
    put(tmp_path, [feature(polygon(*NUCLEI[0]))])
    (fault,) = read(tmp_path, mpp=0.05).faults
    assert (fault.fault, fault.found) == ("coarse slide", "0.25 scanned, to be enlarged 5 times")


def test_what_is_looked_at_closer_than_it_was_scanned_is_told(tmp_path: Path) -> None:
    put(tmp_path, [feature(polygon(*NUCLEI[0]))])
    told = {finding.fault: finding.detail for finding in read(tmp_path, mpp=0.125).findings}
    assert "0.125 microns a pixel asked for, 0.25 scanned" in told["enlarged slide"]
