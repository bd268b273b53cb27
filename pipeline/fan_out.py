"""Work on many items, here or over the workers of a Dask scheduler; what comes back does not tell which."""

from __future__ import annotations

import os
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pipeline.records.files import write_text

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4
"""Items a worker thread that are handed out before the first result is taken."""
PATIENCE_S = 30
"""Wait for a scheduler to answer."""


def in_order(
    work: Callable[[Item], Result], items: Sequence[Item], scheduler: str = "", folder: Path = Path()
) -> Iterator[Result]:
    """Yield what work makes of each item, in the order of items.

    work: a function of a module, of one argument that can be pickled, which writes whole files or none, so that it may
    be run twice. scheduler: empty for this process, else a Dask scheduler's address (tcp://host:port) or its file.
    folder: what workers must see as this process does; it is tried first.
    Raises ValueError where the scheduler does not answer, has no workers, they see another folder, or die again and
    again; what work raises comes through with a note of its item.
    """
    if not scheduler:
        yield from map(work, items)
        return
    from distributed import Client
    from distributed.scheduler import KilledWorker

    known = {"scheduler_file": scheduler} if Path(scheduler).is_file() else {"address": scheduler}
    try:
        client = Client(**known, timeout=PATIENCE_S, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise ValueError(
            f"compute.scheduler={scheduler}: expected a Dask scheduler, found none that answers ({error}); start one "
            "with `dask scheduler` and workers with `dask worker`, in this folder and environment"
        ) from error
    with client:
        _check_workers(client, scheduler, folder.absolute())
        waiting: deque[tuple[Item, Any]] = deque()
        most = AHEAD * max(1, sum(client.nthreads().values()))
        left = iter(items)
        try:
            while True:
                while len(waiting) < most and (item := next(left, None)) is not None:
                    waiting.append((item, client.submit(work, item, pure=False)))
                if not waiting:
                    return
                item, future = waiting.popleft()
                try:
                    result = future.result()
                except KilledWorker as error:
                    raise ValueError(f"{item}: its workers died again and again; see their logs: {error}") from error
                except Exception as error:
                    error.add_note(f"while a worker had {item}")
                    raise
                yield result
        finally:
            client.cancel([future for _, future in waiting])


def _check_workers(client: Any, scheduler: str, folder: Path) -> None:
    """Refuse workers that see another folder: their results would be lost."""
    if not client.nthreads():
        raise ValueError(f"compute.scheduler={scheduler}: expected workers, found none; start some with `dask worker`")
    if crowded := sorted(worker for worker, threads in client.nthreads().items() if threads > 1):
        raise ValueError(
            f"compute.scheduler={scheduler}: expected workers of one thread, since a network serves one image at a "
            f"time, found {len(crowded)} of several ({', '.join(crowded[:3])}); give `dask worker --nthreads 1`"
        )
    token = folder / f".seen-{os.getpid()}-{uuid.uuid4().hex}"
    write_text(token, token.name)
    try:
        seen = client.run(_reads, str(token))
    finally:
        token.unlink()
    blind = sorted(worker for worker, text in seen.items() if text != token.name)
    if blind:
        raise ValueError(
            f"compute.scheduler={scheduler}: expected workers that see {folder}, found {len(blind)} that do not "
            f"({', '.join(blind[:3])}); share the folder with them under the same path"
        )


def _reads(file: str) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError:
        return ""
