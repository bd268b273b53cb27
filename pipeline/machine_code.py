"""Loops over pixels, compiled where NumPy would need many passes over memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(loop: Callable[..., Any], *, exact: bool = True) -> Callable[..., Any]:
    """Compile at the first call and keep the machine code beside the module, or in the user's cache folder.

    exact: whether floating point must be computed as it is written. The loop lets other threads run.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": not exact, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:
        # Neither folder can be written, as in a read-only installation: compiled anew in each process.
        return numba.njit(**options)(loop)
