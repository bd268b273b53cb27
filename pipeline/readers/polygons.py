"""Images whose objects are outlined as polygons: Aperio's XML (MoNuSeg), GeoJSON (QuPath) and COCO.

    Tissue Images/<name>.tif with Annotations/<name>.xml, or both in one folder
    images/<name>.png with annotations/<name>.geojson, or both in one folder (Polygon and MultiPolygon)
    any folder with one <file>.json that holds COCO's images, annotations, categories

Masks hold objects, with their classes where there are several; ingest.label_kind=semantic makes them class ids,
numbered in the order of the classes' names. What is outlined as unsure or ignored (UNKNOWN, or a crowd of COCO's) is
unknown, not background. Names that begin as TCGA's do give the patient, which is the group. Coordinates are positions
on the pixel grid: 0 is the image's edge.

Sources: MoNuSeg (Kumar et al. 2017, doi:10.1109/TMI.2017.2677499); RFC 7946; cocodataset.org, "Data format".
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np

from pipeline.config import IngestSettings
from pipeline.readers.layout import RawCase, RawDataset, case_ids, stem_of
from pipeline.records.case import LabelKind
from pipeline.records.decode import IMAGE_SUFFIXES
from pipeline.records.findings import Fault, FaultyFile, Finding, some
from pipeline.records.outline import Outline
from pipeline.records.raw import RawFolder
from pipeline.records.rle import decode_coco, decode_counts

UNKNOWN = {"unsure", "ignore", "ignore*"}
"""Names of classes, in small letters, whose outlines hold unknown pixels; QuPath's is Ignore*."""
REGIONS = {"region*", "region", "roi"}
"""Names of classes, in small letters, whose outlines say what was looked at; QuPath's is Region*."""
STRANGERS = "outlines without image"
UNNAMED = "unnamed"
"""Class of outlines without one, where others have one."""
IMAGE_FOLDERS = {"images", "image", "tissue images", "tissue_images", "imgs"}
OUTLINE_FOLDERS = {"annotations", "annotation", "labels", "geojson", "xml"}
PARTS = {"train", "training", "test", "testing"}
SUFFIXES = (".xml", ".geojson")

_PATIENT = re.compile(r"TCGA-\w{2}-\w{4}")


def recognises(raw: RawFolder) -> bool:
    """Whether an image has outlines of its name, or a file of COCO's is there."""
    images = {_key(name) for name in raw.files() if name.lower().endswith(IMAGE_SUFFIXES)}
    if any(_key(name) in images for name in raw.files() if name.lower().endswith(SUFFIXES)):
        return True
    return bool(images) and bool(_coco_files(raw))


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Give every image its outlines; what has none is a fault. Raises ValueError where COCO's file is no such file."""
    images = [name for name in raw.files() if name.lower().endswith(IMAGE_SUFFIXES)]
    files = _coco_files(raw)
    cases, faults, findings = _of_coco(raw, files, images) if files else _one_file_an_image(raw, images)
    cases, numbers = with_class_numbers(cases, settings)
    findings += numbers
    cases = [replace(case, group=_patient(case.image)) for case in cases]
    kind: LabelKind = "semantic" if settings.label_kind == "semantic" else "instance"
    return RawDataset(tuple(cases), tuple(faults), tuple(findings), label_kind=kind)


def _patient(image: str) -> str | None:
    """The patient by whose barcode TCGA's images are named, whatever folder they lie in."""
    found = _PATIENT.match(PurePosixPath(image).name)
    return found[0] if found else None


def with_class_numbers(
    cases: Sequence[RawCase], settings: IngestSettings
) -> tuple[list[RawCase], list[Finding]]:  # fmt: skip
    """Number the classes of outlines over all cases, in the order of their names, and tell where there are several."""
    sure = [outline for case in cases for outline in case.outlines or () if not outline.ignored]
    names = sorted({outline.class_name or "" for outline in sure})
    findings = []
    if len(names) > 1:
        told = ", ".join(f"{number} {name or 'without a name'}" for number, name in enumerate(names, start=1))
        kept = "class ids" if settings.label_kind == "semantic" else "objects keep them"
        findings.append(Finding("", "noted", "several classes", f"{told}: {kept}"))
    numbers = {name: number for number, name in enumerate(names, start=1)}
    return [
        replace(
            case,
            outlines=tuple(
                replace(
                    outline,
                    class_id=numbers.get(outline.class_name or "", 1),
                    class_name=(outline.class_name or UNNAMED) if len(names) > 1 else None,
                )
                for outline in case.outlines
            ),
        )
        if case.outlines is not None
        else case
        for case in cases
    ], findings


