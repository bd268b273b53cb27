"""Report: everything the other stages wrote, on one page that needs no network.

Reads:  reports/<run>/ (metrics.json, per_case.csv, masks/, normalised/, timing.json, codes.csv), images, labels, and
        what each stage left of its own doing
Writes: reports/<run>/report.html
"""

from __future__ import annotations

from pathlib import Path

from pipeline.config import Config
from pipeline.records.files import write_text
from pipeline.records.paths import Paths


def inputs(config: Config, paths: Paths) -> list[Path]:
    """Return what decides staleness: every stage whose result the page shows."""
    folders = (paths.ingest, paths.split, paths.normalise, paths.augment, paths.train)
    own = (paths.findings, paths.reports / "evaluate.stage.json", paths.reports / "codes.csv")
    return [*(folder / "stage.json" for folder in folders), *own]


def run(config: Config, paths: Paths) -> list[str]:
    """Write the page."""
    from pipeline.reporting import class_page, normaliser_page, page

    special = (one.build_page for one in (normaliser_page, class_page) if one.applies(paths))
    build_page = next(special, page.build_page)
    file = paths.reports / "report.html"
    write_text(file, build_page(paths, config))
    return [f"{file} ({file.stat().st_size / 1024:.0f} KB): open it in any browser"]
