"""Two runs on the same cases: paired differences with intervals over groups, as a table, JSON and a picture.

One run each tells nothing of what another seed would have given: for that, see the ablation.
Reads reports/<run>/per_case.csv of both; writes reports/compare/<first>--<second>.json, .md and .png.
"""

from __future__ import annotations

import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.records.case import UNKNOWN_STRATUM
from pipeline.records.files import write_json, write_text
from pipeline.records.former import former_kept
from pipeline.reporting.differences import draw_differences

SHOWN = ("dice", "iou", "ap", "f1_70", "recall_70", "pq", "f1_70_pooled", "recall_70_pooled", "precision_70_pooled")
"""Scores of the table, where both runs have them; of all of them more is better."""
COLOURS = {"better": "#2f6f9f", "worse": "#c2553a", "no difference shown": "#6b7280", "too few groups": "#9aa0a6"}


def compare(first: str, second: str, pools: Sequence[str] = (), root: Path = Path(), resamples: int = 10_000) -> None:
    """Compare two runs and print and write what was found.

    first, second: runs with reports/<run>/per_case.csv (of a cross-validation cv/<run>); pools: "name=stratum,stratum",
    strata that are also judged together. Raises ValueError naming all that keeps them from being compared.
    """
    problems: list[str] = []
    named = dict(named_pools(pools, problems))
    tables = [_scores(root, run, problems) for run in (first, second)]
    if problems:
        raise ValueError("\n".join(problems))
    try:
        found = differences(tables[0], tables[1], named, resamples)
    except ValueError as error:
        raise ValueError(f"{second} against {first}: {error}") from error
    words = [word for pool in pools for word in ("--pool", pool)]
    command = shlex.join(["python", "-m", "pipeline", "compare", first, second, *words])
    made = {"command": command, "stainseg": __version__, "python": platform.python_version()}
    result = {"first": first, "second": second} | found | {"made": made}
    folder = root / "reports" / "compare"
    stem = f"{first}--{second}".replace("/", "-")
    table = as_table(result)
    panels = {
        part: {
            score: (entry["difference"], entry["low"], entry["high"], COLOURS[entry["verdict"]])
            for score, entry in entries.items()
        }
        for part, entries in result["parts"].items()
    }
    rows = [score for score in SHOWN if score in result["parts"]["all"]]
    title = f"{second} minus {first}, 95 % interval over groups; blue better, red worse, grey neither"
    with former_kept(folder / stem, (".json", ".md", ".png")):
        write_json(folder / f"{stem}.json", result)
        write_text(folder / f"{stem}.md", table)
        draw_differences(title, rows, panels, folder / f"{stem}.png")
    print(f"{table}\nWritten: {folder / stem}.json, .md and .png")


