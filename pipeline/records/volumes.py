"""Volumes in NIfTI: axial planes of any orientation, and masks that go back into the same space."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.records.case import IGNORED
from pipeline.records.findings import SHOWN, FaultyFile

SUFFIXES = (".nii", ".nii.gz")
PERCENTILES = (0.5, 99.5)
"""Of a volume's values, between which grey levels lie where no window is given."""
ROUNDING = 1e-6
"""Of a class id, as much as slope and intercept, which are stored with 24 bits, take from it or add."""
_HEADER_BYTES = 1024


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume seen from the front, planes from the feet to the head.

    values: (planes, height, width): rows from front to back, columns from left to right (as near to that as turns and
    mirrors of the file's axes bring it); image: nibabel's, as it is in the file but for further axes of length 1;
    shape: the file's, with these.
    """

    values: np.ndarray
    image: Any
    shape: tuple[int, ...]

    @property
    def affine(self) -> np.ndarray:
        """From the file's voxels to millimetres: (4, 4)."""
        return np.asarray(self.image.affine)


def planes_of(content: bytes) -> int:
    """Count the axial planes of a file from its first bytes.

    Raises FaultyFile for what is no volume of three axes with a number in each voxel.
    """
    with _refused():
        content = _unpacked(content, _HEADER_BYTES)
        # An image would be asked for its header's extensions too, which may be longer than these bytes.
        kind = _kind(content).header_class
        header = kind(content[: kind.template_dtype.itemsize])
        affine = header.get_best_affine()
    return _canonical_shape(header, affine)[2]


def read_volume(content: bytes) -> Volume:
    """Read a NIfTI file, compressed or not. Raises FaultyFile where it is none, or damaged, and as planes_of does.

    Further axes of length 1, as time has in many exports, are taken off; encode_like puts them back.
    """
    import nibabel

    with _refused():
        content = _unpacked(content)
        image = _kind(content).from_bytes(content)
    _canonical_shape(image.header, image.affine)
    shape = image.shape
    try:
        image = nibabel.squeeze_image(image)
        values = np.asanyarray(nibabel.as_closest_canonical(image).dataobj)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise FaultyFile("damaged volume", "a whole NIfTI file", str(error), "fetch it again") from error
    return Volume(values.transpose(2, 1, 0)[:, ::-1], image, shape)


def grey_levels(values: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """Turn values of a volume into 8-bit levels: window, or PERCENTILES of the values, to 0 and 255; uint8.

    Raises FaultyFile for values that are no numbers.
    """
    numbers = np.asarray(values, np.float32)
    if not np.isfinite(numbers).all():
        raise FaultyFile("no numbers", "finite values", f"{int((~np.isfinite(numbers)).sum())} that are not", "mend it")
    low, high = window if window is not None else np.percentile(numbers, PERCENTILES).tolist()
    return np.rint(np.clip((numbers - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)


def class_ids(values: np.ndarray) -> np.ndarray:
    """Turn a segmentation's values into class ids, uint16. Raises FaultyFile for others than 0..65534 in whole.

    Numbers that a file's own scaling brings within ROUNDING of whole ones are these.
    """
    numbers = np.asarray(values)
    whole = np.rint(numbers) if numbers.dtype.kind == "f" else numbers
    with np.errstate(invalid="ignore"):
        sound = (whole >= 0) & (whole < IGNORED)
        if whole is not numbers:
            sound &= np.abs(numbers - whole) <= ROUNDING * np.maximum(whole, 1)
    if not sound.all():
        strange = np.unique(numbers[~sound])
        shown = ", ".join(f"{value:.9g}" for value in strange[:SHOWN].tolist())
        more = f" and {strange.size - SHOWN} more" if strange.size > SHOWN else ""
        found = f"{shown}{more} in {int((~sound).sum())} of {sound.size} voxels"
        raise FaultyFile("no class ids", f"whole numbers from 0 to {IGNORED - 1}", found, "give a segmentation")
    return whole.astype(np.uint16)


def encode_like(volume: Volume, planes: np.ndarray) -> bytes:
    """Write masks into the space of a volume's file, as .nii.gz: the same shape, orientation, affine and spacing.

    planes: (planes, height, width) whole numbers, as Volume.values lie; uint8 where they fit, else uint16. The same
    planes give the same bytes.
    """
    import nibabel

    canonical = nibabel.as_closest_canonical(volume.image)
    there = nibabel.io_orientation(volume.image.affine)
    here = nibabel.io_orientation(canonical.affine)
    turned = nibabel.apply_orientation(
        planes[:, ::-1].transpose(2, 1, 0), nibabel.orientations.ornt_transform(here, there)
    )
    data = np.ascontiguousarray(turned, np.uint8 if planes.max(initial=0) < 256 else np.uint16)
    header = volume.image.header.copy()
    header.set_data_dtype(data.dtype)
    header.set_slope_inter(1, 0)
    header["cal_max"] = header["cal_min"] = 0
    made = type(volume.image)(data.reshape(volume.shape), volume.image.affine, header)
    return gzip.compress(made.to_bytes(), 6, mtime=0)


def same_space(first: Volume, second: Volume) -> str:
    """Say how two volumes lie apart; nothing where they share shape and, to a thousandth of a voxel, affine."""
    if first.image.shape != second.image.shape:
        shapes = (" x ".join(map(str, one.image.shape)) for one in (second, first))
        return "{} voxels for {}".format(*shapes)
    spacing = np.linalg.norm(first.affine[:3, :3], axis=0).min()
    corners = np.array([[x, y, z, 1] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    corners[:, :3] *= np.array(first.image.shape)
    apart = np.abs(corners @ (first.affine - second.affine).T).max()
    return f"an affine that lies up to {apart:.3g} mm apart" if apart > 1e-3 * spacing * max(first.image.shape) else ""


@contextmanager
def _refused() -> Iterator[None]:
    """Tell whatever nibabel says of a file that it cannot read as the file's fault."""
    import nibabel

    try:
        yield
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, OSError, EOFError,
            zlib.error, ValueError, nibabel.wrapstruct.WrapStructError) as error:  # fmt: skip
        raise FaultyFile("no NIfTI", "a NIfTI file, .nii or .nii.gz", str(error), "fetch it again") from error


def _unpacked(content: bytes, most: int = 0) -> bytes:
    """The bytes of a file that may be compressed; most: how many are needed, 0 for all."""
    if content[:2] != b"\x1f\x8b":
        return content
    return zlib.decompressobj(31).decompress(content, most) if most else gzip.decompress(content)


def _kind(content: bytes) -> Any:
    """Which of nibabel's images reads these bytes."""
    import nibabel

    return nibabel.Nifti2Image if content[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Image


def _canonical_shape(header: Any, affine: np.ndarray) -> tuple[int, int, int]:
    """Lengths of the axes from left to right, from back to front, and from feet to head.

    Raises FaultyFile for what is no volume of three axes with a number in each voxel.
    """
    import nibabel

    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    found = " x ".join(map(str, shape))
    if len(shape) < 3 or math.prod(shape[3:]) != 1:
        raise FaultyFile("other axes", "a volume of three axes", found, "give one volume a file")
    if min(shape) < 1:
        raise FaultyFile("empty volume", "one voxel at least along each axis", found, "fetch it again, or delete it")
    if dtype.kind not in "biuf":
        datatype = str(nibabel.nifti1.data_type_codes.label[int(header["datatype"])])
        raise FaultyFile("other voxels", "a whole or real number a voxel", datatype, "save one number a voxel")
    axes = nibabel.io_orientation(affine)[:, 0]
    if np.isnan(axes).any():
        raise FaultyFile("no orientation", "an affine of three axes", "one that loses an axis", "mend its header")
    along = dict(zip(axes.astype(int).tolist(), shape[:3], strict=True))
    return along[0], along[1], along[2]
