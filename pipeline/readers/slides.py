"""Whole slides with what was drawn or painted on them: every tile of tissue is a case, the slide its group.

    slides/<name>.svs with annotations/<name>.geojson (QuPath) or .xml (Aperio), or both in one folder
    slides/<name>.svs with masks/<name>.tif (or .png): a raster of class or object ids of the slide's form, any size

Slides are what OpenSlide and tifffile read; plain TIFFs count as slides in a folder slides/ or wsi/. They are looked at
with ingest.mpp microns a pixel (or at 1/ingest.shrink of their finest level) and cut into tiles of ingest.tile pixels
at most; of slides and of masks in TIFF no more than a tile is decoded at a time.

Outlines are in pixels of the finest level, as QuPath and ImageScope write them. Where outlines of the classes in
REGIONS say what was looked at, tiles are taken from there alone and pixels outside all of them are unknown; without
any, all tissue counts as looked at. What is outlined as unsure or ignored is unknown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from pipeline.config import IngestSettings
from pipeline.readers.layout import RawCase, RawDataset, case_ids, stem_of
from pipeline.readers.outline_files import FOLDERS as OUTLINE_FOLDERS
from pipeline.readers.outline_files import REGIONS, parse_outlines
from pipeline.readers.outline_files import SUFFIXES as OUTLINE_SUFFIXES
from pipeline.readers.polygons import with_class_numbers
from pipeline.records.blocks import Block, even_blocks, find_tissue
from pipeline.records.case import LabelKind
from pipeline.records.findings import Fault, FaultyFile, Finding
from pipeline.records.outline import Outline
from pipeline.records.raw import RawFolder
from pipeline.records.slides import PLAIN, SCANNED, IdRaster, View, open_slide

MASK_SUFFIXES = (*PLAIN, ".png")
SLIDE_FOLDERS = {"slides", "slide", "wsi", "wsis"}
MASK_FOLDERS = {"masks", "mask", "labels"}
CLOSER = 0.9
"""Pixels of the finest level along the side of one, below which a slide counts as enlarged."""
ENLARGED = 4
"""Times that a slide may be enlarged at most: beyond, there is nothing to be seen for the resolution asked for."""


def recognises(raw: RawFolder) -> bool:
    """Whether a slide has outlines or a mask of its name."""
    told = {_key(name) for name in raw.files() if _is_outline(name) or _is_mask(name)}
    return any(_key(name) in told for name in raw.files() if _is_slide(name))


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Name every tile of every slide that has outlines or a mask.

    Raises ValueError where there are none, or some slides have outlines and others masks.
    """
    slides = [name for name in raw.files() if _is_slide(name)]
    alike = Counter(map(_key, slides))
    told: dict[str, list[str]] = {}
    for name in raw.files():
        if _is_outline(name) or _is_mask(name):
            told.setdefault(_key(name), []).append(name)
    ids = case_ids([stem_of(name) for name in slides], SLIDE_FOLDERS | {"images"})
    cases: list[RawCase] = []
    faults: list[Fault] = []
    findings: list[Finding] = []
    unlabelled = []
    for name in slides:
        slide_id, files = ids[stem_of(name)], told.get(_key(name), [])
        if not files:
            unlabelled.append(name)
            continue
        if len(files) > 1 or alike[_key(name)] > 1:
            expected = "one slide of the name, with one file of outlines or one mask"
            same = [other for other in slides if _key(other) == _key(name)]
            found = ", ".join([*same, *files])
            faults.append(Fault(slide_id, "several files", name, expected, found, "delete or rename the others"))
            continue
        found_cases, found_faults, found_findings = _tiles(raw, slide_id, name, files[0], settings)
        cases += found_cases
        faults += found_faults
        findings += found_findings
    if not cases and not faults:
        raise ValueError(
            f"{raw.folder}: expected slides/<name>.svs with annotations/<name>.geojson, .xml or masks/<name>.tif, "
            f"found {len(slides)} slide(s), none with outlines or a mask of its name that touch its tissue"
        )
    if unlabelled:
        detail = f"{len(unlabelled)} for `predict --slides`, not read: {', '.join(unlabelled[:3])}"
        findings.append(Finding("", "noted", "slide without outlines or mask", detail))
    if left := sorted(name for key, names in told.items() if not alike[key] for name in names):
        detail = f"{len(left)} of no slide: {', '.join(left[:3])}"
        findings.append(Finding("", "noted", "outlines or mask without slide", detail))
    painted = sorted({case.image for case in cases if case.outlines is None})
    by_outlines = any(case.outlines is not None for case in cases)
    if painted and by_outlines:
        raise ValueError(
            f"{raw.folder}: expected outlines for every slide, or a mask for every slide, found masks for "
            f"{', '.join(painted[:3])} and outlines for others; bring them to one form"
        )
    cases, numbers = with_class_numbers(cases, settings)
    drawn: LabelKind = "semantic" if settings.label_kind == "semantic" else "instance"
    return RawDataset(tuple(cases), tuple(faults), tuple(findings + numbers), label_kind=drawn if by_outlines else None)


