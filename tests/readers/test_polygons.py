"""Polygons to pixels: MoNuSeg's XML, QuPath's GeoJSON and COCO, and the same objects whichever they come from."""

from __future__ import annotations

import json
import re
import unicodedata
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.config import IngestSettings, load_config
from pipeline.labels import from_outlines
from pipeline.readers import READERS, RawDataset, layout_of
from pipeline.readers.coco import _rings_of_runs
from pipeline.readers.outline_files import aperio_outlines, geojson_outlines
from pipeline.records.case import IGNORED, read_cases
from pipeline.records.findings import FaultyFile, read_findings
from pipeline.records.outline import Outline
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_label
from pipeline.records.raw import RawFolder
from pipeline.records.rle import encode_coco
from pipeline.stages import ingest

SHAPE = (20, 30)
SQUARE = [(3, 2), (9, 2), (9, 7), (3, 7)]
TRIANGLE = [(12, 4), (22, 4), (12, 14)]


def box(left: float, top: float, right: float, below: float, **more: Any) -> Outline:
    return Outline((np.array([(left, top), (right, top), (right, below), (left, below)], float),), **more)


def xml(*regions: list[tuple[float, float]], name: str = "") -> str:
    rows = "".join(
        "<Region><Vertices>" + "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in region) + "</Vertices></Region>"
        for region in regions
    )
    inner = f'<Annotation Name="{name}"><Regions>{rows}</Regions></Annotation>'
    return f'<?xml version="1.0"?><Annotations>{inner}</Annotations>'


def feature(rings: list[list[tuple[float, float]]], name: str | None = None, kind: str = "Polygon") -> dict[str, Any]:
    properties = {"classification": {"name": name}} if name else {}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": rings}, "properties": properties}


def geojson(*features: dict[str, Any]) -> str:
    return json.dumps({"type": "FeatureCollection", "features": features})


def put(folder: Path, **files: str | None) -> Path:
    """Files by name, / as __ and . as _DOT_; None is an image."""
    for key, text in files.items():
        file = folder / key.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            cv2.imwrite(str(file), np.random.default_rng(len(key)).integers(0, 256, (*SHAPE, 3)).astype(np.uint8))
        else:
            file.write_text(text)
    return folder


def read(folder: Path, **options: Any) -> RawDataset:
    with RawFolder(folder) as raw:
        assert layout_of(raw, "auto") == "polygons"
        return READERS["polygons"].read(raw, IngestSettings(**options))


# --- Filling ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.tuples(*[st.integers(-5, 35)] * 4))
def test_a_rectangle_on_the_grid_holds_its_pixels(sides: tuple[int, int, int, int]) -> None:
    left, right = sorted(sides[:2])
    top, below = sorted(sides[2:])
    expected = np.zeros(SHAPE, np.uint16)
    expected[max(top, 0) : max(below, 0), max(left, 0) : max(right, 0)] = 1
    label = from_outlines([box(left, top, right, below)], SHAPE, part=True)
    np.testing.assert_array_equal(label.raster, expected)
    assert [remark.fault for remark in label.remarks] == ([] if expected.any() else ["empty outline"])


def test_holes_overlaps_and_what_is_unknown() -> None:
    ring = Outline((*box(1, 1, 11, 11).rings, *box(4, 4, 8, 8).rings))
    label = from_outlines([ring, box(9, 9, 13, 13), box(0, 0, 20, 3, ignored=True)], SHAPE)
    expected = np.zeros(SHAPE, np.uint16)
    expected[0:3, 0:20] = IGNORED
    expected[1:11, 1:11] = 1
    expected[4:8, 4:8] = 0
    expected[9:13, 9:13] = 2
    np.testing.assert_array_equal(label.raster, expected)
    assert [remark.detail for remark in label.remarks] == ["4 contested pixel(s) went to the smaller object"]


def test_classes_instead_of_objects_when_asked_for() -> None:
    outlines = [box(0, 0, 4, 4, class_id=2), box(10, 10, 14, 14, class_id=1), box(1, 1, 2, 2, class_id=3)]
    raster = from_outlines(outlines, SHAPE, by_class=True).raster
    assert (raster[0, 0], raster[11, 11], raster[1, 1]) == (2, 1, 3)


