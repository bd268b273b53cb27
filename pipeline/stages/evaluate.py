"""Evaluate: probability maps to masks, and the test part's scores; or made images, and what stands beside them.

Reads:  data/predict/<run>/, data/train/<run>/thresholds.json, labels, split.csv, findings.csv; for a run that makes
        images also the other runs that evaluate names, below data/train/
Writes: reports/<run>/: masks/<case_id>.png (16-bit object ids, or class ids), per_case.csv, metrics.json; where objects
        have classes also objects.csv: case_id, object, class, probability, the mean over the object; of planes of
        volumes also volumes/<name>.nii.gz, masks in the space of the raw file;
        for a run that makes images normalised/<method>/<case_id>.png instead of masks, and timing.json, which no later
        stage depends on; of an autoencoder also codes.csv, every case's place on a map of the codes
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Config
from pipeline.records.case import Case, holds_planes
from pipeline.records.files import write_bytes, write_json, write_text
from pipeline.records.findings import some
from pipeline.records.objects import FILE as OBJECTS
from pipeline.records.objects import write_objects
from pipeline.records.paths import Paths
from pipeline.records.split import read_groups, read_parts

if TYPE_CHECKING:
    from pipeline.trained import TrainedRun

PART = "test"
CODES = "codes.csv"


def inputs(config: Config, paths: Paths) -> list[Path]:
    """Return what decides staleness: the maps, the run, the labels, the split, and the other runs that are named."""
    from pipeline.stains import METHODS

    named = [*(config.evaluate.beside or ()), config.evaluate.segmenter]
    others = dict.fromkeys(name for name in named if name is not None and name not in METHODS)
    return [
        paths.predict / "stage.json",
        paths.train / "stage.json",
        paths.ingest / "stage.json",
        paths.findings,
        paths.split / "stage.json",
        # Spaces of volumes are read from the raw files: they stand in no output of ingest.
        *([paths.raw] if holds_planes(paths.cases) else []),
        *(paths.run_folder(name) / "stage.json" for name in others),
    ]


def check(config: Config, paths: Paths) -> None:
    """Raise ValueError where evaluate names runs that are none: told before the training, not after it."""
    if config.evaluate.beside or config.evaluate.segmenter is not None:
        from pipeline.judging import other_runs, segmenter_run

        other_runs(config, paths)
        segmenter_run(config, paths)


def run(config: Config, paths: Paths) -> list[str]:
    """Write a mask for every predicted case, a score for every one with truth; or judge the images that were made."""
    from tqdm import tqdm

    from pipeline.fan_out import naming
    from pipeline.instances import label_raster, object_classes
    from pipeline.metrics.calibration import Calibration
    from pipeline.metrics.ranking import Ranking
    from pipeline.metrics.summary import per_case_table, score_object_classes, summarise
    from pipeline.records.rasters import read_label, read_probabilities, write_png
    from pipeline.trained import check_seen, open_run

    trained = open_run(paths.train)
    parts = read_parts(paths)
    groups = read_groups(paths)
    if trained.outputs.is_image:
        return _judge(config, paths, trained, parts, groups)
    if trained.outputs.is_class:
        return _score_classes(config, paths, trained, parts, groups)
    chosen, thresholds = trained.chosen(), trained.thresholds()
    unchecked = check_seen(config, parts[PART], groups, [trained])
    rows: list[dict[str, Any]] = []
    classified: list[tuple[str, int, str, float]] = []
    names = _object_classes(trained, parts[PART])
    calibration, ranking = Calibration(), Ranking()
    for case in tqdm(parts[PART] + parts["unlabelled"], desc="evaluate", unit="image", disable=None):
        maps = read_probabilities(paths.predict / f"{case.case_id}.tif")
        with naming(case.case_id):
            mask = label_raster(maps, trained.outputs, thresholds)
        write_png(paths.reports / "masks" / f"{case.case_id}.png", mask)
        told = object_classes(mask, maps, trained.outputs)
        classified += ((case.case_id, number, *one) for number, one in enumerate(told, start=1))
        row: dict[str, Any] = {
            "case_id": case.case_id,
            "group": groups.get(case.case_id) or None,
            "stratum": case.stratum,
        }
        if case.label is not None:
            truth = read_label(paths.ingest / case.label)
            rows.append(row | trained.outputs.score(truth, mask))
            if names:
                found = [name for name, _ in told]
                rows[-1] |= score_object_classes(truth, mask, case.classes or (), found, names)
            if trained.outputs.has_objects:
                ranking.add(trained.outputs.foreground(maps), truth, mask)
            maps, truth = trained.outputs.by_cell(maps, truth)
            calibration.add(trained.outputs.foreground(maps), truth)
    volumes = _write_volumes(parts[PART] + parts["unlabelled"], paths)
    if not parts[PART]:
        return [f"{len(parts['unlabelled'])} masks in masks/; no image has truth, so that nothing is scored"]
    table = per_case_table(rows)
    write_text(paths.reports / "per_case.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
    if names:
        write_objects(paths.reports / OBJECTS, classified)
    metrics = {
        "run": config.run,
        "dataset": config.dataset,
        **({"classes": {str(number): name for number, name in enumerate(names, start=1)}} if names else {}),
        **({"cell": trained.outputs.cell} if trained.outputs.cell is not None else {}),
        **summarise(table, PART, config.evaluate.resamples, config.seed),
        "unscored": len(parts["unlabelled"]),
        "thresholds": chosen["thresholds"],
        "calibration": calibration.as_dict(),
        **({"ranked": ranking.as_dict()} if trained.outputs.has_objects else {}),
        "excluded": _excluded(paths.findings),
        **unchecked,
    }
    metrics["validation"] = _gap(chosen, metrics[PART], "ap" if trained.outputs.has_objects else "dice")
    write_json(paths.reports / "metrics.json", metrics)
    return [*as_table(metrics), _trust(metrics), *_noted(unchecked), *volumes]


def _write_volumes(cases: Sequence[Case], paths: Paths) -> list[str]:
    """Stack the masks of planes and write each volume in the space of its raw file; say how many."""
    from pipeline.records.rasters import read_label
    from pipeline.records.raw import RawFolder
    from pipeline.records.volumes import encode_like, read_volume

    planes: dict[str, dict[int, Case]] = {}
    for case in cases:
        if case.plane is not None:
            planes.setdefault(case.source, {})[case.plane] = case
    if not planes:
        return []
    partly: list[str] = []
    with RawFolder(paths.raw) as raw:
        for source, of_plane in planes.items():
            volume = read_volume(raw.read(source))
            masks = np.zeros(volume.values.shape, np.uint16)
            partly += [source] if len(of_plane) < len(masks) else []
            for plane, case in of_plane.items():
                masks[plane] = read_label(paths.reports / "masks" / f"{case.case_id}.png")
            stem = next(iter(of_plane.values())).case_id.rpartition("_z")[0]
            write_bytes(paths.reports / "volumes" / f"{stem}.nii.gz", encode_like(volume, masks))
    told = f"{len(planes)} volume(s) in volumes/, in the space of the raw files"
    if not partly:
        return [told]
    return [told, f"noted: of {len(partly)} only some planes were predicted, the others are 0 there: {some(partly)}"]


def _object_classes(trained: TrainedRun, cases: Sequence[Case]) -> tuple[str, ...]:
    """Classes that objects are scored by: those that the run tells, then what only the truth of these cases has."""
    known = trained.outputs.object_classes
    return known and (*known, *sorted({name for case in cases for name in case.classes or ()} - {*known}))


def _gap(chosen: dict[str, Any], scores: dict[str, Any], metric: str) -> dict[str, Any]:
    """Set the score that the run was chosen by beside the same score of the test part."""
    score, test = chosen["chosen_on"].get("score"), scores[metric]["mean"]
    return {"metric": metric, "score": score, "test": test, "gap": None if score is None else round(score - test, 6)}


def _trust(metrics: dict[str, Any]) -> str:
    validation, calibration = metrics["validation"], metrics["calibration"]
    tuned = "-" if validation["score"] is None else f"{validation['score']:.3f}"
    told = f"{validation['metric']}: validation {tuned} (thresholds were tuned there), test {validation['test']:.3f}"
    if calibration:
        told += f"; calibration error {calibration['error']:.3f}"
        if (unsure := calibration["unsure"])["error"] is not None:
            told += f" ({unsure['error']:.3f} of the {100 * unsure['share']:.1f} % given 0.1 to 0.9)"
        told += f", Brier {calibration['brier']:.3f}"
    return told


def _judge(
    config: Config, paths: Paths, trained: TrainedRun, parts: dict[str, list[Case]], groups: dict[str, str]
) -> list[str]:
    """Set the images that a run made beside those of other methods."""
    from pipeline.judging import Subject, judge, other_runs, segmenter_run
    from pipeline.trained import check_seen

    subject = Subject(config, paths, trained, parts, groups, other_runs(config, paths))
    segmenter = segmenter_run(config, paths)
    runs = [trained, *subject.others.values(), *([segmenter] if segmenter else [])]
    unchecked = check_seen(config, parts[PART], groups, runs)
    judged = judge(subject)
    text = judged.table.to_csv(index=False, lineterminator="\n", float_format="%.6f")
    write_text(paths.reports / "per_case.csv", text)
    write_json(paths.reports / "metrics.json", judged.metrics | {"excluded": _excluded(paths.findings)} | unchecked)
    write_json(paths.reports / "timing.json", judged.timing)
    lines = _methods_table(judged.metrics, judged.timing["megapixels_per_second"])
    if trained.config.train.network.name.startswith("autoencoder:"):
        from pipeline.code_table import write_codes

        cases = [case for part in parts.values() for case in part]
        lines.append(f"map of the codes: {write_codes(trained, cases, paths, paths.reports / CODES, config.compute)}")
    return [*lines, *_noted(unchecked)]


def _score_classes(
    config: Config, paths: Paths, trained: TrainedRun, parts: dict[str, list[Case]], groups: dict[str, str]
) -> list[str]:
    """Score the classes that a run predicted."""
    from pipeline.metrics.classification import per_case_classes, read_classes, summarise_classes, table_of_classes
    from pipeline.trained import check_seen

    unchecked = check_seen(config, parts[PART], groups, [trained])
    # The patient that a case is known to come from, where the split was told to look past patients.
    units = {
        case.case_id: case.group or groups.get(case.case_id) or case.case_id for part in parts.values() for case in part
    }
    learned = {units[case.case_id] for part in ("train", "validation") for case in parts[part]}
    table = per_case_classes(read_classes(paths.classes), parts[PART], units)
    write_text(paths.reports / "per_case.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
    metrics = {
        "run": config.run,
        "dataset": config.dataset,
        **summarise_classes(table, PART, config.evaluate.resamples, config.seed),
        "groups_also_in_training": len(learned & set(table["group"])),
        "unscored": len(parts["unlabelled"]),
        "excluded": _excluded(paths.findings),
        **unchecked,
    }
    write_json(paths.reports / "metrics.json", metrics)
    return [*table_of_classes(metrics), *_noted(unchecked)]


def _noted(unchecked: dict[str, list[str]]) -> list[str]:
    return [f"noted: {doubt}" for doubts in unchecked.values() for doubt in doubts]


def _excluded(findings: Path) -> dict[str, int]:
    if not findings.exists():
        return {}
    with findings.open(encoding="utf-8", newline="") as stream:
        return dict(
            sorted(Counter(row["fault"] for row in csv.DictReader(stream) if row["action"] == "excluded").items())
        )


def as_table(metrics: dict[str, Any]) -> list[str]:
    """Lay the headline figures out for the terminal, with their intervals."""
    from pipeline.metrics.summary import CLASS_COLUMNS

    shown = [
        name
        for name in ("dice", "iou", "ap", "ap_50", "f1_50", "f1_70", "pq", "aji", *CLASS_COLUMNS)
        if name in metrics[PART]
    ]
    strata = metrics.get("by_stratum", {})
    lines = [f"{metrics['cases']} test images in {metrics['groups']} groups; masks in masks/"]
    lines.append(f"{'':<22}{'images':>7}" + "".join(f"{name:>9}" for name in shown))
    for name, entry in [("all", metrics[PART]), *strata.items()]:
        first = entry[shown[0]]
        cells = "".join(
            f"{entry[key]['mean']:>9.3f}" if entry.get(key) and entry[key]["mean"] is not None else f"{'-':>9}"
            for key in shown
        )
        lines.append(f"{name[:21]:<22}{first['cases']:>7}" + cells)
    bounds = [metrics[PART][key] for key in shown]
    if bounds[0]["low"] is not None:
        # Some figures are of fewer groups: those of classes, where an image shows none.
        for words, end in (("95 % from", "low"), ("95 % to", "high")):
            told = (f"{bound[end]:>9.3f}" if bound[end] is not None else f"{'-':>9}" for bound in bounds)
            lines.append(f"{words:<29}" + "".join(told))
    else:
        lines.append(f"no intervals: {metrics['groups']} groups are too few (10 are needed)")
    if "classes" in metrics:
        each = ((name, metrics[PART].get(f"pq_class_{number}")) for number, name in metrics["classes"].items())
        lines.append("PQ of " + ", ".join(f"{name} {entry['mean']:.3f}" for name, entry in each if entry))
    return lines


def _methods_table(metrics: dict[str, Any], speeds: dict[str, float]) -> list[str]:
    """Lay every method out for the terminal, with the run's difference to its input and to the best classical one."""
    shown = [name for name in metrics[PART] if name != "energy_ratio"][:6]
    lines = [f"{metrics['cases']} test images in {metrics['groups']} groups, {metrics['kind']}; images in normalised/"]
    lines.append(f"{'':<22}" + "".join(f"{name.replace('_angle', ' deg')[:16]:>17}" for name in shown) + f"{'MP/s':>9}")
    for name, entry in metrics["methods"].items():
        means = (entry[PART].get(key, {}).get("mean") for key in shown)
        cells = "".join(f"{'-':>17}" if mean is None else f"{mean:>17.3f}" for mean in means)
        lines.append(f"{name[:21]:<22}" + cells + (f"{speeds[name]:>9.2f}" if name in speeds else f"{'':>9}"))
    for other, differences in (
        ("input", metrics["methods"][metrics["run"]]["difference"]),
        (metrics["best_classical"], metrics["beyond_classical"]),
    ):
        for name in ("psnr", "ciede2000"):
            if entry := differences.get(name):
                interval = "no interval" if entry["low"] is None else f"{entry['low']:+.3f} to {entry['high']:+.3f}"
                better = f"better in {entry['better_groups']} of {entry['groups']} groups"
                lines.append(f"{name} beyond {other}: {entry['mean']:+.3f} ({interval}), {better}")
    return lines
