"""The folder that a user names for results: never a file, never one where they would mix with, or replace, others."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from pipeline.records.files import write_bytes
from pipeline.records.findings import FaultyFile

SHOWN = 5


def check_out(out: Path) -> None:
    """Raise ValueError where no folder is, or can be made, at a path."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists() or place.is_symlink())
    if not there.is_dir():
        kind = "a file" if there.exists() else "a link to nothing"
        found = kind if there == out else f"that {there} is {kind}"
        raise ValueError(f"--out {out}: expected a folder, found {found}; name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(
            f"--out {out}: expected a folder that can be written to, found that {there} cannot; name another folder, "
            "or change its permissions"
        )


def files_in(out: Path) -> set[str]:
    """Return the names of all files below a folder, relative to it, but for hidden ones; none where it is not there."""
    return {file.relative_to(out).as_posix() for file in out.rglob("*") if not file.is_dir() and file.name[0] != "."}


def refuse_foreign(out: Path, ours: Collection[str]) -> None:
    """Raise ValueError where a folder holds any other file than those that the command would write.

    ours: their names, relative to the folder; empty where what lies there is not of the same command.
    """
    check_out(out)
    foreign = sorted(files_in(out) - set(ours))
    if foreign:
        shown = ", ".join(foreign[:SHOWN]) + (", ..." if len(foreign) > SHOWN else "")
        raise ValueError(
            f"--out {out}: expected an empty folder or the result of the same command, found {len(foreign)} other "
            f"files: {shown}; name another folder, or remove them"
        )


def write_anew(file: Path, content: bytes) -> None:
    """Write a file where there is none, or the same. Raises FaultyFile where another is there."""
    if not file.exists():
        write_bytes(file, content)
    elif not file.is_file() or file.read_bytes() != content:
        raise FaultyFile("never overwritten", "no file, or the same", f"another at {file}", "remove that first")