def named_pools(pools: Sequence[str], problems: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield name and strata of every "name=stratum,stratum"; what is none is a problem more."""
    parted = [pool.partition("=") for pool in pools]
    names = [name for name, _, _ in parted]
    for pool, (name, _, strata) in zip(pools, parted, strict=True):
        if not (name and strata):
            problems.append(f"--pool: expected name=stratum,stratum, found {pool!r}")
        elif names.count(name) > 1:
            problems.append(f"--pool: expected a name of its own for each, found {name!r} again in {pool!r}")
        else:
            yield name, strata.split(",")


def _scores(root: Path, run: str, problems: list[str]) -> Any:
    """Return per_case.csv of a run; None, and a problem more, where there is none of masks."""
    from pipeline.metrics.summary import read_per_case

    file = root / "reports" / run / "per_case.csv"
    if not file.exists():
        problems.append(
            f"{file}: expected the scores of the run {run}, found nothing; run `make evaluate` for it, or `make cv`"
        )
        return None
    table = read_per_case(file)
    if {"case_id", "truth_objects", "dice"} <= {*table.columns}:
        return table
    problems.append(f"{file}: expected the scores of masks, found the columns {', '.join(table.columns[:8])}, ...")
    return None


def differences(first: Any, second: Any, pools: Mapping[str, Sequence[str]], resamples: int = 10_000) -> dict[str, Any]:
    """Compare two per_case tables: all cases, every stratum, and named pools of strata.

    Returns cases, groups, unpaired (scores of classes that the runs were given in other cases, and so were not
    compared), and parts: for each part and score what metrics.summary.summarise_differences gives, with a
    verdict of the second run: better or worse (the interval excludes 0), no difference shown, or too few groups for an
    interval. Raises ValueError naming all of it where the cases, their truth, their groups or the kinds of score
    differ, or a pool names a stratum that is not there.
    """
    from pipeline.metrics.summary import summarise_differences

    first, second = (table[table["dice"].notna()].set_index("case_id").sort_index() for table in (first, second))
    of_case = first["stratum"].fillna(UNKNOWN_STRATUM)
    strata = sorted(set(of_case)) if first["stratum"].notna().any() else []
    unknown = sorted({stratum for wanted in pools.values() for stratum in wanted} - {*strata})
    problems = [*_what_keeps_apart(first, second)]
    if unknown:
        problems.append(f"--pool: expected some of the strata {', '.join(strata)}, found {', '.join(unknown)}")
    taken = sorted({*pools} & {"all", *strata})
    if taken:
        problems.append(f"--pool: expected names that no stratum has, nor 'all', found {', '.join(taken)}")
    if problems:
        raise ValueError("\n".join(problems))
    parts = {"all": summarise_differences(first.reset_index(), second.reset_index(), resamples)}
    for name, members in {**{stratum: [stratum] for stratum in strata}, **pools}.items():
        mine, other = (table[of_case.isin(members)].reset_index() for table in (first, second))
        parts[name] = summarise_differences(mine, other, resamples)
    for entries in parts.values():
        for entry in entries.values():
            entry["verdict"] = _verdict(entry)
    by_class = {
        name
        for table in (first, second)
        for name in table.columns[table.notna().any()]
        if name.startswith(("dice_class_", "pq_class_"))
    }
    unpaired = sorted(by_class - parts["all"].keys())
    groups = parts["all"]["dice"]["groups"]
    return {"cases": len(first), "groups": groups, "resamples": resamples, "unpaired": unpaired, "parts": parts}


def _what_keeps_apart(first: Any, second: Any) -> Iterator[str]:
    """Say what keeps two tables of scored cases, by case_id, from being paired; nothing where they can be."""
    kinds = [_kind(table) for table in (first, second)]
    if kinds[0] != kinds[1]:
        yield f"expected scores of one kind, found {kinds[0]} and {kinds[1]}"
    if not len(first) or not first.index.equals(second.index):
        common = first.index.intersection(second.index)
        yield (
            f"expected the same scored cases in both runs, found {len(first)} and {len(second)}, of which "
            f"{len(common)} are the same; score both on one split"
        )
        return
    # Labels that were read in anew under the same names would pass for a difference of the runs.
    truths, belongings = (
        [table.assign(pixels=table["tp"] + table["fn"])[names].fillna(missing).to_numpy() for table in (first, second)]
        for names, missing in ((["height", "width", "truth_objects", "pixels"], -1), (["group", "stratum"], ""))
    )
    for what, (mine, other) in (("truth", truths), ("group and stratum", belongings)):
        unlike = first.index[(mine != other).any(axis=1)]
        if len(unlike):
            yield (
                f"expected the same {what} of every case in both runs, found another of {len(unlike)} "
                f"({', '.join(unlike[:3])}{', ...' if len(unlike) > 3 else ''}); run `make evaluate` for both again"
            )


def _kind(table: Any) -> str:
    if table["truth_objects"].notna().any():
        return "objects"
    classes = sum(name.startswith("dice_class_") for name in table.columns)
    return f"{classes} classes" if classes else "foreground"


def _verdict(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return "too few groups"
    if entry["low"] > 0:
        return "better"
    return "worse" if entry["high"] < 0 else "no difference shown"


def as_table(result: Mapping[str, Any]) -> str:
    """Lay the differences out as Markdown, with what made them below."""
    first, second, made = result["first"], result["second"], result["made"]
    lines = [
        f"{second} against {first}: {result['cases']} images in {result['groups']} groups. One run each: what another "
        "seed would have given is not in the intervals. Of twenty of them about one excludes 0 by chance.",
        "",
        f"| images | score | {first} | {second} | difference (95 %) | groups better, worse, all | {second} is |",
        "|---|---|---|---|---|---|---|",
    ]
    for part, entries in result["parts"].items():
        for score in (score for score in SHOWN if score in entries):
            entry = entries[score]
            interval = "" if entry["low"] is None else f" ({entry['low']:+.3f} to {entry['high']:+.3f})"
            lines.append(
                f"| {part} ({entry['cases']}) | {score} | {entry['first']:.3f} | {entry['second']:.3f} | "
                f"{entry['difference']:+.3f}{interval} | "
                f"{entry['better_groups']}, {entry['worse_groups']}, {entry['groups']} | {entry['verdict']} |"
            )
    if result["unpaired"]:
        lines += [
            "",
            f"Not compared, since the runs find the class in different images: {', '.join(result['unpaired'])}.",
        ]
    lines += ["", f"Made by `{made['command']}`: stainseg {made['stainseg']}, Python {made['python']}."]
    return "\n".join(lines) + "\n"
