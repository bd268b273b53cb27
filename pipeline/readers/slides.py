"""Whole slides with what was drawn or painted on them: every tile of tissue is a case, the slide its group.

    slides/<name>.svs with annotations/<name>.geojson (QuPath) or .xml (Aperio), or both in one folder
    slides/<name>.svs with masks/<name>.tif: a raster of class or object ids of the slide's form, finer or coarser

Slides are what OpenSlide and tifffile read; plain TIFFs count as slides in a folder slides/ or wsi/.
They are looked at with ingest.mpp microns a pixel (or at 1/ingest.shrink of their finest level) and cut into tiles of
ingest.tile pixels at most; nothing larger than a tile is ever decoded.

Outlines are in pixels of the finest level, as QuPath and ImageScope write them. Where outlines of the classes in
REGIONS say what was looked at, tiles are taken from there alone and pixels outside are unknown, as where two such
regions overlap; without any, all tissue counts as looked at. What is outlined as unsure or ignored is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from pipeline.config import IngestSettings
from pipeline.readers.layout import RawCase, RawDataset, case_ids, stem_of
from pipeline.readers.polygons import OUTLINE_FOLDERS, parse_outlines, with_class_numbers
from pipeline.readers.polygons import SUFFIXES as OUTLINE_SUFFIXES
from pipeline.records.blocks import Block, even_blocks, find_tissue
from pipeline.records.case import LabelKind
from pipeline.records.findings import Fault, FaultyFile, Finding
from pipeline.records.outline import Outline
from pipeline.records.raw import RawFolder
from pipeline.records.slides import View, open_slide

SCANNED = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".dcm")
"""Suffixes that slides alone have."""
PLAIN = (".tif", ".tiff", ".btf")
MASK_SUFFIXES = (*PLAIN, ".png")
SLIDE_FOLDERS = {"slides", "slide", "wsi", "wsis"}
MASK_FOLDERS = {"masks", "mask", "labels"}
CLOSER = 0.9
"""Pixels of the finest level along the side of one, below which a slide counts as enlarged."""
REGIONS = {"region*", "region", "roi"}
"""Names of classes, in small letters, whose outlines say what was looked at; QuPath's is Region*."""


