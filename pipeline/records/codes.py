"""Codes of images as files: quantised, compressed, decodable without the original.

A file holds, little-endian: 4 bytes SSCO; version of the format; bits of a level; channels (2 bytes); height and width
of the image, rows and columns of the code (4 each); the step between levels (float32); the first 16 bytes of the
SHA-256 of the weights that decode it; the CRC-32 of all else; then, packed with LZMA, the lowest value of each channel
(float32) and the levels, channel by channel and row by row: one byte each, or, above 8 bits, first every low byte, then
every high one.
"""

from __future__ import annotations

import lzma
import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np

SUFFIX = ".code"
MAGIC, VERSION = b"SSCO", 1
DIGEST_BYTES = 16
HIGHEST_BITS = 16
LARGEST_CODE = 1 << 31
"""Numbers that a file may claim to hold: a broken header never asks for more memory than a slide's code takes."""

_HEADER = struct.Struct("<4sBBHIIIIf16sI")
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "lc": 0, "pb": 0, "dict_size": 1 << 20}]
"""5 to 15 % smaller than zlib on codes of tissue. Neighbouring levels hardly resemble each other: differences between
them, and literals that look at their predecessor (lc), make files larger."""


@dataclass(frozen=True)
class StoredCode:
    """The code of one image.

    levels: (channels, rows, columns) uint16; lowest: (channels,) float32, the value of level 0; step: between levels,
    one for all channels; bits: levels lie below 2^bits; height, width: of the image in pixels; weights: the first
    DIGEST_BYTES of the SHA-256 of the weights that decode it.
    """

    levels: np.ndarray
    lowest: np.ndarray
    step: float
    bits: int
    height: int
    width: int
    weights: bytes

    @property
    def values(self) -> np.ndarray:
        """The code itself, (channels, rows, columns) float32, each value within half a step of what was coded."""
        return self.lowest[:, np.newaxis, np.newaxis] + np.float32(self.step) * self.levels.astype(np.float32)


def quantise(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return levels, lowest and step (as StoredCode has them) of a code (channels, rows, columns) float32.

    One step for all channels: the widest gets 2^bits levels, one that hardly varies gets few and costs nothing, where
    its noise at full resolution would cost as much as what matters. A channel of one value is kept exactly.
    Raises ValueError for bits out of 1 to 16, and for a code that is no number.
    """
    if not 1 <= bits <= HIGHEST_BITS:
        raise ValueError(f"bits: expected 1 to {HIGHEST_BITS}, found {bits}")
    # Half of what float32 holds, so that differences are numbers too; false of NaN.
    if not np.abs(values).max(initial=0.0) < np.finfo(np.float32).max / 2:
        raise ValueError("expected a code of finite numbers, found NaN or infinity; the run's weights are broken")
    lowest = values.min(axis=(1, 2)).astype(np.float32)
    above = values - lowest[:, np.newaxis, np.newaxis]
    highest = 2**bits - 1
    step = np.float32(above.max(initial=0.0) / highest)
    if step == 0.0:
        return np.zeros(values.shape, np.uint16), lowest, 0.0
    return np.rint(above / step).clip(0, highest).astype(np.uint16), lowest, float(step)


def to_bytes(code: StoredCode) -> bytes:
    """Pack a code; the same code gives the same bytes."""
    low, high = (code.levels & 0xFF).astype(np.uint8), (code.levels >> 8).astype(np.uint8)
    content = code.lowest.astype("<f4").tobytes() + low.tobytes() + (high.tobytes() if code.bits > 8 else b"")
    packed = lzma.compress(content, lzma.FORMAT_RAW, filters=_FILTERS)
    channels, rows, columns = code.levels.shape
    sizes = (code.height, code.width, rows, columns)
    fields = (MAGIC, VERSION, code.bits, channels, *sizes, code.step, code.weights)
    return _HEADER.pack(*fields, zlib.crc32(packed, zlib.crc32(_HEADER.pack(*fields, 0)))) + packed


def from_bytes(content: bytes) -> StoredCode:
    """Take a code out of what to_bytes made. Raises ValueError saying what is wrong with the bytes."""
    if len(content) < _HEADER.size or not content.startswith(MAGIC):
        raise ValueError(
            f"expected a code that starts with {MAGIC.decode()}, found {content[:4]!r} and {len(content)} bytes; "
            f"give files that `python -m pipeline encode` wrote"
        )
    _, version, bits, channels, height, width, rows, columns, step, weights, crc = _HEADER.unpack_from(content)
    if version != VERSION:
        raise ValueError(f"expected version {VERSION} of the format, found {version}; decode it with a newer stainseg")
    packed = content[_HEADER.size :]
    if zlib.crc32(packed, zlib.crc32(content[: _HEADER.size - 4] + bytes(4))) != crc:
        raise ValueError("expected the bytes that were written, found others (the CRC differs); fetch the file again")
    count, wide = channels * rows * columns, bits > 8
    if not (0 < count <= LARGEST_CODE and height and width and 1 <= bits <= HIGHEST_BITS and math.isfinite(step)):
        raise ValueError("expected the header of a code, found values that none has; encode the image again")
    expected = 4 * channels + count * (1 + wide)
    try:
        # No more than is expected, whatever the file would unpack to.
        unpacked = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(packed, expected + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise ValueError(f"expected packed levels, found something else: {error}; encode the image again") from error
    if len(unpacked) != expected:
        raise ValueError(f"expected {expected} bytes once unpacked, found {len(unpacked)}; encode the image again")
    planes = np.frombuffer(unpacked, np.uint8, offset=4 * channels).reshape(1 + wide, channels, rows, columns)
    levels = planes[0].astype(np.uint16)
    if wide:
        levels |= planes[1].astype(np.uint16) << 8
    lowest = np.frombuffer(unpacked, "<f4", channels).astype(np.float32)
    return StoredCode(levels, lowest, step, bits, height, width, weights)
