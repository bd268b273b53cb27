"""Whole segmenters side by side: a run of ours and other libraries' own recipes, on the same images for the same time.

Every library is trained by its own code (pipeline/segmenters/), in its own environment (make bench-peers), one after
another, on the training part of the run's split; what it chooses, it chooses on the validation part; labels of the test
part are never handed over. Its masks of the test part are scored as stage evaluate scores masks.
Reads:  data/ingest/<dataset>/, split.csv, reports/<run>/ (per_case.csv, masks/), stage.json of its training
Writes: data/peers/<dataset>/<split>/: exchanged/ (images, and labels of train and validation) and <peer>/ (masks/,
        facts.json, log.txt, work/; stage.json last), so that what is complete is not made again;
        reports/peers/<dataset>/: <peer>/per_case.csv, table.md, metrics.json, differences.png, cases.png
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import pipeline
from pipeline.comparison import COLOURS, differences, named_pools
from pipeline.config import Config, ConfigError, load_config
from pipeline.records.case import IGNORED, Case
from pipeline.records.files import file_hash, write_json, write_text
from pipeline.records.former import former_kept
from pipeline.records.manifest import damaged_outputs, describe_outputs, provenance, read_manifest, short_name
from pipeline.records.paths import Paths
from pipeline.records.split import PARTS, read_parts, read_split_table
from pipeline.runner import run as run_stage
from pipeline.segmenters import SCRIPTS, SEGMENTERS

if TYPE_CHECKING:
    from pandas import DataFrame

PART, ALL = "test", "all"
POOL = "tissue=purple/purple,purple/white"
"""Strata that are also judged together unless others are named, where the data set has them."""
COMPARED = ("ap", "f1_70", "dice", "recall_70_pooled")
"""Scores of the table of differences and of the picture."""
NOT_RUN = "not run"
LIMIT = 4.0
"""Hours beyond its training after which a library that still chooses or predicts is given up."""
PICTURED = 256
"""Side in pixels of the pieces that are drawn."""


@dataclass(frozen=True)
class Request:
    """How every library is run: wall clock of training, threads, seed, and the folder that is exchanged."""

    minutes: float
    threads: int
    seed: int
    exchanged: Path
    digest: str


@dataclass(frozen=True)
class Outcome:
    """What became of one segmenter: its scores and facts, or why there are none."""

    shown: str
    missing: str = ""
    scores: DataFrame | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    masks: Path | None = None


def run_peer_study(
    file: Path | None, settings: Sequence[str] = (), minutes: float = 45.0, only: Sequence[str] | None = None,
    pools: Sequence[str] | None = None, root: Path = Path(),
) -> None:  # fmt: skip
    """Run the libraries that are not complete, score all, and print and write the comparison.

    only: names out of SEGMENTERS that are run, by default all; the others keep what they have. pools:
    "name=stratum,stratum", strata judged together, by default POOL. A library that is not installed or fails is a row
    with its error, and stops no other.
    Raises ValueError (ConfigError of settings) before anything is trained where names, pools or labels do not allow it.
    """
    started = time.perf_counter()
    config = load_config(file, [*settings])
    paths = Paths.of(config, root)
    wanted = _checked(config, minutes, only)
    run_stage("split", config, paths, with_needs=True)
    parts = read_parts(paths)
    named = _named(pools, parts[PART])
    folder = root / "data" / "peers" / config.dataset / config.split.name
    digest = write_exchange(parts, paths, folder / "exchanged")
    threads = config.compute.threads or os.cpu_count() or 1
    request = Request(minutes, threads, config.seed, folder / "exchanged", digest)
    reports = root / "reports" / "peers" / config.dataset
    outcomes = {config.run: _ours(config, paths)}
    for name in SEGMENTERS:
        problem = _run_peer(name, folder / name, request, root) if name in wanted else ""
        outcomes[name] = _scored(name, folder / name, request, problem, parts[PART], paths)
    words = ["python", "-m", "pipeline", "peers", *(["-c", str(file)] if file else []), f"--minutes={minutes:g}"]
    words += [
        *([f"--only={','.join(only)}"] if only is not None else []),
        *(f"--pool={pool}" for pool in pools or ()),
        *settings,
    ]
    metrics = compared(config.run, outcomes, named, config.evaluate.resamples, config.seed)
    metrics = {"dataset": config.dataset, "split": config.split.name, "threads": threads} | metrics
    metrics["made"] = {"command": shlex.join(words)} | provenance(config.seed, time.perf_counter() - started, root)
    table = as_table(metrics)
    own = ("table.md", "metrics.json", "differences.png", "cases.png", *(f"{name}/per_case.csv" for name in SEGMENTERS))
    with former_kept(reports, [f"/{name}" for name in own]):
        for name in SEGMENTERS:
            if (scores := outcomes[name].scores) is not None:
                text = scores.to_csv(index=False, lineterminator="\n", float_format="%.6f")
                write_text(reports / name / "per_case.csv", text)
        write_json(reports / "metrics.json", metrics)
        write_text(reports / "table.md", table)
        _draw_differences(metrics, reports / "differences.png")
        _draw_cases(outcomes, parts[PART], paths, reports / "cases.png")
    print(f"\n{table}\nWritten: {reports}")


# --- What is compared ---------------------------------------------------------------------------------------------


def _checked(config: Config, minutes: float, only: Sequence[str] | None) -> list[str]:
    wanted = [*(SEGMENTERS if only is None else dict.fromkeys(only))]
    problems = []
    if config.train.task != "segmentation":
        problems.append(f"expected train.task=segmentation, found {config.train.task}")
    if config.run in SEGMENTERS:
        problems.append(f"expected a run with a name that no library has, found {config.run}")
    if minutes <= 0:
        problems.append(f"--minutes: expected more than 0, found {minutes:g}")
    if unknown := [name for name in wanted if name not in SEGMENTERS]:
        problems.append(f"--only: expected some of {', '.join(SEGMENTERS)}, found {', '.join(unknown)}")
    if problems:
        raise ConfigError("\n".join([*problems, "Nothing was trained"]))
    return wanted


def _named(pools: Sequence[str] | None, cases: Sequence[Case]) -> dict[str, list[str]]:
    strata = {case.stratum for case in cases}
    problems: list[str] = []
    named = dict(named_pools([POOL] if pools is None else pools, problems))
    unknown = sorted({stratum for members in named.values() for stratum in members} - strata)
    if pools is None and unknown:
        return {}
    if unknown:
        problems.append(f"--pool: expected strata of the test part, found {', '.join(unknown)}")
    if problems:
        raise ConfigError("\n".join([*problems, "Nothing was trained"]))
    return named


def write_exchange(parts: Mapping[str, Sequence[Case]], paths: Paths, folder: Path) -> str:
    """Write the images of every part, and the labels of all but the test part, where they are not there yet.

    Images are RGB, labels 16-bit ids with ignored pixels as background, <part>/{images,labels}/<case_id>.png. Returns
    the hash of all of it. Raises ValueError where labels are no objects, or a part has no cases.
    """
    from pipeline.records.rasters import read_image, read_label, write_png

    problems = [f"expected cases in the part {part}, found none; change split.*_share" for part in PARTS
                if not parts[part]]  # fmt: skip
    kinds = sorted({case.label_kind for part in PARTS for case in parts[part]} - {"instance"})
    if kinds:
        problems.append(f"expected labels with an id an object, found {', '.join(kinds)}; take another data set")
    if problems:
        raise ValueError("\n".join([*problems, "Nothing was trained"]))
    sources = {
        f"{part}/{kind}/{case.case_id}.png": file
        for part in PARTS
        for case in parts[part]
        for kind, file in (("images", paths.image(case.image)), ("labels", paths.ingest / str(case.label)))
        if (part, kind) != (PART, "labels")
    }
    hashes = "".join(f"{name}\0{file_hash(file)}\n" for name, file in sorted(sources.items()))
    digest = hashlib.sha256(hashes.encode()).hexdigest()
    stamp = folder / "exchanged.json"
    if stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == {"sha256": digest, "files": len(sources)}:
        return digest
    shutil.rmtree(folder, ignore_errors=True)
    for name, file in sources.items():
        if "/images/" in name:
            raster = read_image(file)
        else:
            label = read_label(file)
            raster = np.where(label == IGNORED, 0, label).astype(np.uint16)
        write_png(folder / name, raster)
    write_json(stamp, {"sha256": digest, "files": len(sources)})
    return digest


# --- Running them -------------------------------------------------------------------------------------------------


def made_from(name: str, request: Request) -> dict[str, Any]:
    """Return what decides whether a library's result is complete: images, time, threads, seed, versions, scripts."""
    from pipeline.benchmarks.peers import requirements

    return {
        "exchanged": request.digest, "minutes": request.minutes, "threads": request.threads, "seed": request.seed,
        "requirements": list(requirements()[name]), "script": file_hash(SCRIPTS / f"{name}.py"),
        "trial": file_hash(SCRIPTS / "trial.py"),
    }  # fmt: skip


