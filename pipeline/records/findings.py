"""What ingest found in the raw files: faults that stop it, and findings (repaired, excluded, noted) that are listed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal

from pipeline.records.files import write_text

Action = Literal["repaired", "excluded", "noted"]
SHOWN = 5
"""Names that a message lists."""


@dataclass(frozen=True, order=True)
class Finding:
    """One line of findings.csv; case_id is empty where it concerns the whole data set."""

    case_id: str
    action: Action
    fault: str
    detail: str


@dataclass(frozen=True)
class Remark:
    """A finding before it is known which case it belongs to."""

    action: Action
    fault: str
    detail: str

    def on(self, case_id: str) -> Finding:
        """Say which case it belongs to."""
        return Finding(case_id, self.action, self.fault, self.detail)


@dataclass(frozen=True, order=True)
class Fault:
    """Something in one case that cannot be repaired safely."""

    case_id: str
    fault: str
    file: str
    expected: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.case_id}: {self.fault}: {self.file}: expected {self.expected}, found {self.found}{advice}"

    def excluded(self) -> Finding:
        """The line that counts the case as left out."""
        return Finding(
            self.case_id, "excluded", self.fault, f"{self.file}: expected {self.expected}, found {self.found}"
        )


class FaultyFile(ValueError):
    """A raw file that cannot be used: which fault, what was expected, what was found, what to do."""

    def __init__(self, fault: str, expected: str, found: str, advice: str = "") -> None:
        super().__init__(f"{fault}: expected {expected}, found {found}" + (f"; {advice}" if advice else ""))
        self.fault, self.expected, self.found, self.advice = fault, expected, found, advice

    def at(self, case_id: str, file: str) -> Fault:
        """Say which case and which file it is."""
        return Fault(case_id, self.fault, file, self.expected, self.found, self.advice)


def write_findings(file: Path, findings: Iterable[Finding]) -> None:
    """Write findings as CSV with the columns case_id, action, fault, detail, sorted, each once."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([field.name for field in fields(Finding)])
    writer.writerows(astuple(finding) for finding in sorted(set(findings)))
    write_text(file, stream.getvalue())


def read_findings(file: Path) -> list[Finding]:
    """Read what write_findings wrote. Raises ValueError where the columns are others."""
    wanted = [field.name for field in fields(Finding)]
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    if not rows or rows[0] != wanted or any(len(row) != len(wanted) for row in rows):
        raise ValueError(
            f"{file}: expected the columns {', '.join(wanted)}, "
            f"found {rows[0] if rows else 'nothing'}; run ingest again"
        )
    return [Finding(*row) for row in rows[1:]]  # type: ignore[arg-type]


def some(names: Iterable[str], separator: str = ", ") -> str:
    """Return the first few of some names, in order, and dots where there are more."""
    ordered = sorted(names)
    return separator.join(ordered[:SHOWN]) + (f"{separator}..." if len(ordered) > SHOWN else "")


def refuse_unusable(faults: Sequence[str], count: int, what: str) -> None:
    """Raise ValueError that lists every fault, once all else is done; nothing where there are none.

    count: of all files; what: they are, and what could not be done with them.
    """
    if faults:
        raise ValueError(f"{len(faults)} of {count} {what}:" + "".join(f"\n  {fault}" for fault in faults))