# --- Files -----------------------------------------------------------------------------------------------------------


def test_the_same_objects_from_every_kind_of_file(tmp_path: Path) -> None:
    flat = [[value for corner in shape for value in corner] for shape in (SQUARE, TRIANGLE)]
    coco = {
        "images": [{"id": 7, "file_name": "a.png", "height": SHAPE[0], "width": SHAPE[1]}],
        "annotations": [{"id": 1, "image_id": 7, "category_id": 1, "segmentation": [shape]} for shape in flat],
        "categories": [{"id": 1, "name": "nucleus"}],
    }
    kinds = {
        "aperio": put(tmp_path / "1", a_DOT_png=None, a_DOT_xml=xml(SQUARE, TRIANGLE)),
        "geojson": put(
            tmp_path / "2",
            images__a_DOT_png=None,
            annotations__a_DOT_geojson=geojson(feature([SQUARE]), feature([[TRIANGLE]], kind="MultiPolygon")),
        ),
        "coco": put(tmp_path / "3", pictures__a_DOT_png=None, instances_DOT_json=json.dumps(coco)),
    }
    rasters = {}
    for kind, folder in kinds.items():
        (case,) = read(folder).cases
        assert case.case_id == "a" and case.outlines is not None
        rasters[kind] = from_outlines(case.outlines, SHAPE).raster
    assert (rasters["aperio"] == rasters["geojson"]).all() and (rasters["aperio"] == rasters["coco"]).all()
    assert np.bincount(rasters["coco"].ravel()).tolist()[1] == 30
    # The centre of (12 + i, 4 + j) is below the slope where i + j + 1 < 10: 45 pixels; and 10 lie upon it.
    assert 45 <= np.bincount(rasters["coco"].ravel()).tolist()[2] <= 55


def test_parts_of_a_multipolygon_are_joined_and_holes_are_of_their_own_part(tmp_path: Path) -> None:
    def square(left: int, top: int, size: int) -> list[tuple[float, float]]:
        return [(left, top), (left + size, top), (left + size, top + size), (left, top + size), (left, top)]

    parts = [[square(1, 1, 10), square(3, 3, 4)], [square(6, 6, 10)], [square(4, 4, 2)], [square(22, 1, 4)]]
    put(tmp_path, a_DOT_png=None, a_DOT_geojson=geojson(feature(parts, kind="MultiPolygon")))  # type: ignore[arg-type]
    expected = np.zeros(SHAPE, np.uint16)
    expected[1:11, 1:11] = 1
    expected[3:7, 3:7] = 0
    expected[6:16, 6:16] = expected[4:6, 4:6] = expected[1:5, 22:26] = 1
    ((outline,),) = (case.outlines for case in read(tmp_path).cases)
    np.testing.assert_array_equal(from_outlines([outline], SHAPE).raster, expected)
    halved = from_outlines([outline.smaller(0.5).moved(4, 2)], (38, 56)).raster
    np.testing.assert_array_equal(halved, expected.repeat(2, 0).repeat(2, 1)[2:, 4:])


def test_monuseg_gets_its_patients_and_its_objects(tmp_path: Path) -> None:
    config = load_config(None, ["dataset=made"])
    paths = Paths.of(config, tmp_path)
    names = [f"TCGA-{site}-{patient}-01Z-00-DX1" for site in ("A7", "B0") for patient in ("A13E", "5711")]
    for name in names:
        put(
            paths.raw / "MoNuSeg 2018 Training Data",
            **{f"Tissue Images__{name}_DOT_tif": None, f"Annotations__{name}_DOT_xml": xml(SQUARE, TRIANGLE)},
        )
    lines = ingest.run(config, paths)
    assert "8 objects" in lines[0] and lines[1] == "layout polygons"
    cases = read_cases(paths.cases)
    assert [case.group for case in cases] == ["TCGA-A7-5711", "TCGA-A7-A13E", "TCGA-B0-5711", "TCGA-B0-A13E"]
    assert [case.case_id for case in cases] == sorted(names) and read_findings(paths.findings) == []
    assert read_label(paths.ingest / str(cases[0].label))[2:7, 3:9].tolist() == [[1] * 6] * 5


