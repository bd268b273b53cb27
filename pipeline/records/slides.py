"""Images of any size, read window by window: slides of every scanner, pyramids, plain TIFFs; never a whole array.

OpenSlide reads what it knows (SVS, NDPI, DICOM, tiled TIFF, ...). What it does not (strips, planes one after the other
as in HuBMAP's (3, H, W) and (1, 1, 3, H, W), OME-TIFF, compressions of its own) goes through tifffile, segment by
segment. PNG, JPEG and BMP are decoded whole, up to decode.MAXIMUM_PIXELS.
"""

from __future__ import annotations

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from pipeline.records.decode import BROKEN, decode, to_plane, to_rgb
from pipeline.records.findings import FaultyFile

SCANNED = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".svslide", ".bif", ".dcm")
"""Suffixes that slides alone have."""
PLAIN = (".tif", ".tiff", ".btf")
PLAUSIBLE_MPP = (0.02, 100.0)
"""Microns per pixel; what converters write outside (such as 1000) is no measurement."""
LARGEST_SEGMENT = 1 << 28
"""Bytes, decoded, of the largest strip or tile that is read: a window costs at least one."""
STORED_ROWS = 256
"""Rows of a larger strip that are read together where it is not compressed."""
GRID = 512
"""Pixels along the side of the squares that a view is made of."""
KEPT = 64
"""Squares that a view keeps: 50 MB."""
_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_WHITE_IS_ZERO = 0
"""Photometric interpretation of TIFF in which larger values are darker; every other reader turns them round."""
_AS_IT_IS = 1e-3
"""Relative difference of resolutions below which pixels are taken as they are."""
_SAME_FORM = 0.01
"""Relative difference of height over width up to which a mask is one of a slide: sides are rounded."""
_MARGIN = 4
"""Pixels beyond a square that take part in its resampling, so that squares meet without a seam."""


@dataclass(frozen=True)
class Level:
    """One resolution of a slide: height and width in its pixels, and level-0 pixels along the side of one of them."""

    height: int
    width: int
    downsample: float


