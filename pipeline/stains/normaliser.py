"""What every stain normaliser is: fitted on images, applied to any image without ever failing on it, kept as JSON."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np

from pipeline.records.files import write_json
from pipeline.stains.optical_density import (
    WHITE,
    is_dark,
    measure_white,
    sample_pixels,
    tissue_and_ink,
    tissue_pixels,
)

Status = Literal["ok", "clipped_gain", "background", "low_tissue", "degenerate"]
"""What became of an image. ok: normalised; clipped_gain: normalised, a stretch was held back; background: no stained
tissue; low_tissue: too little of it to measure; degenerate: tissue from which the statistics cannot be had, or an image
with pen marks (INKED). Of an image normalised by the statistics of its slide, low_tissue and degenerate tell how it is
itself, and come before clipped_gain."""
Fallback = Literal["", "image", "slide", "group", "reference", "identity"]
"""What an image was normalised by where not by the statistics that were asked for: its own, since its slide's could not
be had; its slide's or group's, since its own could not; the reference's own stain vectors; or nothing: its pixels are
the same. A background image whose light was brought to the reference's by its slide's white point has the slide's."""
White = tuple[float, float, float]

LEAST_TISSUE = 0.005
"""Share of the pixels below which an image counts as background."""
ENOUGH_TISSUE, ENOUGH_PIXELS = 0.03, 256
"""Share of the pixels that must be tissue, and number of tissue pixels looked at, for statistics to be measured."""
INKED = 0.03
"""Share of the pixels above which ink makes an image degenerate: statistics of tissue do not say what becomes of ink.
Less of it takes no part in the statistics either."""
SLIDE_PIXELS = 2**17
"""Most tissue pixels that the statistics of several images are measured from."""


@dataclass(frozen=True)
class Normalised:
    """An image in the reference's stain, (height, width, 3) uint8 RGB, and how it came about.

    white_point: grey levels of glass that were measured, or assumed (WHITE); None where none played a part.
    """

    image: np.ndarray
    status: Status
    fallback: Fallback
    white_point: White | None = None


class Normaliser(ABC):
    """Brings images to the stain of a reference."""

    method: ClassVar[str]
    version: ClassVar[int] = 1

    @abstractmethod
    def fit(self, images: Iterable[np.ndarray]) -> Self:
        """Learn the reference from images, (height, width, 3) uint8 RGB each; one is enough."""

    @abstractmethod
    def normalise(self, image: np.ndarray, pooled: np.ndarray | None = None, prefer_pooled: bool = False) -> Normalised:
        """Bring an image to the reference's stain, and say how; as many pixels out as in, always.

        image: (height, width, 3) uint8 RGB; pooled: statistics of its slide or group, where they were measured;
        prefer_pooled: use them for every image, not only where its own statistics cannot be had; where there are none,
        its own are a fallback.
        Raises ValueError for another shape or dtype, or where nothing was fitted.
        """

    def transform(self, image: np.ndarray) -> tuple[np.ndarray, Status]:
        """Return the image of normalise, and what became of it."""
        normalised = self.normalise(image)
        return normalised.image, normalised.status

    @abstractmethod
    def save(self, file: Path, **further: Any) -> None:
        """Write the fitted state, atomically; further entries are for the reader and not read back."""

    @classmethod
    @abstractmethod
    def load(cls, file: Path) -> Self:
        """Read what save wrote. Raises ValueError where the file is something else, or of another version."""


