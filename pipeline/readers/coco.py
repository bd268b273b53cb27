"""COCO's files of objects: images, annotations and categories; one file, or one a part.

An annotation's polygons are the parts of one object; run lengths are of the image's own size; a crowd is unknown.
Source: cocodataset.org, "Data format".
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from pipeline.readers.layout import RawCase, case_ids, stem_of
from pipeline.readers.outline_files import IMAGE_FOLDERS, PARTS, json_of, outline_of
from pipeline.records.findings import Fault, FaultyFile, Finding, some
from pipeline.records.outline import Outline
from pipeline.records.raw import RawFolder
from pipeline.records.rle import decode_coco, decode_counts

STRANGERS = "outlines without image"
"""Finding on annotations of images that are not there."""


def coco_files(raw: RawFolder) -> list[str]:
    """The files of COCO's by their keys: one, or one a part; those of captions hold no segmentation."""
    found: dict[str, bool] = {}
    for name in raw.files():
        if name.lower().endswith(".json"):
            content = raw.read(name)
            if b'"images"' in content and b'"annotations"' in content:
                found[name] = b'"segmentation"' in content
    return [name for name, outlined in found.items() if outlined] or [*found]


def cases_of_coco(
    raw: RawFolder, files: Sequence[str], images: Sequence[str]
) -> tuple[list[RawCase], list[Fault], list[Finding]]:
    """Cases of all files, with what is wrong with them and what a user should know.

    images: of the raw folder. Raises ValueError where a file is none of COCO's, tells an image's id twice, or all
    annotations are of images that no file lists.
    """
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
            if case.image not in listed_in:
                listed_in[case.image] = file
                cases.append(case)
            elif (other := listed_in[case.image]) == file:
                expected, twice = f"one entry of {file} that names it", "two of different ids"
                faults.append(Fault(case.case_id, "listed twice", case.image, expected, twice, "give both one id"))
            else:
                expected, places = "one file of COCO's that lists it", f"{other} and {file}"
                faults.append(Fault(case.case_id, "listed twice", case.image, expected, places, "delete one"))
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
        document = json_of(raw.read(file))
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
            outline = outline_of(_rings_of_runs(shape), categories.get(entry.get("category_id")))
        else:
            rings = [np.asarray(ring, float).reshape(-1, 2) for ring in shape if len(ring) >= 6]
            # Parts of one object, of which some may overlap.
            outline = outline_of(rings, categories.get(entry.get("category_id")), parts=(1,) * len(rings))
    except FaultyFile:
        raise
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
        # As names of raw files are: letters composed, whatever a Mac wrote.
        name = unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")
        alike = of_name.get(PurePosixPath(name).name, [])
        exact = [image for image in alike if image == name or image.endswith(f"/{name}")]
        chosen = exact if exact else alike
        if len(chosen) > 1:
            chosen = [image for image in chosen if words & {*PurePosixPath(image.lower()).parts[:-1]}] or chosen
        places[key] = chosen[0] if len(chosen) == 1 else chosen
    return places
