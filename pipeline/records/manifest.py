"""The manifest of a stage: what it was made from and what it made; it exists if and only if the stage finished."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.records.files import file_hash

_EDITED = (".csv", ".json", ".jsonl", ".yaml")
"""Suffixes of outputs that people open and may save again."""

VERSIONED = ("torch", "torchvision", "monai", "lightning-fabric", "segmentation-models-pytorch", "albumentations",
             "numpy", "opencv-python-headless", "scikit-image", "scikit-learn", "scipy")  # fmt: skip
"""Distributions whose versions a manifest records."""


NAMED_WHERE_READ = ("sample_submission.csv", "findings.csv")
"""Outputs of ingest that scores and submissions alone read, and name among their inputs: no reason to train again."""


@dataclass(frozen=True)
class Manifest:
    """What stands in stage.json. made_from (settings and inputs) decides staleness; provenance never does."""

    stage: str
    made_from: dict[str, Any]
    outputs: dict[str, list[Any]]
    provenance: dict[str, Any]

    @property
    def digest(self) -> str:
        """Hash over the hashes of the outputs: what the next stage depends on; without those of NAMED_WHERE_READ."""
        read = {name: entry for name, entry in self.outputs.items() if Path(name).name not in NAMED_WHERE_READ}
        lines = "".join(f"{name}\0{entry[1]}\n" for name, entry in sorted(read.items()))
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def short_name(self) -> str:
        """Eight hex digits of settings and inputs, for the folder of a result that was set aside."""
        return short_name(self.made_from)


def short_name(made_from: dict[str, Any]) -> str:
    """Eight hex digits of what a stage is made from."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:8]


def read_manifest(file: Path) -> Manifest | None:
    """Read a manifest; None where there is none. Raises ValueError where the file is something else."""
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
        return Manifest(entry["stage"], entry["made_from"], entry["outputs"], entry["provenance"])
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: expected a stage's manifest, found {error!r}; delete it and run the stage again"
        ) from error


def changes(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> list[str]:
    """Name every setting and input that differs, as 'key.path: before -> after'."""
    found: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            told = " -> ".join(_told(entry[key]) if key in entry else "absent" for entry in (before, after))
            found.append(f"{prefix}{key}: " + ("other content" if told == "a file -> a file" else told))
    return found


def _told(value: Any) -> str:
    """Return a setting as it is, and a hash as what it is of."""
    return "a file" if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else str(value)


def list_outputs(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Files that a stage wrote: all in its folder, or below the names it owns in a shared one; no hidden ones."""
    tops = [folder] if not names else [folder / name for name in names]
    files = [file for top in tops for file in ([top] if top.is_file() else top.rglob("*")) if file.is_file()]
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts))


def describe_outputs(folder: Path, files: list[Path]) -> dict[str, list[Any]]:
    """Map each file, relative to the folder, to [size, SHA-256]."""
    return {file.relative_to(folder).as_posix(): [file.stat().st_size, file_hash(file)] for file in files}


def damaged_outputs(folder: Path, manifest: Manifest) -> list[str]:
    """Outputs that are gone, have another size than the manifest says, or, of tables and settings, other content.

    Those are what people edit by hand; to read gigabytes of images each time would take longer than a stage does.
    """

    def intact(name: str, size: int, digest: str) -> bool:
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            return False
        return file.suffix not in _EDITED or file_hash(file) == digest

    return [name for name, (size, digest) in manifest.outputs.items() if not intact(name, size, digest)]


def folder_digest(folder: Path, cache: Path) -> str:
    """Hash over the names and contents of every file below a folder.

    cache: file that remembers hashes by name, size, inode and modification time in nanoseconds, so that gigabytes of
    unchanged raw files are not read again; a replaced file has another inode or time and is read.
    """
    from pipeline.records.files import write_text

    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        known = {}
    fresh: dict[str, Any] = {}
    lines = []
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name, status = file.relative_to(folder).as_posix(), file.stat()
        stamp = [status.st_size, status.st_ino, status.st_mtime_ns]
        entry = known.get(name)
        fresh[name] = entry if entry and entry[0] == stamp else [stamp, file_hash(file)]
        lines.append(f"{name}\0{fresh[name][1]}\n")
    if fresh != known:
        write_text(cache, json.dumps(fresh))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def provenance(seed: int, seconds: float, root: Path) -> dict[str, Any]:
    """What else is worth knowing of a run: seed, versions, commit, machine, seconds; outside every comparison."""
    import platform
    from importlib import metadata

    versions = {"stainseg": __version__, "python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "absent"
    return {
        "seed": seed,
        "versions": versions,
        "commit": _commit(root),
        "machine": f"{platform.system()} {platform.machine()}",
        "seconds": round(seconds, 2),
    }


def _commit(root: Path) -> str | None:
    import subprocess

    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
