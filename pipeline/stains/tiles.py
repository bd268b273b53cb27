"""Many images through one normaliser: statistics shared by slides and groups, what became of each, status.csv."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline.config import NormaliseSettings
from pipeline.records.files import write_text
from pipeline.records.findings import FaultyFile, some
from pipeline.stains.normaliser import Normalised, Normaliser, StatisticalNormaliser

STATUS, JOURNAL = "status.csv", ".status.jsonl"
UNREADABLE = "unreadable"
"""Status of a file that is no image, or whose result could not be written; no image comes out for it."""
LARGEST_POOL = 200
"""Images that the statistics of a slide or group are measured over; of more, so many evenly spaced ones."""
_MOST_THREADS = 8


@dataclass(frozen=True)
class Tile:
    """One image to normalise.

    name: what status.csv calls it; source, target: where it is read and written; pool: its slide or group, whose
    statistics it shares or falls back to, None where it has none.
    """

    name: str
    source: Path
    target: Path
    pool: str | None


Read = Callable[[Path], np.ndarray]
"""Gives (height, width, 3) uint8 RGB; a FaultyFile that it raises leaves the one tile out, and is told in the end."""
Write = Callable[[Path, np.ndarray], None]


class SharedStatistics:
    """Statistics of slides or groups, each measured when the first image asks for them, over LARGEST_POOL images.

    unmeasured: the status of those that could not be had.
    """

    def __init__(self, normaliser: StatisticalNormaliser, tiles: Sequence[Tile], read: Read) -> None:
        self.unmeasured: dict[str, str] = {}
        self._normaliser, self._read = normaliser, read
        self._members: dict[str, list[Path]] = defaultdict(list)
        for tile in tiles:
            if tile.pool is not None:
                self._members[tile.pool].append(tile.source)
        self._measured: dict[str, np.ndarray | None] = {}
        self._lock = threading.Lock()

    def of(self, pool: str | None) -> np.ndarray | None:
        """Return the statistics of a slide or group; None where there are none."""
        if pool is None:
            return None
        with self._lock:
            if pool not in self._measured:
                status, self._measured[pool] = self._normaliser.pool(self._images(pool))
                if self._measured[pool] is None:
                    self.unmeasured[pool] = status
            return self._measured[pool]

    def _images(self, pool: str) -> Iterator[np.ndarray]:
        members = self._members[pool]
        for index in evenly(len(members), LARGEST_POOL):
            try:
                yield self._read(members[index])
            except FaultyFile:
                continue


def slide_of(name: str, settings: NormaliseSettings) -> str | None:
    """Find a name's slide by normalise.slide_pattern; None where it has none."""
    match = re.search(str(settings.slide_pattern), name)
    return (match[1] or None) if match else None


def slides_of(names: Sequence[str], settings: NormaliseSettings) -> dict[str, str | None]:
    """Find every name's slide by normalise.slide_pattern. Raises ValueError with the names that have none."""
    slides = {name: slide_of(name, settings) for name in names}
    missing = [name for name, slide in slides.items() if not slide]
    if missing:
        raise ValueError(
            f"normalise.slide_pattern: expected {settings.slide_pattern!r} to find a slide in every name, found none "
            f"in {len(missing)} of {len(slides)}: {some(missing)}; widen it, or take normalise.statistics=image"
        )
    return slides


