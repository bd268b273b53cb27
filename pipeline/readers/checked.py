"""What is known of one raw case while it is read: its pixels, and what is wrong with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pipeline.label_values import ValueSurvey
from pipeline.labels import Label
from pipeline.readers.layout import RawCase
from pipeline.records.case import IGNORED
from pipeline.records.findings import Fault, FaultyFile, Finding, Remark


@dataclass
class Checked:
    """What is known of one case.

    shape: height and width; full: those of the raw file, where the image is stored smaller. image: (height, width, 3)
    uint8 RGB; label: where the case has one, its raster, or target: uint8 RGB of the image's size. All stay None where
    there are faults, and where they wait for the whole data set.
    bits: depth of image and target where one has more than 8 bits a channel;
    survey: values of a label raster; objects: how many the label has, and
    classes: theirs where they are told; unknown: whether all of its pixels are; these stay when the pixels are dropped.
    """

    case: RawCase
    shape: tuple[int, int] | None = None
    full: tuple[int, int] | None = None
    image: np.ndarray | None = None
    label: Label | None = None
    target: np.ndarray | None = None
    bits: int | None = None
    survey: ValueSurvey | None = None
    objects: int = 0
    classes: list[str] | None = None
    unknown: bool = False
    faults: list[Fault] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)

    @property
    def waits(self) -> bool:
        """Whether the pixels can only be made when the whole data set was seen."""
        return self.bits is not None or self.survey is not None

    @property
    def findings(self) -> list[Finding]:
        """Its remarks as lines of findings.csv."""
        return [remark.on(self.case.case_id) for remark in self.remarks]

    def count(self, label: Label | None) -> None:
        """Keep what is known of a label beside its pixels."""
        if label is not None:
            self.objects, self.classes = label.count, None if label.classes is None else list(label.classes)
            self.unknown = bool((label.raster == IGNORED).all())

    def drop_pixels(self) -> None:
        """Forget the pixels once they are written, so that memory holds a few cases at a time."""
        self.image = self.label = self.target = None

    def note(self, file: str, error: FaultyFile) -> None:
        """Keep a fault of one file."""
        self.faults.append(error.at(self.case.case_id, file))
