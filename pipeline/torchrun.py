"""Processes of one training that torchrun started, on one machine or several."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Processes:
    """How many there are, how many of them on this machine, and which of all this one is."""

    count: int
    here: int
    rank: int


def processes() -> Processes | None:
    """Read what torchrun tells in the environment; None where it did not start this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    count, here, rank = (int(os.environ[name]) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK"))
    return Processes(count, here, rank)
