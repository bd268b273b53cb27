"""Speed as ratios: suites of contests against other libraries, each with its table, its history and its chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.benchmarks import command_line, inference, matching, run_lengths, stains, training
from pipeline.benchmarks.history import Findings, Run, append_run, changes, circumstances, read_runs
from pipeline.benchmarks.table import plot, table

SUITES: dict[str, Callable[[], Findings]] = {
    "stains": stains.run,
    "training": training.run,
    "inference": inference.run,
    "inference_slide": inference.run_slide,
    "matching": matching.run,
    "run_lengths": run_lengths.run,
    "help": command_line.run,
}
"""Suites by name; each measures and returns what it found."""
NAMED_ONLY = ("inference_slide",)
"""Suites that take so long that they run only where they are named."""

FOLDER = Path("reports/bench")


def bench(names: Sequence[str] = (), folder: Path = FOLDER) -> None:
    """Run suites: print each table, add the run to <suite>.json, draw <suite>.svg and .png.

    names: all but NAMED_ONLY where none is named. Raises ValueError for a name that is no suite, before any is run.
    """
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise ValueError(f"bench: expected suites among {', '.join(SUITES)}, found {', '.join(unknown)}")
    for name in names or [name for name in SUITES if name not in NAMED_ONLY]:
        file = folder / f"{name}.json"
        earlier = read_runs(file)
        here_and_now = circumstances()
        run = Run(here_and_now, SUITES[name]())
        append_run(file, run)
        pictures = plot(name, run, folder / name)
        print(f"\n{table(name, run, changes(run, earlier))}\nWritten: {', '.join(map(str, [file, *pictures]))}")
