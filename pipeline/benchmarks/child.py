"""One side of a contest in a process of its own: a line of JSON in, a line of JSON out.

It also runs in the environments of other libraries, so that it uses the standard library alone:
    python -P child.py <script>
The script defines prepare(**task), which returns a function of no arguments that does the task's work once; whatever
else it defines can be called by name. Requests are {"prepare": task}, {"passes": n} and {"call": name, "with": {...}};
answers {"first_s": s}, of preparing and a first pass, {"seconds": s} and {"answer": value}. Where what prepare returned
has a method settle, it is called before passes are timed. An error ends the process, its text on standard error.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, TextIO


def serve(script: str, requests: Iterable[str], answers: TextIO) -> None:
    """Load a script and answer requests until there are no more; seconds are of the wall clock."""
    side = runpy.run_path(script)
    work: Callable[[], object] | None = None
    for line in requests:
        request = json.loads(line)
        if "prepare" in request:
            started = time.perf_counter()
            work = side["prepare"](**request["prepare"])
            work()
            answer: dict[str, Any] = {"first_s": time.perf_counter() - started}
        elif "passes" in request:
            assert work is not None, "passes were asked for before a task"
            answer = {"seconds": _timed(work, request["passes"])}
        else:
            answer = {"answer": side[request["call"]](**request["with"])}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _timed(work: Callable[[], object], passes: int) -> float:
    settle = getattr(work, "settle", None)
    if settle is not None:
        settle()
    gc.collect()
    started = time.perf_counter()
    for _ in range(passes):
        work()
    return time.perf_counter() - started


def main() -> None:
    """Answer on what was standard output; whatever a library prints goes to standard error instead."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        serve(sys.argv[1], sys.stdin, answers)


if __name__ == "__main__":
    main()
