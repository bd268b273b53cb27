"""A trained segmentation on a data set that it never saw, without and with each stain normaliser.

Every labelled case of the other data set is tested on. Nothing is chosen there: weights and thresholds are the run's,
and what a classical normaliser brings images to is one of the run's own training images, so that a stain is brought to
the look that the run knows. The normaliser that a run was trained with is part of the run, and follows on each other.
Writes reports/transfer/<run>--<dataset>/: table.md, metrics.json, per_case.csv and cases.png.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.config import Config, ConfigError, load_config
from pipeline.records.case import IGNORED, Case, read_cases
from pipeline.records.files import write_json, write_text
from pipeline.records.former import former_kept
from pipeline.records.manifest import provenance
from pipeline.records.paths import Paths
from pipeline.records.split import read_groups, read_split_table
from pipeline.runner import run as run_stage
from pipeline.stains import METHODS

if TYPE_CHECKING:
    from pandas import DataFrame

    from pipeline.judging.methods import Segmenter
    from pipeline.judging.subject import Method, Subject
    from pipeline.metrics.calibration import Calibration
    from pipeline.outputs import Outputs
    from pipeline.trained import TrainedRun

NONE = "none"
PART = "test"
SHOWN = ("dice", "iou", "ap", "f1_70")
"""Scores of the table, where they apply."""
RESAMPLES = 10_000
OF_USE = ("dataset", "seed", "ingest", "split", "normalise", "predict", "compute", "evaluate.resamples")
"""Settings of the other data set that take part; those of training are the run's."""
PICTURED = 256
"""Side of the piece of a case that is drawn."""


@dataclass(frozen=True)
class Arm:
    """A row of the table: a method, settings of predict laid over the run's, and the row that it is compared with."""

    name: str
    method: Method
    laid_over: Mapping[str, Any]
    against: str | None


