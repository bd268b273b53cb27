"""What the page is made from: the files of the other stages, read as they are, and what to do where one is missing."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipeline.config import Config, dump_config
from pipeline.records.case import Case, read_cases
from pipeline.records.findings import Finding, read_findings
from pipeline.records.manifest import Manifest, read_manifest
from pipeline.records.paths import Paths

WORDS = ("case_id", "group", "stratum", "method", "status", "class", "predicted")
"""Columns of per_case.csv that hold words; all others hold numbers, or nothing."""


@dataclass(frozen=True)
class Absent:
    """A file that the page can do without: where it would be, and what makes it."""

    file: str
    command: str


@dataclass(frozen=True)
class Sources:
    """Everything that the page shows.

    metrics: metrics.json; rows: the scored rows of per_case.csv, words as str and numbers as float or None; for a run
    that makes images one row a case and method;
    settings: YAML as training froze it (the machine's automatic choices replaced by what was taken), else as resolved
    now; model: model.json, which tells the target that was taken;
    cases: by case id; history: history.csv by column; thresholds, proof, timing: the JSON objects; codes: codes.csv, a
    case a row with its place on the map; findings: those of ingest; manifests: by stage, in the stages' order; sheets:
    pictures by section.
    absent: by the same names, what is not there.
    """

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    settings: str
    cases: dict[str, Case] = field(default_factory=dict)
    history: dict[str, list[float]] = field(default_factory=dict)
    thresholds: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    proof: dict[str, Any] = field(default_factory=dict)
    timing: dict[str, Any] = field(default_factory=dict)
    codes: list[dict[str, Any]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    sheets: dict[str, Path] = field(default_factory=dict)
    absent: dict[str, Absent] = field(default_factory=dict)

    @property
    def of_images(self) -> bool:
        """Whether the run makes images, and was judged beside other methods."""
        return "methods" in self.metrics


def scores_hold(paths: Paths, key: str) -> bool:
    """Say whether metrics.json is there and has an entry of this name, which tells what kind of run it is of."""
    file = paths.reports / "metrics.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError:
        return False
    return isinstance(content, dict) and key in content


def read_sources(paths: Paths, config: Config) -> Sources:
    """Read every file that there is.

    Raises ValueError, in one message, where metrics.json or per_case.csv is missing or not what evaluate writes.
    """
    metrics, rows = _required(paths)
    frozen = paths.train / "config.yaml"
    sources = Sources(metrics, rows, frozen.read_text(encoding="utf-8") if frozen.exists() else dump_config(config))
    if there := _there(sources, "cases", paths.cases, paths, "make ingest"):
        sources.cases.update({case.case_id: case for case in read_cases(there)})
    if there := _there(sources, "findings", paths.findings, paths, "make ingest"):
        sources.findings.extend(read_findings(there))
    if there := _there(sources, "proof", paths.proof, paths, "make split"):
        sources.proof.update(_object(there))
    # An ensemble was not trained itself.
    if not config.train.members and (
        there := _there(sources, "history", paths.train / "history.csv", paths, "make train")
    ):
        sources.history.update(_columns(there))
    if there := _there(sources, "thresholds", paths.train / "thresholds.json", paths, "make train"):
        sources.thresholds.update(_object(there))
    if (file := paths.train / "model.json").exists():
        sources.model.update(_object(file))
    if sources.of_images:
        if there := _there(sources, "timing", paths.reports / "timing.json", paths, "make evaluate"):
            sources.timing.update(_object(there))
        if there := _there(sources, "codes", paths.reports / "codes.csv", paths, "make evaluate"):
            rows = _table(there)
            if rows and not {"case_id", "x", "y"} <= rows[0].keys():
                raise ValueError(
                    f"{there}: expected the columns case_id, x, y, stratum and group, found {', '.join(rows[0])}; "
                    "delete it and run `make evaluate` again"
                )
            sources.codes.extend(_typed(row, there) for row in rows)
    for name, sheet, command in (
        ("groups", paths.split / "groups.png", "make split"),
        ("augmented", paths.augment / "contact_sheet.png", "make augment"),
    ):
        if there := _there(sources, name, sheet, paths, command):
            sources.sheets[name] = there
    for stage, file in _manifest_files(paths).items():
        if manifest := read_manifest(file):
            sources.manifests[stage] = manifest
        else:
            sources.absent[f"stage {stage}"] = Absent(_name(file, paths), f"make {stage}")
    return sources


def _manifest_files(paths: Paths) -> dict[str, Path]:
    folders = {
        "ingest": paths.ingest,
        "split": paths.split,
        "normalise": paths.normalise,
        "augment": paths.augment,
        "train": paths.train,
        "predict": paths.predict,
    }
    return {
        **{name: folder / "stage.json" for name, folder in folders.items()},
        "evaluate": paths.reports / "evaluate.stage.json",
    }


def _required(paths: Paths) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read metrics.json and per_case.csv, or say of both what is wrong."""
    faults: list[str] = []
    metrics: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    file = paths.reports / "metrics.json"
    evaluated = read_manifest(_manifest_files(paths)["evaluate"])
    if evaluated is not None and file.name not in evaluated.outputs and not file.exists():
        raise ValueError(
            f"{file}: expected the scores of the test part, found none: no test case has truth (split.test_share=0), "
            f"so that there is nothing to report. Masks are in {paths.reports / 'masks'}; `make submission` needs no "
            "scores"
        )
    if not file.exists():
        faults.append(f"{file}: expected the scores of the test part, found nothing")
    else:
        try:
            metrics = _object(file)
        except ValueError as error:
            faults.append(str(error))
        part = metrics.get("part", "test")
        if metrics and not isinstance(metrics.get(part), dict):
            faults.append(f"{file}: expected the scores below the key {part!r}, found the keys {sorted(metrics)}")
    file = paths.reports / "per_case.csv"
    if not file.exists():
        faults.append(f"{file}: expected one row of scores a case, found nothing")
    else:
        try:
            rows = [_typed(row, file) for row in _table(file)]
        except ValueError as error:
            faults.append(str(error))
        scored = "method" if "methods" in metrics else "class" if "confusion" in metrics else "dice"
        needed = ("case_id", scored)
        if rows and not set(needed) <= rows[0].keys():
            faults.append(f"{file}: expected at least the columns {' and '.join(needed)}, found {', '.join(rows[0])}")
        rows = [row for row in rows if row.get(needed[1]) is not None]
    if faults:
        raise ValueError("\n".join(faults) + "\nMake them with `make evaluate`")
    return metrics, rows


def _there(sources: Sources, name: str, file: Path, paths: Paths, command: str) -> Path | None:
    if file.exists():
        return file
    sources.absent[name] = Absent(_name(file, paths), command)
    return None


def _name(file: Path, paths: Paths) -> str:
    return file.relative_to(paths.root).as_posix()


def _object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: expected a JSON object, found something else: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: expected a JSON object, found a {type(content).__name__}")
    return content


def _table(file: Path) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline=""), restval="")
    return [{key: value for key, value in row.items() if key is not None} for row in reader]


def _typed(row: dict[str, str], file: Path) -> dict[str, Any]:
    try:
        return {key: value if key in WORDS else float(value) if value else None for key, value in row.items()}
    except ValueError as error:
        raise ValueError(
            f"{file}: expected numbers beside {', '.join(WORDS)}, found in case {row['case_id']!r}: {error}"
        ) from error


def _columns(file: Path) -> dict[str, list[float]]:
    rows = _table(file)
    return {
        name: [float(row[name]) if row[name] else float("nan") for row in rows] for name in (rows[0] if rows else {})
    }


def settings_tree(text: str) -> dict[str, Any]:
    """Parse resolved settings; an empty mapping where they are something else."""
    tree = yaml.safe_load(text)
    return tree if isinstance(tree, dict) else {}
