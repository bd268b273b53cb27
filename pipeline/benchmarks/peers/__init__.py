"""Other libraries, each in an environment of its own below .venv-peers/, since their pins disagree with each other.

Scripts of those that are raced lie here and import nothing of ours: they run there, not here (see child.py). Scripts of
whole segmenters lie in pipeline/segmenters/.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

from pipeline.records.files import write_text

FOLDER = Path(".venv-peers")
_EXCHANGE = ("pillow", "scipy")
_COMPILED = (*_EXCHANGE, "numba")
"""What pipeline/segmenters/trial.py needs, for a library that brings numba along and for one that does not."""
PEERS: dict[str, tuple[str, ...]] = {
    "torchstain": ("torchstain",),
    "tiatoolbox": ("tiatoolbox",),
    "stardist": ("stardist", "tensorflow", *_EXCHANGE),
    "cellpose": ("cellpose", *_EXCHANGE),
    "segmentation_models_pytorch": ("segmentation-models-pytorch", *_COMPILED),
    "monai": ("monai", *_COMPILED),
    "nnunet": ("nnunetv2", *_COMPILED),
}
"""Names of the libraries, of their scripts and of their environments, with the distributions that each is made of."""
INSTALL = "not installed: make bench-peers"
ERROR_LINES = 3


def python_of(name: str, folder: Path = FOLDER) -> Path:
    """Return the interpreter of a peer's environment."""
    return (folder / name / "bin" / "python").absolute()


def missing(name: str, folder: Path = FOLDER) -> str:
    """Say why a peer cannot take part; empty where it can."""
    if _ready(name, folder).is_file():
        return ""
    error = _error(name, folder)
    return f"did not install: {error.read_text(encoding='utf-8').strip()}" if error.is_file() else INSTALL


def requirements(project: Path = Path("pyproject.toml")) -> dict[str, tuple[str, ...]]:
    """Return what pip is to install for each peer, out of the optional dependencies `peers`.

    A peer of which those do not name every distribution is left out.
    """
    extra = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]["peers"]
    named = {re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0]: requirement for requirement in extra}
    return {
        name: tuple(named[one] for one in distributions)
        for name, distributions in PEERS.items()
        if named.keys() >= {*distributions}
    }


def install(folder: Path = FOLDER, project: Path = Path("pyproject.toml")) -> dict[str, str]:
    """Install every peer that is not there yet; return what became of each: empty, or why it did not install.

    One that does not install is told with pip's own words and stops none of the others.
    """
    wanted = requirements(project)
    outcome = {}
    for name, required in wanted.items():
        ready = _ready(name, folder)
        if not (ready.is_file() and ready.read_text(encoding="utf-8") == _stamp(required)):
            print(f"{name}: installing {' '.join(required)} into {folder / name} ...", flush=True)
            _install(name, required, folder)
        outcome[name] = missing(name, folder)
        print(f"{name}: {outcome[name] or 'installed'}", flush=True)
    return outcome


def _install(name: str, required: Sequence[str], folder: Path) -> None:
    for earlier in (_ready(name, folder), _error(name, folder)):
        earlier.unlink(missing_ok=True)
    shutil.rmtree(folder / name, ignore_errors=True)
    environment = [sys.executable, "-m", "venv", str(folder / name)]
    pip = [str(python_of(name, folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *required]
    for command in (environment, pip):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
            write_text(_error(name, folder), " / ".join(said[:ERROR_LINES]) or f"pip ended with {done.returncode}")
            return
    write_text(_ready(name, folder), _stamp(required))


def _stamp(required: Sequence[str]) -> str:
    return " ".join(required) + "\n"


def _ready(name: str, folder: Path) -> Path:
    return folder / name / ".ready"


def _error(name: str, folder: Path) -> Path:
    return folder / f"{name}.error"