def _run_peer(name: str, out: Path, request: Request, root: Path) -> str:
    """Bring one library to its masks, unless they are complete; return why it has none, or nothing."""
    from pipeline.benchmarks import peers

    wanted = made_from(name, request)
    _make_room(out, wanted)
    if _complete(out, wanted):
        print(f"{name}: complete in {out}")
        return ""
    if problem := peers.missing(name):
        print(f"{name}: {problem}")
        return problem
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    log = out / "log.txt"
    print(f"{name}: trains for {request.minutes:g} minutes; what it says: {log}", flush=True)
    started = time.perf_counter()
    problem = _in_its_environment(name, out, request, log)
    seconds = time.perf_counter() - started
    if problem:
        write_text(out / "error.txt", problem + "\n")
        print(f"{name}: {problem}")
        return problem
    # The weights, which the library keeps in a form of its own, are of no further use.
    shutil.rmtree(out / "work", ignore_errors=True)
    outputs = describe_outputs(out, sorted([out / "facts.json", *(out / "masks").glob("*.png")]))
    made = {"stage": "peers", "made_from": wanted, "outputs": outputs}
    write_json(out / "stage.json", made | {"provenance": provenance(request.seed, seconds, root)})
    print(f"{name}: done in {seconds / 60:.1f} minutes")
    return ""