class Slide(ABC):
    """An image of any size.

    levels: from the finest to the coarsest; mpp: microns per pixel of the finest, None where the file does not say.
    Windows may be read from several threads. Close it, or use it in a with statement.
    """

    file: Path
    levels: tuple[Level, ...]
    mpp: float | None

    @abstractmethod
    def _read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window that lies within a level: (height, width, 3) uint8 RGB."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    def read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window of a level, (height, width, 3) uint8 RGB, white beyond the image.

        top, left: in the level's pixels, negative ones too. Raises FaultyFile where the file is damaged there.
        """
        of = self.levels[level]
        rows = slice(max(top, 0), min(top + height, of.height))
        columns = slice(max(left, 0), min(left + width, of.width))
        if rows.start >= rows.stop or columns.start >= columns.stop:
            return np.full((height, width, 3), 255, np.uint8)
        found = self._read(level, rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        if found.shape[:2] == (height, width):
            return found
        window = np.full((height, width, 3), 255, np.uint8)
        window[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = found
        return window

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_slide(file: Path) -> Slide:
    """Open an image for reading window by window.

    Raises FaultyFile where nothing reads it, it has other than 8 bits a channel, or its segments are too large.
    """
    import openslide

    if not file.is_file():
        raise FaultyFile("missing file", str(file), "nothing")
    try:
        vendor = openslide.OpenSlide.detect_format(file)
        # Of a TIFF without a vendor OpenSlide reads the first page alone: of three planes one, of a pyramid in
        # subdirectories the finest level.
        if vendor is not None and vendor != "generic-tiff":
            return _Scanned(file)
    except openslide.OpenSlideError as error:
        if file.suffix.lower() not in (".tif", ".tiff"):
            raise FaultyFile("damaged slide", "a slide that OpenSlide opens", str(error), "fetch it again") from error
    with file.open("rb") as stream:
        of_tiff = stream.read(4) in _TIFF
    return _Segmented(file) if of_tiff or file.suffix.lower() in (".tif", ".tiff", ".btf") else _Whole(file)


class _Scanned(Slide):
    """What OpenSlide reads."""

    def __init__(self, file: Path) -> None:
        import openslide

        self.file, self._slide = file, openslide.OpenSlide(file)
        sizes = zip(self._slide.level_dimensions, self._slide.level_downsamples, strict=True)
        self.levels = tuple(Level(height, width, float(downsample)) for (width, height), downsample in sizes)
        told = [self._slide.properties.get(name) for name in ("openslide.mpp-x", "openslide.mpp-y")]
        self.mpp = _plausible(math.sqrt(math.prod(float(side) for side in told if side))) if all(told) else None

    def _read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        import openslide

        # OpenSlide takes the place in pixels of the finest level, whatever level is read.
        downsample = self.levels[level].downsample
        place = (math.ceil(left * downsample), math.ceil(top * downsample))
        try:
            pixels = np.asarray(self._slide.read_region(place, level, (width, height)))
        except openslide.OpenSlideError as error:
            window = f"the window {height} x {width} at {top}, {left} of level {level}"
            raise FaultyFile("damaged slide", window, str(error), "fetch it again") from error
        # Colours are premultiplied: what the scanner left out is transparent, and shown white as viewers do.
        if (pixels[..., 3] < 255).any():
            return pixels[..., :3] + (255 - pixels[..., 3:])
        return np.ascontiguousarray(pixels[..., :3])

    def close(self) -> None:
        self._slide.close()


class _Segmented(Slide):
    """A TIFF by its strips or tiles.

    of_ids: of one channel of 1, 8 or 16 bits, whose segments that the writer left out hold 0, not white; where white is
    0, those of more than 1 bit are taken as they are stored, as `decode` takes labels.
    """

    def __init__(self, file: Path, *, of_ids: bool = False) -> None:
        import tifffile

        # What it complains of in a damaged file is told as a fault, by name.
        logging.getLogger("tifffile").setLevel(logging.CRITICAL)
        self.file, self._lock, self._of_ids = file, threading.Lock(), of_ids
        try:
            self._tiff = tifffile.TiffFile(file)
            series = self._tiff.series[0]
            self._planes = [_planes_of(level, of_ids) for level in series.levels]
            self.mpp = self._resolution(series.levels[0].pages[0])
            sides = [_sides(planes[0]) for planes in self._planes]
            self.levels = tuple(
                Level(height, width, math.sqrt(sides[0][0] / height * (sides[0][1] / width))) for height, width in sides
            )
        except FaultyFile:
            raise
        except (tifffile.TiffFileError, *BROKEN) as error:
            raise FaultyFile("no TIFF", "a TIFF whose pages can be listed", repr(error), "fetch it again") from error

    def _resolution(self, page: Any) -> float | None:
        if self._tiff.is_ome and self._tiff.ome_metadata:
            import re

            told = re.search(r'PhysicalSizeX="([0-9.eE+-]+)"', self._tiff.ome_metadata)
            unit = re.search(r'PhysicalSizeXUnit="([^"]+)"', self._tiff.ome_metadata)
            if told and (unit is None or unit[1] in ("µm", "um", "micron")):
                return _plausible(float(told[1]))
        tag, unit = page.tags.get("XResolution"), page.tags.get("ResolutionUnit")
        microns = {2: 25_400.0, 3: 10_000.0}.get(int(unit.value) if unit is not None else 2)
        if tag is None or microns is None or not tag.value[0]:
            return None
        return _plausible(microns * tag.value[1] / tag.value[0])

    def _read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        planes = [self._of_page(page, top, left, height, width) for page in self._planes[level]]
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels[..., :3])

    def _of_page(self, page: Any, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window of one page: (height, width, samples) uint8."""
        separate = page.axes.startswith("S")
        samples = page.samplesperpixel
        tall, wide = page.chunks[-2:] if separate else page.chunks[:2]
        rows, columns = page.chunked[1:3] if separate else page.chunked[:2]
        as_stored = _is_read_by_rows(page)
        if as_stored:
            tall, wide, columns = STORED_ROWS, page.imagewidth, 1
        window = np.empty((height, width, samples), page.dtype)
        for plane in range(samples if separate else 1):
            channels = slice(plane, plane + 1) if separate else slice(None)
            for row in range(top // tall, -(-(top + height) // tall)):
                for column in range(left // wide, -(-(left + width) // wide)):
                    if as_stored:
                        piece = self._rows(page, plane, row * tall)
                    else:
                        piece = self._segment(page, (plane * rows + row) * columns + column, tall, wide)
                    from_row, from_column = max(top, row * tall), max(left, column * wide)
                    to_row, to_column = min(top + height, (row + 1) * tall), min(left + width, (column + 1) * wide)
                    window[from_row - top : to_row - top, from_column - left : to_column - left, channels] = piece[
                        from_row - row * tall : to_row - row * tall,
                        from_column - column * wide : to_column - column * wide,
                    ]
        return window

    def _segment(self, page: Any, index: int, tall: int, wide: int) -> np.ndarray:
        import imagecodecs

        try:
            size, offset = page.databytecounts[index], page.dataoffsets[index]
            with self._lock:
                self._tiff.filehandle.seek(offset)
                data = self._tiff.filehandle.read(size)
            decoded, _, _ = page.decode(data if size else None, index, jpegtables=page.jpegtables)
        except (imagecodecs.DelayedImportError, RuntimeError, *BROKEN) as error:
            raise FaultyFile("damaged slide", f"segment {index}", repr(error), "fetch the file again") from error
        if decoded is None:  # a tile that the writer left out for holding nothing
            samples = 1 if page.axes.startswith("S") else page.samplesperpixel
            return np.full((tall, wide, samples), 0 if self._of_ids else 255, page.dtype)
        return self._upturned(page, np.asarray(decoded[0]))

    def _rows(self, page: Any, plane: int, first: int) -> np.ndarray:
        """Read rows of an image that lies in the file as it is: (at most STORED_ROWS, width, samples)."""
        samples = 1 if page.axes.startswith("S") else page.samplesperpixel
        dtype = np.dtype(page.dtype).newbyteorder(self._tiff.byteorder)
        of_row = page.imagewidth * samples * dtype.itemsize
        rows = min(STORED_ROWS, page.imagelength - first)
        with self._lock:
            self._tiff.filehandle.seek(page.dataoffsets[0] + (plane * page.imagelength + first) * of_row)
            data = self._tiff.filehandle.read(rows * of_row)
        if len(data) < rows * of_row:
            found = f"the file ends within row {first + len(data) // of_row}"
            raise FaultyFile("damaged slide", f"{page.imagelength} rows", found, "fetch the file again")
        pixels = np.frombuffer(data, dtype).reshape(rows, page.imagewidth, samples)
        return self._upturned(page, pixels.astype(page.dtype, copy=False))

    def _upturned(self, page: Any, pixels: np.ndarray) -> np.ndarray:
        """Values that rise with light, where the file's fall."""
        if page.photometric == _WHITE_IS_ZERO and not (self._of_ids and page.bitspersample > 1):
            return ~pixels if pixels.dtype == np.bool_ else ((1 << page.bitspersample) - 1) - pixels
        return pixels

    def read_ids(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window of the finest level as it is stored: (height, width)."""
        return self._of_page(self._planes[0][0], top, left, height, width)[..., 0]

    def close(self) -> None:
        self._tiff.close()


class _Whole(Slide):
    """A small image of another kind, held in memory."""

    def __init__(self, file: Path) -> None:
        self.file, self.mpp = file, None
        self._pixels, _ = to_rgb(decode(file.name, file.read_bytes(), "image"))
        height, width = self._pixels.shape[:2]
        self.levels = (Level(height, width, 1.0),)

    def _read(self, level: int, top: int, left: int, height: int, width: int) -> np.ndarray:
        return self._pixels[top : top + height, left : left + width].copy()

    def close(self) -> None:
        self._pixels = self._pixels[:0]


class View:
    """A slide at one resolution.

    height, width: in pixels of the view; scale: pixels of the slide's finest level along the side of one of them. What
    a window shows does not depend on the window: a view is made of squares of GRID pixels, each always from the same
    pixels of the level that is just finer, by Pillow's triangle filter.
    """

    def __init__(self, slide: Slide, scale: float = 1.0) -> None:
        if not scale > 0:
            raise ValueError(f"scale of {slide.file}: expected a number above 0, found {scale}")
        self.slide, self.scale = slide, scale
        finest = slide.levels[0]
        self.height, self.width = (max(1, round(side / scale)) for side in (finest.height, finest.width))
        finer = [index for index, level in enumerate(slide.levels) if level.downsample <= scale * (1 + _AS_IT_IS)]
        self._level = finer[-1] if finer else 0
        self._ratio = scale / slide.levels[self._level].downsample
        self._kept: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def at(cls, slide: Slide, mpp: float | None, shrink: int = 1) -> View:
        """View a slide at so many microns per pixel, or, without a number, at 1/shrink of its finest level.

        Raises FaultyFile where microns are asked for and the slide does not tell its own.
        """
        if mpp is None:
            return cls(slide, float(shrink))
        if slide.mpp is None:
            raise FaultyFile(
                "unknown resolution", "a slide that tells its microns per pixel", "none, or no plausible one",
                "give the file its resolution, or look at it without --mpp and ingest.mpp",
            )  # fmt: skip
        return cls(slide, mpp / slide.mpp)

    def ids(self, mask: IdRaster, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Look a window up in a raster of ids of the same form, of any resolution: (height, width).

        Each pixel takes the id at its centre. Raises FaultyFile for another form.
        """
        tall, wide = mask.height / self.height, mask.width / self.width
        if abs(tall / wide - 1.0) > _SAME_FORM:
            expected = f"a mask of the slide's form, {self.height} x {self.width} at the resolution looked at"
            raise FaultyFile("size mismatch", expected, f"{mask.height} x {mask.width}", "export it for this slide")
        rows, columns = (
            np.clip(((np.arange(first, first + count) + 0.5) * side).astype(np.int64), 0, whole - 1)
            for first, count, side, whole in (
                (top, height, tall, mask.height), (left, width, wide, mask.width),
            )
        )  # fmt: skip
        first, last = int(columns[0]), int(columns[-1])
        # Band by band: of a mask much finer than the view, a whole tile may be more than memory holds.
        bands = np.array_split(rows, math.ceil(height / GRID * max(1.0, tall)))
        return np.concatenate([
            mask.read(int(band[0]), first, int(band[-1] - band[0]) + 1, last - first + 1)[band - band[0]][
                :, columns - first
            ]
            for band in bands if band.size
        ])  # fmt: skip

    def window(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Show a window, (height, width, 3) uint8 RGB, white beyond the image."""
        if abs(self._ratio - 1.0) < _AS_IT_IS:
            return self.slide.read(self._level, top, left, height, width)
        shown = np.full((height, width, 3), 255, np.uint8)
        if top >= self.height or left >= self.width:
            return shown
        for row in range(max(top, 0) // GRID, -(-min(top + height, self.height) // GRID)):
            for column in range(max(left, 0) // GRID, -(-min(left + width, self.width) // GRID)):
                square = self._square(row, column)
                tall, wide = square.shape[:2]
                first, last = max(top, row * GRID), min(top + height, row * GRID + tall)
                start, end = max(left, column * GRID), min(left + width, column * GRID + wide)
                shown[first - top : last - top, start - left : end - left] = square[
                    first - row * GRID : last - row * GRID, start - column * GRID : end - column * GRID
                ]
        return shown

    def _square(self, row: int, column: int) -> np.ndarray:
        with self._lock:
            if (row, column) in self._kept:
                self._kept.move_to_end((row, column))
                return self._kept[row, column]
        square = self._resampled(row * GRID, column * GRID)
        with self._lock:
            self._kept[row, column] = square
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return square

    def _resampled(self, top: int, left: int) -> np.ndarray:
        from PIL import Image

        below, right = min(top + GRID, self.height), min(left + GRID, self.width)
        outer = top - _MARGIN, left - _MARGIN, below + _MARGIN, right + _MARGIN
        edges = [side * self._ratio for side in outer]
        first_row, first_column = (math.floor(edge) for edge in edges[:2])
        last_row, last_column = (math.ceil(edge) for edge in edges[2:])
        source = self.slide.read(self._level, first_row, first_column, last_row - first_row, last_column - first_column)
        of = self.slide.levels[self._level]
        if first_row < 0 or first_column < 0 or last_row > of.height or last_column > of.width:
            source = _mirrored(source, -first_row, -first_column, of.height - first_row, of.width - first_column)
        box = edges[1] - first_column, edges[0] - first_row, edges[3] - first_column, edges[2] - first_row
        size = outer[3] - outer[1], outer[2] - outer[0]
        made = Image.fromarray(source).resize(size, Image.Resampling.BILINEAR, box=box)
        return np.asarray(made)[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]


class IdRaster:
    """A raster of class or object ids, 0 where nothing is: a TIFF by its segments, or a PNG, held in memory.

    height, width: of its finest level, which alone is read: coarser ones may hold averages, which are nobody's ids.
    Raises FaultyFile for colours, and for what is neither.
    """

    def __init__(self, file: Path) -> None:
        self._tiff: _Segmented | None = None
        if not file.is_file():
            raise FaultyFile("missing file", str(file), "nothing")
        with file.open("rb") as stream:
            of_tiff = stream.read(4) in _TIFF
        if of_tiff:
            self._tiff = _Segmented(file, of_ids=True)
            self.height, self.width = self._tiff.levels[0].height, self._tiff.levels[0].width
        else:
            self._pixels, _ = to_plane(decode(file.name, file.read_bytes(), "label"))
            self.height, self.width = self._pixels.shape

    def read(self, top: int, left: int, height: int, width: int) -> np.ndarray:
        """Read a window that lies within: (height, width), as it is stored."""
        if self._tiff is not None:
            return self._tiff.read_ids(top, left, height, width)
        return self._pixels[top : top + height, left : left + width]

    def close(self) -> None:
        """Let go of the file."""
        if self._tiff is not None:
            self._tiff.close()


def _mirrored(window: np.ndarray, top: int, left: int, below: int, right: int) -> np.ndarray:
    """Fill what lies beyond the image, whose part in the window is given by its sides, with its mirror image."""
    top, left = max(top, 0), max(left, 0)
    below, right = min(below, window.shape[0]), min(right, window.shape[1])
    margins = top, window.shape[0] - below, left, window.shape[1] - right
    return cv2.copyMakeBorder(window[top:below, left:right], *margins, cv2.BORDER_REFLECT)


def _planes_of(level: Any, of_ids: bool) -> list[Any]:
    """The pages of one level that hold its channels: one page of all, or three or four of one each; of ids one.

    Raises FaultyFile for other numbers of dimensions, channels and bits.
    """
    from tifffile import TiffFrame

    axes = [(axis, size) for axis, size in zip(level.axes, level.shape, strict=True) if size > 1 or axis in "YX"]
    others = [size for axis, size in axes if axis not in "YX"]
    listed = [level.pages[index] for index in range(len(level.pages))]
    pages = [found.aspage() if isinstance(found, TiffFrame) else found for found in listed]
    page = pages[0]
    # Pages that nothing says are channels are a stack: three grey pages of three depths are no colours.
    stacked = len(pages) > 1 and level.kind in ("generic", "uniform")
    if len(others) > 1 or (others and others[0] not in (3, 4)) or stacked or any(found is None for found in pages):
        raise FaultyFile(
            "unknown axes", "height and width, with 3 or 4 channels or none",
            f"{tuple(level.shape)} as {level.axes} in {len(pages)} page(s)", "save it as RGB",
        )  # fmt: skip
    if of_ids:
        if others or page.samplesperpixel > 1 or page.dtype not in (np.uint8, np.uint16, np.bool_):
            found = f"{page.samplesperpixel if not others else others[0]} channel(s) of {page.dtype}"
            raise FaultyFile("no ids", "a mask of one channel of 8 or 16 bits", found, "save ids as grey levels")
    elif page.dtype != np.uint8:
        raise FaultyFile("deep slide", "8 bits a channel", str(page.dtype), "save the slide with 8 bits a channel")
    if not of_ids and page.photometric in (3, 5, 8):
        raise FaultyFile("unknown colours", "grey or RGB", str(page.photometric), "save the slide as RGB")
    sides = 3 if page.axes.startswith("S") else 2
    if any(len(found.chunks) < 2 or len(found.chunked) < sides or 0 in found.chunks for found in pages):
        raise FaultyFile("no TIFF", "strips or tiles of some pixels", str(page.chunks), "fetch it again")
    if _is_large(page) and not all(map(_is_read_by_rows, pages)):
        expected, found = f"at most {LARGEST_SEGMENT:,} bytes", f"strips or tiles of {math.prod(page.chunks):,} bytes"
        raise FaultyFile("too large segments", expected, found, "save it in tiles of 512, or uncompressed")
    return pages


def _is_large(page: Any) -> bool:
    return math.prod(page.chunks) > LARGEST_SEGMENT


def _is_read_by_rows(page: Any) -> bool:
    """Whether a page's strips are too large to be read whole, and lie in the file as they are, one after another."""
    return _is_large(page) and bool(page.is_memmappable) and not page.is_tiled


def _sides(page: Any) -> tuple[int, int]:
    return int(page.imagelength), int(page.imagewidth)


def _plausible(mpp: float) -> float | None:
    return mpp if PLAUSIBLE_MPP[0] <= mpp <= PLAUSIBLE_MPP[1] else None
