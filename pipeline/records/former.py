"""Results of commands that are no stages: what stood in their place is kept where it says something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.records.files import write_bytes

MADE = "made"
"""Key of a JSON object below which stands what made it: seconds and versions, which are no difference of results."""


@contextmanager
def former_kept(result: Path, endings: Sequence[str]) -> Iterator[None]:
    """Keep what the block replaces under names with `~<hash>`, as stages do, unless the block writes the same again.

    result, endings: the block writes files whose paths are the one and then one of the others: "/table.md" of a folder
    of its own, ".md" of a shared one. The former is beside the place before the block begins, so that neither a killed
    command nor one that fails loses it.
    """
    former = {ending: file for ending in endings if (file := Path(f"{result}{ending}")).is_file()}
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in former.values())).hexdigest()[:8]
    aside = {ending: Path(f"{result}~{digest}{ending}") for ending in former}
    added = [file for file in aside.values() if not file.exists()]
    for ending, file in former.items():
        write_bytes(aside[ending], file.read_bytes())
    yield
    if all(_said(file) == _said(aside[ending]) for ending, file in former.items()):
        for file in added:
            file.unlink()
        folders = {parent for file in added for parent in file.parents if parent.is_relative_to(f"{result}~{digest}")}
        for folder in sorted(folders, reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()
    else:
        own_folder = all(ending.startswith("/") for ending in endings)
        print(
            f"The former result says otherwise, and is kept: {result}~{digest}{'' if own_folder else ', '.join(aside)}"
        )


def _said(file: Path) -> Any:
    """What a file says, without what made it."""
    content = file.read_bytes()
    if file.suffix != ".json":
        return content
    try:
        return {key: value for key, value in json.loads(content).items() if key != MADE}
    except (ValueError, AttributeError):  # changed by hand into something else
        return content
