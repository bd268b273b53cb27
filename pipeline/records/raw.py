"""The raw files of a data set, read only: zips, nested ones too, appear as folders; nothing is ever unpacked to disk.

How a zip appears. `stage1_train.zip` appears as the folder `stage1_train/`, whether its members start with
`stage1_train/` or not; `labels.csv.zip` that holds `labels.csv` alone appears as that file; a zip with zips at its top
(Kaggle's client makes one of a whole competition) is a bundle, whose content appears in the folder where it lies.

What is refused, all of it in one message: members whose names would leave the folder (absolute, `..`, drive letters),
encrypted members, links inside zips, unknown compression, members that unpack to absurd sizes, zips that are truncated
or no zips at all, linked folders. What is ignored: names that start with a dot, `__MACOSX`, Thumbs.db, desktop.ini.

Where a file lies both unpacked and in a zip, the unpacked one is read if both hold the same bytes; otherwise, and where
the two hold different sets of files of one folder, the folder is refused: nobody can know which one is meant.
"""

from __future__ import annotations

import io
import os
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from pipeline.records.findings import FaultyFile

MAXIMUM_MEMBER_BYTES = 2 << 30
"""Largest member of a zip that is read; larger files belong unpacked into the raw folder."""
MAXIMUM_RATIO = 200
"""Largest ratio of unpacked to packed size of a large member; deflate reaches 1,032 on nothing but zeros."""
RATIO_MATTERS_FROM = 64 << 20
"""A member that unpacks to less than this many bytes may have any ratio."""
MAXIMUM_NESTING = 3
"""Zips within zips within zips."""
MAXIMUM_NESTED_BYTES = 4 << 30
"""All zips within zips together, since each is held in memory while it is open."""

