"""What every stain normaliser is: fitted on images, applied to any image without ever failing on it, kept as JSON."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from pipeline.records.files import write_json
from pipeline.stains.optical_density import WHITE

Status = Literal["ok", "clipped_gain", "background", "low_tissue", "degenerate"]
"""What became of an image. ok: normalised; clipped_gain: normalised, a stretch was held back; background: no stained
tissue; low_tissue: too little of it to measure; degenerate: tissue from which the statistics cannot be had."""
Fallback = Literal["", "identity"]
FALLBACKS: dict[Status, Fallback] = {
    "ok": "", "clipped_gain": "", "background": "identity", "low_tissue": "identity", "degenerate": "identity"
}  # fmt: skip
"""What each status fell back to: nothing, or no change at all. The reference's own stain vectors are no safe fallback:
they tint what is not stained like the reference (yellow glass turns lilac)."""

LEAST_TISSUE = 0.005
"""Share of the pixels below which an image counts as background."""
ENOUGH_TISSUE, ENOUGH_PIXELS = 0.03, 256
"""Share and number of tissue pixels from which statistics can be measured."""


class Normaliser(ABC):
    """Brings images to the stain of a reference.

    maximum_gain: largest factor, up or down, by which anything is stretched; white: grey levels of glass.
    reference_: statistics of the reference; reference_index_: which of the fitted images it was.
    """

    method: ClassVar[str]
    version: ClassVar[int] = 1
    statistics: ClassVar[dict[str, tuple[int, ...]]]
    """Name and shape of what is measured of an image; reference_ holds them one after the other."""

    def __init__(self, maximum_gain: float = 4.0, white: tuple[float, float, float] = WHITE) -> None:
        self.maximum_gain = maximum_gain
        self.white = white
        self.reference_: np.ndarray | None = None
        self.reference_index_: int | None = None

    @abstractmethod
    def measure(self, image: np.ndarray) -> tuple[Status, np.ndarray | None]:
        """Measure an image: ok with its statistics as one vector, or why there are none."""

    @abstractmethod
    def _apply(self, image: np.ndarray, measured: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, Status]:
        """Transform an image by its own statistics."""

    def fit(self, images: Iterable[np.ndarray]) -> Self:
        """Take as reference the image whose statistics are nearest to the median of all.

        images: (height, width, 3) uint8 RGB each, seen once and not kept. Distance: differences in units of each
        statistic's median absolute deviation, squared and summed. Raises ValueError where no image can be measured.
        """
        indices, measured = [], []
        counts: dict[str, int] = {}
        for index, image in enumerate(images):
            status, statistics = self.measure(_checked(image))
            counts[status] = counts.get(status, 0) + 1
            if statistics is not None:
                indices.append(index)
                measured.append(statistics)
        if not measured:
            found = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no image"
            raise ValueError(
                f"normalise.method={self.method}: expected an image with stained tissue to fit to, found {found}; "
                "set normalise.method=none for images that are not stained, or name a normalise.reference"
            )
        table = np.stack(measured)
        deviations = np.abs(table - np.median(table, axis=0))
        scale = np.median(deviations, axis=0)
        nearest = int(np.argmin(np.square(deviations / np.where(scale > 0, scale, 1.0)).sum(axis=1)))
        self.reference_, self.reference_index_ = table[nearest], indices[nearest]
        return self

    def transform(self, image: np.ndarray) -> tuple[np.ndarray, Status]:
        """Bring an image to the reference's stain, and say what became of it; as many pixels out as in, always.

        image: (height, width, 3) uint8 RGB; returns a new one, the same pixels where FALLBACKS says identity.
        Raises ValueError for another shape or dtype, or where nothing was fitted.
        """
        if self.reference_ is None:
            raise ValueError(f"{self.method}: expected a fitted normaliser, found none; call fit, or load one")
        status, measured = self.measure(_checked(image))
        if measured is None:
            return image.copy(), status
        return self._apply(image, measured, self.reference_)

    def save(self, file: Path, **further: Any) -> None:
        """Write the fitted state as JSON, atomically; further entries are for the reader and not read back."""
        if self.reference_ is None:
            raise ValueError(f"{file}: expected a fitted normaliser, found none; call fit first")
        parts = self._parts(self.reference_)
        content = {
            "method": self.method,
            "version": self.version,
            "maximum_gain": self.maximum_gain,
            "white_point": list(self.white),
            "reference": {name: part.tolist() for name, part in parts.items()},
        }
        write_json(file, content | further)

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read what save wrote. Raises ValueError where the file is something else, or of another version."""
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["method"] != cls.method or content["version"] != cls.version:
                raise ValueError(f"method {content['method']!r}, version {content['version']!r}")
            red, green, blue = map(float, content["white_point"])
            normaliser = cls(float(content["maximum_gain"]), (red, green, blue))
            parts = [np.array(content["reference"][name], dtype=np.float64) for name in cls.statistics]
            if [part.shape for part in parts] != list(cls.statistics.values()):
                raise ValueError(f"statistics of the shapes {[part.shape for part in parts]}")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: expected a fitted {cls.method} normaliser of version {cls.version}, found {error}; "
                "run stage normalise again"
            ) from error
        normaliser.reference_ = np.concatenate([part.ravel() for part in parts])
        return normaliser

    def _parts(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Take a vector of statistics apart."""
        ends = np.cumsum([math.prod(shape) for shape in self.statistics.values()])
        pieces = np.split(vector, ends[:-1])
        return {
            name: piece.reshape(shape) for (name, shape), piece in zip(self.statistics.items(), pieces, strict=True)
        }

    def _bounded(self, gain: np.ndarray) -> tuple[np.ndarray, Status]:
        """Hold gains within the maximum, up and down."""
        bounded = np.clip(gain, 1.0 / self.maximum_gain, self.maximum_gain)
        return bounded, "ok" if np.array_equal(bounded, gain) else "clipped_gain"


def tissue_status(tissue: np.ndarray) -> Status:
    """Say whether a tissue mask holds enough to measure: ok, low_tissue or background."""
    pixels = int(np.count_nonzero(tissue))
    if pixels < LEAST_TISSUE * tissue.size or pixels == 0:
        return "background"
    return "ok" if pixels >= max(ENOUGH_PIXELS, ENOUGH_TISSUE * tissue.size) else "low_tissue"


def _checked(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"expected an image of shape (height, width, 3) and uint8, found {image.shape} and {image.dtype}; "
            "read it with `ingest`, which brings any image to this form"
        )
    return image