def _one_file_an_image(raw: RawFolder, images: Sequence[str]) -> tuple[list[RawCase], list[Fault], list[Finding]]:
    of_key: dict[str, list[str]] = defaultdict(list)
    for name in raw.files():
        if name.lower().endswith(SUFFIXES):
            of_key[_key(name)].append(name)
    ids = case_ids([stem_of(name) for name in images], IMAGE_FOLDERS | PARTS)
    cases, faults, findings = [], [], []
    for name in images:
        case_id, files = ids[stem_of(name)], of_key.pop(_key(name), [])
        if len(files) != 1:
            found = ", ".join(files) or "none"
            fault = "several outlines" if files else "missing outlines"
            faults.append(Fault(case_id, fault, name, "one .xml or .geojson of the stem", found))
            continue
        try:
            outlines, others = parse_outlines(files[0], raw.read(files[0]))
        except FaultyFile as fault:
            faults.append(fault.at(case_id, files[0]))
            continue
        if others:
            detail = f"{files[0]}: {others} shape(s) that are no polygons were left out"
            findings.append(Finding(case_id, "repaired", "no polygon", detail))
        kept = [outline for outline in outlines if (outline.class_name or "").lower() not in REGIONS]
        if len(kept) < len(outlines):
            detail = f"{files[0]}: {len(outlines) - len(kept)} outline(s) of what was looked at are no objects"
            findings.append(Finding(case_id, "noted", "regions", detail))
        cases.append(RawCase(case_id, name, labelled=True, outlines=tuple(kept)))
    left = sorted(name for files in of_key.values() for name in files)
    if left:
        detail = f"{len(left)} file(s) of outlines without an image: {', '.join(left[:3])}"
        findings.append(Finding("", "noted", STRANGERS, detail))
    return cases, faults, findings


def parse_outlines(name: str, content: bytes) -> tuple[list[Outline], int]:
    """Read outlines as the file's suffix says, Aperio's XML or GeoJSON; and how many shapes were left out."""
    return (aperio_outlines if name.lower().endswith(".xml") else geojson_outlines)(content)


