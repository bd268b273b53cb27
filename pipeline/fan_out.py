"""Work on many items, here or over the workers of a Dask scheduler; what comes back does not tell which."""

from __future__ import annotations

import os
import socket
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from pipeline.records.files import no_room, write_text

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4
"""Items a worker thread that are handed out before the first result is taken."""
PATIENCE_S = 30
"""Wait for a scheduler to answer."""


class ItemFailed(ValueError):
    """Work on one item failed; the message names the item."""


def in_order(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    scheduler: str = "",
    folder: Path = Path(),
    name: Callable[[Item], str] = str,
) -> Iterator[Result]:
    """Yield what work makes of each item, in the order of items.

    work: a function of a module, of one argument that can be pickled, which writes whole files or none, so that it may
    be run twice. scheduler: empty for this process, else a Dask scheduler's address (tcp://host:port) or its file.
    folder: what workers must see as this process does; it is tried first, and again before each item, since workers may
    come later. name: what an item is called in errors.
    An item whose worker died is begun again elsewhere, as often as the scheduler allows (its setting
    distributed.scheduler.allowed-failures); one that work refused is not, since it would be refused again.
    Raises ItemFailed where work raises ValueError or OSError, or the scheduler goes away; any other error of work comes
    through with a note of its item. Raises ValueError where the scheduler does not answer, has no workers, they have
    several threads each or see another folder, or die again and again.
    """
    if not scheduler:
        for item in items:
            with naming(name(item)):
                result = work(item)
            yield result
        return
    from distributed import Client
    from distributed.scheduler import KilledWorker

    known = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client = Client(**known, timeout=PATIENCE_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ValueError(
            f"compute.scheduler={scheduler}: expected a Dask scheduler, found none that answers ({error}); start one "
            "with `dask scheduler` and workers with `dask worker --nthreads 1`, in this folder and environment"
        ) from error
    with client, _seen_by_workers(client, scheduler, folder.absolute()) as token:
        waiting: deque[tuple[Item, Any]] = deque()
        most = AHEAD * sum(client.nthreads().values())
        left = iter(items)
        try:
            while True:
                waiting.extend(
                    (item, client.submit(_checked, work, item, str(token), pure=False))
                    for item in islice(left, most - len(waiting))
                )
                if not waiting:
                    return
                item, future = waiting.popleft()
                with naming(name(item)):
                    try:
                        result = future.result()
                    except KilledWorker as error:
                        raise ValueError(f"its workers died again and again; see their logs: {error}") from error
                    except CancelledError as error:
                        raise ValueError(
                            f"compute.scheduler={scheduler}: expected an answer, found that the scheduler went away; "
                            "start it again, and the same command carries on"
                        ) from error
                yield result
        finally:
            client.cancel([future for _, future in waiting])


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Say which item an error is of, but for a full disk."""
    try:
        yield
    except (ValueError, OSError) as error:
        if no_room(error):
            raise  # no fault of the item: the stage says what to do, and carries on
        raise ItemFailed(f"{name}: {error}") from error
    except Exception as error:
        error.add_note(f"while working on {name}")
        raise


@contextmanager
def _seen_by_workers(client: Any, scheduler: str, folder: Path) -> Iterator[Path]:
    """Refuse workers that see another folder, for their results would be lost; give a file by which they show it."""
    threads = client.nthreads()
    if not threads:
        raise ValueError(
            f"compute.scheduler={scheduler}: expected workers, found none; start some with `dask worker --nthreads 1`"
        )
    # The network, its engine and the number of threads belong to a process: two items at once would share them.
    if busy := sorted(worker for worker, count in threads.items() if count > 1):
        raise ValueError(
            f"compute.scheduler={scheduler}: expected workers of one thread each, found {len(busy)} of more "
            f"({', '.join(busy[:3])}); start them with `dask worker --nthreads 1`, and --nworkers for more in a machine"
        )
    token = folder / f".seen-{os.getpid()}-{uuid.uuid4().hex}"
    write_text(token, token.name)
    try:
        seen = client.run(_reads, str(token))
        if blind := sorted(worker for worker, text in seen.items() if text != token.name):
            raise ValueError(
                f"compute.scheduler={scheduler}: expected workers that see {folder}, found {len(blind)} that do not "
                f"({', '.join(blind[:3])}); share the folder with them under the same path"
            )
        yield token
    finally:
        token.unlink(missing_ok=True)


def _checked(work: Callable[[Item], Result], item: Item, token: str) -> Result:
    """Work on an item, in a worker that sees the folder: it may have come after the others were asked."""
    file = Path(token)
    if _reads(token) != file.name:
        raise ValueError(
            f"expected a worker that sees {file.parent}, found that {socket.gethostname()} does not; share the folder "
            "with it under the same path"
        )
    return work(item)


def _reads(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError:
        return ""
