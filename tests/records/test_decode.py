"""Single raw files: every format, depth and kind of damage."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pipeline.records.decode import bit_depth, decode, to_plane, to_rgb
from pipeline.records.findings import FaultyFile

COLOUR = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)
GREY = COLOUR[..., 0]


def saved(array: np.ndarray | Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(stream, kind, **options)
    return stream.getvalue()


def rgb(name: str, content: bytes) -> tuple[np.ndarray, list[str]]:
    image, remarks = to_rgb(decode(name, content, "image"))
    return image, [f"{remark.action} {remark.fault}" for remark in remarks]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_lossless_formats_give_the_same_pixels(kind: str) -> None:
    for array in (COLOUR, GREY):
        image, remarks = rgb(f"a.{'tif' if kind == 'TIFF' else kind.lower()}", saved(array, kind))
        expected = array if array.ndim == 3 else np.stack([array] * 3, axis=2)
        np.testing.assert_array_equal(image, expected)
        assert image.dtype == np.uint8 and image.flags.c_contiguous and remarks == []


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(compression: str) -> None:
    np.testing.assert_array_equal(rgb("a.tiff", saved(COLOUR, "TIFF", compression=compression))[0], COLOUR)


def test_jpeg_is_near_and_a_jpeg_called_png_is_noted() -> None:
    smooth = cv2.resize(COLOUR, (64, 64))
    content = saved(smooth, "JPEG", quality=95)
    image, remarks = rgb("a.jpg", content)
    assert np.abs(image.astype(int) - smooth).mean() < 6 and remarks == []
    again, remarks = rgb("a.png", content)
    np.testing.assert_array_equal(again, image)
    assert remarks == ["noted other file type"]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(64, 48), (17, 33), (1, 1)])
def test_jpeg_has_the_pixels_that_pillow_gives(mode: str, size: tuple[int, int]) -> None:
    picture = Image.fromarray(cv2.resize(COLOUR, size)).convert(mode)
    kinds = [{"quality": quality, "progressive": one, "subsampling": chroma}
             for quality in (30, 95) for one in (False, True) for chroma in (0, 1, 2)]  # fmt: skip
    for kind in [*kinds, *([{"keep_rgb": True}] if mode == "RGB" else [])]:
        content = saved(picture, "JPEG", **kind)
        with Image.open(io.BytesIO(content)) as image:
            expected = np.asarray(image if mode == "L" else image.convert("RGB"))
        np.testing.assert_array_equal(decode("a.jpg", content, "image").pixels, expected)


@given(st.integers(0, 2**32 - 1), st.booleans())
@settings(deadline=None)
def test_a_jpeg_that_lost_bytes_is_refused(seed: int, blank: bool) -> None:
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    content = bytearray(saved(noise, "JPEG", quality=90))
    data = content.index(b"\xff\xda") + 14
    at = int(generator.integers(data, len(content) - 200))
    content[at : at + 150] = bytes(150) if blank else generator.integers(0, 255, 150, np.uint8).tobytes()
    with pytest.raises(FaultyFile, match=r"expected a whole JPEG, found .*; fetch the file again"):
        decode("a.jpg", bytes(content), "image")


def test_alpha_is_dropped_where_opaque_and_composited_over_white_where_not() -> None:
    alpha = np.full(GREY.shape, 255, np.uint8)
    image, remarks = rgb("a.png", saved(np.dstack([COLOUR, alpha]), "PNG"))
    np.testing.assert_array_equal(image, COLOUR)
    assert remarks == []
    alpha[0, 0], alpha[0, 1] = 0, 51
    image, remarks = rgb("a.png", saved(np.dstack([COLOUR, alpha]), "PNG"))
    assert image[0, 0].tolist() == [255] * 3 and remarks == ["repaired transparent image"]
    assert image[0, 1].tolist() == [round(int(value) * 0.2 + 255 * 0.8) for value in COLOUR[0, 1]]
    np.testing.assert_array_equal(image[1:], COLOUR[1:])


def test_palettes_give_colours_for_images_and_indices_for_labels() -> None:
    indices = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    content = saved(image, "PNG")
    np.testing.assert_array_equal(decode("a.png", content, "label").pixels, indices)
    assert rgb("a.png", content)[0][0].tolist() == [[0, 0, 0], [255, 0, 0], [0, 0, 255]]


def test_one_bit_is_black_and_white() -> None:
    content = saved(Image.fromarray(GREY > 127), "PNG")
    np.testing.assert_array_equal(decode("a.png", content, "label").pixels, (GREY > 127).astype(np.uint8) * 255)


@pytest.mark.parametrize("bits", [10, 12, 16])
@pytest.mark.parametrize("kind", ["png", "tif", "tif of colours"])
def test_deep_images_are_scaled_by_their_depth(bits: int, kind: str) -> None:
    deep = (np.arange(12).reshape(3, 4) * ((1 << bits) - 1) // 11).astype(np.uint16)
    if kind == "png":
        content = cv2.imencode(".png", deep)[1].tobytes()
    else:
        stream = io.BytesIO()
        colours = kind.endswith("colours")
        tifffile.imwrite(
            stream, np.dstack([deep] * 3) if colours else deep, photometric="rgb" if colours else "minisblack"
        )
        content = stream.getvalue()
    decoded = decode(f"a.{kind[:3]}", content, "image")
    assert bit_depth(decoded.pixels) == bits
    image, remarks = to_rgb(decoded, bits)
    np.testing.assert_array_equal(image[..., 1], np.rint(deep * (255 / ((1 << bits) - 1))))
    assert [remark.fault for remark in remarks] == ["deep image"] and image.max() == 255


def test_float_images_of_0_to_1_are_scaled_and_others_refused() -> None:
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.array([[0.0, 0.5], [0.25, 1.0]], np.float32))
    image, remarks = rgb("a.tif", stream.getvalue())
    assert image[..., 0].tolist() == [[0, 128], [64, 255]] and remarks == ["repaired float image"]
    stream = io.BytesIO()
    tifffile.imwrite(stream, np.array([[0.0, np.nan]], np.float32))
    with pytest.raises(FaultyFile, match=r"expected floats of 0\.\.1"):
        rgb("a.tif", stream.getvalue())


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


DEEP = np.random.default_rng(1).integers(0, 65536, (9, 13, 4)).astype(np.uint16)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("samples", [3, 4])
@pytest.mark.parametrize("photometric", ["rgb", "minisblack"])
def test_tiffs_of_any_order_and_depth_have_the_pixels_that_were_written(
    dtype: type, planar: str, samples: int, photometric: str
) -> None:
    pixels = (
        (DEEP[..., :samples] / 65535).astype(np.float32) if dtype == np.float32 else DEEP[..., :samples].astype(dtype)
    )
    stored = np.moveaxis(pixels, -1, 0) if planar == "separate" else pixels
    kinds = ["unassalpha"] if samples == 4 and photometric == "rgb" else [0] * (samples - 1)
    more = {"extrasamples": kinds} if samples == 4 or photometric == "minisblack" else {}
    for byteorder in ("<", ">"):
        content = tiff(stored, photometric=photometric, planarconfig=planar, byteorder=byteorder, **more)
        found = decode("a.tif", content, "image").pixels
        wanted = pixels if "unassalpha" in kinds else pixels[..., :3]
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == dtype


@pytest.mark.parametrize("compression", ["jpeg2000", "jpegxl", "zstd", "lzma", "webp"])
def test_tiffs_of_other_compressions_are_read(compression: str) -> None:
    grey = np.full((32, 48), 7, np.uint8)
    grey[8:20, 10:30] = 200
    lossless = {"jpeg2000": {"level": 0}, "jpegxl": {"level": 101, "lossless": True}, "webp": {"lossless": True}}
    colours = np.stack([grey, grey // 2, 255 - grey], axis=2)
    for pixels in (colours,) if compression == "webp" else (grey, colours):
        content = tiff(pixels, compression=compression, compressionargs=lossless.get(compression, {}))
        found = decode("a.tif", content, "image").pixels
        np.testing.assert_allclose(found.astype(int), pixels, atol=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_where_white_is_zero_images_are_as_seen_and_labels_as_stored(dtype: type) -> None:
    values = (GREY.astype(np.uint32) * np.iinfo(dtype).max // 255).astype(dtype)
    content = tiff(values, photometric="miniswhite")
    np.testing.assert_array_equal(decode("a.tif", content, "image").pixels, ~values)
    label = decode("a.tif", content, "label")
    np.testing.assert_array_equal(label.pixels, values)
    assert [remark.fault for remark in label.remarks] == ["white is 0"]
    # Of one bit, white is what programs show white, and masks mean.
    one = tiff(GREY > 128, photometric="miniswhite")
    np.testing.assert_array_equal(decode("a.tif", one, "label").pixels > 0, GREY <= 128)


@pytest.mark.parametrize("turn", range(2, 9))
def test_deep_tiffs_are_turned_upright_as_others_are(turn: int) -> None:
    deep = DEEP[..., :3]
    kept = tiff(deep, photometric="rgb", extratags=[(0x0112, "H", 1, turn, True)])
    exif = Image.Exif()
    exif[0x0112] = turn
    flat = decode("a.png", saved((deep // 257).astype(np.uint8), "TIFF", tiffinfo={0x0112: turn}), "image").pixels
    found = decode("a.tif", kept, "image")
    np.testing.assert_array_equal((found.pixels // 257).astype(np.uint8), flat)
    assert [remark.fault for remark in found.remarks] == ["orientation"]
    # Of a kind that Pillow does not open at all.
    floats = tiff((deep / 65535).astype(np.float32), photometric="rgb", extratags=[(0x0112, "H", 1, turn, True)])
    found = decode("a.tif", floats, "image")
    np.testing.assert_array_equal(np.rint(found.pixels * 65535).astype(int) // 257, flat)
    assert [remark.fault for remark in found.remarks] == ["orientation"]


def test_alpha_neither_deepens_nor_hides_an_image() -> None:
    colours = DEEP[..., :3] // 16
    pixels = np.dstack([colours, np.full(colours.shape[:2], 65535, np.uint16)])
    decoded = decode("a.tif", tiff(pixels, photometric="rgb", extrasamples=["unassalpha"]), "image")
    assert bit_depth(decoded.pixels) == 12
    np.testing.assert_array_equal(to_rgb(decoded, 12)[0], np.rint(colours * (255 / 4095)))
    with pytest.raises(FaultyFile, match="alpha of 0 everywhere"):
        rgb("a.png", saved(np.dstack([COLOUR, np.zeros_like(GREY)]), "PNG"))


@given(st.integers(0, 1400), st.integers(1, 255))
@settings(deadline=None, max_examples=150)
def test_a_damaged_deep_tiff_is_refused_or_has_pixels(at: int, change: int) -> None:
    content = bytearray(tiff(DEEP[..., :3], photometric="rgb", compression="zlib"))
    content[at % len(content)] ^= change
    try:
        decoded = decode("a.tif", bytes(content), "image")
    except FaultyFile:
        return
    assert decoded.pixels.size


def test_exif_orientation_is_applied_and_listed() -> None:
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:, 16:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side: shown turned clockwise
    content = saved(np.rot90(upright).copy(), "JPEG", exif=exif, quality=95)
    image, remarks = rgb("a.jpg", content)
    assert image.shape == upright.shape and np.abs(image.astype(int) - upright).mean() < 3
    assert remarks == ["repaired orientation"]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("role", ["image", "label"])
def test_pngs_of_every_kind_are_turned_upright_as_jpegs_are(
    turn: int, after: bool, role: Literal["image", "label"]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    deep = cv2.imencode(".png", DEEP[..., 0])[1].tobytes()
    palette = Image.fromarray(GREY // 2)
    palette.putpalette(bytes(range(256)) * 3)
    kinds = (saved(COLOUR, "PNG"), saved(GREY, "PNG"), deep, saved(palette, "PNG"), saved(GREY > 99, "PNG"))
    for plain in kinds:
        at = plain.index(b"IEND" if after else b"IDAT") - 4
        lying = plain[:at] + chunk(b"eXIf", exif.tobytes()[6:]) + plain[at:]
        found = decode("a.png", lying, role)
        flat = decode("a.png", plain, role).pixels
        expected = np.array(ImageOps.exif_transpose(with_orientation(flat, turn)))
        np.testing.assert_array_equal(found.pixels, expected.astype(flat.dtype))
        assert [remark.fault for remark in found.remarks] == ["orientation"] * (turn > 1)


def with_orientation(pixels: np.ndarray, turn: int) -> Image.Image:
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = turn
    return image


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_files_are_refused_never_completed_with_grey(kind: str, share: float) -> None:
    big = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    content = saved(big, kind)
    with pytest.raises(FaultyFile, match=r"truncated|damaged|wrong file type"):
        decode(f"a.{kind.lower()}", content[: int(len(content) * share)], "image")


@settings(deadline=None)
@given(st.integers(8, 400), st.integers(1, 255))
def test_a_damaged_png_is_refused_or_reads_as_before(at: int, change: int) -> None:
    content = bytearray(saved(COLOUR, "PNG"))
    content[at % len(content)] ^= change
    try:
        image, _ = rgb("a.png", bytes(content))
    except FaultyFile:
        return
    np.testing.assert_array_equal(image, COLOUR)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (b"just text\n", "text that begins 'just text"),
        (b"<html><body>404</body></html>", "a web page or XML"),
        (b"PK\x03\x04....", "a zip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (bytes(range(200, 250)), "bytes that begin"),
        (saved(GREY, "GIF"), "bytes that begin b'GIF8"),
    ],
)
def test_what_is_no_image_is_refused_in_words(content: bytes, found: str) -> None:
    with pytest.raises(FaultyFile, match=f"expected a PNG, JPEG, TIFF or BMP image, found {found}"):
        decode("a.png", content, "image")


def test_a_declared_size_beyond_all_measure_is_refused_before_it_is_decoded() -> None:
    content = bytearray(saved(GREY, "PNG"))
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    with pytest.raises(FaultyFile, match=r"impossible size.*found 100000 x 100000; cut larger images"):
        decode("a.png", bytes(content), "image")


def test_several_pages_are_refused() -> None:
    content = saved(Image.fromarray(GREY), "TIFF", save_all=True, append_images=[Image.fromarray(GREY)])
    with pytest.raises(FaultyFile, match="several pages: expected one page, found 2"):
        decode("a.tif", content, "label")


def test_equal_channels_are_one_plane_and_colours_are_refused() -> None:
    grey = np.dstack([GREY] * 3)
    for array in (grey, np.dstack([grey, np.full(GREY.shape, 255, np.uint8)])):
        plane, remarks = to_plane(decode("a.png", saved(array, "PNG"), "label"))
        np.testing.assert_array_equal(plane, GREY)
        assert remarks == []
    see_through = np.dstack([grey, np.where(GREY > 99, 255, 0).astype(np.uint8)])
    assert [remark.fault for remark in to_plane(decode("a.png", saved(see_through, "PNG"), "label"))[1]] == [
        "transparent mask"
    ]
    with pytest.raises(FaultyFile, match=r"colour mask: expected one plane.*found at least \d+ colours"):
        to_plane(decode("a.png", saved(COLOUR, "PNG"), "label"))
    in_alpha = np.dstack([np.zeros_like(grey), see_through[..., 3]])
    with pytest.raises(FaultyFile, match="the shape in the alpha channel; save the alpha channel as the mask"):
        to_plane(decode("a.png", saved(in_alpha, "PNG"), "label"))
