"""The folder that a user names for results: never a file, never one where they would mix with, or replace, others."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from pipeline.records.files import write_bytes
from pipeline.records.findings import FaultyFile, some


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
    foreign = files_in(out) - set(ours)
    if foreign:
        raise ValueError(
            f"--out {out}: expected an empty folder or the result of the same command, found {len(foreign)} other "
            f"files: {some(foreign)}; name another folder, or remove them"
        )


def write_anew(file: Path, content: bytes) -> None:
    """Write a file where there is none, or the same. Raises FaultyFile where another is there."""
    if not file.exists():
        write_bytes(file, content)
    elif not file.is_file() or file.read_bytes() != content:
        raise FaultyFile("never overwritten", "no file, or the same", f"another at {file}", "remove that first")


def check_results(where: Path, out: Path, results: Mapping[Path, Sequence[str]]) -> None:
    """Refuse results that would take the place of what they are made from, or of one another.

    where: the file or folder that is read; out: the folder that is written to; results: the names within it of what is
    made of each file read. Raises ValueError, also where files and results would share a folder: the second call would
    take the results for files to read.
    """
    check_out(out)
    if where.is_dir() and where.resolve() == out.resolve():
        raise ValueError(f"--out {out}: expected a folder apart from {where}, found the same; name another folder")
    read = {file.resolve(): file for file in results}
    replaced = [
        read[place] for names in results.values() for name in names if (place := (out / name).resolve()) in read
    ]
    if replaced:
        raise ValueError(
            f"--out {out}: expected to replace nothing that is read, found {replaced[0]}; name another folder"
        )
    refuse_alike(where, ((name, file.name) for file, names in results.items() for name in names))


def refuse_alike(where: Path, names: Iterable[tuple[str, str]]) -> None:
    """Raise ValueError where results would be written to one file, also where capitals do not count.

    where: what is read; names: of each result, and of what it is made of.
    """
    same: dict[str, set[str]] = defaultdict(set)
    for result, source in names:
        same[unicodedata.normalize("NFC", result).casefold()].add(source)
    clashes = [f"{result} from {' and '.join(sorted(found))}" for result, found in same.items() if len(found) > 1]
    if clashes:
        raise ValueError(
            f"{where}: expected files whose results have names of their own, in more than capitals, since many systems "
            f"would write others to one file, found {some(clashes, '; ')}; rename them"
        )