def run_transfer(
    run: str, file: Path | None, settings: Sequence[str] = (), methods: Sequence[str] | None = None,
    strata: Sequence[str] = (), root: Path = Path(),
) -> None:  # fmt: skip
    """Score a run on the data set of a config, and print and write what was found.

    run: name of a segmentation below data/train/; settings: laid over the file's, those of predict over the run's own;
    methods: none, classical normalisers and runs that make images, by default none and all classical ones; strata: of
    the run's training images, among which the reference of classical ones is sought, by default all that are stained.
    Raises ValueError (ConfigError of settings) before anything is predicted where the run is no segmentation, has seen
    any of the cases, its classes are not those of the labels, or a method cannot be had.
    """
    started = time.perf_counter()
    config = _config(file, settings)
    paths = Paths.of(config, root)
    trained, learned, names = _open(run, methods, config, paths)
    run_stage("split", config, paths, with_needs=True)
    every = read_cases(paths.cases)
    cases = [case for case in every if case.label is not None]
    judged = _scored_as(trained, cases, paths)
    unchecked = _unseen([trained, *learned.values()], cases, config, paths)
    subject = _subject(trained, learned, cases, config, paths)
    arms = list(_arms(_methods(subject, names, strata), trained, config))
    segmenters = _segmenters(subject, arms)
    tables, calibrations = _scores(subject, arms, segmenters, judged)
    command = ["python", "-m", "pipeline", "transfer", "--run", run, *(["-c", str(file)] if file else [])]
    command += [f"--methods={','.join(names)}", *([f"--reference-strata={','.join(strata)}"] if strata else [])]
    command += settings
    metrics: dict[str, Any] = {
        "run": run,
        "trained_on": trained.config.dataset,
        "dataset": config.dataset,
        "labels": cases[0].label_kind,
        "cases": len(cases),
        "unscored": len(every) - len(cases),
        "thresholds": trained.chosen()["thresholds"],
        "normaliser_of_the_run": trained.config.normalise.model_dump(mode="json"),
        "predict": trained.config.predict.model_dump(mode="json"),
        "reference_strata": [*strata],
        "laid_over": {name: value for arm in arms for name, value in arm.laid_over.items()},
        "arms": _compared(arms, tables, calibrations, config),
        **unchecked,
    }
    metrics["groups"] = metrics["arms"][NONE][PART]["dice"]["groups"]
    metrics["made"] = {"command": shlex.join(command)} | provenance(config.seed, time.perf_counter() - started, root)
    folder = root / "reports" / "transfer" / f"{run}--{config.dataset}".replace("/", "-")
    rows = _long(arms, tables)
    table = as_table(metrics)
    with former_kept(folder, ("/table.md", "/metrics.json", "/per_case.csv", "/cases.png")):
        write_text(folder / "per_case.csv", rows.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
        write_json(folder / "metrics.json", metrics)
        write_text(folder / "table.md", table)
        _draw(subject, arms, segmenters, tables, folder / "cases.png")
    print(f"\n{table}\nWritten: {folder}")


# --- What is scored, and whether it may be ------------------------------------------------------------------------


def _config(file: Path | None, settings: Sequence[str]) -> Config:
    config = load_config(file, [*settings])
    problems = [
        f"{setting}: expected a setting of {', '.join(OF_USE)}, since all others are the run's; leave it out"
        for setting in settings
        if not any(setting.startswith((f"{name}.", f"{name}=")) for name in OF_USE)
    ]
    if config.normalise.method != NONE:
        problems.append(f"normalise.method: expected none, found {config.normalise.method}; name it with --methods")
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def _open(
    run: str, methods: Sequence[str] | None, config: Config, paths: Paths
) -> tuple[TrainedRun, dict[str, TrainedRun], list[str]]:
    """Open the run and the learned normalisers; return also the names of all methods, none first, each once."""
    from pipeline.stains.learned import Learned
    from pipeline.trained import open_run

    problems, learned = [], {}
    names = list(dict.fromkeys([NONE, *(METHODS if methods is None else methods)]))
    try:
        trained = open_run(paths.run_folder(run))
        if trained.outputs.is_image or trained.outputs.is_class:
            raise ValueError(f"{trained.folder}: expected a segmentation, found task {trained.config.train.task}")
        trained.thresholds()
    except ValueError as error:
        problems.append(f"--run: {error}")
    for name in names:
        if name == NONE or name in METHODS:
            continue
        try:
            learned[name] = Learned.of_run(paths.run_folder(name), config.compute).trained
            learned[name].chosen()
        except ValueError as error:
            known = ", ".join([NONE, *METHODS])
            problems.append(f"--methods: expected {known} or runs that change stain, found {name!r}: {error}")
    if problems:
        raise ValueError("\n".join(problems))
    return trained, learned, names


def _scored_as(trained: TrainedRun, cases: Sequence[Case], paths: Paths) -> Outputs:
    """Return how masks of the run are scored against these labels: as objects where both have them, else as classes.

    Raises ValueError where the labels are no masks, or of other classes than the run's.
    """
    from pipeline.records.rasters import read_label

    outputs = trained.outputs
    kinds = sorted({case.label_kind for case in cases})
    if kinds not in (["instance"], ["semantic"]):
        raise ValueError(
            f"{paths.cases}: expected masks of objects or of classes, found {', '.join(kinds) or 'no label'}; "
            "set ingest.label_kind, or take labelled images"
        )
    classes = len(outputs.channels) - 1 if outputs.activation == "softmax" else 1
    if kinds == ["instance"]:
        if classes > 1:
            raise ValueError(f"{paths.cases}: expected masks of the run's {classes} classes, found objects")
        return outputs
    largest = 0
    for case in cases:
        label = read_label(paths.ingest / str(case.label))
        largest = max(largest, int(label.max(initial=0, where=label != IGNORED)))
    if max(largest, 1) != classes:
        raise ValueError(
            f"{paths.cases}: expected masks of as many classes as the run has, {classes}, found {max(largest, 1)}; "
            "what one calls by a number must be the same in the other"
        )
    # Where the truth has no objects, those of the run are foreground and no more.
    return replace(outputs, label_kind="semantic")


def _unseen(
    runs: Sequence[TrainedRun], cases: Sequence[Case], config: Config, paths: Paths
) -> dict[str, list[str]]:  # fmt: skip
    """Refuse cases that a run has seen: by their names, their groups, or as copies under other names.

    Returns what metrics.json says of what cannot be told. Raises ValueError with the cases.
    """
    from pipeline.trained import check_seen

    unchecked = check_seen(config, cases, read_groups(paths), runs)
    copies = [f"{words}, by the run in {run.folder}" for run in runs for words in _copies(run, cases, config, paths)]
    if copies:
        raise ValueError(
            "expected images that took no part in training or in choosing thresholds, found copies of some that did: "
            + "; ".join(copies)
            + ". Leave them out with ingest.exclude"
        )
    return unchecked


def _copies(run: TrainedRun, cases: Sequence[Case], config: Config, paths: Paths) -> Iterator[str]:
    """Yield in words the cases that show the very pixels of what a run has seen in another data set."""
    for dataset, names in run.seen.cases.items():
        other = Paths.of(config.model_copy(update={"dataset": dataset}), paths.root)
        if dataset == config.dataset or not other.cases.exists():
            continue
        sizes = {(case.height, case.width) for case in cases}
        known = [case for case in read_cases(other.cases) if case.case_id in names]
        seen = {_pixels(other, case): case.case_id for case in known if (case.height, case.width) in sizes}
        if not seen:
            continue
        found = {case.case_id: seen.get(_pixels(paths, case)) for case in cases}
        if same := [f"{name} is {original} of {dataset}" for name, original in found.items() if original]:
            yield f"{len(same)} ({', '.join(same[:5])})"


def _pixels(paths: Paths, case: Case) -> bytes:
    from hashlib import sha256

    from pipeline.records.rasters import read_image

    return sha256(read_image(paths.ingest / case.image).tobytes()).digest()


# --- Methods ------------------------------------------------------------------------------------------------------


def _subject(
    trained: TrainedRun, learned: dict[str, TrainedRun], cases: Sequence[Case], config: Config, paths: Paths
) -> Subject:
    from pipeline.judging import Subject

    groups = {name: row["group"] for name, row in read_split_table(paths.split_table).items()}
    return Subject(config, paths, trained, {PART: cases}, groups, learned)


def _methods(subject: Subject, names: Sequence[str], strata: Sequence[str]) -> list[Method]:
    """Return the methods by name; classical ones are fitted to the run's own training images."""
    from pipeline.judging.methods import classical
    from pipeline.judging.subject import LARGEST_FIT, Method, few
    from pipeline.records.rasters import read_image
    from pipeline.stains.learned import Learned

    trained, config = subject.trained, subject.config
    home = Paths.of(trained.config, subject.paths.root)
    training = few(_training(trained, config, home, strata), LARGEST_FIT) if {*names} & {*METHODS} else []

    def wanted(case: Case) -> np.ndarray:
        return read_image(home.ingest / case.image)

    def given(case: Case) -> np.ndarray:
        return read_image(subject.paths.ingest / case.image)

    def one(name: str) -> Method:
        if name == NONE:
            return Method(NONE, NONE, lambda _, image: (image, "ok"))
        if name in METHODS:
            return classical(subject, name, training, wanted, given)
        normaliser = Learned(subject.others[name], config.compute).fit(())
        return Method(name, "run", lambda _, image: normaliser.transform(image))

    return [one(name) for name in names]


def _training(trained: TrainedRun, config: Config, home: Paths, strata: Sequence[str]) -> list[Case]:
    """Return the cases that a run learned from, those of some strata, or the one that is named as reference.

    Raises ValueError where their images are not here, or what is named is none of theirs.
    """
    learned_from, named = trained.learned_from, config.normalise.reference
    known = read_cases(home.cases) if home.cases.exists() else []
    training = [case for case in known if case.case_id in learned_from and (home.ingest / case.image).exists()]
    if not training:
        raise ValueError(
            f"{home.cases}: expected the {len(learned_from)} cases that {trained.folder} learned from, one of which "
            "is what classical normalisers bring images to, found none; ingest them, or take --methods none"
        )
    known_strata = {str(case.stratum) for case in training}
    if unknown := sorted({*strata} - known_strata):
        raise ValueError(
            f"--reference-strata: expected some of what {trained.folder} learned from, "
            f"{', '.join(sorted(known_strata))}, found {', '.join(unknown)}"
        )
    training = [case for case in training if not strata or case.stratum in strata]
    if named is None:
        return training
    if not (chosen := [case for case in training if case.case_id == named]):
        raise ValueError(
            f"normalise.reference: expected a case that {trained.folder} learned from, e.g. {training[0].case_id}, "
            f"found {named!r}"
        )
    return chosen


def _arms(methods: Sequence[Method], trained: TrainedRun, config: Config) -> Iterator[Arm]:
    """Yield every method with the run's own settings of predict, and again with those that are laid over, if any."""
    own = trained.config.predict
    given = {name: getattr(config.predict, name) for name in sorted(config.predict.model_fields_set)}
    laid = {name: value for name, value in given.items() if value != getattr(own, name)}
    for method in methods:
        yield Arm(method.name, method, {}, None if method.name == NONE else NONE)
    if laid:
        words = " ".join(f"{name}={_words(value)}" for name, value in laid.items())
        for method in methods:
            against = NONE if method.name == NONE else f"{NONE}, {words}"
            yield Arm(f"{method.name}, {words}", method, laid, against)


def _words(value: Any) -> str:
    return "+".join(f"{one:g}" for one in value) if isinstance(value, tuple) else str(value)


# --- Scores -------------------------------------------------------------------------------------------------------


def _segmenters(subject: Subject, arms: Sequence[Arm]) -> dict[bool, Segmenter]:
    """Return the run with its own settings of predict (False), and with those that are laid over (True)."""
    from pipeline.judging.methods import Segmenter

    trained, compute = subject.trained, subject.config.compute
    settings = {bool(arm.laid_over): trained.config.predict.model_copy(update={**arm.laid_over}) for arm in arms}
    return {laid: Segmenter(trained, compute, chosen) for laid, chosen in settings.items()}


def _scores(
    subject: Subject, arms: Sequence[Arm], segmenters: Mapping[bool, Segmenter], judged: Outputs
) -> tuple[dict[str, DataFrame], dict[str, Calibration]]:
    """Return for each arm its per_case table, with the status of every image, and the calibration of its maps."""
    from tqdm import tqdm

    from pipeline.metrics.calibration import Calibration
    from pipeline.metrics.summary import per_case_table
    from pipeline.records.rasters import read_image, read_label

    rows: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    statuses: dict[str, dict[str, str]] = {arm.name: {} for arm in arms}
    calibrations = {arm.name: Calibration() for arm in arms}
    for case in tqdm(subject.parts[PART], desc="transfer", unit="image", disable=None):
        image, truth = read_image(subject.paths.ingest / case.image), read_label(subject.paths.ingest / str(case.label))
        row = {"case_id": case.case_id, "group": subject.groups.get(case.case_id) or None, "stratum": case.stratum}
        made: dict[str, tuple[np.ndarray, str]] = {}
        for arm in arms:
            if arm.method.name not in made:
                made[arm.method.name] = arm.method.apply(case, image)
            seen, statuses[arm.name][case.case_id] = made[arm.method.name]
            segmenter = segmenters[bool(arm.laid_over)]
            maps = segmenter.maps(seen)
            calibrations[arm.name].add(judged.foreground(maps), truth)
            rows[arm.name].append(row | judged.score(truth, segmenter.mask(maps)))
    tables = {name: per_case_table(found) for name, found in rows.items()}
    tables = {name: table.assign(status=table["case_id"].map(statuses[name])) for name, table in tables.items()}
    return tables, calibrations


def _long(arms: Sequence[Arm], tables: Mapping[str, DataFrame]) -> DataFrame:
    """Return one table with a row an arm and case."""
    import pandas as pd

    found = []
    for arm in arms:
        table = tables[arm.name].copy()
        table.insert(1, "arm", arm.name)
        table.insert(2, "status", table.pop("status"))
        found.append(table)
    return pd.concat(found, ignore_index=True).sort_values("case_id", kind="stable")


def _compared(
    arms: Sequence[Arm], tables: Mapping[str, DataFrame], calibrations: Mapping[str, Calibration], config: Config
) -> dict[str, dict[str, Any]]:
    """Return for each arm its scores with intervals, and its paired differences from the arm beside it."""
    from pipeline.comparison import differences
    from pipeline.metrics.summary import summarise

    compared = {}
    for arm in arms:
        table = tables[arm.name]
        content = summarise(table, PART, config.evaluate.resamples, config.seed)
        tp, fp, fn = (float(table[name].sum()) for name in ("tp", "fp", "fn"))
        entry: dict[str, Any] = {
            "method": arm.method.name,
            "kind": arm.method.kind,
            "reference_case": arm.method.reference_case,
            "laid_over": dict(arm.laid_over),
            "statuses": dict(sorted(Counter(table["status"]).items())),
            PART: content[PART],
            "by_stratum": content["by_stratum"],
            "pixel_precision": round(tp / (tp + fp), 6) if tp + fp else None,
            "pixel_recall": round(tp / (tp + fn), 6) if tp + fn else None,
            "calibration": calibrations[arm.name].as_dict(),
            "against": arm.against,
        }
        if arm.against is not None:
            entry["differences"] = differences(tables[arm.against], table, {}, RESAMPLES)["parts"]
        compared[arm.name] = entry
    return compared


def as_table(metrics: Mapping[str, Any]) -> str:
    """Lay the arms out as Markdown: scores with intervals, differences with verdicts, and what they were made by."""
    arms, made = metrics["arms"], metrics["made"]
    shown = [score for score in SHOWN if score in arms[NONE][PART]]
    lines = [
        f"{metrics['run']}, trained on {metrics['trained_on']}, on {metrics['cases']} images of {metrics['dataset']} "
        f"({metrics['groups']} groups) that it never saw; thresholds as they were tuned on {metrics['trained_on']}",
        "",
        f"| method | {' | '.join(shown)} | pixel precision, recall | calibration error | Dice against | better, worse, "
        "all groups | it is |",
        "|---|" + "---|" * (len(shown) + 5),
    ]
    for name, arm in arms.items():
        cells = [name, *(_interval(arm[PART][score], arm[PART][score]["mean"], "") for score in shown)]
        cells.append(", ".join("-" if arm[key] is None else f"{arm[key]:.3f}" for key in
                               ("pixel_precision", "pixel_recall")))  # fmt: skip
        cells.append(f"{arm['calibration']['error']:.3f}" if arm["calibration"] else "-")
        if arm["against"] is None:
            cells += ["", "", ""]
        else:
            entry = arm["differences"]["all"]["dice"]
            cells.append(f"{arm['against']}: {_interval(entry, entry['difference'], '+')}")
            cells += [f"{entry['better_groups']}, {entry['worse_groups']}, {entry['groups']}", entry["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    references = {arm["method"]: arm["reference_case"] for arm in arms.values() if arm["reference_case"]}
    if references:
        named = "; ".join(f"{name}: {case}" for name, case in references.items())
        lines.append(f"Brought to the stain of a training image of the run: {named}.")
    for arm in arms.values():
        if {*arm["statuses"]} - {"ok"} and not arm["laid_over"]:
            counts = ", ".join(f"{count} {status}" for status, count in arm["statuses"].items())
            lines.append(f"What became of the images by {arm['method']}: {counts}.")
    if metrics["laid_over"]:
        lines.append(
            "Settings laid over the run's own are given beforehand, from the magnifications; taken for their score "
            "here they would be chosen on what is reported."
        )
    lines += [f"Noted: {doubt}." for doubt in metrics.get("seen_unchecked", ())]
    lines += ["One run alone: what another seed would have given is not in the intervals.",
              f"Made by `{made['command']}`: stainseg {made['versions']['stainseg']}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _interval(entry: Mapping[str, Any], value: float, sign: str) -> str:
    bounds = "" if entry["low"] is None else f" ({entry['low']:{sign}.3f} to {entry['high']:{sign}.3f})"
    return f"{value:{sign}.3f}{bounds}"


# --- Pictures -----------------------------------------------------------------------------------------------------


def _draw(
    subject: Subject, arms: Sequence[Arm], segmenters: Mapping[bool, Segmenter], tables: Mapping[str, DataFrame],
    file: Path,
) -> None:  # fmt: skip
    """Draw the cases of which the run alone makes the worst, a median and the best mask, into a PNG.

    By every method: where settings are laid over, with those, beside the run as it is.
    """
    from pipeline.records.rasters import read_image, read_label
    from pipeline.reporting.cases import choose_cases
    from pipeline.reporting.outlined import Panel, draw_outlined
    from pipeline.reporting.side_by_side import busiest

    cases = {case.case_id: case for case in subject.parts[PART]}
    laid = any(arm.laid_over for arm in arms)
    shown = [arm for arm in arms if arm.name == NONE or bool(arm.laid_over) == laid]
    dice = {arm.name: dict(zip(tables[arm.name]["case_id"], tables[arm.name]["dice"], strict=True)) for arm in arms}
    rows: dict[str, list[Panel]] = {}
    for rank, chosen in choose_cases(tables[NONE].to_dict("records"), "dice", 1).items():
        for row in chosen:
            case = cases[row["case_id"]]
            image, label = (read(subject.paths.ingest / str(name)) for read, name in
                            ((read_image, case.image), (read_label, case.label)))  # fmt: skip
            place = busiest(image, PICTURED)
            truth = np.where(label == IGNORED, 0, label)[place]
            panels = [Panel("image\nand truth", image[place], truth, None)]
            for arm in shown:
                segmenter, seen = segmenters[bool(arm.laid_over)], arm.method.apply(case, image)[0]
                mask = segmenter.mask(segmenter.maps(seen))[place]
                score = f"{arm.name}\nDice {dice[arm.name][case.case_id]:.2f}"
                panels.append(Panel(score, seen[place], truth, mask))
            rows[f"{rank}: {case.case_id[:24]}"] = panels
    title = f"{subject.trained.config.run} on {subject.config.dataset}: white, the truth's outlines; blue, the run's"
    draw_outlined(title, rows, file)