def test_classes_are_numbered_over_the_data_set_and_unsure_ones_are_unknown(tmp_path: Path) -> None:
    put(
        tmp_path, a_DOT_png=None, b_DOT_png=None,
        a_DOT_geojson=geojson(
            feature([SQUARE], "Tumor"), feature([TRIANGLE], "Ignore*"), feature([SQUARE], kind="Point")
        ),
        b_DOT_geojson=json.dumps(feature([SQUARE], "Stroma")),
    )  # fmt: skip
    dataset = read(tmp_path, label_kind="semantic")
    a, b = (case.outlines or () for case in dataset.cases)
    assert dataset.label_kind == "semantic" and (a[0].class_id, b[0].class_id) == (2, 1)
    assert [outline.ignored for outline in a] == [False, True]
    assert [(found.case_id, found.detail) for found in dataset.findings] == [
        ("a", "a.geojson: 1 shape(s) that are no polygons were left out"),
        ("", "1 Stroma, 2 Tumor: class ids"),
    ]
    dataset = read(tmp_path)
    assert dataset.findings[-1].detail == "1 Stroma, 2 Tumor: objects keep them"
    labels = [from_outlines(case.outlines or (), (20, 20)) for case in dataset.cases]
    assert [label.classes for label in labels] == [("Tumor",), ("Stroma",)]


@pytest.mark.parametrize(
    ("properties", "name"),
    [
        ({"classification": {"name": "Tumor"}}, "Tumor"),
        ({"classification": {"names": ["Tumor", "Positive"], "color": [200, 0, 0]}}, "Tumor: Positive"),
        ({"classification": {"names": ["Tumor"]}}, "Tumor"),
        ({"classification": {}, "class": "Stroma"}, "Stroma"),
        ({"classification": {"names": []}}, None),
        ({"classification": "Tumor"}, "Tumor"),
        ({"class": "Tumor", "name": "the third"}, "Tumor"),
        ({"name": "Tumor"}, "Tumor"),
        ({"label": "Tumor", "name": "the third"}, "Tumor"),
        ({"label": 17}, None),
        ({"label": "17", "name": "Tumor"}, "Tumor"),
        ({"class": "Tumor", "isLocked": True, "name": "the third"}, "Tumor"),
        (None, None),
    ],
)
def test_classes_are_told_in_several_ways(properties: dict[str, Any] | None, name: str | None) -> None:
    (outline,), remarks = geojson_outlines(geojson(feature([SQUARE]) | {"properties": properties}).encode())
    assert outline.class_name == name and not remarks


@pytest.mark.parametrize("sign", [{"objectType": "annotation"}, {"object_type": "annotation"}, {"isLocked": False}])
def test_the_name_of_an_object_of_qupath_is_no_class(sign: dict[str, Any], tmp_path: Path) -> None:
    named = [feature([SQUARE]) | {"properties": {"name": f"cell {number}"}} for number in range(2)]
    told = feature([TRIANGLE], "Tumor")
    put(tmp_path, a_DOT_png=None, b_DOT_png=None, a_DOT_geojson=geojson(*named, told))
    put(tmp_path, b_DOT_geojson=geojson(feature([SQUARE]) | {"properties": {"name": "cell 2", **sign}}))
    dataset = read(tmp_path)
    assert [[outline.class_name for outline in case.outlines or ()] for case in dataset.cases] == [
        ["unnamed", "unnamed", "Tumor"], ["unnamed"],
    ]  # fmt: skip
    assert [found.detail for found in dataset.findings if found.fault == "names of objects"] == [
        "a.geojson: 2 without a class have a name of their own, which is none: cell 0, cell 1",
        "b.geojson: 1 without a class have a name of their own, which is none: cell 2",
    ]


