"""Contests: named sides do the same work in turns, and the ratios of their times are summed up.

A busy machine slows all sides alike only over short times. So each side has a process of its own with the same number
of threads, they take turns in short rounds, every second round in reverse, a ratio is taken within each round, and
the median over the rounds counts, with the interval that its rank has.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

CHILD = Path(__file__).with_name("child.py")
ANSWER_S = 300.0
"""Longest wait for an answer; importing a large library from a cold disk takes half a minute."""
SETTLE_S = 0.05
"""Pause before each turn: the threads of the side before spin a few milliseconds longer than their work."""
THREAD_SETTINGS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
FORCED_KERNELS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
"""Taken out of the environment: each library's BLAS is to choose the kernel of this processor."""


class SideFailed(Exception):
    """A side gave no answer; the text says why."""


class Player(Protocol):
    """Whatever answers the requests of child.py; raises SideFailed where it cannot."""

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""


@dataclass(frozen=True)
class Side:
    """A named side: the interpreter and script it runs, and what its tasks have in addition.

    threads: how many it may use. missing: why it cannot take part; empty where it can. importable: folder whose
    packages its script may import beside those of its interpreter.
    """

    name: str
    python: Path
    script: Path
    threads: int
    variant: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""
    importable: Path | None = None

    def environment(self) -> dict[str, str]:
        """Return the environment of its process: this one's, with the threads bounded."""
        own = {name: value for name, value in os.environ.items() if name not in (*FORCED_KERNELS, "PYTHONPATH")}
        if self.importable is not None:
            own["PYTHONPATH"] = str(self.importable)
        return own | dict.fromkeys(THREAD_SETTINGS, str(self.threads))


