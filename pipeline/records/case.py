"""One record an image: what every stage after ingest knows of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from pipeline.records.files import write_text

LabelKind = Literal["instance", "semantic", "coarse", "class", "image", "none"]

WHOLE, UNKNOWN_STRATUM = "all", "unknown"
"""What reports call all strata together, and cases that name none."""
IGNORED = 65535
"""Label value that losses and metrics leave out."""
MAXIMUM_OBJECTS = 65534
"""Objects that a 16-bit label raster can hold beside background and the ignored value."""


@dataclass(frozen=True)
class Case:
    """One image, its label and where it comes from.

    image, label: POSIX paths relative to the data set's ingest folder; label is None where there is no truth.
    label_kind: instance (0 background, 1..n objects), semantic (class ids), coarse (the same, by squares), class (one
    an image, class_name), image (the label is the same tissue as RGB in the wanted stain) or none.
    group: unit of split and bootstrap (patient, slide, field), None where unknown; stratum: for balance and tables.
    height, width: pixels; mpp: microns per pixel or None; source: the raw file, relative to the raw folder.
    classes: the class of object 1, 2, ..., n, where an instance label tells them.
    cell: side in pixels of the squares that a coarse label has one class for each.
    part: the data set's own part or fold that the case was published in, None where there are none.
    full: height and width of the raw image, where the stored one is smaller; plane: which axial plane of the volume
    that source names; bits: that the image was scaled from, where its file has more than 8 a channel.
    """

    case_id: str
    dataset: str
    image: str
    label: str | None
    label_kind: LabelKind
    group: str | None
    stratum: str | None
    height: int
    width: int
    mpp: float | None
    source: str
    classes: list[str] | None = None
    class_name: str | None = None
    cell: int | None = None
    part: str | None = None
    full: list[int] | None = None
    plane: int | None = None
    bits: int | None = None

    @property
    def labelled(self) -> bool:
        """Whether there is truth about the image: a raster, another image, or its class."""
        return self.label_kind != "none"


def divided(cases: Iterable[Case]) -> list[Case]:
    """Return the cases that are divided into parts: those with truth; all of them where none has any."""
    cases = list(cases)
    return [case for case in cases if case.labelled] or cases


def write_cases(file: Path, cases: Iterable[Case]) -> None:
    """Write one JSON object a line, ordered by case id."""
    entries = [asdict(case) for case in sorted(cases, key=lambda case: case.case_id)]
    for entry in entries:
        if entry["bits"] is None:
            # It came later: records of other data sets stay the same bytes, and what was made from them stays true.
            del entry["bits"]
    write_text(file, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries))


def holds_planes(file: Path) -> bool:
    """Whether a data set's cases.jsonl is of planes of volumes, as its first line says; False where it is not there."""
    if not file.exists():
        return False
    with file.open(encoding="utf-8") as stream:
        return json.loads(stream.readline() or "{}").get("plane") is not None


def read_cases(file: Path) -> list[Case]:
    """Read cases.jsonl. Raises ValueError naming the line that is not a case."""
    known = {field.name for field in fields(Case)}
    needed = {field.name for field in fields(Case) if field.default is MISSING}
    cases = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{file}:{number}: expected one JSON object a line, found {line[:60]!r}: {error}"
            ) from error
        if not isinstance(entry, dict) or set(entry) - known or not needed <= set(entry):
            raise ValueError(f"{file}:{number}: expected the keys {sorted(known)}, found {sorted(entry)}")
        cases.append(Case(**entry))
    return cases