def _tiles(
    raw: RawFolder, slide_id: str, name: str, label: str, settings: IngestSettings
) -> tuple[list[RawCase], list[Fault], list[Finding]]:
    """Cut one slide: a case for every tile that shows tissue or holds a label, or a region that was looked at."""
    findings: list[Finding] = []
    drawn: list[Outline] | None = None
    regions: list[Outline] = []
    at_fault = name
    try:
        with open_slide(raw.path(name)) as slide:
            view = View.at(slide, settings.mpp, settings.shrink)
            blocks = even_blocks(view, settings.tile)
            tissue = set(find_tissue(view, blocks))
            mpp = None if slide.mpp is None else slide.mpp * view.scale
            if settings.mpp is not None and view.scale < 1.0 / ENLARGED:
                found = f"{slide.mpp:.4g} scanned, to be enlarged {1.0 / view.scale:.0f} times"
                expected = f"at most {ENLARGED} times the {settings.mpp:g} microns a pixel asked for"
                raise FaultyFile(
                    "coarse slide", expected, found, "set ingest.mpp nearer to that, or leave the slide out"
                )
            if settings.mpp is not None and view.scale < CLOSER:
                detail = f"{name}: {settings.mpp:g} microns a pixel asked for, {slide.mpp:.4g} scanned: enlarged"
                findings.append(Finding(slide_id, "noted", "enlarged slide", detail))
        at_fault = label
        if _is_outline(label):
            outlines, remarks = parse_outlines(label, raw.read(label))
            findings += [replace(remark, detail=f"{label}: {remark.detail}").on(slide_id) for remark in remarks]
            scaled = [outline.smaller(view.scale) for outline in outlines if any(map(len, outline.rings))]
            regions = [outline for outline in scaled if (outline.class_name or "").lower() in REGIONS]
            drawn = [outline for outline in scaled if (outline.class_name or "").lower() not in REGIONS]
            places, looked_at = _places(drawn, blocks), _places(regions, blocks)
            labelled = {block for block, within in zip(blocks, places, strict=True) if within.size}
        else:
            mask = IdRaster(raw.path(label))
            labelled = {block for block in blocks if block not in tissue and view.ids(mask, *block).any()}
            mask.close()
    except FaultyFile as fault:
        return [], [fault.at(slide_id, at_fault)], findings
    cases = []
    for number, block in enumerate(blocks):
        if not (looked_at[number].size if regions else block in tissue or block in labelled):
            continue
        top, left, _, _ = block
        case = RawCase(
            f"{slide_id}_y{top:06d}_x{left:06d}", name, labelled=True, group=slide_id, mpp=mpp, window=block,
            raster=label if drawn is None else None,
        )  # fmt: skip
        if drawn is not None:
            own = [drawn[index].moved(left, top) for index in places[number]]
            if regions:
                own.append(_outside([regions[index] for index in looked_at[number]], block))
            case = replace(case, outlines=tuple(own))
        cases.append(case)
    taken = {case.window for case in cases}
    if left_out := len(blocks) - len(taken):
        why = "meet no region" if regions else "hold neither tissue nor label"
        detail = f"{name}: {left_out} of {len(blocks)} {why}"
        findings.append(Finding(slide_id, "noted", "tiles left out", detail))
    if beyond := sum(block not in taken for block in labelled):
        detail = f"{label}: outlines on {beyond} tile(s) that no region meets were left out"
        findings.append(Finding(slide_id, "noted", "outlines outside regions", detail))
    return cases, [], findings


def _places(outlines: Sequence[Outline], blocks: Sequence[Block]) -> list[np.ndarray]:
    """For each block the numbers of the outlines whose box meets it."""
    points = [np.concatenate(outline.rings) for outline in outlines]
    boxes = np.array([[*ring.min(axis=0), *ring.max(axis=0)] for ring in points]).reshape(-1, 4)
    left, top, right, below = boxes.T
    return [
        np.flatnonzero((left < x + width) & (right > x) & (top < y + height) & (below > y))
        for y, x, height, width in blocks
    ]


def _outside(regions: Sequence[Outline], block: Block) -> Outline:
    """What of a block lies in none of the regions, as one outline of the unknown."""
    top, left, height, width = block
    frame = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    return Outline((frame,), ignored=True, holes=tuple(region.moved(left, top) for region in regions))


def _is_slide(name: str) -> bool:
    folder, small = PurePosixPath(name).parent.name.lower(), name.lower()
    return small.endswith(SCANNED) or (folder in SLIDE_FOLDERS and small.endswith(PLAIN))


def _is_outline(name: str) -> bool:
    return name.lower().endswith(OUTLINE_SUFFIXES)


def _is_mask(name: str) -> bool:
    return PurePosixPath(name).parent.name.lower() in MASK_FOLDERS and name.lower().endswith(MASK_SUFFIXES)


def _key(name: str) -> str:
    """What a slide and its label share: the path without suffixes and without the folders that tell the two apart."""
    *folders, stem = stem_of(name).split("/")
    # a.svs.geojson and a.ome.tif are a, as a.svs is.
    for suffix in (*SCANNED, *PLAIN, ".ome"):
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
    apart = SLIDE_FOLDERS | OUTLINE_FOLDERS | MASK_FOLDERS | {"images"}
    return "/".join([*(folder for folder in folders if folder.lower() not in apart), stem])
