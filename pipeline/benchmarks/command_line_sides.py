"""A side that starts a command line and waits for its end."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable, Sequence


def prepare(command: Sequence[str]) -> Callable[[], object]:
    """Return one call of a command; raises CalledProcessError where it fails."""
    return lambda: subprocess.run(command, check=True, capture_output=True)


def versions() -> str:
    """Say which Python starts it."""
    return f"started by Python {platform.python_version()}"