def test_hierarchies_of_qupath_are_read_whole(tmp_path: Path) -> None:
    def below(parent: dict[str, Any], *children: dict[str, Any]) -> dict[str, Any]:
        return parent | {"properties": parent["properties"] | {"objectType": "annotation", "childObjects": children}}

    cell = feature([TRIANGLE], "Cell") | {"nucleusGeometry": {"type": "Polygon", "coordinates": [SQUARE]}}
    region = below(feature([[(0, 0), (25, 0), (25, 18), (0, 18)]], "Region*"), feature([SQUARE], "Nucleus"), cell)
    root = {"type": "Feature", "properties": {"objectType": "root", "childObjects": [region]}}
    put(tmp_path, a_DOT_png=None, b_DOT_png=None, a_DOT_geojson=geojson(region), b_DOT_geojson=json.dumps(root))
    dataset = read(tmp_path)
    assert not dataset.faults
    for case in dataset.cases:
        assert [outline.class_name for outline in case.outlines or ()] == ["Nucleus", "Cell"]
    assert {found.fault for found in dataset.findings} == {"regions", "nuclei of cells", "several classes"}
    put(
        tmp_path,
        a_DOT_geojson=geojson(feature([SQUARE]), below(feature([SQUARE]), feature([SQUARE]), {"geometry": {}})),
    )
    (fault,) = read(tmp_path).faults
    assert (fault.file, fault.found) == ("a.geojson", "feature 1.1: KeyError 'type'")


def test_what_is_missing_or_broken_is_told_all_at_once(tmp_path: Path) -> None:
    put(
        tmp_path, a_DOT_png=None, b_DOT_png=None, c_DOT_png=None, d_DOT_png=None, a_DOT_xml=xml(SQUARE),
        b_DOT_xml="<Annotations>", c_DOT_geojson='{"features": [{"geometry": {"type": "Polygon"}}]}',
        gone_DOT_xml=xml(SQUARE), notes_DOT_xml="<notes/>",
    )  # fmt: skip
    dataset = read(tmp_path)
    assert [(fault.case_id, fault.fault) for fault in dataset.faults] == [
        ("b", "no XML"), ("c", "no GeoJSON"), ("d", "missing outlines"), ("gone", "missing image"),
    ]  # fmt: skip
    (told,) = (found.detail for found in dataset.findings)
    assert told == "1 file(s) without an image, and without outlines: notes.xml"


@settings(deadline=None, max_examples=40)
@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))), st.booleans())
def test_run_lengths_of_coco_are_their_pixels(mask: np.ndarray, listed: bool) -> None:
    lengths = [len(list(run)) for _, run in groupby(mask.T.ravel())]
    counts = [0, *lengths] if mask.T.ravel()[0] else lengths
    packed = {"size": [*mask.shape], "counts": counts if listed else encode_coco(mask).decode()}
    label = from_outlines([Outline(tuple(_rings_of_runs(packed)))], mask.shape)
    assert ((label.raster > 0) == mask).all()


def test_coco_may_lie_in_a_file_a_part_and_crowds_are_unknown(tmp_path: Path) -> None:
    mask = np.zeros(SHAPE, bool)
    mask[5:9, 20:28] = True
    crowd = {"image_id": 1, "segmentation": {"counts": encode_coco(mask).decode(), "size": [*SHAPE]}, "iscrowd": 1}
    square = {"image_id": 1, "segmentation": [np.ravel(SQUARE).tolist()]}
    for part, objects in (("train", [square, crowd]), ("val", [square])):
        entry = {"id": 1, "file_name": f"{part}.png", "height": SHAPE[0], "width": SHAPE[1]}
        (tmp_path / f"instances_{part}.json").write_text(json.dumps({"images": [entry], "annotations": objects}))
    (tmp_path / "captions_train.json").write_text('{"images": [], "annotations": []}')
    put(tmp_path, train_DOT_png=None, val_DOT_png=None)
    dataset = read(tmp_path)
    assert [case.case_id for case in dataset.cases] == ["train", "val"] and not (dataset.faults or dataset.findings)
    labels = [from_outlines(case.outlines or (), SHAPE).raster for case in dataset.cases]
    assert (labels[0][mask] == IGNORED).all() and labels[0].max() == IGNORED and labels[1].max() == 1
    (tmp_path / "instances_val.json").write_text((tmp_path / "instances_train.json").read_text())
    (fault,) = read(tmp_path).faults
    assert (fault.fault, fault.found) == ("listed twice", "instances_train.json and instances_val.json")


