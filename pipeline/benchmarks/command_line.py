"""How soon `--help` is there: against the command lines of nnU-Net and tiatoolbox."""

from __future__ import annotations

import sys
from pathlib import Path

from pipeline.benchmarks import peers
from pipeline.benchmarks.history import Findings
from pipeline.benchmarks.timing import Aim, Contest, Pace, Process, Row, Side, here, hold, rows_of, versions_of

OURS = "stainseg"
COMMANDS = {"nnunet": ("nnUNetv2_train", "-h"), "tiatoolbox": ("tiatoolbox", "--help")}
"""Command lines of other libraries, below bin/ of their environments."""
TIMES = 10.0
PACE = Pace(turn_s=0.0, contest_s=120.0, least=5, most=9)
SCRIPT = Path(__file__).with_name("command_line_sides.py")


def run(pace: Pace = PACE) -> Findings:
    """Start each command line in turns."""
    sides = [here(OURS, SCRIPT, 1, command=[sys.executable, "-m", "pipeline", "--help"])]
    for name, (program, flag) in COMMANDS.items():
        command = [str(peers.python_of(name).with_name(program)), flag]
        side = here(name, SCRIPT, 1, command=command)
        sides.append(Side(name, side.python, side.script, 1, side.variant, peers.missing(name), side.importable))
    players = {side.name: Process(side) for side in sides}
    rows: list[Row] = []
    try:
        contest = Contest("--help", "to the end", {}, OURS, tuple(players), 1.0, "calls/s", Aim(TIMES, tuple(COMMANDS)))
        rows = rows_of(contest, hold(contest, players, pace))
        versions = {side.name: side.missing or versions_of(players[side.name]) for side in sides}
    finally:
        for player in players.values():
            player.close()
    return Findings("whole processes, warm disk", 1, versions, rows, [])
