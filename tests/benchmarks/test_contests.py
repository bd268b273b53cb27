"""Contests take turns, compare within rounds and say why a side is missing; histories mark what became slower."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import benchmarks
from pipeline.benchmarks.history import (
    Check,
    Circumstances,
    Findings,
    Run,
    append_run,
    changes,
    circumstances,
    read_runs,
)
from pipeline.benchmarks.table import plot, table
from pipeline.benchmarks.timing import (
    Aim,
    Contest,
    Pace,
    Process,
    Row,
    Side,
    SideFailed,
    Times,
    hold,
    median_rank,
    ratio,
    rows_of,
)

PACE = Pace(turn_s=0.1, contest_s=1e9, least=3, most=6, settle_s=0.0)


class Clock:
    """Time that passes only when someone works."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Pretender:
    """A side that takes a given time a pass, times how busy the machine is; it may fail at its n-th request."""

    def __init__(self, name: str, clock: Clock, log: list[str], pass_s: float, fails_at: int = 1000) -> None:
        self.name, self.clock, self.log, self.pass_s, self.fails_at = name, clock, log, pass_s, fails_at
        self.requests = 0

    def ask(self, **request: Any) -> dict[str, Any]:
        self.requests += 1
        if self.requests >= self.fails_at:
            raise SideFailed("MemoryError: too large")
        if "prepare" in request:
            return {"first_s": 2.0}
        busy = 1.0 + self.clock.now // 1.0
        self.log.append(self.name)
        self.clock.now += request["passes"] * self.pass_s
        return {"seconds": request["passes"] * self.pass_s * busy}


def contest(*others: str, aim: Aim | None = None) -> Contest:
    return Contest("work", "things", {"n": 3}, "ours", ("ours", *others), 5.0, "things/s", aim)


def players(clock: Clock, log: list[str], **pass_s: float) -> dict[str, Pretender]:
    return {name: Pretender(name, clock, log, seconds) for name, seconds in pass_s.items()}


def test_sides_take_turns_and_every_second_round_is_reversed() -> None:
    clock, log = Clock(), list[str]()
    outcomes = hold(contest("a", "b"), players(clock, log, ours=0.1, a=0.1, b=0.1), PACE, clock, lambda _: None)
    assert log[:3] == ["ours", "a", "b"]
    assert log[3:] == ["ours", "a", "b", "b", "a", "ours"] * 3
    assert all(
        isinstance(times, Times) and len(times.pass_s) == 6 and times.first_s == 2.0 for times in outcomes.values()
    )


def test_turns_are_filled_with_whole_passes_and_a_contest_ends_in_time() -> None:
    clock, log = Clock(), list[str]()
    pair = players(clock, log, ours=0.004, a=0.3)
    outcomes = hold(contest("a"), pair, replace(PACE, contest_s=1.0, most=50), clock, lambda _: None)
    assert isinstance(outcomes["ours"], Times) and len(outcomes["ours"].pass_s) == 3
    # 0.004 a pass: 25 passes a turn; one of 0.3 is longer than a turn.
    assert clock.now == pytest.approx(0.004 + 0.3 + 3 * (25 * 0.004 + 0.3))


def test_a_machine_that_slows_down_changes_seconds_but_no_ratio() -> None:
    clock, log = Clock(), list[str]()
    outcomes = hold(contest("a"), players(clock, log, ours=0.01, a=0.05), PACE, clock, lambda _: None)
    ours, other = outcomes["ours"], outcomes["a"]
    assert isinstance(ours, Times) and isinstance(other, Times)
    assert ours.pass_s[-1] > ours.pass_s[0]
    found = ratio(other.pass_s, ours.pass_s)
    assert found.median == pytest.approx(5.0) and found.low <= found.median <= found.high