def recognises(raw: RawFolder) -> bool:
    """Whether a slide has outlines or a mask of its name."""
    told = {_key(name) for name in raw.files() if _is_outline(name) or _is_mask(name)}
    return any(_key(name) in told for name in raw.files() if _is_slide(name))


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Name every tile of every slide that has outlines or a mask. Raises ValueError where there are none."""
    slides = [name for name in raw.files() if _is_slide(name)]
    told: dict[str, list[str]] = {}
    for name in raw.files():
        if _is_outline(name) or _is_mask(name):
            told.setdefault(_key(name), []).append(name)
    ids = case_ids([stem_of(name) for name in slides], SLIDE_FOLDERS)
    cases: list[RawCase] = []
    faults: list[Fault] = []
    findings: list[Finding] = []
    unlabelled = []
    for name in slides:
        slide_id, files = ids[stem_of(name)], told.pop(_key(name), [])
        if not files:
            unlabelled.append(name)
            continue
        if len(files) > 1:
            expected, found = "one file of outlines, or one mask", ", ".join(files)
            faults.append(Fault(slide_id, "several labels", name, expected, found, "delete or rename the others"))
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
    if left := sorted(name for names in told.values() for name in names):
        detail = f"{len(left)} of no slide: {', '.join(left[:3])}"
        findings.append(Finding("", "noted", "outlines or mask without slide", detail))
    cases, numbers = with_class_numbers(cases, settings)
    by_outlines = any(case.outlines is not None for case in cases)
    drawn: LabelKind = "semantic" if settings.label_kind == "semantic" else "instance"
    return RawDataset(tuple(cases), tuple(faults), tuple(findings + numbers), label_kind=drawn if by_outlines else None)


def _tiles(
    raw: RawFolder, slide_id: str, name: str, label: str, settings: IngestSettings
) -> tuple[list[RawCase], list[Fault], list[Finding]]:
    """Cut one slide: a case for every tile that shows tissue, or a region that was looked at."""
    findings: list[Finding] = []
    outlines: list[Outline] | None = None
    at_fault = name
    try:
        with open_slide(raw.path(name)) as slide:
            view = View.at(slide, settings.mpp, settings.shrink)
            blocks = even_blocks(view, settings.tile)
            tissue = find_tissue(view, blocks)
            mpp = None if slide.mpp is None else slide.mpp * view.scale
            if settings.mpp is not None and view.scale < CLOSER:
                detail = f"{name}: {settings.mpp:g} microns a pixel asked for, {slide.mpp:.4g} scanned: enlarged"
                findings.append(Finding(slide_id, "noted", "enlarged slide", detail))
        if _is_outline(label):
            at_fault = label
            outlines, others = parse_outlines(label, raw.read(label))
            outlines = [_scaled(outline, view.scale) for outline in outlines]
            if others:
                detail = f"{label}: {others} shape(s) that are no polygons were left out"
                findings.append(Finding(slide_id, "repaired", "no polygon", detail))
    except FaultyFile as fault:
        return [], [fault.at(slide_id, at_fault)], findings
    regions = [outline for outline in outlines or () if (outline.class_name or "").lower() in REGIONS]
    drawn = [outline for outline in outlines or () if outline not in regions]
    shown = blocks if regions else sorted({*tissue, *_touched(blocks, drawn)})
    cases = []
    for block in shown:
        if regions and not _within(regions, block):
            continue
        top, left, _, _ = block
        case = RawCase(
            f"{slide_id}_y{top:06d}_x{left:06d}", name, labelled=True, group=slide_id, mpp=mpp, window=block,
            raster=label if outlines is None else None,
        )  # fmt: skip
        if outlines is not None:
            own = [_moved(outline, block) for outline in _within(drawn, block)]
            if regions:
                own.append(_outside(_within(regions, block), block))
            case = replace(case, outlines=tuple(own))
        cases.append(case)
    if not cases:
        detail = f"{label}: nothing of it lies on the slide's tissue"
        findings.append(Finding(slide_id, "noted", "slide without tiles", detail))
    return cases, [], findings


def _scaled(outline: Outline, scale: float) -> Outline:
    return replace(outline, rings=tuple(ring / scale for ring in outline.rings))


def _box(outline: Outline) -> tuple[float, float, float, float]:
    """Top, left, below and right."""
    points = np.concatenate(outline.rings)
    (left, top), (right, below) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return top, left, below, right


def _within(outlines: Sequence[Outline], block: Block) -> list[Outline]:
    """Outlines whose box meets a block."""
    top, left, height, width = block
    boxes = ((outline, _box(outline)) for outline in outlines if len(outline.rings))
    return [
        outline
        for outline, box in boxes
        if box[0] < top + height and box[2] > top and box[1] < left + width and box[3] > left
    ]


def _touched(blocks: Sequence[Block], outlines: Sequence[Outline]) -> list[Block]:
    return [block for block in blocks if _within(outlines, block)]


def _moved(outline: Outline, block: Block) -> Outline:
    """The outline as it lies in a block."""
    top, left, _, _ = block
    return replace(outline, rings=tuple(ring - (left, top) for ring in outline.rings))


def _outside(regions: Sequence[Outline], block: Block) -> Outline:
    """What of a block lies in none of the regions, as one outline of the unknown."""
    _, _, height, width = block
    frame = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    rings = (ring for region in regions for ring in _moved(region, block).rings)
    return Outline((frame, *rings), ignored=True)


def _is_slide(name: str) -> bool:
    folder, small = PurePosixPath(name).parent.name.lower(), name.lower()
    return small.endswith(SCANNED) or (folder in SLIDE_FOLDERS and small.endswith(PLAIN))


def _is_outline(name: str) -> bool:
    return name.lower().endswith(OUTLINE_SUFFIXES)


def _is_mask(name: str) -> bool:
    return PurePosixPath(name).parent.name.lower() in MASK_FOLDERS and name.lower().endswith(MASK_SUFFIXES)


def _key(name: str) -> str:
    """What a slide and its label share: the path without suffix and the folders that tell the two apart."""
    *folders, stem = stem_of(name).split("/")
    kept = [folder for folder in folders if folder.lower() not in SLIDE_FOLDERS | OUTLINE_FOLDERS | MASK_FOLDERS]
    return "/".join([*kept, stem])
