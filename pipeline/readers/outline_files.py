"""Files of outlines, whoever draws them: Aperio's XML (ImageScope, MoNuSeg) and GeoJSON (QuPath).

Coordinates are positions on the pixel grid: 0 is the image's edge. What is outlined as unsure or ignored (UNKNOWN) is
unknown, not background. Sources: MoNuSeg (Kumar et al. 2017, doi:10.1109/TMI.2017.2677499); RFC 7946.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import numpy as np

from pipeline.records.findings import FaultyFile, Remark, some
from pipeline.records.outline import Outline

SUFFIXES = (".xml", ".geojson")
FOLDERS = {"annotations", "annotation", "labels", "geojson", "xml"}
"""Names, in small letters, of folders that hold outlines."""
IMAGE_FOLDERS = {"images", "image", "tissue images", "tissue_images", "imgs"}
"""Names of folders that hold the images beside them; and of those that hold parts of a data set:"""
PARTS = {"train", "training", "test", "testing"}
_OF_QUPATH = {"objectType", "object_type", "isLocked", "classification"}
"""Properties that QuPath gives to features, of which one in a file tells that it is QuPath's."""
UNKNOWN = {"unsure", "ignore", "ignore*"}
"""Names of classes, in small letters, whose outlines hold unknown pixels; QuPath's is Ignore*."""
REGIONS = {"region*", "region", "roi"}
"""Names of classes, in small letters, whose outlines say what was looked at; QuPath's is Region*."""


def parse_outlines(name: str, content: bytes) -> tuple[list[Outline], list[Remark]]:
    """Read outlines as the file's suffix says, Aperio's XML or GeoJSON; and what of it was left out."""
    return (aperio_outlines if name.lower().endswith(".xml") else geojson_outlines)(content)


def aperio_outlines(content: bytes) -> tuple[list[Outline], list[Remark]]:
    """Read Aperio's XML: outlines, and whether regions were left out for having fewer than three corners.

    The Name of an Annotation, where it has one, is the class. Regions with NegativeROA="1" are holes in the larger ones
    of their Annotation. Raises FaultyFile for other content.
    """
    try:
        # expat refuses entities that grow without bound, and nothing outside the file is ever fetched.
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        raise FaultyFile("no XML", "Aperio's XML", str(error), "fetch the file again") from error
    if root.tag != "Annotations":
        raise FaultyFile("other XML", "Annotations at the top, as Aperio writes", root.tag, "give the file of outlines")
    outlines: list[Outline] = []
    others = 0
    for annotation in root.iter("Annotation"):
        name = annotation.get("Name") or None
        own: list[Outline] = []
        holes: list[Outline] = []
        for region in annotation.iter("Region"):
            try:
                corners = [(float(corner.attrib["X"]), float(corner.attrib["Y"])) for corner in region.iter("Vertex")]
                if len(corners) < 3:
                    others += 1
                elif region.get("NegativeROA") == "1":
                    holes.append(outline_of([corners], name))
                else:
                    own.append(outline_of([corners], name))
            except (KeyError, ValueError) as error:
                found = f"a corner of region {region.get('Id')} without: {error}"
                raise FaultyFile("no coordinates", "numbers X and Y at every Vertex", found) from error
        for outline in own:
            cut = tuple(hole for hole in holes if _is_cut_by(outline, hole))
            outlines.append(replace(outline, holes=cut))
    return outlines, _no_polygons(others)


def _no_polygons(count: int) -> list[Remark]:
    detail = f"{count} shape(s) that are no polygons were left out"
    return [Remark("repaired", "no polygon", detail)] if count else []


def _is_cut_by(outline: Outline, hole: Outline) -> bool:
    """Whether a hole is one in an outline: their boxes meet, and what lies in a hole is no smaller than it."""
    points = (np.concatenate(one.rings) for one in (outline, hole))
    boxes = [(corners.min(axis=0), corners.max(axis=0)) for corners in points]
    (least, most), (start, end) = boxes
    return bool((least < end).all() and (most > start).all() and np.prod(most - least) > np.prod(end - start))