def test_a_side_that_fails_drops_out_and_the_others_go_on() -> None:
    clock, log = Clock(), list[str]()
    sides = players(clock, log, ours=0.1, a=0.2, b=0.4, c=0.4)
    sides["b"].fails_at, sides["c"].fails_at = 4, 1
    outcomes = hold(contest("a", "b", "c"), sides, PACE, clock, lambda _: None)
    assert outcomes["b"] == outcomes["c"] == "MemoryError: too large"
    assert isinstance(outcomes["a"], Times) and len(outcomes["a"].pass_s) == 6
    rows = rows_of(contest("a", "b", "c"), outcomes)
    assert [(row.against, row.failed) for row in rows] == [
        ("a", ""), ("b", "MemoryError: too large"), ("c", "MemoryError: too large")
    ]  # fmt: skip


def test_rows_carry_speeds_ratios_and_the_aim_of_the_fastest() -> None:
    outcomes = {"ours": Times(1.0, (0.1,) * 9), "a": Times(0.5, (0.4,) * 9), "b": Times(0.5, (0.3,) * 9)}
    slow, fast = rows_of(contest("a", "b", aim=Aim(2.5, ("a", "b"))), outcomes)
    assert (slow.aim, fast.aim) == (None, 2.5)
    assert fast.ratio == pytest.approx(3.0) and fast.speed == pytest.approx(50.0)
    assert fast.other_speed == pytest.approx(50 / 3) and fast.rounds == 9
    only_a, without = rows_of(contest("a", "b", aim=Aim(2.5, ("a",))), outcomes)
    assert (only_a.aim, without.aim) == (2.5, None)


def test_without_our_own_times_every_row_says_so() -> None:
    (row,) = rows_of(contest("a"), {"ours": "ValueError: no", "a": Times(1.0, (1.0,))})
    assert row.failed == "ours: ValueError: no" and row.ratio is None


def test_the_interval_of_the_median_has_the_probability_that_it_claims() -> None:
    # Of 9 values the second and the last but one enclose the median unless at most one lies on one side of it.
    assert [median_rank(count) for count in (1, 5, 6, 9, 25)] == [0, 0, 0, 1, 7]
    generator = np.random.default_rng(5)
    held = 0
    for _ in range(2000):
        found = ratio(generator.lognormal(0.0, 1.0, 15).tolist(), [1.0] * 15)
        held += found.low <= 1.0 <= found.high
    assert 0.95 <= held / 2000 <= 0.99


# --- Processes --------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
print("noise of a library on standard output")
def prepare(n, words="none", fail=""):
    if fail == "raise":
        raise ArithmeticError(f"{words} and {n}")
    if fail == "die":
        os._exit(3)
    if fail == "hang":
        time.sleep(30)
    return lambda: sum(range(n))
def seen():
    return [os.environ.get("OMP_NUM_THREADS"), os.environ.get("OPENBLAS_CORETYPE"), os.environ.get("PYTHONPATH")]
