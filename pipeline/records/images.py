"""Images of any format, as a user has them: found in a folder, read as RGB, written again under the same name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path, PurePath

import cv2
import numpy as np
from PIL import Image

from pipeline.records.decode import IMAGE_SUFFIXES, bit_depth, decode, to_rgb
from pipeline.records.findings import FaultyFile, Remark, some

JPEG_QUALITY = 98
"""Of the JPEG files written, with whole colour resolution (4:4:4): off by 0.8 grey levels in the mean on tissue."""

_JPEG = (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
ENCODING: dict[str, Sequence[int]] = {
    ".png": (cv2.IMWRITE_PNG_COMPRESSION, 3),
    ".tif": (),
    ".tiff": (),
    ".bmp": (),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
}
"""OpenCV's settings of the formats that can be written, by suffix."""
JPEG_SUFFIXES = (".jpg", ".jpeg")
_BITS_PER_SAMPLE = 258


def find_images(where: Path, *, nested: bool = False) -> tuple[list[Path], list[Path]]:
    """Return the images that a path means, in order, and what else lies there and was passed over.

    where: one image file of any suffix, or a folder, of which every file with a suffix of IMAGE_SUFFIXES is taken, and
    nothing that is hidden;
    nested: of its subfolders too (links to folders are passed over). Raises ValueError where there are none.
    """
    if not where.exists():
        raise ValueError(f"{where}: expected an image or a folder of images, found nothing")
    if where.is_file():
        return [where], []
    files: list[Path] = []
    others: list[Path] = []
    for top, folders, names in os.walk(where, onerror=_refuse):
        links = [name for name in folders if (Path(top) / name).is_symlink()]
        for name in [*names, *(links if nested else folders)]:
            path = Path(top) / name
            wanted = path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
            if not name.startswith("."):
                (files if wanted else others).append(path)
        if not nested:
            break
    if not files:
        raise ValueError(f"{where}: expected images ({', '.join(IMAGE_SUFFIXES)}), found none")
    return sorted(files), sorted(others)


def passed_over(others: Sequence[Path]) -> str:
    """Say how many other files a command left alone, and the first of them."""
    return f"{len(others)} other files were passed over: {some(path.name for path in others)}"


def common_depth(files: Iterable[Path]) -> int:
    """Return the fewest bits that hold every image of more than 8 bits among files, so that all are scaled alike; or 8.

    Only headers are read of the others; a file that cannot be decoded counts for nothing here.
    """
    depth = 8
    for file in files:
        if _may_be_deep(file):
            try:
                depth = max(depth, bit_depth(decode(file.name, file.read_bytes(), "image").pixels))
            except FaultyFile:
                continue
    return depth


def read_any_image(file: Path, bits: int) -> tuple[np.ndarray, list[Remark]]:
    """Read PNG, JPEG, TIFF or BMP as (height, width, 3) uint8 RGB, with remarks on what had to be changed.

    bits: depth that images of more than 8 bits are scaled from (common_depth). Raises FaultyFile.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise FaultyFile("unreadable file", "a file", str(error.strerror), "check its permissions") from error
    return to_rgb(decode(file.name, content, "image"), bits)


class Readings:
    """The images that a path means, read one after another and all scaled alike.

    depth: bits that images of more than 8 are scaled from, as a trained run keeps them; None takes common_depth.
    files: all of them; remarks: what had to be changed, and how many other files there are; faults: why an image was
    passed over; a line each, known once that file's turn was.
    """

    def __init__(self, where: Path, purpose: str, depth: int | None = None) -> None:
        self.files, others = find_images(where)
        self.remarks = [passed_over(others)] if others else []
        self.faults: list[str] = []
        self._purpose, self._depth = purpose, depth

    @cached_property
    def bits(self) -> int:
        """Depth that images of more than 8 bits are scaled from."""
        return self._depth or common_depth(self.files)

    def read(self, file: Path) -> np.ndarray:
        """Read one of the files as the others: (height, width, 3) uint8. Raises FaultyFile."""
        return read_any_image(file, self.bits)[0]

    def __iter__(self) -> Iterator[tuple[Path, np.ndarray]]:
        from tqdm import tqdm

        for file in tqdm(self.files, desc=self._purpose, unit="image", disable=None):
            try:
                image, noted = read_any_image(file, self.bits)
            except FaultyFile as error:
                self.faults.append(f"{file}: {error}")
                continue
            self.remarks += [f"{file}: {remark.fault}: {remark.detail}" for remark in noted]
            yield file, image


def encode_image(name: str, image: np.ndarray) -> bytes:
    """Encode (height, width, 3) uint8 RGB in the format that a name's suffix says; the same bytes each time.

    PNG, TIFF and BMP hold every pixel; JPEG is written with JPEG_QUALITY and 4:4:4. Raises ValueError for other
    suffixes, and FaultyFile for images larger than the format holds.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix not in ENCODING:
        raise ValueError(f"{name}: expected a name that ends in {', '.join(ENCODING)}, found {suffix!r}")
    try:
        done, encoded = cv2.imencode(suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), ENCODING[suffix])
    except cv2.error:
        done = False
    if not done:
        raise FaultyFile(
            "size of the image", f"one that {suffix} can hold", f"{image.shape[1]} x {image.shape[0]}", "take a TIFF"
        )
    return encoded.tobytes()


def _refuse(error: OSError) -> None:
    raise ValueError(f"{error.filename}: expected a folder that can be read, found: {error.strerror}") from error


def _may_be_deep(file: Path) -> bool:
    """Say from the header alone whether a file may hold more than 8 bits a channel."""
    try:
        with file.open("rb") as stream:
            head = stream.read(32)
        if head.startswith(b"\x89PNG") and len(head) == 32:
            return head[24] > 8
        if not head.startswith((b"II", b"MM")):
            return False
        with Image.open(file) as image:
            return max(getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))) > 8
    except Image.UnidentifiedImageError:
        return True
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
