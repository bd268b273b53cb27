"""Processes of one training that torchrun started, on one machine or several."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

TRAINS = "trains"
"""Under this the first process says whether there is anything to train."""
PATIENCE = timedelta(days=1)
"""The first process may have much to look at; where it fails, torchrun ends the others."""


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


def tell_others(trains: bool) -> None:
    """Say, as the first process, that training begins, or that nothing is left to train."""
    _store().set(TRAINS, str(int(trains)))


def first_trains() -> bool:
    """Wait until the first process has said whether it trains.

    It alone looks at the run's folder, which it changes: another that looked would see it before or after.
    """
    return bool(int(_store().get(TRAINS)))


def _store() -> Store:
    """The store that torchrun itself keeps for its processes, which is there before they form a group."""
    from torch.distributed import PrefixStore, TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE)
    return PrefixStore(f"stainseg-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
