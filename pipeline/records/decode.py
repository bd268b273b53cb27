"""From the bytes of one raw file to pixels: PNG, JPEG, TIFF and BMP, whatever the suffix says.

PNG of 8 and 16 bits goes through OpenCV, grey and RGB of JPEG through simplejpeg, the rest through Pillow, and TIFFs
that Pillow cannot hold (deep colours, other compressions) through tifffile. A file that ends early is refused, never
completed with grey, and so is a JPEG with bytes that its decoder could make nothing of.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from pipeline.records.findings import FaultyFile, Remark

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
"""File names that are taken for images."""
MAXIMUM_PIXELS = 178_956_970
"""Largest image that is decoded whole (Pillow's own bound against decompression bombs); whole slides are larger."""

_FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
}
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"BM", "BMP"),
)
_PALETTE = 3
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLES_PER_PIXEL = 258, 262, 277
_WHITE_IS_ZERO = 0
_COLOURS = (_WHITE_IS_ZERO, 1, 2, 6)
"""TIFF's photometric interpretations that tifffile gives as grey or RGB: white or black is 0, RGB, YCbCr of a JPEG."""
_ALPHA = {1, 2}
"""TIFF's kinds of extra samples that are transparency."""
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1], 3: lambda pixels: pixels[::-1, ::-1], 4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1), 6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1), 8: lambda pixels: np.rot90(pixels),
}  # fmt: skip
"""What turns an image upright, by its EXIF orientation."""
_BITS = (8, 10, 12, 14, 16)
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, TypeError, LookupError, ArithmeticError, struct.error, cv2.error,
    Image.DecompressionBombError,
)  # fmt: skip
"""What decoders of others raise for damaged bytes."""
_FETCH_AGAIN = "fetch the file again"
_FETCH_OR_SAVE = "fetch the file again, or save it anew if it looks whole"
_SAVE_PLAINLY = "save the file as 8-bit PNG"


@dataclass(frozen=True)
class Decoded:
    """Pixels as the file holds them.

    pixels: (height, width) or (height, width, 3 or 4) in the order RGB(A); uint8, uint16, int32 or float32.
    remarks: what had to be done to get them.
    """

    pixels: np.ndarray
    remarks: tuple[Remark, ...] = ()


def decode(name: str, content: bytes, role: Literal["image", "label"]) -> Decoded:
    """Decode one file; a palette gives its colours for an image and its indices for a label.

    An orientation in the file's EXIF data is applied, as viewers do, and remarked on; so is a suffix of another format.
    A TIFF in which white is 0 is inverted for an image and left as it is stored for a label, which is remarked on; of 1
    bit it is inverted for both.
    Raises FaultyFile where the bytes are no such image, end early, hold several pages or too many pixels.
    """
    found = next((kind for magic, kind in _MAGIC if content.startswith(magic)), None)
    if found is None:
        raise FaultyFile("wrong file type", "a PNG, JPEG, TIFF or BMP image", _in_words(content), _FETCH_AGAIN)
    remarks = []
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in _FORMATS[found]:
        remarks.append(Remark("noted", "other file type", f"{name} is really a {found} file and was read as one"))
    try:
        if found == "PNG" and (plain := _plain_png(content)) is not None:
            turned = _png_orientation(content)
            return Decoded(_upright(plain, turned), (*remarks, *_turned_remark(name, turned)))
        pixels, more = _with_pillow(name, content, found, role)
    except FaultyFile:
        raise
    except BROKEN as error:
        raise FaultyFile("truncated or damaged file", f"a whole {found}", str(error), _FETCH_AGAIN) from error
    return Decoded(pixels, (*remarks, *more))


def from_array(pixels: np.ndarray) -> Decoded:
    """Take one image of an array as decoded; floats and wide integers that hold whole numbers of 0..255 become uint8.

    Raises FaultyFile for anything else.
    """
    if pixels.dtype == np.uint8:
        return Decoded(np.array(pixels))
    whole = pixels.dtype.kind in "fui" and np.isfinite(pixels).all()
    if not whole or (pixels != np.rint(pixels)).any() or pixels.min() < 0 or pixels.max() > 255:
        raise FaultyFile("unknown range of values", "whole numbers of 0..255", _range(pixels))
    return Decoded(pixels.astype(np.uint8))


def bit_depth(pixels: np.ndarray) -> int:
    """Fewest bits, of 8, 10, 12, 14 and 16, that hold an integer image's largest value, alpha aside; 8 for others."""
    if pixels.dtype.kind not in "ui":
        return 8
    largest = int((pixels[..., :3] if pixels.ndim == 3 else pixels).max(initial=0))
    return next((bits for bits in _BITS if largest < 1 << bits), 16)


