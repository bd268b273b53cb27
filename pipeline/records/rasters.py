"""Reading and writing rasters: images as RGB uint8, labels as 16-bit ids, probability maps as 16-bit planes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pipeline.records.files import write_bytes, written_aside

PROBABILITY_SCALE = 65535


def read_image(file: Path) -> np.ndarray:
    """Read an ingested image: (height, width, 3) uint8 RGB. Raises ValueError where the file is no such image."""
    image = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(
            f"{file}: expected an image, found bytes that no decoder reads; delete it and run ingest again"
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def read_label(file: Path) -> np.ndarray:
    """Read a label raster: (height, width) uint16 ids. Raises ValueError where the file is no such raster."""
    label = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    if label is None or label.ndim != 2:
        found = "no raster" if label is None else f"shape {label.shape}"
        raise ValueError(f"{file}: expected one plane of object or class ids, found {found}; run ingest again")
    return label.astype(np.uint16, copy=False)


def write_png(file: Path, raster: np.ndarray) -> None:
    """Write (height, width, 3) uint8 RGB or (height, width) uint8 or uint16 as PNG, atomically."""
    if raster.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{file}: expected uint8 or uint16, found {raster.dtype}")
    stored = cv2.cvtColor(raster, cv2.COLOR_RGB2BGR) if raster.ndim == 3 else raster
    done, encoded = cv2.imencode(".png", stored, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise ValueError(f"{file}: expected a raster that PNG can hold, found shape {raster.shape}")
    write_bytes(file, encoded.tobytes())


def write_probabilities(file: Path, probabilities: np.ndarray) -> None:
    """Write (channels, height, width) float in [0, 1] as 16-bit planes of a tiled TIFF, atomically."""
    import tifffile

    planes = to_levels(probabilities)
    with written_aside(file) as aside:
        tifffile.imwrite(
            aside, planes, tile=(256, 256), compression="zlib", compressionargs={"level": 1}, photometric="minisblack",
            planarconfig="separate" if len(planes) > 1 else None, metadata=None, software=False,
        )  # fmt: skip


def read_probabilities(file: Path) -> np.ndarray:
    """Read what write_probabilities wrote: (channels, height, width) float32 in [0, 1]."""
    import tifffile

    planes = tifffile.imread(file)
    if planes.ndim == 2:
        planes = planes[np.newaxis]
    return from_levels(planes)


def to_levels(probabilities: np.ndarray) -> np.ndarray:
    """Round probabilities in [0, 1] to the 16-bit levels, 65535 = certain, that they are kept as; uint16."""
    return np.rint(np.clip(probabilities, 0.0, 1.0) * PROBABILITY_SCALE).astype(np.uint16)


def from_levels(levels: np.ndarray) -> np.ndarray:
    """Turn what to_levels gave back into probabilities, float32 in [0, 1]."""
    return levels.astype(np.float32) / PROBABILITY_SCALE