def aperio_outlines(content: bytes) -> tuple[list[Outline], int]:
    """Read Aperio's XML: outlines, and how many regions were left out for having fewer than three corners.

    The Name of an Annotation, where it has one, is the class. Regions with NegativeROA="1" are holes in the others of
    their Annotation. Raises FaultyFile for other content.
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
        holes: list[np.ndarray] = []
        for region in annotation.iter("Region"):
            try:
                corners = [(float(corner.attrib["X"]), float(corner.attrib["Y"])) for corner in region.iter("Vertex")]
                if len(corners) < 3:
                    others += 1
                elif region.get("NegativeROA") == "1":
                    holes += _outline([corners], name).rings
                else:
                    own.append(_outline([corners], name))
            except (KeyError, ValueError) as error:
                found = f"a corner of region {region.get('Id')} without: {error}"
                raise FaultyFile("no coordinates", "numbers X and Y at every Vertex", found) from error
        outlines += (replace(outline, holes=tuple(ring for ring in holes if _meet(outline, ring))) for outline in own)
    return outlines, others


def _meet(outline: Outline, ring: np.ndarray) -> bool:
    """Whether the boxes of an outline and of a ring share anything."""
    points = np.concatenate(outline.rings)
    return bool((points.min(axis=0) < ring.max(axis=0)).all() and (points.max(axis=0) > ring.min(axis=0)).all())


def geojson_outlines(content: bytes) -> tuple[list[Outline], int]:
    """Read GeoJSON, a FeatureCollection, a list of Features or one: outlines, and how many were no polygons.

    The class is properties.classification.name, as QuPath writes, or properties.class or name. Raises FaultyFile for
    other content.
    """
    document = _json(content)
    features = document.get("features", [document]) if isinstance(document, dict) else document
    if not isinstance(features, list):
        raise FaultyFile("no GeoJSON", "a Feature, or a list of them", type(features).__name__, "export it as GeoJSON")
    outlines, others = [], 0
    for number, feature in enumerate(features):
        try:
            geometry, properties = feature["geometry"], feature.get("properties") or {}
            if geometry["type"] == "Polygon":
                rings = geometry["coordinates"]
            elif geometry["type"] == "MultiPolygon":
                rings = [ring for polygon in geometry["coordinates"] for ring in polygon]
            else:
                others += 1
                continue
            named = properties.get("classification") or {}
            name = named.get("name") if isinstance(named, dict) else named
            outlines.append(_outline(rings, name or properties.get("class") or properties.get("name")))
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            expected = "a Feature with geometry and coordinates"
            raise FaultyFile("no GeoJSON", expected, f"feature {number}: {type(error).__name__} {error}") from error
    return outlines, others


def _of_coco(
    raw: RawFolder, files: Sequence[str], images: Sequence[str]
) -> tuple[list[RawCase], list[Fault], list[Finding]]:
    cases: list[RawCase] = []
    faults: list[Fault] = []
    findings: list[Finding] = []
    listed_in: dict[str, str] = {}
    for file in files:
        found, wrong, strangers = _of_one_coco(raw, file, images)
        faults += wrong
        if strangers:
            detail = f"{file}: {strangers} annotation(s) of images that are not listed"
            findings.append(Finding("", "noted", STRANGERS, detail))
        for case in found:
            other = listed_in.setdefault(case.image, file)
            if other == file:
                cases.append(case)
            else:
                expected, places = "a file of COCO's that lists it", f"{other} and {file}"
                faults.append(Fault(case.case_id, "listed twice", case.image, f"one {expected}", places, "delete one"))
    unlisted = sorted({*images} - listed_in.keys())
    if unlisted:
        names = " or ".join(files)
        detail = f"{len(unlisted)} image(s) that {names} does not list were left out: {', '.join(unlisted[:3])}"
        findings.append(Finding("", "noted", "image without entry", detail))
    if cases and not any(case.outlines for case in cases) and any(finding.fault == STRANGERS for finding in findings):
        raise ValueError(
            f"{', '.join(map(raw.origin, files))}: expected annotations whose image_id is the id of a listed image, "
            "found none; mend the ids (numbers and text differ)"
        )
    ids = case_ids([stem_of(case.image) for case in cases], IMAGE_FOLDERS | PARTS)
    faults = [replace(fault, case_id=ids.get(fault.case_id, fault.case_id)) for fault in faults]
    return [replace(case, case_id=ids[stem_of(case.image)]) for case in cases], faults, findings


def _of_one_coco(raw: RawFolder, file: str, images: Sequence[str]) -> tuple[list[RawCase], list[Fault], int]:
    """Cases of one file by their images' names, faults, and how many annotations are of images that it does not list.

    An image whose entry or annotations cannot be used is a fault, and a case without outlines.
    Raises ValueError where it is no such file.
    """
    try:
        document = _json(raw.read(file))
        ids = [image["id"] for image in document["images"]]
        listed = dict(zip(ids, document["images"], strict=True))
        categories = {entry["id"]: str(entry["name"]) for entry in document.get("categories", [])}
        drawn: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for entry in document["annotations"]:
            drawn[entry["image_id"]].append(entry)
    except (FaultyFile, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{raw.origin(file)}: expected COCO's images and annotations, found {error}") from error
    if len(listed) < len(ids):
        repeated = sorted(str(key) for key, count in Counter(ids).items() if count > 1)
        raise ValueError(
            f"{raw.origin(file)}: expected every image id once, found {some(repeated)} several times, so that "
            "annotations could be of either; number the images of joined files anew"
        )
    places = _places({key: str(image.get("file_name")) for key, image in listed.items()}, images, file)
    cases: list[RawCase] = []
    faults: list[Fault] = []
    for key, image in listed.items():
        place = places[key]
        if isinstance(place, list):
            name = str(image.get("file_name"))
            found = f"{len(place)}: {', '.join(place[:3])}" if place else "none"
            faults.append(Fault(name, "missing image", file, f"one file {name}", found, "add it, or mend file_name"))
            continue
        try:
            size = _size_of(image)
            outlines = tuple(_of_annotation(entry, categories, size) for entry in drawn[key])
        except FaultyFile as fault:
            faults.append(fault.at(stem_of(place), file))
            outlines, size = (), None
        cases.append(RawCase(stem_of(place), place, labelled=True, outlines=outlines, size=size))
    return cases, faults, sum(len(entries) for key, entries in drawn.items() if key not in listed)


def _size_of(image: dict[str, Any]) -> tuple[int, int] | None:
    """Height and width of an image as COCO's file tells them; None where it does not. Raises FaultyFile for others."""
    if image.get("height") is None or image.get("width") is None:
        return None
    try:
        return int(image["height"]), int(image["width"])
    except (TypeError, ValueError, OverflowError) as error:
        found = f"{image['height']!r} and {image['width']!r}"
        raise FaultyFile("no number", "height and width of the image", found, "mend its entry") from error


