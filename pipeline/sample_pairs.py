"""The embedded pairs: sections of the sample as one laboratory shows them, and the same tissue as another shows it.

Every section of the sample's training patients, and of 16 more, is grown as it is there, whole, and scanned by each
laboratory: the target by TARGET, the inputs by the others. So a pair differs in stain, scanner and noise, and in
nothing else.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.laboratories import LABORATORIES, write_laboratories
from pipeline.records.files import write_text
from pipeline.records.rasters import write_png
from pipeline.sample import Section, replaced_whole, sections
from pipeline.tissue import Tissue

VERSION = 2
"""Raised with every change to a pixel, so that earlier pairs are written anew."""
ROUNDS = 2
"""Rounds of the sample's patients: with 32, a third of them for testing is enough for intervals."""
TARGET = "north"
INPUTS = ("east", "south", "west")
"""Laboratories of the target and of the inputs; abroad is left to the sample's test images, a look never trained on."""


@dataclass(frozen=True)
class SamplePair:
    """One tissue under two laboratories.

    case_id: field and laboratory of the input. image, target: (height, width, 3) uint8 RGB, the same tissue in each
    pixel. patient: the group that no split may divide, since all laboratories show the same sections.
    """

    case_id: str
    patient: str
    laboratory: str
    image: np.ndarray
    target: np.ndarray
    tissue: Tissue


def render_pairs(seed: int = 1412) -> Iterator[SamplePair]:
    """Render 288 pairs of 128 to 288 pixels a side: 96 sections of 32 patients under three laboratories."""
    for section in sections(seed, ROUNDS):
        if section.part != "train":
            continue
        tissue = section.grow()
        target = _scan(section, tissue, TARGET)
        for name in INPUTS:
            image = _scan(section, tissue, name)
            yield SamplePair(f"{section.field}-{name}", section.patient, name, image, target, tissue)


def write_sample_pairs(folder: Path, seed: int = 1412) -> None:
    """Write the pairs into a folder in the layout image_pairs, with the truth about them apart.

    input/<case_id>.png and target/<case_id>.png; groups.csv, for ingest.group_csv: case_id, group = patient, stratum =
    laboratory of the input. truth/, which no stage reads by itself: laboratories.json (stain matrices, amounts, white
    points and scanners by name), pairs.csv (case_id, patient, laboratory, target), sample_pairs.json.
    Pairs of this version and seed are left as they are; a killed run leaves nothing in the folder.
    Raises ValueError where the folder holds something else.
    """
    with replaced_whole(folder, "sample_pairs.json", {"version": VERSION, "seed": seed}) as aside:
        if aside is None:
            return
        rows = []
        for pair in render_pairs(seed):
            write_png(aside / "input" / f"{pair.case_id}.png", pair.image)
            write_png(aside / "target" / f"{pair.case_id}.png", pair.target)
            rows.append([pair.case_id, pair.patient, pair.laboratory])
        write_text(aside / "groups.csv", _table(["case_id", "group", "stratum"], rows))
        truth = [[*row, TARGET] for row in rows]
        write_text(aside / "truth" / "pairs.csv", _table(["case_id", "patient", "laboratory", "target"], truth))
        write_laboratories(aside / "truth" / "laboratories.json")


def _scan(section: Section, tissue: Tissue, name: str) -> np.ndarray:
    """Scan by a laboratory with noise of its own."""
    generator = np.random.default_rng(np.random.SeedSequence([*section.seed, list(LABORATORIES).index(name)]))
    return LABORATORIES[name].scan(tissue.concentrations, generator)


def _table(header: list[str], rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