def test_negative_regions_of_aperio_are_holes() -> None:
    def region(left: int, top: int, right: int, below: int, negative: int) -> str:
        corners = ((left, top), (right, top), (right, below), (left, below))
        vertices = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in corners)
        return f'<Region NegativeROA="{negative}"><Vertices>{vertices}</Vertices></Region>'

    drawn = region(1, 1, 11, 11, 0) + region(4, 4, 14, 8, 1) + region(16, 1, 20, 5, 0)
    content = f'<Annotations><Annotation Name="Tumour"><Regions>{drawn}</Regions></Annotation></Annotations>'
    outlines, remarks = aperio_outlines(content.encode())
    expected = np.zeros(SHAPE, np.uint16)
    expected[1:11, 1:11] = 1
    expected[4:8, 4:14] = 0
    expected[1:5, 16:20] = 2
    assert not remarks
    np.testing.assert_array_equal(from_outlines(outlines, SHAPE).raster, expected)
    # What lies in a hole is an object still.
    inner = aperio_outlines(content.replace("</Regions>", region(5, 5, 7, 7, 0) + "</Regions>").encode())[0]
    expected[5:7, 5:7] = 3
    np.testing.assert_array_equal(from_outlines(inner, SHAPE).raster, expected)
    expected[5:7, 5:7] = 0
    moved = [outline.smaller(0.5).moved(2, 0) for outline in outlines]
    np.testing.assert_array_equal(from_outlines(moved, (40, 58)).raster, expected.repeat(2, 0).repeat(2, 1)[:, 2:])


def of_coco(folder: Path, *annotations: dict[str, Any], **entry: object) -> RawDataset:
    """Read a file of COCO's with one image of SHAPE and these annotations of it."""
    images = [{"id": 1, "file_name": "a.png", "height": SHAPE[0], "width": SHAPE[1]} | entry]
    shapes = [{"id": number, "image_id": 1} | one for number, one in enumerate(annotations, start=1)]
    put(folder, a_DOT_png=None, coco_DOT_json=json.dumps({"images": images, "annotations": shapes}))
    return read(folder)


def test_the_parts_of_an_object_of_coco_are_joined_as_pycocotools_does(tmp_path: Path) -> None:
    from pycocotools import mask as coco

    parts = [[1.0, 1, 11, 1, 11, 11, 1, 11], [6.0, 6, 16, 6, 16, 16, 6, 16]]
    ((outline,),) = (case.outlines for case in of_coco(tmp_path, {"segmentation": parts}).cases)
    expected = coco.decode(coco.merge(coco.frPyObjects(parts, *SHAPE)))
    np.testing.assert_array_equal(from_outlines([outline], SHAPE).raster, expected)