_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_JUNK = {"__macosx", "thumbs.db", "desktop.ini"}
_DRIVE = re.compile(r"^[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SHOWN = 30


@dataclass(frozen=True, slots=True)
class _Member:
    archive: zipfile.ZipFile
    info: zipfile.ZipInfo


@dataclass(frozen=True, slots=True)
class _Layer:
    """Files from one place: the disk, or one zip that stands for a folder (or "" for none)."""

    source: str
    folder: str
    files: dict[str, Path | _Member]


def safe_name(name: str) -> str:
    """Turn a zip member's name into a POSIX name below the folder.

    Backslashes count as slashes, empty and `.` parts are dropped, letters are composed (NFC). Raises ValueError for a
    name that is empty, absolute, holds `..`, a drive letter or a control character.
    """
    slashed = unicodedata.normalize("NFC", name).replace("\\", "/")
    parts = [part for part in slashed.split("/") if part not in ("", ".")]
    if not parts:
        raise ValueError(f"{name!r} names no file")
    if slashed.startswith("/") or _DRIVE.match(parts[0]) or ".." in parts:
        raise ValueError(f"{name!r} leads out of the folder")
    if _CONTROL.search(slashed):
        raise ValueError(f"{name!r} holds a control character")
    return "/".join(parts)


class RawFolder:
    """A read-only view of a raw folder; close it, or use it in a with statement.

    Raises ValueError that lists everything refused, see the module's text.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._archives: list[zipfile.ZipFile] = []
        self._problems: list[str] = []
        self._nested_bytes = 0
        if not folder.is_dir():
            raise ValueError(
                f"{folder}: expected a folder of raw files, found {'a file' if folder.exists() else 'nothing'}"
            )
        try:
            layers = self._layers()
            self._problems += _conflicts(layers)
            if self._problems:
                raise ValueError(_told(folder, self._problems))
        except BaseException:
            self.close()
            raise
        self._files: dict[str, Path | _Member] = {}
        for layer in reversed(layers):
            self._files.update(layer.files)
        self._names = sorted(self._files)

    def files(self) -> list[str]:
        """POSIX names of all files, sorted, zips as folders."""
        return list(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._files

    def read(self, name: str) -> bytes:
        """Read one file whole. Raises FaultyFile where it is absent, unreadable or damaged within its zip."""
        entry = self._files.get(name)
        if entry is None:
            raise FaultyFile("missing file", f"{self.folder / name}", "nothing")
        try:
            return entry.read_bytes() if isinstance(entry, Path) else entry.archive.read(entry.info)
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            raise FaultyFile(
                "unreadable file", "readable bytes", f"{error} in {self.origin(name)}", "fetch it again"
            ) from error

    def path(self, name: str) -> Path:
        """Return where one file lies on disk. Raises FaultyFile where it lies in a zip."""
        entry = self._files.get(name)
        if not isinstance(entry, Path):
            found = "nothing" if entry is None else f"it within {entry.archive.filename}"
            advice = "unpack the zip into the raw folder, and take the zip away"
            raise FaultyFile("not unpacked", f"the file {self.folder / name}", found, advice)
        return entry

    def array(self, name: str) -> np.ndarray:
        """Map a .npy file into memory, read only: what is not asked for stays on disk.

        Raises FaultyFile where it lies in a zip, which cannot be mapped, or is no array of numbers or words.
        """
        entry = self.path(name)
        try:
            return np.load(entry, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise FaultyFile("no array", "a whole .npy of numbers or words", str(error), "fetch it again") from error

    def origin(self, name: str) -> str:
        """Where a file really lies, e.g. 'stage1_train.zip: 0071/images/0071.png'."""
        entry = self._files[name]
        return str(entry) if isinstance(entry, Path) else f"{entry.archive.filename}: {entry.info.filename}"

    def close(self) -> None:
        """Close every zip."""
        for archive in reversed(self._archives):
            archive.close()

    def __enter__(self) -> RawFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _layers(self) -> list[_Layer]:
        files: dict[str, Path | _Member] = {}
        zips: list[str] = []
        for name, file in self._walk():
            if name.lower().endswith(".zip"):
                zips.append(name)
            else:
                files[name] = file
        layers = [_Layer("the folder itself", "", files)]
        for name in sorted(zips):
            layers += self._mount(self.folder / name, name, name, 1)
        return layers

    def _walk(self) -> Iterator[tuple[str, Path]]:
        for top, folders, names in os.walk(self.folder, onerror=self._cannot_list):
            here = Path(top)
            folders[:] = sorted(folder for folder in folders if not _is_junk(folder))
            for folder in folders:
                if (here / folder).is_symlink():
                    self._problems.append(
                        f"{here / folder}: expected a folder, found a link to one; a change behind it would go unseen: "
                        f"put the files here, or make {self.folder} itself the link"
                    )
            for name in sorted(name for name in names if not _is_junk(name)):
                file = here / name
                if file.is_file():
                    yield unicodedata.normalize("NFC", file.relative_to(self.folder).as_posix()), file
                else:
                    self._problems.append(f"{file}: expected a file, found a broken link or a device")

    def _cannot_list(self, error: OSError) -> None:
        self._problems.append(
            f"{error.filename}: expected a folder that can be read, found: {error.strerror}; mend its permissions, or "
            "move it away"
        )

    def _mount(self, content: Path | io.BytesIO, name: str, source: str, depth: int) -> list[_Layer]:
        """Layers of one zip: its own files, and those of the zips within."""
        try:
            archive = zipfile.ZipFile(content)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            self._problems.append(
                f"{source}: expected a whole zip, found {_looks_like(content)} ({error}); fetch it again"
            )
            return []
        archive.filename = source
        self._archives.append(archive)
        members: dict[str, _Member] = {}
        for info in archive.infolist():
            if not info.is_dir() and (member := self._checked(archive, info, source)) is not None:
                if member in members:
                    self._problems.append(f"{source}: {info.filename!r} is in the zip twice")
                members[member] = _Member(archive, info)
        where, folder = _place(name, list(members))
        zips = [member for member in members if member.lower().endswith(".zip")]
        files = {where + member: entry for member, entry in members.items() if member not in zips}
        layers = [_Layer(source, folder, dict(files))]
        for member in sorted(zips):
            inner = f"{source}/{member}"
            self._nested_bytes += members[member].info.file_size
            if depth >= MAXIMUM_NESTING or self._nested_bytes > MAXIMUM_NESTED_BYTES:
                self._problems.append(
                    f"{inner}: expected at most {MAXIMUM_NESTING} zips within each other and "
                    f"{MAXIMUM_NESTED_BYTES:,} bytes of them; unpack the outer one"
                )
                continue
            try:
                packed = io.BytesIO(archive.read(members[member].info))
            except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
                self._problems.append(f"{inner}: expected readable bytes, found {error}; fetch {source} again")
                continue
            layers += self._mount(packed, where + member, inner, depth + 1)
        return layers

    def _checked(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: str) -> str | None:
        """The member's name below the zip; None where it is junk or refused."""
        try:
            name = safe_name(info.orig_filename)
        except ValueError as error:
            self._problems.append(f"{source}: {error}: refused, as no honest zip holds such a name")
            return None
        if any(_is_junk(part) for part in name.split("/")):
            return None
        problem = None
        if stat.S_ISLNK(info.external_attr >> 16):
            problem = "is a link, which is never followed; put the file itself into the raw folder"
        elif info.flag_bits & 1:
            problem = "is encrypted; unpack the zip with its password into the raw folder"
        elif info.compress_type not in _COMPRESSIONS:
            problem = f"has the unknown compression {info.compress_type}; unpack the zip into the raw folder"
        elif info.file_size > MAXIMUM_MEMBER_BYTES:
            problem = (
                f"unpacks to {info.file_size:,} bytes; unpack the zip into the raw folder and take the zip away, if "
                "that is what it should be"
            )
        elif info.file_size > max(RATIO_MATTERS_FROM, MAXIMUM_RATIO * info.compress_size):
            problem = f"unpacks from {info.compress_size:,} to {info.file_size:,} bytes, as a zip bomb does"
        if problem:
            self._problems.append(f"{source}: {info.filename!r} {problem}")
            return None
        return name


def _is_junk(part: str) -> bool:
    return part.startswith(".") or part.lower() in _JUNK


def _place(name: str, members: list[str]) -> tuple[str, str]:
    """Prefix of a zip's members, and the folder that the zip stands for ("" where it stands for none)."""
    beside, _, zip_name = name.rpartition("/")
    beside = f"{beside}/" if beside else ""
    stem = zip_name[: -len(".zip")]
    if members == [stem]:
        return beside, ""
    if any(member.lower().endswith(".zip") and "/" not in member for member in members):
        return beside, ""
    doubled = all(member.startswith(f"{stem}/") for member in members)
    return (beside if doubled else f"{beside}{stem}/"), f"{beside}{stem}/"


def _looks_like(content: Path | io.BytesIO) -> str:
    if isinstance(content, Path):
        with content.open("rb") as stream:
            head = stream.read(512)
    else:
        head = content.getvalue()[:512]
    if not head:
        return "an empty file"
    if head.startswith(b"PK"):
        return "a truncated or damaged one"
    if head.lstrip().startswith(b"<"):
        return "a web page: the download asked for a log-in?"
    return f"bytes that begin {head[:16]!r}"


def _conflicts(layers: list[_Layer]) -> list[str]:
    """Files that two places hold with other bytes, and folders that two places hold with other files."""
    problems = []
    for number, layer in enumerate(layers):
        for other in layers[:number]:
            common = sorted(layer.files.keys() & other.files.keys())
            differing = [name for name in common if not _same_bytes(layer.files[name], other.files[name])]
            if differing:
                problems.append(
                    f"{other.source} and {layer.source} hold different bytes for {_some(differing)}; "
                    "delete one of the two"
                )
            elif common and (folder := layer.folder or other.folder):
                mine, theirs = ({name for name in of.files if name.startswith(folder)} for of in (layer, other))
                if mine != theirs:
                    problems.append(
                        f"{other.source} and {layer.source} both hold {folder}, but with other files: only one of them "
                        f"has {_some(sorted(mine ^ theirs))}; delete one of the two (was an unpacking interrupted?)"
                    )
    return problems


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def _same_bytes(one: Path | _Member, other: Path | _Member) -> bool:
    sizes = [entry.stat().st_size if isinstance(entry, Path) else entry.info.file_size for entry in (one, other)]
    return sizes[0] == sizes[1] and _checksum(one) == _checksum(other)


def _checksum(entry: Path | _Member) -> int:
    return zlib.crc32(entry.read_bytes()) if isinstance(entry, Path) else entry.info.CRC


def _told(folder: Path, problems: list[str]) -> str:
    more = [f"and {len(problems) - _SHOWN} more"] if len(problems) > _SHOWN else []
    return f"{folder}: {len(problems)} thing(s) that cannot be read safely; nothing was written:\n" + "\n".join(
        f"  {line}" for line in [*problems[:_SHOWN], *more]
    )