def geojson_outlines(content: bytes) -> tuple[list[Outline], list[Remark]]:
    """Read GeoJSON, a FeatureCollection, a list of Features or one: outlines, and what was left out.

    Parts of a MultiPolygon are joined; inner rings are holes of their own part alone. QuPath's hierarchies are read
    whole: properties.childObjects are features as those beside them; of cells the cell, not its nucleusGeometry.

    The class is properties.classification, as QuPath writes it, or properties.class. QuPath's properties.name is an
    object's own, so that there may be as many as objects: it, and properties.label where it is no number, are classes
    only in files without any of QuPath's properties, where nothing else tells them. Raises FaultyFile for other
    content.
    """
    document = json_of(content)
    features = document.get("features", [document]) if isinstance(document, dict) else document
    if not isinstance(features, list):
        raise FaultyFile("no GeoJSON", "a Feature, or a list of them", type(features).__name__, "export it as GeoJSON")
    outlines, others, unlocated, nuclei = [], 0, 0, 0
    every = list(_with_children(features))
    of_qupath = any(_OF_QUPATH & _properties(feature).keys() for _, feature in every)
    own_names: list[str] = []
    for place, feature in every:
        if _properties(feature).get("objectType") == "root":
            # What a hierarchy hangs from is no object, and has no geometry.
            continue
        try:
            geometry, properties = feature["geometry"], feature.get("properties") or {}
            nuclei += bool(feature.get("nucleusGeometry"))
            if geometry is None:
                unlocated += 1
                continue
            if geometry["type"] == "Polygon":
                polygons = [geometry["coordinates"]]
            elif geometry["type"] == "MultiPolygon":
                polygons = geometry["coordinates"]
            else:
                others += 1
                continue
            rings = [ring for polygon in polygons for ring in polygon]
            named = _class_of(properties, of_qupath=of_qupath)
            outlines.append(outline_of(rings, named, parts=tuple(map(len, polygons))))
            if properties.get("name") and not named:
                own_names.append(str(properties["name"]))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            expected = "a Feature with geometry and coordinates"
            raise FaultyFile("no GeoJSON", expected, f"feature {place}: {type(error).__name__} {error}") from error
    remarks = _no_polygons(others)
    if unlocated:
        # RFC 7946, section 3.2: null where a feature is located nowhere.
        remarks.append(Remark("noted", "no geometry", f"{unlocated} feature(s) without geometry were left out"))
    if nuclei:
        detail = f"{nuclei} cell(s) tell the outline of their nucleus too, which is not read: the cell is the object"
        remarks.append(Remark("noted", "nuclei of cells", detail))
    if own_names:
        detail = f"{len(own_names)} without a class have a name of their own, which is none: {some(own_names)}"
        remarks.append(Remark("noted", "names of objects", detail))
    return outlines, remarks


def _with_children(features: list[Any], of: str = "") -> Iterator[tuple[str, Any]]:
    """Features, each before those below it, with their place: 3.0 is the first child of feature 3."""
    for number, feature in enumerate(features):
        place = f"{of}{number}"
        yield place, feature
        if children := _properties(feature).get("childObjects"):
            yield from _with_children(children if isinstance(children, list) else [children], f"{place}.")


def _properties(feature: Any) -> dict[str, Any]:
    told = feature.get("properties") if isinstance(feature, dict) else None
    return told if isinstance(told, dict) else {}


def _class_of(properties: dict[str, Any], *, of_qupath: bool) -> object:
    """What the properties of a feature tell of its class; a derived one as QuPath shows it, Tumor: Positive."""
    told = properties.get("classification")
    if isinstance(told, dict):
        names = told.get("names") or []
        told = told.get("name") or ": ".join(map(str, names if isinstance(names, list) else [names]))
    told = told or properties.get("class")
    if told or of_qupath:
        return told
    label = properties.get("label")
    return label if isinstance(label, str) and label and not label.isdigit() else properties.get("name")


def outline_of(rings: Iterable[Any], name: object, parts: tuple[int, ...] = ()) -> Outline:
    """Make an outline of rings of points and the name of its class. Raises ValueError for what is no list of points."""
    points = [np.asarray(ring, float) for ring in rings]
    if any(ring.ndim != 2 or ring.shape[1] < 2 for ring in points):
        raise ValueError("a ring that is no list of points")
    arrays = tuple(ring[:, :2] for ring in points)
    if not all(np.isfinite(ring).all() for ring in arrays):
        raise ValueError("a coordinate that is no number")
    class_name = str(name) if name else None
    return Outline(arrays, class_name, ignored=(class_name or "").lower() in UNKNOWN, parts=parts)


def json_of(content: bytes) -> Any:
    """Parse JSON. Raises FaultyFile for anything else."""
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FaultyFile("no JSON", "JSON in UTF-8", str(error), "fetch the file again") from error