@pytest.mark.parametrize(
    ("annotation", "entry", "said"),
    [
        ({"segmentation": [], "bbox": [1, 1, 4, 4]}, {}, r"no segmentation.*annotation 1 without one, with a box"),
        ({"segmentation": {"counts": [10, 5, 85], "size": [10, 10]}}, {}, r"20 x 30 pixels, as the image.*of 10 x 10"),
        ({"segmentation": [[0, 0, 4, 0, 4, 4, 1]]}, {}, r"no outline.*annotation 1: cannot reshape"),
        ({"segmentation": [[0, 0, 4, 0, 4, 4]]}, {"height": "tall"}, r"height and width of the image, found 'tall'"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_a_fault_of_its_image(
    tmp_path: Path, annotation: dict[str, Any], entry: dict[str, Any], said: str
) -> None:
    dataset = of_coco(tmp_path, annotation, **entry)
    (fault,) = dataset.faults
    assert re.search(said, str(fault)) and [case.case_id for case in dataset.cases] == [fault.case_id] == ["a"]


def test_faults_of_coco_are_of_cases_so_that_these_can_be_left_out(tmp_path: Path) -> None:
    entry = {"id": 1, "file_name": "a.png"}
    shapes = [{"image_id": 1, "segmentation": [np.ravel(SQUARE).tolist()]}]
    for name in ("nuclei", "glands"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": [entry], "annotations": shapes}))
    put(tmp_path, images__a_DOT_png=None)
    dataset = read(tmp_path)
    assert [(fault.case_id, fault.fault) for fault in dataset.faults] == [("a", "listed twice")]
    assert [case.case_id for case in dataset.cases] == ["a"]
    (tmp_path / "glands.json").unlink()
    twice = {"images": [entry, entry | {"id": 2}], "annotations": shapes}
    (tmp_path / "nuclei.json").write_text(json.dumps(twice))
    (fault,) = read(tmp_path).faults
    assert "expected one entry of nuclei.json that names it, found two of different ids" in str(fault)


def test_json_nested_without_end_and_a_file_without_outlines_are_told(tmp_path: Path) -> None:
    put(
        tmp_path, a_DOT_png=None, b_DOT_png=None, a_DOT_geojson='{"a":' * 100_000 + "1" + "}" * 100_000,
        b_DOT_xml="<Annotations/>",
    )  # fmt: skip
    dataset = read(tmp_path)
    assert [(fault.case_id, fault.fault) for fault in dataset.faults] == [("a", "no JSON")]
    assert [(one.case_id, one.fault) for one in dataset.findings] == [("b", "no outlines")]


def test_ids_that_tell_no_image_are_refused(tmp_path: Path) -> None:
    square = [np.ravel(SQUARE).tolist()]
    with pytest.raises(ValueError, match=r"coco\.json: expected annotations whose image_id is the id of a listed"):
        of_coco(tmp_path, {"image_id": "1", "segmentation": square})
    images = [{"id": 1, "file_name": name} for name in ("a.png", "b.png")]
    put(tmp_path, b_DOT_png=None, coco_DOT_json=json.dumps({"images": images, "annotations": []}))
    with pytest.raises(ValueError, match=r"expected every image id once, found 1 several times"):
        read(tmp_path)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_images_are_the_same_in_either_form_of_their_letters(form: str, tmp_path: Path) -> None:
    names = [f"Köln {number} é.png" for number in range(3)]
    for name in names:
        cv2.imwrite(str(tmp_path / unicodedata.normalize("NFD", name)), np.full((*SHAPE, 3), 200, np.uint8))
    images = [{"id": number, "file_name": unicodedata.normalize(form, name)} for number, name in enumerate(names)]  # type: ignore[arg-type]
    shapes = [{"image_id": number, "segmentation": [[0, 0, 4, 0, 4, 4]]} for number in range(3)]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": shapes}))
    dataset = read(tmp_path)
    assert not dataset.faults and [case.image for case in dataset.cases] == names


def test_what_was_looked_at_is_no_object(tmp_path: Path) -> None:
    features = [
        {"geometry": {"type": "Polygon", "coordinates": [SQUARE]}, "properties": {"classification": {"name": name}}}
        for name in ("Region*", "Nucleus")
    ]
    put(tmp_path, a_DOT_png=None, a_DOT_geojson=json.dumps(features))
    dataset = read(tmp_path)
    assert [len(case.outlines or ()) for case in dataset.cases] == [1]
    assert [found.fault for found in dataset.findings] == ["regions"]


def test_outlines_of_another_image_are_no_repair(tmp_path: Path) -> None:
    beyond = box(40, 2, 44, 6), box(3, 25, 9, 30)
    with pytest.raises(FaultyFile, match=r"expected outlines within its 20 x 30 pixels, found 2 of 3 that lie beyond"):
        from_outlines([box(1, 1, 4, 4), *beyond], SHAPE)
    assert from_outlines([box(1, 1, 4, 4), *beyond], SHAPE, part=True).count == 1
    assert from_outlines([box(1, 1, 4, 4), beyond[0]], SHAPE).count == 1
    with pytest.raises(FaultyFile, match=r"found 1 of 1 that lie beyond it"):
        from_outlines([beyond[0]], SHAPE)


def test_patients_are_found_in_names_below_any_folder(tmp_path: Path) -> None:
    for part in ("MoNuSeg 2018 Training Data", "MoNuSegTestData"):
        name = f"TCGA-18-5592-01Z-00-DX{len(part)}"
        put(tmp_path / part, **{f"Tissue Images__{name}_DOT_tif": None, f"Annotations__{name}_DOT_xml": xml(SQUARE)})
    assert [case.group for case in read(tmp_path).cases] == ["TCGA-18-5592"] * 2


def test_coco_names_images_that_are_absent_and_strangers(tmp_path: Path) -> None:
    coco = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "gone.png"}],
        "annotations": [
            {"image_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4]], "iscrowd": 1},
            {"image_id": 9, "segmentation": [[0, 0, 4, 0, 4, 4]]},
        ],
    }
    put(tmp_path, a_DOT_png=None, b_DOT_png=None, coco_DOT_json=json.dumps(coco))
    dataset = read(tmp_path)
    assert [(fault.case_id, fault.fault, fault.found) for fault in dataset.faults] == [
        ("gone.png", "missing image", "none"),
    ]  # fmt: skip
    assert [found.fault for found in dataset.findings] == ["outlines without image", "image without entry"]
    ((outline,),) = (case.outlines for case in dataset.cases)
    assert outline.ignored
    (tmp_path / "coco.json").write_text('{"images": [{}], "annotations": []}')
    with pytest.raises(ValueError, match=r"coco\.json: expected COCO's images and annotations, found 'id'"):
        read(tmp_path)


@pytest.mark.parametrize(
    "text",
    ["5", '{"features": null}', '[{"geometry": 5}]', '[{"geometry": {"type": "Polygon", "coordinates": [[]]}}]',
     '[{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [NaN, 1], [2, 2]]]}}]'],
)  # fmt: skip
def test_what_is_no_geojson_is_a_fault_of_its_file(text: str, tmp_path: Path) -> None:
    put(tmp_path, a_DOT_png=None, a_DOT_geojson=text)
    (fault,) = read(tmp_path).faults
    assert (fault.case_id, fault.fault, fault.file) == ("a", "no GeoJSON", "a.geojson")


def test_features_without_geometry_are_left_out_and_noted(tmp_path: Path) -> None:
    put(tmp_path, a_DOT_png=None, a_DOT_geojson=geojson({"type": "Feature", "geometry": None}, feature([SQUARE])))
    dataset = read(tmp_path)
    assert not dataset.faults and [len(case.outlines or ()) for case in dataset.cases] == [1]
    assert [(found.action, found.detail) for found in dataset.findings] == [
        ("noted", "a.geojson: 1 feature(s) without geometry were left out"),
    ]  # fmt: skip


def test_images_of_one_name_in_two_folders_are_told_apart_or_refused(tmp_path: Path) -> None:
    def coco(*names: str) -> str:
        images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        shapes = [
            {"image_id": number, "segmentation": [[number, 0, 9, 0, 9, 9, number, 9]]} for number in range(len(names))
        ]
        return json.dumps({"images": images, "annotations": shapes})

    put(tmp_path, x__one__a_DOT_png=None, x__two__a_DOT_png=None, coco_DOT_json=coco("two/a.png", "one/a.png"))
    assert {case.image: float(case.outlines[0].rings[0][0, 0]) for case in read(tmp_path).cases if case.outlines} == {
        "x/two/a.png": 0.0, "x/one/a.png": 1.0,
    }  # fmt: skip
    put(tmp_path, coco_DOT_json=coco("a.png"))
    (fault,) = read(tmp_path).faults
    assert fault.found == "2: x/one/a.png, x/two/a.png"
    # A file that is named after the folder means that one; Windows writes paths its own way.
    (tmp_path / "coco.json").unlink()
    put(tmp_path, instances_two_DOT_json=coco("a.png"))
    assert [case.image for case in read(tmp_path).cases] == ["x/two/a.png"]
    put(tmp_path, instances_two_DOT_json=coco("one\\a.png"))
    assert [case.image for case in read(tmp_path).cases] == ["x/one/a.png"]