def to_rgb(decoded: Decoded, bits: int = 16) -> tuple[np.ndarray, list[Remark]]:
    """Turn any decoded image into (height, width, 3) uint8 RGB.

    Grey becomes three equal channels and opaque alpha is dropped, without a remark. Remarked on: alpha that is not
    opaque is composited over white; more than 8 bits are scaled so that 2**bits - 1 becomes 255 (bits is the depth of
    the whole data set, so that all images are scaled alike); floats of 0..1 become 0..255.
    Raises FaultyFile for other floats, negative values, more bits, other channels, and where nothing is opaque at all.
    """
    pixels, remarks = decoded.pixels, list(decoded.remarks)
    if pixels.dtype == np.float32:
        if not (np.isfinite(pixels).all() and pixels.min() >= 0.0 and pixels.max() <= 1.0):
            raise FaultyFile("unknown range of values", "floats of 0..1", _range(pixels), "save the image with 8 bits")
        pixels = np.rint(pixels * 255.0).astype(np.uint8)
        remarks.append(Remark("repaired", "float image", "values of 0..1 became 0..255"))
    elif pixels.dtype != np.uint8:
        if pixels.min() < 0 or pixels.max() > 65535:
            raise FaultyFile("unknown range of values", "0..65535", _range(pixels), "save the image with 8 or 16 bits")
        top = (1 << bits) - 1
        if (pixels[..., :3] if pixels.ndim == 3 else pixels).max(initial=0) > top:
            expected, advice = f"values of 0..{top}, as of the others", "save it as they are, or set ingest.depth"
            raise FaultyFile("too deep", expected, _range(pixels), advice)
        scale = np.full(pixels.shape[2:], 255.0 / top)
        if pixels.ndim == 3 and pixels.shape[2] == 4 and pixels[..., 3].max() > top:
            scale[3] = 255.0 / 65535  # alpha fills its bits, however few the colours need
        pixels = np.clip(np.rint(pixels * scale), 0, 255).astype(np.uint8)
        remarks.append(Remark("repaired", "deep image", f"values of 0..{top} became 0..255"))
    if pixels.ndim == 2:
        return cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), remarks
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3]
        if not alpha.any():
            raise FaultyFile("transparent image", "something to see", "alpha of 0 everywhere", "save it without alpha")
        if alpha.min() < 255:
            cover = alpha[..., np.newaxis].astype(np.float32) / 255.0
            pixels = np.rint(pixels[..., :3] * cover + 255.0 * (1.0 - cover)).astype(np.uint8)
            share = float((alpha < 255).mean())
            remarks.append(
                Remark("repaired", "transparent image", f"composited over white ({share:.1%} of the pixels)")
            )
        pixels = pixels[..., :3]
    if pixels.shape[2] != 3:
        raise FaultyFile(
            "unknown channels", "grey, RGB or RGBA", f"{pixels.shape[2]} channels", "save the image as RGB"
        )
    return np.ascontiguousarray(pixels), remarks


