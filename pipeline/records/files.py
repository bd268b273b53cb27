"""Files that exist whole or not at all, and their hashes."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_aside(file: Path) -> Iterator[Path]:
    """Give a path beside the file to write to; it takes the file's place only when the block ends without an error."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}.part{file.suffix}")
    try:
        yield aside
        aside.replace(file)
    except OSError as error:
        if no_room(error):
            error.filename = error.filename or str(file)  # where it fails in the middle, the system names none
        raise
    finally:
        aside.unlink(missing_ok=True)


def no_room(error: BaseException) -> bool:
    """Whether an error says that the disk, or the user's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file atomically."""
    with written_aside(file) as aside:
        aside.write_bytes(content)


def write_text(file: Path, content: str) -> None:
    """Write a UTF-8 text file atomically, with line feeds only, so that its hash is the same everywhere."""
    write_bytes(file, content.encode("utf-8"))


def write_json(file: Path, content: Any) -> None:
    """Write a value as indented JSON, atomically; NaN is refused."""
    import json

    write_text(file, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def file_hash(file: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
