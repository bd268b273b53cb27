"""HuBMAP 2023 (Kaggle: hubmap-hacking-the-human-vasculature): blood vessels of kidney, outlined in tiles of slides.

    train/<id>.tif, test/<id>.tif, tile_meta.csv: id,source_wsi,dataset,i,j
    polygons.jsonl: {"id": ..., "annotations": [{"type": ..., "coordinates": [[[x, y], ...]]}, ...]}
    sample_submission.csv: id,height,width,prediction_string; wsi_meta.csv is left unread

blood_vessel is what is predicted, glomerulus is left out, unsure is unknown. Tiles of one slide (source_wsi) are one
group; dataset, which says how well a tile was annotated, is the stratum. Tiles without a line are unlabelled.
Source: the competition's data page.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.config import IngestSettings
from pipeline.readers.layout import (
    RawCase,
    RawDataset,
    images_of,
    read_table,
    root_of,
    rows_of,
    rows_without_image,
    sample_of,
)
from pipeline.records.findings import Fault, Finding
from pipeline.records.outline import Outline
from pipeline.records.raw import RawFolder

POLYGONS, TILES, SAMPLE = "polygons.jsonl", "tile_meta.csv", "sample_submission.csv"
PARTS = ("train", "test")
WANTED, UNKNOWN, LEFT_OUT = "blood_vessel", "unsure", "glomerulus"
_SHOWN = 5


def recognises(raw: RawFolder) -> bool:
    """Whether polygons.jsonl and tile_meta.csv lie beside a folder train."""
    root = root_of(raw, "train")
    return root is not None and {f"{root}{POLYGONS}", f"{root}{TILES}"} <= {*raw.files()}


def read(raw: RawFolder, settings: IngestSettings) -> RawDataset:
    """Give every tile its outlines, slide and stratum. Raises ValueError, with all bad lines, for other files."""
    root = root_of(raw, "train")
    if root is None or f"{root}{POLYGONS}" not in raw or f"{root}{TILES}" not in raw:
        raise ValueError(f"{raw.folder}: expected train/, {POLYGONS} and {TILES}, found not all three; put them there")
    outlined, left_out = _outlines(raw, f"{root}{POLYGONS}")
    of_id, faults = rows_of(read_table(raw, f"{root}{TILES}", ("id", "source_wsi", "dataset")), "id", f"{root}{TILES}")
    cases: list[RawCase] = []
    plain = 0
    for part in PARTS:
        images, several = images_of(raw, f"{root}{part}/")
        faults += several
        for case_id, name in images.items():
            row = of_id.get(case_id, {})
            case = RawCase(
                case_id, name, labelled=False, group=row.get("source_wsi") or None, stratum=row.get("dataset") or None
            )
            if part == "train" and case_id not in outlined:
                plain += 1
                continue
            if part == "train":
                case = replace(case, labelled=True, outlines=outlined.pop(case_id))
                if not case.group:
                    faults.append(Fault(case_id, "no slide", name, f"source_wsi of it in {TILES}", "none", "add it"))
            cases.append(case)
    faults += rows_without_image(outlined, f"{root}{POLYGONS}", "train/")
    findings = [Finding("", "noted", "other outlines", f"{left_out} of {LEFT_OUT} left out")] if left_out else []
    if plain:
        detail = f"{plain} tile(s) of train/ without a line in {POLYGONS}, not read: nothing of them is asked for"
        findings.append(Finding("", "noted", "tiles without outlines", detail))
    sample, note = sample_of(raw, f"{root}{SAMPLE}")
    return RawDataset(tuple(cases), tuple(faults), (*findings, *note), sample, "instance")


def _outlines(raw: RawFolder, name: str) -> tuple[dict[str, tuple[Outline, ...]], int]:
    """Outlines by tile, and how many were left out. Raises ValueError with every line that cannot be used."""
    found: dict[str, tuple[Outline, ...]] = {}
    wrong: list[str] = []
    left_out = 0
    for number, line in enumerate(raw.read(name).decode("utf-8-sig", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            tile = json.loads(line)
            case_id = str(tile["id"])
            if case_id in found:
                raise ValueError(f"a second line of {case_id}")
            outlines = [_outline(annotation) for annotation in tile["annotations"]]
        except (KeyError, TypeError, ValueError, IndexError) as error:
            wrong.append(f"line {number}: {type(error).__name__} {error}")
            continue
        found[case_id] = tuple(outline for outline in outlines if outline is not None)
        left_out += len(outlines) - len(found[case_id])
    if wrong:
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ValueError(
            f"{raw.origin(name)}: expected a tile a line, with id and annotations of type and coordinates, found "
            f"{'; '.join(wrong[:_SHOWN])}{more}; fetch the file again"
        )
    return found, left_out


def _outline(annotation: dict[str, Any]) -> Outline | None:
    kind = annotation["type"]
    if kind not in (WANTED, UNKNOWN, LEFT_OUT):
        raise ValueError(f"type {kind!r}, expected {WANTED}, {LEFT_OUT} or {UNKNOWN}")
    # A corner names a pixel; outlines run on the grid between them.
    rings = tuple(np.asarray(ring, float).reshape(-1, 2) + 0.5 for ring in annotation["coordinates"])
    if not rings or any(len(ring) < 3 or not np.isfinite(ring).all() for ring in rings):
        raise ValueError("a ring of fewer than three corners, or with a corner that is no number")
    return None if kind == LEFT_OUT else Outline(rings, kind, ignored=kind == UNKNOWN)