def to_plane(decoded: Decoded) -> tuple[np.ndarray, list[Remark]]:
    """Turn a decoded label or mask into one plane: (height, width), dtype as in the file.

    Equal colour channels become one; alpha is dropped, with a remark where it is not opaque. Raises FaultyFile for
    colours (what each means is not known) and for a mask that lies in the alpha channel.
    """
    pixels, remarks = decoded.pixels, list(decoded.remarks)
    if pixels.ndim == 2:
        return pixels, remarks
    plane = np.ascontiguousarray(pixels[..., 0])
    if any(not np.array_equal(plane, pixels[..., channel]) for channel in range(1, min(3, pixels.shape[2]))):
        flat = pixels[..., :3].reshape(-1, 3)
        colours = len(np.unique(flat[:: max(1, len(flat) // 100_000)], axis=0))
        raise FaultyFile(
            "colour mask", "one plane, equal channels or a palette", f"at least {colours} colours in RGB",
            "save class or object ids as one plane",
        )  # fmt: skip
    if pixels.shape[2] == 4:
        alpha = pixels[..., 3]
        if alpha.min() != alpha.max():
            if plane.min() == plane.max():
                raise FaultyFile(
                    "colour mask", "the mask in the grey values", "one grey value and the shape in the alpha channel",
                    "save the alpha channel as the mask",
                )  # fmt: skip
            remarks.append(Remark("repaired", "transparent mask", "the alpha channel was dropped"))
    return plane, remarks


def _plain_png(content: bytes) -> np.ndarray | None:
    """Decode PNG of 8 or 16 bits without a palette; None where it is another kind."""
    if len(content) < 33 or b"IEND" not in content[-1024:]:
        raise FaultyFile("truncated file", "a whole PNG", f"{len(content):,} bytes without its end", _FETCH_AGAIN)
    width, height, depth, colour = struct.unpack(">IIBB", content[16:26])
    _check_size(width, height)
    if depth < 8 or colour == _PALETTE:
        return None
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise FaultyFile("damaged file", "a whole PNG", "damaged image data", _FETCH_AGAIN)
    return _red_first(pixels)


def _plain_jpeg(content: bytes) -> np.ndarray | None:
    """Decode JPEG of grey or RGB; None where it is another kind."""
    try:
        _, _, colours, _ = simplejpeg.decode_jpeg_header(content, strict=False)
    except ValueError:  # an unusual sampling of colours, which Pillow knows
        return None
    if colours not in ("Gray", "YCbCr", "RGB"):
        return None
    try:
        # Whatever its decoder warns of, as others do not: they make something of bytes that were lost.
        pixels = simplejpeg.decode_jpeg(content, "GRAY" if colours == "Gray" else "RGB", strict=True)
    except ValueError as error:
        raise FaultyFile("truncated or damaged file", "a whole JPEG", str(error), _FETCH_OR_SAVE) from error
    return pixels[..., 0] if colours == "Gray" else pixels


def _with_pillow(
    name: str, content: bytes, found: str, role: Literal["image", "label"]
) -> tuple[np.ndarray, list[Remark]]:
    try:
        with Image.open(io.BytesIO(content)) as image:
            _check_size(*image.size)
            _check_pages(getattr(image, "n_frames", 1))
            turned = image.getexif().get(_ORIENTATION)
            if found == "TIFF" and _is_beyond_pillow(image):
                pixels, remarks, turned = _with_tifffile(content, role)
            elif found == "JPEG" and (plain := _plain_jpeg(content)) is not None:
                pixels, remarks = _upright(plain, turned), []
            else:
                image.load()
                pixels, remarks = _from_pillow(ImageOps.exif_transpose(image), role)
    except OSError as error:  # also what Pillow does not know for an image
        if found == "TIFF":
            pixels, remarks, turned = _with_tifffile(content, role)
        elif isinstance(error, Image.UnidentifiedImageError):
            return _with_opencv(content, found), []
        else:
            raise
    return pixels, [*remarks, *_turned_remark(name, turned)]


def _png_orientation(content: bytes) -> int | None:
    """The EXIF orientation of a PNG, whose chunk may stand before or after the pixels."""
    # From length to length: a search of the bytes takes up to a third of the time of their decoding.
    at, end, head = 8, len(content) - 12, struct.Struct(">I4s").unpack_from
    while at <= end:
        length, kind = head(content, at)
        if kind == b"eXIf":
            with Image.open(io.BytesIO(content)) as image:
                return image.getexif().get(_ORIENTATION)
        at += length + 12
    return None


def _turned_remark(name: str, turned: int | None) -> list[Remark]:
    if turned not in _UPRIGHT:
        return []
    return [Remark("repaired", "orientation", f"{name}: turned upright as its EXIF orientation {turned} says")]


def _upright(pixels: np.ndarray, orientation: int | None) -> np.ndarray:
    return np.ascontiguousarray(_UPRIGHT[orientation](pixels)) if orientation in _UPRIGHT else pixels


def _is_beyond_pillow(image: Image.Image) -> bool:
    """Whether Pillow would keep the high byte of each channel of a TIFF, one of several channels, or invert it."""
    tags = getattr(image, "tag_v2", {})
    bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    several = tags.get(_SAMPLES_PER_PIXEL, 1) > 1
    deep_colours = bits > 8 and (several or image.mode in ("RGB", "RGBA"))
    white_is_zero = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and bits > 1
    one_channel = image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;")
    return deep_colours or white_is_zero or (several and one_channel)


def _with_tifffile(content: bytes, role: Literal["image", "label"]) -> tuple[np.ndarray, list[Remark], int | None]:
    """Decode a TIFF of one page, of any compression and order of channels, and turn it as its orientation says."""
    import tifffile

    remarks = []
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            _check_pages(len(file.pages))
            page: Any = file.pages[0]
            _check_size(page.imagewidth, page.imagelength)
            pixels = page.asarray()
    except (RuntimeError, tifffile.TiffFileError) as error:  # as imagecodecs has it, and a codec that is not there
        raise FaultyFile("truncated or damaged file", "a whole TIFF", str(error), _FETCH_AGAIN) from error
    axes = page.axes.replace("Z", "")
    if axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.shape[:2] != (page.imagelength, page.imagewidth):
        raise FaultyFile("damaged file", f"{page.imagelength} x {page.imagewidth}", f"{pixels.shape}", _FETCH_AGAIN)
    if axes not in ("YX", "YXS", "SYX") or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise FaultyFile("unknown channels", "grey, RGB or RGBA", f"{pixels.shape} of axes {page.axes}", _SAVE_PLAINLY)
    if page.photometric not in _COLOURS:
        raise FaultyFile("unknown channels", "grey, RGB or RGBA", f"{page.photometric!r}", _SAVE_PLAINLY)
    if pixels.ndim == 3 and pixels.shape[2] == 4 and not {*page.extrasamples} & _ALPHA:
        pixels = pixels[..., :3]
        remarks.append(Remark("repaired", "further channel", "a fourth channel that is no alpha was dropped"))
    if page.photometric == _WHITE_IS_ZERO:
        if role == "image":
            pixels = pixels.max(initial=0) - pixels if pixels.dtype.kind == "f" else ~pixels
        else:
            remarks.append(Remark("noted", "white is 0", "values of the label were taken as they are stored"))
    turned = page.tags.valueof(_ORIENTATION)
    return _upright(_as_known(pixels), turned), remarks, turned


def _as_known(pixels: np.ndarray) -> np.ndarray:
    """Bring pixels to a dtype that Decoded has, without a change of values."""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32)
    if pixels.dtype in (np.uint8, np.uint16):
        return np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder("=")))
    if pixels.dtype.kind in "ui" and (pixels.max(initial=0) < 1 << 31) and (pixels.min(initial=0) >= -(1 << 31)):
        return pixels.astype(np.int32)
    raise FaultyFile("unknown range of values", "8, 16 or 32 bits", _range(pixels), _SAVE_PLAINLY)


def _check_pages(pages: int) -> None:
    if pages > 1:
        raise FaultyFile("several pages", "one page", str(pages), "save each page as a file of its own")


def _from_pillow(image: Image.Image, role: Literal["image", "label"]) -> tuple[np.ndarray, list[Remark]]:
    mode = image.mode
    if mode == "P":
        if role == "label":
            return np.array(image), []
        return np.array(image.convert("RGBA" if "transparency" in image.info else "RGB")), []
    if mode == "1":
        return np.array(image.convert("L")), []
    if mode in ("L", "RGB", "RGBA"):
        return np.array(image), []
    if mode == "LA":
        return np.array(image.convert("RGBA")), []
    if mode.startswith("I;16"):
        return np.array(image).astype(np.uint16), []
    if mode in ("I", "F"):
        return np.array(image), []
    if mode in ("CMYK", "YCbCr", "LAB", "HSV") and role == "image":
        return np.array(image.convert("RGB")), [Remark("repaired", "colour space", f"{mode} became RGB")]
    raise FaultyFile("unknown channels", "grey, RGB, RGBA or a palette", f"mode {mode}", _SAVE_PLAINLY)


def _with_opencv(content: bytes, found: str) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise FaultyFile("truncated or damaged file", f"a whole {found}", "bytes that no decoder reads", _FETCH_AGAIN)
    _check_size(pixels.shape[1], pixels.shape[0])
    return _red_first(pixels)


def _red_first(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 3:
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)
    return pixels


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1 or width * height > MAXIMUM_PIXELS:
        raise FaultyFile(
            "impossible size", f"1..{MAXIMUM_PIXELS:,} pixels", f"{width} x {height}", "cut larger images into tiles"
        )


def _range(pixels: np.ndarray) -> str:
    return f"{pixels.dtype} values of {pixels.min()}..{pixels.max()}"


def _in_words(content: bytes) -> str:
    head = content[:200]
    if not content:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (the file itself was not fetched)"
    if head.startswith(b"PK\x03\x04"):
        return "a zip"
    if head.lstrip().startswith((b"<", b"\xef\xbb\xbf<")):
        return "a web page or XML"
    text = head.decode("ascii", errors="replace")
    if text.replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable() and "�" not in text:
        return f"text that begins {text[:30]!r}"
    return f"bytes that begin {head[:8]!r}"