class Batch:
    """Tiles that one normaliser is applied to, in threads; the result never depends on their number.

    statistics: what they are measured over: with image, an image that cannot be measured by itself takes its group's;
    with slide or group, an image whose pool cannot be measured takes its own. done: status and fallback of each tile
    that was written, by its name; faults: why one was not.
    """

    def __init__(
        self,
        normaliser: Normaliser,
        tiles: Sequence[Tile],
        read: Read,
        statistics: Literal["image", "slide", "group"] = "image",
    ) -> None:
        self.done: dict[str, tuple[str, str]] = {}
        self.faults: dict[str, str] = {}
        self.shared: SharedStatistics | None = None
        # A network has threads of its own.
        self._threads = 1
        if isinstance(normaliser, StatisticalNormaliser):
            self.shared = SharedStatistics(normaliser, tiles, read)
            self._threads = min(_MOST_THREADS, os.cpu_count() or 1)
        self._normaliser, self._tiles, self._statistics = normaliser, tiles, statistics
        self._read = read

    def normalise(self, journal: Path, write: Write) -> None:
        """Write every image that is not there yet.

        A line of the journal follows each image, so that a run that was cut off knows what became of the images it
        wrote. A journal of other files than these, or of files that were changed since, is begun anew.
        """
        from tqdm import tqdm

        stamp = self._stamp()
        if (written := _read_journal(journal, stamp)) is None:
            written = {}
            write_text(journal, json.dumps(stamp))
        lock = threading.Lock()
        with journal.open("a", encoding="utf-8") as stream:
            # A line that was cut off in the middle must not swallow the next.
            stream.write("\n")

            def work(tile: Tile) -> None:
                if tile.name in written and tile.target.exists():
                    self.done[tile.name] = written[tile.name]
                    return
                try:
                    normalised = self.apply(self._read(tile.source), tile.pool)
                    write(tile.target, normalised.image)
                except FaultyFile as error:
                    self.faults[tile.name] = str(error)
                    return
                # Where no slide was named, what images share is a group: that of the split, or a folder.
                of_group = normalised.fallback == "slide" and self._statistics != "slide"
                fallback = "group" if of_group else normalised.fallback
                self.done[tile.name] = normalised.status, fallback
                with lock:
                    stream.write(json.dumps([tile.name, normalised.status, fallback]) + "\n")
                    stream.flush()

            threads = ThreadPoolExecutor(self._threads)
            try:
                results = threads.map(work, self._tiles)
                for _ in tqdm(results, total=len(self._tiles), desc="normalise", unit="image", disable=None):
                    pass
            finally:
                # An interrupt must not wait for all that was to follow.
                threads.shutdown(wait=True, cancel_futures=True)

    def apply(self, image: np.ndarray, pool: str | None) -> Normalised:
        """Normalise (height, width, 3) uint8 RGB of a slide or group."""
        if self.shared is None:
            return self._normaliser.normalise(image)
        if self._statistics != "image":
            return self._normaliser.normalise(image, self.shared.of(pool), prefer_pooled=True)
        alone = self._normaliser.normalise(image)
        if not alone.fallback or alone.status == "background":
            return alone
        pooled = self.shared.of(pool)
        return alone if pooled is None else self._normaliser.normalise(image, pooled)

    def describe(self, towards: str) -> list[str]:
        """Return what was done, in words: statuses and fallbacks with their counts."""
        fallbacks = Counter(fallback for _, fallback in self.done.values() if fallback)
        told = f" ({_counts(fallbacks)})" if fallbacks else ""
        # A learned one measures nothing: what it does not change keeps its pixels.
        wanted = "" if self.shared is None else f" by the statistics of their {self._statistics}"
        lines = [
            f"{len(self.done)} images {towards}: {self._statuses()}",
            f"{fallbacks.total()} of them could not be normalised{wanted} and fell back{told}",
        ]
        if self.shared is not None and self.shared.unmeasured:
            named = some(f"{name} ({status})" for name, status in self.shared.unmeasured.items())
            lines.append(f"{len(self.shared.unmeasured)} slides or groups could not be measured: {named}")
        return lines

    def too_many_fell_back(self, folder: Path, most: float) -> str:
        """Return the message where more than a share of the tiles fell back, else nothing."""
        fallen = [name for name, (_, fallback) in self.done.items() if fallback]
        if len(fallen) <= most * len(self.done):
            return ""
        return (
            f"{folder}: expected at most {most:.0%} of the images to fall back, "
            f"found {len(fallen)} of {len(self.done)} ({self._statuses()}); the first are {some(fallen)}. "
            "Raise normalise.fail_if_fallback_over, or take normalise.method=none for a data set that is not stained"
        )

    def write_status(self, folder: Path, key: str) -> None:
        """Write status.csv (key, status, fallback), one line a tile ordered by name, and remove the journal."""
        rows = [(name, *outcome) for name, outcome in self.done.items()]
        rows += [(name, UNREADABLE, "") for name in self.faults]
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow((key, "status", "fallback"))
        writer.writerows(sorted(rows))
        write_text(folder / STATUS, stream.getvalue())
        (folder / JOURNAL).unlink()

    def _statuses(self) -> str:
        return _counts(Counter(status for status, _ in self.done.values()))

    def _stamp(self) -> str:
        """Return what changes when a file is replaced, or another comes or goes."""
        digest = hashlib.sha256()
        for tile in self._tiles:
            there = tile.source.stat()
            digest.update(json.dumps([tile.name, there.st_size, there.st_mtime_ns]).encode())
        return digest.hexdigest()


def _read_journal(journal: Path, stamp: str) -> dict[str, tuple[str, str]] | None:
    """Read status and fallback by the tile's name; None where there is no journal of this stamp."""
    written: dict[str, tuple[str, str]] = {}
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    if not lines or lines[0] != json.dumps(stamp):
        return None
    for line in lines[1:]:
        try:
            name, status, fallback = json.loads(line)
        except ValueError:
            # Cut off in the middle.
            continue
        written[name] = status, fallback
    return written


def evenly(count: int, most: int) -> list[int]:
    """Return up to most indices below count, evenly spaced."""
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1)) for i in range(most)]


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
