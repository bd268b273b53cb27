"""How fast the stain transforms are, against a plain implementation and two well-known libraries, on the same tiles."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline.benchmarks import agreement, peers
from pipeline.benchmarks.history import Check, Findings
from pipeline.benchmarks.tiles import SIZES, fingerprint, render_reference, render_tiles
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

THREADS = 2
OURS = "stainseg"
NUMPY = "plain NumPy"
TORCHSTAIN = ("torchstain numpy", "torchstain torch")
TIATOOLBOX = "tiatoolbox"
MATCHES: dict[str, tuple[tuple[str, ...], Aim | None]] = {
    "fixed matrix": ((NUMPY,), Aim(20.0, (NUMPY,))),
    "macenko": ((*TORCHSTAIN, TIATOOLBOX), Aim(10.0, (*TORCHSTAIN, TIATOOLBOX))),
    "reinhard": ((*TORCHSTAIN, TIATOOLBOX), Aim(4.0, (TIATOOLBOX,))),
    "vahadane": ((TIATOOLBOX,), Aim(8.0, (TIATOOLBOX,))),
    "ruifrok": ((TIATOOLBOX,), None),
}
"""Other sides of each contest, and its aim. fixed matrix is the transform alone, the others estimate as well."""
SCRIPTS = Path(__file__).parent


def sides() -> list[Side]:
    """Return every side that could take part, each with the reason where it cannot."""
    ours = SCRIPTS / "stain_sides.py"
    found = [here(OURS, ours, THREADS, variant="stainseg"), here(NUMPY, ours, THREADS, variant="numpy")]
    entries = [(name, "torchstain", {"variant": name.split()[1]}) for name in TORCHSTAIN]
    for name, peer, variant in [*entries, (TIATOOLBOX, "tiatoolbox", {})]:
        script = SCRIPTS / "peers" / f"{peer}.py"
        found.append(Side(name, peers.python_of(peer), script, THREADS, variant, peers.missing(peer)))
    return found


def run(pace: Pace | None = None) -> Findings:
    """Hold every contest on tiles of both sizes, then check the pixels."""
    with ExitStack() as closing:
        folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        players = {}
        for side in sides():
            # Each starts to import while the tiles are rendered.
            players[side.name] = Process(side)
            closing.callback(players[side.name].close)
        reference, stacks, items = _write_tiles(folder)
        contests = [_contest(what, size, stack, folder) for what in MATCHES for size, stack in stacks.items()]
        rows: list[Row] = []
        for contest in tqdm(contests, desc="contests", unit="contest", disable=None):
            rows += rows_of(contest, hold(contest, players, pace or Pace()))
        versions = {side.name: side.missing or versions_of(players[side.name]) for side in sides()}
        checks = _checks(list(stacks.values()), reference, players[TORCHSTAIN[0]], folder)
    return Findings(items, THREADS, versions, rows, checks)


def _write_tiles(folder: Path) -> tuple[np.ndarray, dict[tuple[int, int], np.ndarray], str]:
    reference = render_reference()
    np.save(folder / "reference.npy", reference)
    stacks, told = {}, []
    for size in tqdm(SIZES, desc="tiles", unit="size", disable=None):
        stacks[size], names = render_tiles(size)
        np.save(folder / f"{_named(size)}.npy", stacks[size])
        told.append(f"{len(names)} of {_named(size)}")
    return reference, stacks, f"{', '.join(told)} ({fingerprint(reference, *stacks.values())})"


def _contest(what: str, size: tuple[int, int], stack: np.ndarray, folder: Path) -> Contest:
    others, aim = MATCHES[what]
    task = {
        "method": what,
        "tiles": str(folder / f"{_named(size)}.npy"),
        "reference": str(folder / "reference.npy"),
        "threads": THREADS,
    }
    megapixels = stack[..., 0].size / 1e6
    return Contest(what, _named(size), task, OURS, (OURS, *others), megapixels, "MP/s", aim)


def _checks(stacks: list[np.ndarray], reference: np.ndarray, torchstain: Process, folder: Path) -> list[Check]:
    methods = ("ruifrok", "macenko", "vahadane", "reinhard")
    checks = [agreement.with_plain(method, stacks, reference) for method in methods]
    checks += [agreement.of_a_subsample(method, stacks) for method in ("macenko", "vahadane")]
    tiles, made = folder / f"{_named(SIZES[0])}.npy", folder / "torchstain.npy"
    files = {"tiles": str(tiles), "reference": str(folder / "reference.npy"), "out": str(made)}
    try:
        measured = torchstain.ask(call="macenko", **{"with": files})["answer"]
    except SideFailed as failed:
        return [*checks, Check("transform as torchstain", None, "", agreement.AGREEING, detail=str(failed))]
    return checks + agreement.with_torchstain(stacks[0], np.load(made), measured)


def _named(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
