"""Other libraries, each in an environment of its own below .venv-peers/, since their pins disagree with each other.

Their scripts import nothing of ours: they run there, not here (see child.py).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from pipeline.records.files import write_text

FOLDER = Path(".venv-peers")
PEERS = ("torchstain", "tiatoolbox")
"""Names of the libraries, of their scripts here and of their environments."""
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


def requirements(project: Path = Path("pyproject.toml")) -> dict[str, str]:
    """Return what pip is to install for each peer: the optional dependencies `peers`, which name each once."""
    extra = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["optional-dependencies"]["peers"]
    return {name: requirement for name in PEERS for requirement in extra if requirement.startswith(name)}


def install(folder: Path = FOLDER, project: Path = Path("pyproject.toml")) -> dict[str, str]:
    """Install every peer that is not there yet; return what became of each: empty, or why it did not install.

    One that does not install is told with pip's own words and stops none of the others.
    """
    wanted = requirements(project)
    outcome = {}
    for name in PEERS:
        home, stamp = folder / name, wanted[name] + "\n"
        ready = _ready(name, folder)
        if not (ready.is_file() and ready.read_text(encoding="utf-8") == stamp):
            print(f"{name}: installing {wanted[name]} into {home} ...", flush=True)
            _install(name, wanted[name], folder)
        outcome[name] = missing(name, folder)
        print(f"{name}: {outcome[name] or 'installed'}", flush=True)
    return outcome


def _install(name: str, requirement: str, folder: Path) -> None:
    for earlier in (_ready(name, folder), _error(name, folder)):
        earlier.unlink(missing_ok=True)
    shutil.rmtree(folder / name, ignore_errors=True)
    environment = [sys.executable, "-m", "venv", str(folder / name)]
    pip = [str(python_of(name, folder)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", requirement]
    for command in (environment, pip):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            said = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
            write_text(_error(name, folder), " / ".join(said[:ERROR_LINES]) or f"pip ended with {done.returncode}")
            return
    write_text(_ready(name, folder), requirement + "\n")


def _ready(name: str, folder: Path) -> Path:
    return folder / name / ".ready"


def _error(name: str, folder: Path) -> Path:
    return folder / f"{name}.error"
