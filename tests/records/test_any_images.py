"""Images of any format: which files are taken, how deep ones are scaled, what is written."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from pipeline.records.findings import FaultyFile
from pipeline.records.images import common_depth, encode_image, find_images, read_any_image

IMAGE = np.random.default_rng(0).integers(0, 256, (9, 13, 3)).astype(np.uint8)


def tiff(file: Path, array: np.ndarray) -> Path:
    tifffile.imwrite(file, array, photometric="rgb" if array.ndim == 3 else "minisblack")
    return file


def test_images_of_a_folder_and_what_is_passed_over(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "notes.txt", ".hidden.png", "deep/c.tif", "deep/table.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "again").symlink_to(tmp_path / "deep", target_is_directory=True)
    flat = [[file.relative_to(tmp_path).as_posix() for file in files] for files in find_images(tmp_path)]
    assert flat == [["a.jpeg", "b.PNG"], ["again", "deep", "gone.png", "notes.txt"]]
    nested = [[file.relative_to(tmp_path).as_posix() for file in files] for files in find_images(tmp_path, nested=True)]
    assert nested == [
        ["a.jpeg", "b.PNG", "deep/c.tif"], ["again", "deep/table.csv", "gone.png", "notes.txt"]
    ]  # fmt: skip
    assert find_images(tmp_path / "notes.txt") == ([tmp_path / "notes.txt"], [])
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"expected images .* found none"):
        find_images(tmp_path / "none")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_depth_is_that_of_all_images_together(tmp_path: Path) -> None:
    files = [tiff(tmp_path / "a.tif", np.full((5, 5), 900, np.uint16)), tmp_path / "b.png", tmp_path / "text.tif"]
    files[1].write_bytes(cv2.imencode(".png", IMAGE)[1].tobytes())
    files[2].write_bytes(b"II*\x00 and no more")
    assert common_depth(files[1:]) == 8
    assert common_depth(files) == 10
    deep = tmp_path / "deep.png"
    deep.write_bytes(cv2.imencode(".png", np.full((5, 5, 3), 4000, np.uint16))[1].tobytes())
    colour = tiff(tmp_path / "colour.tif", np.full((5, 5, 3), 20000, np.uint16))
    assert common_depth([*files, deep]) == 12
    assert common_depth([*files, deep, colour]) == 16
    assert common_depth([tiff(tmp_path / "float.tif", np.full((5, 5), 0.5, np.float32))]) == 8
    assert (read_any_image(files[0], 12)[0] == round(900 * 255 / 4095)).all()


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".bmp"])
def test_lossless_formats_come_back_as_they_were(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(encode_image(file.name, IMAGE))
    image, remarks = read_any_image(file, 8)
    np.testing.assert_array_equal(image, IMAGE)
    assert remarks == [] and encode_image(file.name, IMAGE) == file.read_bytes()


def test_jpeg_is_near_and_keeps_its_colours() -> None:
    smooth = cv2.resize(IMAGE, (64, 64))
    back = np.array(Image.open(io.BytesIO(encode_image("a.JPG", smooth))))
    assert np.abs(back.astype(int) - smooth).mean() < 1.0


def test_what_cannot_be_written_or_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.gif: expected a name that ends in \.png"):
        encode_image("a.gif", IMAGE)
    with pytest.raises(FaultyFile, match=r"expected one that \.jpg can hold, found 70000 x 1"):
        encode_image("a.jpg", np.zeros((1, 70000, 3), np.uint8))
    with pytest.raises(FaultyFile, match="unreadable file"):
        read_any_image(tmp_path, 8)