"""


@pytest.fixture
def side(tmp_path: Path) -> Side:
    script = tmp_path / "side.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return Side("a", Path(sys.executable), script, 2)


def test_a_process_answers_and_comes_back_after_it_died(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    process = Process(replace(side, variant={"words": "kept"}))
    try:
        assert process.ask(prepare={"n": 1000})["first_s"] > 0.0
        assert 0.0 < process.ask(passes=3)["seconds"] < 5.0
        assert process.ask(call="seen", **{"with": {}}) == {"answer": ["2", None, None]}
        with pytest.raises(SideFailed, match="ArithmeticError: kept and 7"):
            process.ask(prepare={"n": 7, "fail": "raise"})
        with pytest.raises(SideFailed, match="ended with status 3"):
            process.ask(prepare={"n": 7, "fail": "die"})
        assert process.ask(prepare={"n": 10})["first_s"] > 0.0
    finally:
        process.close()


def test_a_process_that_hangs_is_given_up(side: Side) -> None:
    process = Process(side, answer_s=0.5)
    with pytest.raises(SideFailed, match="no answer within"):
        process.ask(prepare={"n": 1, "fail": "hang"})
    process.close()


def test_a_side_that_is_missing_is_not_started(side: Side) -> None:
    process = Process(replace(side, python=Path("/nowhere/python"), missing="not installed: make bench-peers"))
    with pytest.raises(SideFailed, match="make bench-peers"):
        process.ask(passes=1)
    process.close()


# --- History and table ------------------------------------------------------------------------------------------------


def run_of(ratio: float, items: str = "3 tiles", cores: int = 2) -> Run:
    machine = {"processor": "Some CPU", "cores": cores, "system": "Linux x86_64", "python": "3.11.0"}
    row = Row(
        "macenko", "256x320", "stainseg", "a", "MP/s", 100.0, 100.0 / ratio, ratio, 0.9 * ratio, 1.1 * ratio, 9, 0.5,
        0.25, aim=10.0,
    )  # fmt: skip
    absent = Row("macenko", "256x320", "stainseg", "b", "MP/s", failed="not installed: make bench-peers")
    checks = [Check("same pixels", 99.95, "%", 99.9), Check("vectors", 0.7, "degrees", 0.5, at_most=True)]
    findings = Findings(items, 2, {"stainseg": "1", "b": absent.failed}, [row, absent], checks)
    return Run(Circumstances("2026-01-02T03:04:05+00:00", "abc", machine, 3.2), findings)


def test_runs_are_kept_and_compared_with_the_last_of_their_like(tmp_path: Path) -> None:
    file = tmp_path / "bench" / "stains.json"
    assert read_runs(file) == []
    runs = [run_of(20.0), run_of(10.0), run_of(50.0, items="other tiles"), run_of(60.0, cores=64)]
    for run in runs:
        append_run(file, run)
    assert read_runs(file) == runs
    assert changes(run_of(8.5), read_runs(file)) == {"macenko | 256x320 | a": pytest.approx(-0.15)}
    assert changes(run_of(8.5, items="third tiles"), read_runs(file)) == {}


@pytest.mark.parametrize("text", ["[]", "{", '{"version": 7, "runs": []}', '{"version": 1, "runs": [{}]}'])
def test_another_file_is_not_overwritten(tmp_path: Path, text: str) -> None:
    file = tmp_path / "stains.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"stains\.json: expected the history of a benchmark"):
        append_run(file, run_of(20.0))
    assert file.read_text(encoding="utf-8") == text


def test_the_table_marks_regressions_missed_aims_and_what_is_not_installed() -> None:
    run = run_of(8.5)
    lines = table("stains", run, changes(run, [run_of(10.0)])).splitlines()
    by_side = {line.split()[2]: line for line in lines if line.startswith("macenko")}
    (measured,) = [line for line in lines if "-15% REGRESSION" in line]
    assert "8.5x" in measured and "10 MISSED" in measured
    assert any(line.endswith("not installed: make bench-peers") and "macenko" in line for line in lines), by_side
    assert any("load 3.2" in line and "indicative" in line for line in lines)
    assert any(">= 99.9 met" in line for line in lines) and any("<= 0.5 MISSED" in line for line in lines)
    steady = table("stains", run, changes(run, [run_of(9.0)]))
    assert "-6%" in steady and "REGRESSION" not in steady
    assert "new" in table("stains", run, {})
    near_one = table("stains", run_of(0.954), {})
    assert "0.95x" in near_one and "0.86 to 1.05" in near_one


def test_the_chart_is_written_and_its_bytes_repeat(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert [file.name for file in plot("stains", run_of(20.0), tmp_path / name)] == [f"{name}.svg", f"{name}.png"]
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_circumstances_say_when_and_where() -> None:
    here = circumstances(Path(__file__).parents[2])
    assert here.date.endswith("+00:00") and here.machine["processor"] and here.machine["cores"] >= 1
    json.dumps(here.machine)


def test_bench_runs_suites_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    found = [run_of(20.0).findings, run_of(10.0).findings]
    monkeypatch.setattr(benchmarks, "SUITES", {"pretended": lambda: found.pop(0)})
    with pytest.raises(ValueError, match="expected suites among pretended, found stain"):
        benchmarks.bench(["stain"], tmp_path)
    benchmarks.bench(["pretended"], tmp_path)
    benchmarks.bench([], tmp_path)
    text = capsys.readouterr().out
    assert "-50% REGRESSION" in text and str(tmp_path / "pretended.json") in text
    assert len(read_runs(tmp_path / "pretended.json")) == 2
