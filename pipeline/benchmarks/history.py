"""What a benchmark found, kept over its runs: reports/bench/<suite>.json, and the change since the last run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.benchmarks.timing import Row
from pipeline.records.files import write_json
from pipeline.records.manifest import provenance

VERSION = 1
REGRESSION = 0.10
"""Share by which a ratio may fall from one run to the next before the row is marked."""


@dataclass(frozen=True)
class Check:
    """A figure other than speed, such as agreement; aim: smallest (or, with at_most, largest) that is wanted, or None.

    found is None where it could not be measured; detail then says why, and otherwise what was compared.
    """

    what: str
    found: float | None
    unit: str
    aim: float | None = None
    at_most: bool = False
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None where there is none, or nothing was found."""
        if self.found is None or self.aim is None:
            return None
        return self.found <= self.aim if self.at_most else self.found >= self.aim


@dataclass(frozen=True)
class Findings:
    """What a suite found.

    items: what was worked on and a hash of it, so that only like is compared with like. sides: versions of each side,
    or why it took no part.
    """

    items: str
    threads: int
    sides: dict[str, str]
    rows: list[Row]
    checks: list[Check]


@dataclass(frozen=True)
class Circumstances:
    """When and where a suite was run.

    date: ISO 8601 with time zone. commit: None outside a repository. machine: processor, cores that may be used,
    system, Python. load: processes that ran or waited at the start; None where the system does not say.
    """

    date: str
    commit: str | None
    machine: dict[str, Any]
    load: float | None


@dataclass(frozen=True)
class Run:
    """One run of a suite, as it stands in the history."""

    circumstances: Circumstances
    findings: Findings

    def comparable(self, other: Run) -> bool:
        """Whether ratios of the two runs may be compared: the same machine, threads and items."""
        same_machine = self.circumstances.machine == other.circumstances.machine
        mine, others = self.findings, other.findings
        return same_machine and (mine.items, mine.threads) == (others.items, others.threads)


def read_runs(file: Path) -> list[Run]:
    """Read the runs of a suite, oldest first; none where there is no file. Raises ValueError where it is no history."""
    if not file.exists():
        return []
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']!r}")
        return [_run(entry) for entry in content["runs"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: expected the history of a benchmark (version {VERSION}), found {error}; move the file away"
        ) from error


def append_run(file: Path, run: Run) -> None:
    """Add a run to the history of its suite, atomically."""
    write_json(file, {"version": VERSION, "runs": [asdict(earlier) for earlier in [*read_runs(file), run]]})


def _run(entry: dict[str, Any]) -> Run:
    found = entry["findings"]
    rows, checks = [Row(**row) for row in found["rows"]], [Check(**check) for check in found["checks"]]
    return Run(Circumstances(**entry["circumstances"]), Findings(**{**found, "rows": rows, "checks": checks}))


def changes(run: Run, earlier: Sequence[Run]) -> dict[str, float]:
    """Return the relative change of each row's ratio (by Row.key) since the last comparable run that measured it."""
    last: dict[str, float] = {}
    for before in earlier:
        if before.comparable(run):
            last |= {row.key: row.ratio for row in before.findings.rows if row.ratio is not None}
    rows = [row for row in run.findings.rows if row.key in last]
    return {row.key: row.ratio / last[row.key] - 1.0 for row in rows if row.ratio is not None}


def circumstances(root: Path = Path()) -> Circumstances:
    """Describe here and now."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    machine = {
        "processor": _processor(),
        "cores": cores,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    date = datetime.now(UTC).isoformat(timespec="seconds")
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return Circumstances(date, provenance(0, 0.0, root)["commit"], machine, load)


def _processor() -> str:
    details = Path("/proc/cpuinfo")
    if details.exists():
        for line in details.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