def _of_annotation(entry: dict[str, Any], categories: dict[Any, str], size: tuple[int, int] | None) -> Outline:
    """The outline of one of COCO's annotations: polygons, or run lengths, as crowds are.

    size: height and width of its image, which run lengths must be of. Raises FaultyFile where there is no such outline.
    """
    told = f"annotation {entry.get('id')}"
    shape = entry.get("segmentation")
    if not shape:
        found = f"{told} without one" + (", with a box" if entry.get("bbox") else "")
        raise FaultyFile("no segmentation", "polygons or run lengths", found, "boxes alone tell no pixels")
    try:
        if isinstance(shape, dict):
            of = tuple(map(int, shape["size"]))
            if size is not None and of != size:
                expected = f"run lengths of {size[0]} x {size[1]} pixels, as the image"
                raise FaultyFile("size mismatch", expected, f"{told} of {of[0]} x {of[1]}", "encode it for the image")
            outline = _outline(_rings_of_runs(shape), categories.get(entry.get("category_id")))
        else:
            rings = [np.asarray(ring, float).reshape(-1, 2) for ring in shape if len(ring) >= 6]
            # Parts of one object, of which some may overlap.
            outline = replace(_outline(rings, categories.get(entry.get("category_id"))), joined=True)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise FaultyFile("no outline", "lists of x and y, or run lengths", f"{told}: {error}", "mend it") from error
    return replace(outline, ignored=outline.ignored or bool(entry.get("iscrowd")))


def _rings_of_runs(packed: dict[str, Any]) -> list[np.ndarray]:
    """Rings around the pixels of a run-length mask, which hold the centres of these and of no others."""
    from skimage.measure import find_contours

    (height, width), counts = packed["size"], packed["counts"]
    if isinstance(counts, str):
        mask = decode_coco(counts.encode(), height, width)
    else:
        mask = decode_counts(counts, height, width)
    # Contours run half way from centre to centre, in rows and columns of the padded mask.
    return [ring[:, ::-1] - 0.5 for ring in find_contours(np.pad(mask, 1).astype(np.float32), 0.5)]


def _places(told: dict[Any, str], images: Sequence[str], file: str) -> dict[Any, str | list[str]]:
    """Find the file of each image that COCO's file names: by its path, else by its name where that is the only one.

    Of several those count that lie in a folder after which COCO's file is named (instances_val2017.json: val2017).
    Where there is no such file, or there are several still, they are listed instead. Windows' paths are understood.
    """
    words = {*re.split(r"[^a-z0-9]+", PurePosixPath(file).stem.lower())}
    of_name: dict[str, list[str]] = defaultdict(list)
    for image in images:
        of_name[PurePosixPath(image).name].append(image)
    places: dict[Any, str | list[str]] = {}
    for key, name in told.items():
        name = name.replace("\\", "/").removeprefix("./")
        alike = of_name.get(PurePosixPath(name).name, [])
        exact = [image for image in alike if image == name or image.endswith(f"/{name}")]
        chosen = exact if exact else alike
        if len(chosen) > 1:
            chosen = [image for image in chosen if words & {*PurePosixPath(image.lower()).parts[:-1]}] or chosen
        places[key] = chosen[0] if len(chosen) == 1 else chosen
    return places


def _outline(rings: Iterable[Any], name: object) -> Outline:
    points = [np.asarray(ring, float) for ring in rings]
    if any(ring.ndim != 2 or ring.shape[1] < 2 for ring in points):
        raise ValueError("a ring that is no list of points")
    arrays = tuple(ring[:, :2] for ring in points)
    if not all(np.isfinite(ring).all() for ring in arrays):
        raise ValueError("a coordinate that is no number")
    class_name = str(name) if name else None
    return Outline(arrays, class_name, ignored=(class_name or "").lower() in UNKNOWN)


def _coco_files(raw: RawFolder) -> list[str]:
    """The files of COCO's by their keys: one, or one a part; those of captions hold no segmentation."""
    found: dict[str, bool] = {}
    for name in raw.files():
        if name.lower().endswith(".json"):
            content = raw.read(name)
            if b'"images"' in content and b'"annotations"' in content:
                found[name] = b'"segmentation"' in content
    return [name for name, outlined in found.items() if outlined] or [*found]


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FaultyFile("no JSON", "JSON in UTF-8", str(error), "fetch the file again") from error


def _key(name: str) -> str:
    """What an image and its outlines share: the path without suffix and without the folders that tell the two apart."""
    *folders, stem = stem_of(name).split("/")
    kept = [folder for folder in folders if folder.lower() not in IMAGE_FOLDERS | OUTLINE_FOLDERS]
    return "/".join([*kept, stem])