class Process:
    """A side in its own process, started at once and, where it died, again with the next request."""

    def __init__(self, side: Side, answer_s: float = ANSWER_S) -> None:
        self.side = side
        self.answer_s = answer_s
        self._child: subprocess.Popen[str] | None = None
        self._lines: queue.Queue[str] = queue.Queue()
        if not side.missing:
            self._start()

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer."""
        if self.side.missing:
            raise SideFailed(self.side.missing)
        if self._child is None:
            self._start()
        assert self._child is not None and self._child.stdin is not None
        if "prepare" in request:
            request["prepare"] = {**request["prepare"], **self.side.variant}
        try:
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
            line = self._lines.get(timeout=self.answer_s)
        except queue.Empty:
            self.close()
            raise SideFailed(f"no answer within {self.answer_s:.0f} s") from None
        except BrokenPipeError:
            line = ""
        if not line:
            raise SideFailed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for stream in (self._child.stdin, self._child.stdout):
                if stream is not None:
                    stream.close()
            self._errors.close()
            self._child = None

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 (closed with the process)
        self._lines = queue.Queue()
        self._child = subprocess.Popen(
            [self.side.python, "-P", CHILD, self.side.script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=self.side.environment(),
        )
        threading.Thread(target=_forward, args=(self._child, self._lines), daemon=True).start()

    def _last_words(self) -> str:
        """End the process and say how it ended; after an error, the last line on standard error is its text."""
        assert self._child is not None
        code = self._child.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()]
        self.close()
        last = lines[-1] if lines else "without a word"
        return last if code == 1 else f"ended with status {code}: {last}"


def _forward(child: subprocess.Popen[str], lines: queue.Queue[str]) -> None:
    """Hand over the lines of a process as they come, and an empty one at their end."""
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put("")


@dataclass(frozen=True)
class Aim:
    """How many times as fast as the fastest of these sides ours is to be."""

    at_least: float
    against: tuple[str, ...]


@dataclass(frozen=True)
class Contest:
    """The same work for every side.

    what, items: names of the work and of what it is done on. ours: the side that the others are compared with; sides:
    all names, ours among them. amount: units of work in one pass, such as megapixels.
    """

    what: str
    items: str
    task: Mapping[str, Any]
    ours: str
    sides: tuple[str, ...]
    amount: float
    unit: str
    aim: Aim | None = None


@dataclass(frozen=True)
class Pace:
    """How long rounds last and how many there are.

    turn_s: least time of one turn, in whole passes; contest_s: time after which no further round begins, once there
    are least rounds; most: rounds after which it ends in any case.
    """

    turn_s: float = 0.12
    contest_s: float = 10.0
    least: int = 7
    most: int = 25
    settle_s: float = SETTLE_S


@dataclass(frozen=True)
class Times:
    """Of one side: seconds of fitting and a first pass (they compile), and seconds a pass in each round."""

    first_s: float
    pass_s: tuple[float, ...]


Outcome = Times | str
"""Of one side: its times, or why there are none."""


@dataclass(frozen=True)
class Ratio:
    """The median of ratios, and the interval that covers the median with at least 95 % probability."""

    median: float
    low: float
    high: float


def hold(
    contest: Contest,
    players: Mapping[str, Player],
    pace: Pace,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Outcome]:
    """Let the sides of a contest take turns; one that fails drops out with its reason, the others go on."""
    outcomes: dict[str, Outcome] = {}
    first: dict[str, float] = {}
    passes: dict[str, int] = {}
    for name in contest.sides:
        try:
            first[name] = players[name].ask(prepare=contest.task)["first_s"]
            passes[name] = _passes(players[name], pace)
        except SideFailed as failed:
            outcomes[name] = str(failed)
    taken: dict[str, list[float]] = {name: [] for name in passes}
    started = clock()
    for number in range(pace.most):
        if number >= pace.least and clock() - started > pace.contest_s:
            break
        for name in list(taken)[:: -1 if number % 2 else 1]:
            sleep(pace.settle_s)
            try:
                taken[name].append(players[name].ask(passes=passes[name])["seconds"] / passes[name])
            except SideFailed as failed:
                outcomes[name] = str(failed)
                del taken[name]
    return outcomes | {name: Times(first[name], tuple(pass_s)) for name, pass_s in taken.items()}


def _passes(player: Player, pace: Pace) -> int:
    """How many passes fill a turn, from one pass after the first; one, where a turn has no length."""
    if not pace.turn_s:
        return 1
    seconds = player.ask(passes=1)["seconds"]
    return max(1, math.ceil(pace.turn_s / max(seconds, 1e-9)))


def ratio(other: Sequence[float], ours: Sequence[float]) -> Ratio:
    """How many times as long the other side took, from the seconds of both in the same rounds."""
    ratios = np.sort(np.asarray(other) / np.asarray(ours))
    rank = median_rank(len(ratios))
    return Ratio(float(np.median(ratios)), float(ratios[rank]), float(ratios[-1 - rank]))


def median_rank(count: int, probability: float = 0.95) -> int:
    """Return the largest rank k (from 0) whose values k and count - 1 - k enclose the median with this probability.

    It holds for any distribution: the number of values below the median is binomial with one half. 0 for few values.
    """
    outside, rank = 0.0, 0
    while True:
        outside += 2.0 * math.comb(count, rank) / 2.0**count
        if outside > 1.0 - probability:
            return max(0, rank - 1)
        rank += 1


@dataclass(frozen=True)
class Row:
    """One line of a table: ours against one other side.

    speed, other_speed: units a second, medians. aim: least ratio wanted; None where this side is not the one to beat.
    failed: why there are no figures; then they are None.
    """

    what: str
    items: str
    ours: str
    against: str
    unit: str
    speed: float | None = None
    other_speed: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    rounds: int = 0
    first_s: float | None = None
    other_first_s: float | None = None
    aim: float | None = None
    failed: str = ""

    @property
    def key(self) -> str:
        """What makes rows of two runs the same."""
        return f"{self.what} | {self.items} | {self.against}"


def rows_of(contest: Contest, outcomes: Mapping[str, Outcome]) -> list[Row]:
    """Compare ours with every other side; the aim stands in the row of the fastest side that it names."""
    ours = outcomes[contest.ours]
    others = [name for name in contest.sides if name != contest.ours]
    measured = {name: times for name in others if isinstance(times := outcomes[name], Times)}
    wanted = contest.aim
    beaten = {name: float(np.median(measured[name].pass_s)) for name in measured if wanted and name in wanted.against}
    to_beat = min(beaten, key=beaten.__getitem__) if beaten else None
    rows = []
    for name in others:
        times = outcomes[name]
        row = Row(contest.what, contest.items, contest.ours, name, contest.unit)
        if isinstance(ours, str):
            rows.append(replace(row, failed=f"{contest.ours}: {ours}"))
        elif isinstance(times, str):
            rows.append(replace(row, failed=times))
        else:
            aim = wanted.at_least if wanted and name == to_beat else None
            rows.append(_measured(row, ours, times, contest.amount, aim))
    return rows


def _measured(row: Row, ours: Times, other: Times, amount: float, aim: float | None) -> Row:
    found = ratio(other.pass_s, ours.pass_s)
    return replace(
        row,
        speed=amount / float(np.median(ours.pass_s)),
        other_speed=amount / float(np.median(other.pass_s)),
        ratio=found.median,
        low=found.low,
        high=found.high,
        rounds=len(ours.pass_s),
        first_s=ours.first_s,
        other_first_s=other.first_s,
        aim=aim,
    )


def versions_of(player: Player) -> str:
    """Return which versions a side is made of, or why it does not say."""
    try:
        return str(player.ask(call="versions", **{"with": {}})["answer"])
    except SideFailed as failed:
        return str(failed)


def cores(most: int = 2) -> int:
    """Return how many threads a side takes: the cores that this process may use, and no more than most."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(most, allowed)


def here(name: str, script: Path, threads: int, **variant: Any) -> Side:
    """Return a side that runs in this environment and may import the pipeline."""
    return Side(name, Path(sys.executable), script, threads, variant, importable=Path(__file__).parents[2])
