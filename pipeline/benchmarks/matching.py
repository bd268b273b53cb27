"""How fast objects of two label rasters are matched and scored: against StarDist, Cellpose, MONAI and plain NumPy."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from pipeline.benchmarks import peers
from pipeline.benchmarks.history import Check, Findings
from pipeline.benchmarks.tiles import fingerprint
from pipeline.benchmarks.timing import (
    Aim,
    Contest,
    Pace,
    Process,
    Row,
    Side,
    SideFailed,
    here,
    hold,
    rows_of,
    versions_of,
)
from pipeline.metrics.instance import THRESHOLDS

OURS, STARDIST, CELLPOSE, MONAI, PLAIN = "stainseg", "stardist", "cellpose", "monai", "plain NumPy"
MATCHES = {"AP": (STARDIST, CELLPOSE, PLAIN), "PQ": (MONAI, PLAIN), "AJI": (CELLPOSE, PLAIN)}
"""Other sides of each score."""
DEFINED_ALIKE = {"AP": (STARDIST, CELLPOSE, PLAIN), "PQ": (MONAI, PLAIN), "AJI": (PLAIN,)}
"""Sides that define a score as ours does; Cellpose's AJI matches one to one and leaves unmatched pixels otherwise."""
TIMES, APART = 3.0, 1e-6
"""Aims: times as fast as the fastest other side; largest difference between scores."""
THREADS = 1
GRID, PITCH, SEED = (18, 17), 56, 81
"""Nuclei by rows and columns, pixels from one to the next."""
SCRIPT = Path(__file__).with_name("matching_sides.py")


def sides() -> list[Side]:
    """Return every side, those of other libraries with the reason where they cannot take part."""
    found = [
        here(name, SCRIPT, THREADS, variant=variant)
        for name, variant in ((OURS, "ours"), (MONAI, "monai"), (PLAIN, "plain"))
    ]
    folder = Path(peers.__file__).parent
    return found + [
        Side(name, peers.python_of(name), folder / f"{name}.py", THREADS, {}, peers.missing(name))
        for name in (STARDIST, CELLPOSE)
    ]


def run(pace: Pace | None = None) -> Findings:
    """Hold a contest for each score, then compare the scores."""
    truth, prediction = nuclei()
    rows: list[Row] = []
    checks = []
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        files = {"truth": str(folder / "truth.npy"), "prediction": str(folder / "prediction.npy")}
        np.save(files["truth"], truth)
        np.save(files["prediction"], prediction)
        players = {side.name: Process(side) for side in sides()}
        for player in players.values():
            closing.callback(player.close)
        size = f"{truth.shape[0]}x{truth.shape[1]}"
        for score, others in tqdm(MATCHES.items(), desc="contests", unit="contest", disable=None):
            task = {"score": score, "thresholds": list(THRESHOLDS), **files}
            contest = Contest(score, size, task, OURS, (OURS, *others), 1.0, "images/s", Aim(TIMES, others))
            rows += rows_of(contest, hold(contest, players, pace or Pace()))
            checks += [_same(score, other, players, task) for other in DEFINED_ALIKE[score]]
        versions = {side.name: side.missing or versions_of(players[side.name]) for side in sides()}
    counts = f"{truth.max()} nuclei and {prediction.max()} predicted"
    items = f"{counts}, {size} ({fingerprint(truth, prediction)})"
    return Findings(items, THREADS, versions, rows, checks)


def nuclei() -> tuple[np.ndarray, np.ndarray]:
    """Lay discs out, and predict them moved, some lost, some joined: (height, width) uint16 each, ids from 1 on."""
    random = np.random.default_rng(SEED)
    height, width = (count * PITCH for count in GRID)
    rows, columns = np.mgrid[0:height, 0:width]
    truth = np.zeros((height, width), np.uint16)
    for number in range(GRID[0] * GRID[1]):
        centre = (np.array(divmod(number, GRID[1])) + 0.5) * PITCH + random.uniform(-6, 6, 2)
        radius = random.uniform(9, 24)
        truth[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2] = number + 1
    moved = ndimage.shift(truth, (2, -3), order=0)
    fates = random.random(int(truth.max()) + 1)
    names = np.arange(fates.size)
    names[1:] = np.where(fates[1:] < 0.06, 0, np.where(fates[1:] < 0.12, np.maximum(names[1:] - 1, 1), names[1:]))
    names = np.unique(names[moved], return_inverse=True)[1].reshape(moved.shape)
    return truth, names.astype(np.uint16)


def _same(score: str, other: str, players: dict[str, Process], task: dict[str, object]) -> Check:
    what = f"{score} of {OURS} and {other}"
    try:
        found = [players[name].ask(call="answer", **{"with": {**task, **players[name].side.variant}})["answer"]
                 for name in (OURS, other)]  # fmt: skip
    except SideFailed as failed:
        return Check(what, None, "", APART, True, str(failed))
    return Check(what, abs(found[0] - found[1]), "", APART, True, f"difference; ours is {found[0]:.6f}")