def _make_room(out: Path, wanted: Mapping[str, Any]) -> None:
    """Set a complete result of other settings aside under a name of its own, and take one of these settings back."""
    manifest = read_manifest(out / "stage.json")
    if manifest is not None and manifest.made_from != wanted:
        out.rename(out.with_name(f"{out.name}~{manifest.short_name}"))
    kept = out.with_name(f"{out.name}~{short_name(dict(wanted))}")
    if kept.exists():
        shutil.rmtree(out, ignore_errors=True)
        kept.rename(out)


def _complete(out: Path, wanted: Mapping[str, Any]) -> bool:
    manifest = read_manifest(out / "stage.json")
    return manifest is not None and manifest.made_from == wanted and not damaged_outputs(out, manifest)


def _in_its_environment(name: str, out: Path, request: Request, log: Path) -> str:
    """Run a library's script with the interpreter of its environment; return its last words where it failed."""
    from pipeline.benchmarks import peers
    from pipeline.benchmarks.timing import Side

    script = SCRIPTS / f"{name}.py"
    ours = Path(pipeline.__file__).absolute().parents[1]
    side = Side(name, peers.python_of(name), script, request.threads, importable=ours)
    command = [side.python, "-P", script, "--data", request.exchanged, "--out", out, "--minutes", request.minutes]
    command += ["--threads", request.threads, "--seed", request.seed]
    limit = 60 * request.minutes * 2 + 3600 * LIMIT
    with log.open("w", encoding="utf-8") as stream:
        try:
            done = subprocess.run(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                env=side.environment() | {"CUDA_VISIBLE_DEVICES": ""}, timeout=limit,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"did not end within {limit / 3600:.1f} hours"
        except OSError as error:
            return f"could not be started: {error}"
    if done.returncode:
        said = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        return f"ended with status {done.returncode}: {said[-1] if said else 'without a word'}"
    return "" if (out / "facts.json").is_file() else "ended without facts.json"


# --- Scores -------------------------------------------------------------------------------------------------------


def score_masks(masks: Path, cases: Sequence[Case], paths: Paths) -> DataFrame:
    """Score object ids, <case_id>.png, against their labels: the table that stage evaluate writes as per_case.csv.

    Raises ValueError naming every case whose mask is missing or of another size.
    """
    from pipeline.metrics.summary import per_case_table, score_case
    from pipeline.records.rasters import read_label

    groups = {case_id: row["group"] for case_id, row in read_split_table(paths.split_table).items()}
    problems, rows = [], []
    for case in cases:
        file, truth = masks / f"{case.case_id}.png", read_label(paths.ingest / str(case.label))
        mask = read_label(file) if file.is_file() else None
        if mask is None or mask.shape != truth.shape:
            problems.append(f"{file.name} {'missing' if mask is None else f'of {mask.shape}, expected {truth.shape}'}")
            continue
        row = {"case_id": case.case_id, "group": groups.get(case.case_id) or None, "stratum": case.stratum}
        rows.append(row | score_case(truth, mask, "instance"))
    if problems:
        raise ValueError(
            f"{masks}: expected {len(cases)} masks, found {len(problems)} wrong: {', '.join(problems[:3])}"
        )
    return per_case_table(rows)


def _scored(
    name: str, out: Path, request: Request, problem: str, cases: Sequence[Case], paths: Paths
) -> Outcome:  # fmt: skip
    shown = SEGMENTERS[name].shown
    if not problem and not _complete(out, made_from(name, request)):
        error = out / "error.txt"
        other = f"{NOT_RUN} with these settings" if (out / "stage.json").is_file() else NOT_RUN
        problem = error.read_text(encoding="utf-8").strip() if error.is_file() else other
    if problem:
        return Outcome(shown, problem)
    try:
        scores = score_masks(out / "masks", cases, paths)
    except ValueError as error:
        return Outcome(shown, str(error))
    facts = json.loads((out / "facts.json").read_text(encoding="utf-8"))
    return Outcome(shown, "", scores, facts, out / "masks")


def _ours(config: Config, paths: Paths) -> Outcome:
    """Return the scores of the run of ours as stage evaluate wrote them, and what its stages say of their time."""
    from pipeline.metrics.summary import read_per_case

    file = paths.reports / "per_case.csv"
    if not file.is_file():
        return Outcome(f"stainseg ({config.run})", f"{NOT_RUN}: make evaluate")
    scores = read_per_case(file)
    trained, predicted = (read_manifest(folder / "stage.json") for folder in (paths.train, paths.predict))
    facts: dict[str, Any] = {}
    if trained is not None:
        facts["seconds_trained"] = trained.provenance.get("seconds")
    if predicted is not None and (images := sum(name.endswith(".tif") for name in predicted.outputs)):
        facts |= {"seconds_predicted": predicted.provenance.get("seconds"), "test_images": images}
    return Outcome(f"stainseg ({config.run})", "", scores, facts, paths.reports / "masks")


def compared(
    ours: str, outcomes: Mapping[str, Outcome], pools: Mapping[str, Sequence[str]], resamples: int, seed: int
) -> dict[str, Any]:
    """Summarise every segmenter, and the paired differences of ours minus each other.

    Returns run, pools, cases and segmenters: for each shown, missing, facts, parts (scores of all cases and of each
    stratum and pool, as metrics.json of a run has them) and differences (as comparison.differences; without ours, or
    where the cases differ, missing says so).
    """
    from pipeline.metrics.summary import summarise

    mine = outcomes[ours].scores
    described: dict[str, Any] = {}
    for name, outcome in outcomes.items():
        entry: dict[str, Any] = {"shown": outcome.shown, "missing": outcome.missing, "facts": outcome.facts}
        if name in SEGMENTERS:
            entry["recipe"] = SEGMENTERS[name].recipe
        if outcome.scores is not None:
            table = outcome.scores
            whole = summarise(table, PART, resamples, seed)
            entry["parts"] = {ALL: whole[PART], **whole["by_stratum"]}
            for pool, members in pools.items():
                # A run of ours may have been scored on another split, without these strata.
                if (inside := table["stratum"].isin(members)).any():
                    entry["parts"][pool] = summarise(table[inside], PART, resamples, seed)[PART]
            if mine is not None and name != ours:
                try:
                    entry["differences"] = differences(table, mine, pools, resamples)["parts"]
                except ValueError as error:
                    entry["missing"] = f"not compared: {error}"
        described[name] = entry
    return {"run": ours, "pools": {name: [*members] for name, members in pools.items()}, "segmenters": described}


def as_table(metrics: Mapping[str, Any]) -> str:
    """Lay scores, what they took and the differences out as Markdown, with what made them below."""
    ours, entries, made = metrics["run"], metrics["segmenters"], metrics["made"]
    parts = [ALL, *metrics["pools"]]
    heads = [
        *("AP", "F1 at 0.7", "Dice"),
        *(f"{pool}: {score}" for pool in parts[1:] for score in ("AP", "F1 at 0.7, pooled", "recall at 0.7, pooled")),
        *("minutes", "peak MB", "s an image"),
    ]
    lines = [
        f"{metrics['dataset']}, test part of the split {metrics['split']}, {metrics['threads']} threads. Scores are of "
        "the same images with the same labels; what was chosen, was chosen on the validation part.",
        "",
        f"| segmenter | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for entry in entries.values():
        cells = [_cell(entry["missing"]), *[""] * (len(heads) - 1)]
        if "parts" in entry:
            cells = [*_scores_shown(entry, parts), *_facts_shown(entry["facts"])]
        lines.append(f"| {entry['shown']} | {' | '.join(cells)} |")
    lines += [
        "",
        f"{entries[ours]['shown']} minus each other; 95 % intervals over whole groups.",
        "",
        f"| against | images | score | other | {ours} | difference (95 %) | groups better, worse, all | {ours} is |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in (entry for name, entry in entries.items() if name != ours):
        for part in parts if "differences" in entry else ():
            for score in (score for score in COMPARED if score in entry["differences"][part]):
                found = entry["differences"][part][score]
                interval = "" if found["low"] is None else f" ({found['low']:+.3f} to {found['high']:+.3f})"
                lines.append(
                    f"| {entry['shown']} | {part} ({found['cases']}) | {score} | {found['first']:.3f} | "
                    f"{found['second']:.3f} | {found['difference']:+.3f}{interval} | {found['better_groups']}, "
                    f"{found['worse_groups']}, {found['groups']} | {found['verdict']} |"
                )
        if entry["missing"] and "differences" not in entry:
            lines.append(f"| {entry['shown']} | {_cell(entry['missing'])} | | | | | | |")
    lines += [
        "",
        "Minutes: of a library those of its training; of ours the whole stage, choice on validation and all. Peak: the "
        "largest process. One training each: what another seed would have given is not told.",
        "",
    ]
    lines += [f"- {entry['shown']}{_versions(entry)}: {entry['recipe']}." for entry in entries.values()
              if "recipe" in entry]  # fmt: skip
    lines += ["", f"Made by `{made['command']}`: stainseg {made['versions']['stainseg']}, Python "
              f"{made['versions']['python']}, commit {made['commit']}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def _scores_shown(entry: Mapping[str, Any], parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        for score in ("ap", "f1_70", "dice") if part == ALL else ("ap", "f1_70_pooled", "recall_70_pooled"):
            found = entry["parts"].get(part, {}).get(score)
            yield "-" if found is None else f"{found['mean']:.3f}"


def _facts_shown(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "-" if facts.get("seconds_trained") is None else f"{facts['seconds_trained'] / 60:.1f}"
    yield "-" if facts.get("peak_megabytes") is None else f"{facts['peak_megabytes']:.0f}"
    seconds, images = facts.get("seconds_predicted"), facts.get("test_images")
    yield "-" if seconds is None or not images else f"{seconds / images:.2f}"


def _versions(entry: Mapping[str, Any]) -> str:
    versions = {name: version for name, version in entry["facts"].get("versions", {}).items() if name != "python"}
    return f" ({', '.join(f'{name} {version}' for name, version in versions.items())})" if versions else ""


def _cell(text: str) -> str:
    """One line without the signs that end a cell."""
    return " ".join(text.split()).replace("|", "/")


# --- Pictures -----------------------------------------------------------------------------------------------------


def _draw_differences(metrics: Mapping[str, Any], file: Path) -> None:
    """Draw the gain of ours over every other with its interval; nothing where there is none."""
    from pipeline.reporting.differences import draw_differences

    others = {entry["shown"]: entry["differences"] for entry in metrics["segmenters"].values()
              if "differences" in entry}  # fmt: skip
    panels = {
        f"{score}, {part}": {
            shown: (found["difference"], found["low"], found["high"], COLOURS[found["verdict"]])
            for shown, parts in others.items()
            if (found := parts[part].get(score))
        }
        for part in (ALL, *metrics["pools"])
        for score in ("ap", "recall_70_pooled")
    }
    if others:
        title = f"{metrics['run']} minus each other, 95 % interval over groups; blue better, red worse, grey neither"
        draw_differences(title, [*others], panels, file)


def _draw_cases(outcomes: Mapping[str, Outcome], cases: Sequence[Case], paths: Paths, file: Path) -> None:
    """Draw one case of each stratum, the median of the first segmenter's AP, by every segmenter that has masks."""
    from pipeline.records.rasters import read_image, read_label
    from pipeline.reporting.outlined import Panel, draw_outlined
    from pipeline.reporting.side_by_side import busiest

    there = [outcome for outcome in outcomes.values() if outcome.scores is not None and outcome.masks is not None]
    if not there:
        return
    scores = [dict(zip(one.scores["case_id"], one.scores["ap"], strict=True)) for one in there]  # type: ignore[index]
    rows: dict[str, list[Panel]] = {}
    for stratum in sorted({str(case.stratum) for case in cases}):
        of_it = [case for case in cases if str(case.stratum) == stratum and case.case_id in scores[0]]
        of_it.sort(key=lambda case: (scores[0][case.case_id], case.case_id))
        if not of_it:
            continue
        case = of_it[len(of_it) // 2]
        image, truth = read_image(paths.image(case.image)), read_label(paths.ingest / str(case.label))
        place = busiest(image, PICTURED)
        panels = [Panel("image\nand truth", image[place], np.where(truth == IGNORED, 0, truth)[place], None)]
        for outcome, score in zip(there, scores, strict=True):
            mask = read_label(outcome.masks / f"{case.case_id}.png")  # type: ignore[operator]
            caption = f"{outcome.shown}\nAP {score.get(case.case_id, float('nan')):.2f}"
            panels.append(Panel(caption, image[place], np.where(truth == IGNORED, 0, truth)[place], mask[place]))
        rows[f"{stratum}: {case.case_id[:12]}"] = panels
    draw_outlined("white, the truth's outlines; blue, the segmenter's; the median case of each stratum", rows, file)
