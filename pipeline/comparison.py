"""Two runs on the same cases: paired differences with intervals over groups, as a table, JSON and a picture.

One run each tells nothing of what another seed would have given: for that, see the ablation.
Reads reports/<run>/per_case.csv of both; writes reports/compare/<first>--<second>.json, .md and .png.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.records.files import write_json, write_text
from pipeline.reporting.differences import draw_differences

SHOWN = ("dice", "ap", "f1_70", "recall_70", "pq", "f1_70_pooled", "recall_70_pooled", "precision_70_pooled")
"""Scores of the table, where both runs have them."""
COLOURS = {"more": "#2f6f9f", "less": "#c2553a", "not shown": "#6b7280", "too few groups": "#9aa0a6"}


def compare(first: str, second: str, pools: Sequence[str] = (), root: Path = Path(), resamples: int = 10_000) -> None:
    """Compare two runs and print and write what was found.

    first, second: runs with reports/<run>/per_case.csv (of a cross-validation cv/<run>); pools: "name=stratum,stratum",
    strata that are also judged together. Raises ValueError naming all that keeps them from being compared.
    """
    named = dict(_pool(pool) for pool in pools)
    tables = [_scores(root, run) for run in (first, second)]
    result = differences(tables[0], tables[1], named, resamples)
    result = {"first": first, "second": second} | result
    folder = root / "reports" / "compare"
    stem = f"{first}--{second}".replace("/", "-")
    table = as_table(result)
    write_json(folder / f"{stem}.json", result)
    write_text(folder / f"{stem}.md", table)
    panels = {
        part: {
            score: (entry["difference"], entry["low"], entry["high"], COLOURS[entry["verdict"]])
            for score, entry in entries.items()
        }
        for part, entries in result["parts"].items()
    }
    rows = [score for score in SHOWN if score in result["parts"]["all"]]
    draw_differences(f"{second} minus {first}, 95 % interval over groups", rows, panels, folder / f"{stem}.png")
    print(f"{table}\nWritten: {folder / stem}.json, .md and .png")


def _pool(pool: str) -> tuple[str, list[str]]:
    name, equals, strata = pool.partition("=")
    if not (name and equals and strata):
        raise ValueError(f"--pool: expected name=stratum,stratum, found {pool!r}")
    return name, strata.split(",")


def _scores(root: Path, run: str) -> Any:
    import pandas as pd

    file = root / "reports" / run / "per_case.csv"
    if not file.exists():
        raise ValueError(f"{file}: expected the scores of the run {run}, found nothing; run `make evaluate` for it")
    table = pd.read_csv(file, dtype={"case_id": str, "group": str, "stratum": str})
    if not {"truth_objects", "dice"} <= {*table.columns}:
        raise ValueError(f"{file}: expected the scores of masks, found the columns {', '.join(table.columns[:8])}, ...")
    return table


def differences(first: Any, second: Any, pools: Mapping[str, Sequence[str]], resamples: int = 10_000) -> dict[str, Any]:
    """Compare two per_case tables: all cases, every stratum, and named pools of strata.

    Returns cases, groups, and parts: for each part and score what metrics.summary.summarise_differences gives, with a
    verdict of the second run: more or less (the interval excludes 0), not shown, or too few groups for an interval.
    Raises ValueError where the cases differ, or a pool names a stratum that is not there.
    """
    from pipeline.metrics.summary import summarise_differences

    strata = sorted(set(first["stratum"].dropna()))
    unknown = sorted({stratum for wanted in pools.values() for stratum in wanted} - {*strata})
    if unknown:
        raise ValueError(f"--pool: expected some of the strata {', '.join(strata)}, found {', '.join(unknown)}")
    wanted = {**{stratum: [stratum] for stratum in strata}, **pools}
    parts = {"all": summarise_differences(first, second, resamples)}
    for name, members in wanted.items():
        mine, other = (table[table["stratum"].isin(members)] for table in (first, second))
        if mine["dice"].notna().any():
            parts[name] = summarise_differences(mine, other, resamples)
    for entries in parts.values():
        for entry in entries.values():
            entry["verdict"] = _verdict(entry)
    cases = int(first["dice"].notna().sum())
    return {"cases": cases, "groups": parts["all"]["dice"]["groups"], "resamples": resamples, "parts": parts}


def _verdict(entry: Mapping[str, Any]) -> str:
    if entry["low"] is None:
        return "too few groups"
    if entry["low"] > 0:
        return "more"
    return "less" if entry["high"] < 0 else "not shown"


def as_table(result: Mapping[str, Any]) -> str:
    """Lay the differences out as Markdown."""
    lines = [
        f"{result['second']} against {result['first']}: {result['cases']} images in {result['groups']} groups. One run "
        "each: what another seed would have given is not in the intervals.",
        "",
        f"| images | score | {result['first']} | {result['second']} | difference (95 %) | shown? |",
        "|---|---|---|---|---|---|",
    ]
    for part, entries in result["parts"].items():
        for score in (score for score in SHOWN if score in entries):
            entry = entries[score]
            interval = "" if entry["low"] is None else f" ({entry['low']:+.3f} to {entry['high']:+.3f})"
            lines.append(
                f"| {part} | {score} | {entry['first']:.3f} | {entry['second']:.3f} | "
                f"{entry['difference']:+.3f}{interval} | {entry['verdict']} |"
            )
    return "\n".join(lines) + "\n"