class StatisticalNormaliser(Normaliser):
    """Brings the statistics of an image's stains to those of a reference.

    maximum_gain: largest factor, up or down, by which anything is stretched. white: grey levels of glass, or measured:
    the glass of each image (or slide) becomes the reference's. An image that shows no glass is taken to have the white
    point WHITE and keeps its light, and so does a background image; its tile neighbours that do show glass may then
    differ from it by the ratio of two white points, which statistics pooled over a slide avoid: they carry its white
    point to all its tiles, background too.
    reference_: statistics of the reference; reference_index_: which of the fitted images it was. Statistics are one
    vector that ends in the white point: NaN where no glass was measured, the reference's WHITE then.
    """

    version = 2
    statistics: ClassVar[dict[str, tuple[int, ...]]]
    """Name and shape of what is measured of an image; reference_ holds them one after the other."""
    sampled: ClassVar[float] = 1.0
    """Pixels that an image is measured from, in multiples of SAMPLE; all of a smaller one."""

    def __init__(self, maximum_gain: float = 4.0, white: White | Literal["measured"] = WHITE) -> None:
        self.maximum_gain = maximum_gain
        self.white = white
        self.reference_: np.ndarray | None = None
        self.reference_index_: int | None = None

    @abstractmethod
    def _statistics(self, tissue: np.ndarray, white: White) -> np.ndarray | None:
        """Measure (n, 3) uint8 pixels of tissue: all statistics but the white point; None where they are degenerate."""

    @abstractmethod
    def _apply(self, image: np.ndarray, own: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, bool]:
        """Transform an image from statistics to statistics; and whether a gain was held back."""

    def _by_reference(
        self, image: np.ndarray, tissue: np.ndarray, white: White | None, reference: np.ndarray
    ) -> np.ndarray | None:
        """Transform an image without statistics by the reference's own; None where there is nothing that is safe."""
        return None

    def _light(self, image: np.ndarray, before: White, after: White) -> np.ndarray | None:
        """Bring the glass of an image without tissue from one white point to another; None where light never moves."""
        return None

    def measure(self, image: np.ndarray) -> tuple[Status, np.ndarray | None]:
        """Measure an image: ok with its statistics as one vector, or why there are none."""
        status, tissue, white = self._look(checked(image), None)
        return self._measured(status, tissue, white)

    def pool(self, images: Iterable[np.ndarray]) -> tuple[Status, np.ndarray | None]:
        """Measure images of one slide or group together, as if they were one image.

        images: (height, width, 3) uint8 RGB each, seen once; of their tissue, SLIDE_PIXELS pixels evenly spaced are
        kept, of the glass one white point each, whose median holds for all. A pixel is tissue that is stained both
        under its own image's white point (WHITE where that shows no glass) and under the common one. An image with pen
        marks tells its white point alone, since the soft edges of ink pass for stain. Returns what measure returns.
        """
        pools, whites, kept, every, marked = [], [], 0, 1, False
        for image in images:
            status, tissue, white = self._look(checked(image), None)
            if white is not None:
                whites.append(white)
            if status == "degenerate":
                marked = True
                continue
            pools.append(tissue[::every])
            kept += len(pools[-1])
            while kept > SLIDE_PIXELS:
                pools, every = [pixels[::2] for pixels in pools], 2 * every
                kept = sum(map(len, pools))
        if not kept:
            return "degenerate" if marked else "background", None
        common = self.white if self.white != "measured" else _median(whites)
        tissue = tissue_pixels(np.concatenate(pools), common or WHITE)
        return self._measured("ok" if len(tissue) >= ENOUGH_PIXELS else "low_tissue", tissue, common)

    def fit(self, images: Iterable[np.ndarray]) -> Self:
        """Take as reference the image whose statistics are nearest to the median of all.

        images: (height, width, 3) uint8 RGB each, seen once and not kept. Distance: differences in units of each
        statistic's median absolute deviation, squared and summed. Raises ValueError where no image can be measured.
        """
        indices, measured = [], []
        counts: dict[str, int] = {}
        for index, image in enumerate(images):
            status, statistics = self.measure(image)
            counts[status] = counts.get(status, 0) + 1
            if statistics is not None:
                indices.append(index)
                measured.append(statistics)
        if not measured:
            found = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no image"
            raise ValueError(
                f"normalise.method={self.method}: expected an image with stained tissue to fit to, found {found}; "
                "name a reference that shows it (normalise.reference, or --reference beside --images), or take "
                "normalise.method=none for a data set that is not stained"
            )
        table = np.stack(measured)
        table[:, -3:] = np.where(np.isnan(table[:, -3:]), WHITE, table[:, -3:])
        deviations = np.abs(table - np.median(table, axis=0))
        scale = np.median(deviations, axis=0)
        nearest = int(np.argmin(np.square(deviations / np.where(scale > 0, scale, 1.0)).sum(axis=1)))
        self.reference_, self.reference_index_ = table[nearest], indices[nearest]
        return self

    def normalise(self, image: np.ndarray, pooled: np.ndarray | None = None, prefer_pooled: bool = False) -> Normalised:
        """Bring an image to the reference's stain by its own statistics, else its slide's, else the reference's.

        As in Normaliser; with pooled statistics their white point holds for the image. A background image keeps its
        pixels, but for its light where a pooled white point is known.
        """
        if self.reference_ is None:
            raise ValueError(f"{self.method}: expected a fitted normaliser, found none; call fit, or load one")
        status, tissue, glass = self._look(checked(image), pooled)
        white = glass or WHITE
        if status == "background":
            before, after = white_points(pooled, self.reference_) if pooled is not None else (white, white)
            lit = self._light(image, before, after) if before != after else None
            if lit is not None:
                return Normalised(lit, status, "slide", white)
            return Normalised(image.copy(), status, "identity", white)
        if pooled is not None and prefer_pooled:
            changed, held_back = self._apply(image, pooled, self.reference_)
            return Normalised(changed, "clipped_gain" if held_back and status == "ok" else status, "", white)
        status, measured = self._measured(status, tissue, glass)
        if measured is not None:
            changed, held_back = self._apply(image, measured, self.reference_)
            fallback: Fallback = "image" if prefer_pooled else ""
            return Normalised(changed, "clipped_gain" if held_back else "ok", fallback, white)
        if pooled is not None:
            return Normalised(self._apply(image, pooled, self.reference_)[0], status, "slide", white)
        careful = self._by_reference(image, tissue, glass, self.reference_)
        if careful is not None:
            return Normalised(careful, status, "reference", white)
        return Normalised(image.copy(), status, "identity", white)

    def save(self, file: Path, **further: Any) -> None:
        """Write the fitted state as JSON, atomically; further entries are for the reader and not read back."""
        if self.reference_ is None:
            raise ValueError(f"{file}: expected a fitted normaliser, found none; call fit first")
        parts = self._parts(self.reference_)
        content = {
            "method": self.method,
            "version": self.version,
            "maximum_gain": self.maximum_gain,
            "white_point": self.white if self.white == "measured" else list(self.white),
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
            white = content["white_point"]
            if white != "measured":
                red, green, blue = map(float, white)
                white = (red, green, blue)
            normaliser = cls(float(content["maximum_gain"]), white)
            shapes = cls._shapes()
            parts = [np.array(content["reference"][name], dtype=np.float64) for name in shapes]
            if [part.shape for part in parts] != list(shapes.values()):
                raise ValueError(f"statistics of the shapes {[part.shape for part in parts]}")
            if not all(np.isfinite(part).all() for part in parts):
                raise ValueError("statistics that are no numbers")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{file}: expected a fitted {cls.method} normaliser of version {cls.version}, found {error}; "
                "run stage normalise again"
            ) from error
        normaliser.reference_ = np.concatenate([part.ravel() for part in parts])
        return normaliser

    def _look(self, image: np.ndarray, pooled: np.ndarray | None) -> tuple[Status, np.ndarray, White | None]:
        """Look at a grid of an image's pixels: whether there is enough tissue, its pixels, and the white point.

        Of fluorescence there is none, whatever colour it glows in.

        The white point is None where it was to be measured and no glass was found.
        """
        pixels = sample_pixels(image, self.sampled)
        if is_dark(pixels):
            return "background", pixels[:0], None if self.white == "measured" else self.white
        white: White | None
        if self.white != "measured":
            white = self.white
        elif pooled is not None:
            white = white_point(pooled)
        else:
            white = measure_white(pixels)
        return *tissue_and_status(pixels, white or WHITE), white

    def _measured(self, status: Status, tissue: np.ndarray, white: White | None) -> tuple[Status, np.ndarray | None]:
        if status != "ok":
            return status, None
        statistics = self._statistics(tissue, white or WHITE)
        levels = np.full(3, np.nan) if white is None else white
        return ("degenerate", None) if statistics is None else ("ok", np.concatenate([statistics, levels]))

    @classmethod
    def _shapes(cls) -> dict[str, tuple[int, ...]]:
        return cls.statistics | {"white_point": (3,)}

    @classmethod
    def _parts(cls, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Take a vector of statistics apart."""
        shapes = cls._shapes()
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
        pieces = np.split(vector, ends[:-1])
        return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}

    def _bounded(self, gain: np.ndarray) -> tuple[np.ndarray, bool]:
        """Hold gains within the maximum, up and down; and whether that changed any."""
        bounded = np.clip(gain, 1.0 / self.maximum_gain, self.maximum_gain)
        return bounded, not np.array_equal(bounded, gain)


def white_point(statistics: np.ndarray) -> White | None:
    """Return the white point at the end of a vector of statistics; None where no glass was measured."""
    return None if np.isnan(statistics[-3:]).any() else _white(statistics[-3:])


def white_points(own: np.ndarray, reference: np.ndarray) -> tuple[White, White]:
    """Return the white point before and after, of statistics: where no glass was measured, light stays as it is."""
    before, after = white_point(own), white_point(reference)
    return (WHITE, WHITE) if before is None else (before, after or WHITE)


def checked(image: np.ndarray) -> np.ndarray:
    """Return an RGB image as it is. Raises ValueError where it is anything else."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(
            f"expected an image of shape (height, width, 3) and uint8, found {image.shape} and {image.dtype}; "
            "read it with `ingest`, which brings any image to this form"
        )
    return image


def tissue_and_status(pixels: np.ndarray, white: White) -> tuple[Status, np.ndarray]:
    """Look at (n, 3) uint8 pixels of an image: whether enough are tissue, and those that are.

    low_tissue, background, degenerate for pen marks (INKED), else ok.
    """
    tissue, ink, alike = tissue_and_ink(pixels, white)
    # Black or green without anything stained is background: fluorescence is.
    if ink > INKED * len(pixels) and tissue_status(len(tissue) + alike, len(pixels)) != "background":
        return "degenerate", tissue
    return tissue_status(len(tissue), len(pixels)), tissue


def tissue_status(tissue: int, pixels: int) -> Status:
    """Say whether so many pixels of tissue are enough to measure: ok, low_tissue or background."""
    if tissue < LEAST_TISSUE * pixels or tissue == 0:
        return "background"
    return "ok" if tissue >= max(ENOUGH_PIXELS, ENOUGH_TISSUE * pixels) else "low_tissue"


def _median(whites: list[White]) -> White | None:
    return _white(np.median(whites, axis=0)) if whites else None


def _white(levels: np.ndarray) -> White:
    red, green, blue = levels.tolist()
    return red, green, blue
