"""The embedded data set: tissue rendered from known stains by the Beer-Lambert law, with every nucleus known.

Tissue (the concentration of haematoxylin and eosin in each pixel, and the nuclei) is kept apart from the laboratory
(stain vectors, amounts, scanner), so that one tissue can be scanned by several laboratories. Everything random comes
from numpy's PCG64, seeded by (seed, patient, field); concentrations are rounded to a grid, so that the last bits of
a processor's arithmetic do not reach a pixel.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from pipeline.records.files import write_text
from pipeline.records.rle import encode_labels

VERSION = 1
"""Raised with every change to a pixel, so that an older sample is written anew."""
CONCENTRATION_STEP = 1.0 / 512.0
"""Concentrations are multiples of this, exact in float16 up to 4; in optical density finer than 8 bits at white."""
MINIMUM_AREA = 16
"""Pixels below which a piece of a nucleus is not annotated."""

SPLINE_DEVIATION = 0.4794
"""Standard deviation of a plane of cubic B-splines on independent knots of unit variance (151/315 in each axis)."""

TissueKind = Literal["gland", "nest", "lymphoid", "stroma", "glass"]
Range = tuple[float, float]


# --- Laboratories: what turns concentrations into pixels ------------------------------------------------------------


@dataclass(frozen=True)
class Laboratory:
    """A staining protocol and a scanner.

    stain_matrix: rows haematoxylin and eosin, columns red, green, blue; optical density (base 10) of one unit of
    concentration, before amounts; rows have length 1. amounts: haematoxylin and eosin taken up, per unit.
    white_point: grey levels of glass. crosstalk: rows sum to 1; linear light of a channel seen by each sensor channel.
    gamma: exponent on relative light. blur: pixels (standard deviation). noise: grey levels at white; falls with the
    square root of light. jpeg_quality: None leaves the pixels as they are. foreground, background: colours in words.
    """

    name: str
    foreground: str
    background: str
    stain_matrix: tuple[tuple[float, float, float], tuple[float, float, float]]
    amounts: tuple[float, float]
    white_point: tuple[float, float, float]
    crosstalk: tuple[tuple[float, float, float], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    gamma: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg_quality: int | None = None

    def plain(self, noise: float = 0.0) -> Laboratory:
        """The same stains and white point with nothing else of the scanner but this noise, for tests of accuracy."""
        return replace(self, crosstalk=IDENTITY, gamma=1.0, blur=0.0, noise=noise, jpeg_quality=None)

    def optical_density(self, concentrations: np.ndarray) -> np.ndarray:
        """Absorbance by the Beer-Lambert law: (height, width, 2) concentrations to (height, width, 3), base 10."""
        haematoxylin, eosin = (concentrations[..., stain : stain + 1].astype(np.float64) for stain in (0, 1))
        vectors = np.array(self.stain_matrix)
        return haematoxylin * (self.amounts[0] * vectors[0]) + eosin * (self.amounts[1] * vectors[1])

    def scan(self, concentrations: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Photograph tissue: (height, width, 2) concentrations to (height, width, 3) uint8 RGB."""
        from scipy import ndimage

        light = 10.0 ** -self.optical_density(concentrations)
        if self.blur > 0.0:
            light = ndimage.gaussian_filter(light, (self.blur, self.blur, 0.0), mode="nearest", truncate=4.0)
        if self.crosstalk != IDENTITY:
            light = sum(light[..., [k]] * np.array(self.crosstalk)[:, k] for k in range(3))
        relative = light**self.gamma if self.gamma != 1.0 else light
        levels = relative * np.array(self.white_point)
        if self.noise > 0.0:
            levels = levels + self.noise * np.sqrt(relative) * generator.standard_normal(levels.shape)
        image = np.rint(np.clip(levels, 0.0, 255.0)).astype(np.uint8)
        return image if self.jpeg_quality is None else _through_jpeg(image, self.jpeg_quality)


IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

LABORATORIES: dict[str, Laboratory] = {
    laboratory.name: laboratory
    for laboratory in (
        Laboratory(
            "north", "purple", "pink",
            stain_matrix=((0.6442, 0.7089, 0.2872), (0.1047, 0.9651, 0.2402)), amounts=(0.68, 0.52),
            white_point=(244.0, 242.0, 245.0), crosstalk=((0.94, 0.05, 0.01), (0.03, 0.94, 0.03), (0.01, 0.05, 0.94)),
            gamma=1.0, blur=0.55, noise=1.6, jpeg_quality=92,
        ),
        Laboratory(
            "east", "brown", "red",
            stain_matrix=((0.5588, 0.7184, 0.4143), (0.1886, 0.8383, 0.5116)), amounts=(0.72, 0.56),
            white_point=(240.0, 228.0, 218.0), crosstalk=((0.90, 0.08, 0.02), (0.05, 0.90, 0.05), (0.02, 0.08, 0.90)),
            gamma=1.12, blur=0.80, noise=2.6, jpeg_quality=80,
        ),
        Laboratory(
            "south", "blue", "white",
            stain_matrix=((0.7622, 0.6098, 0.2172), (0.0900, 0.9400, 0.3290)), amounts=(0.60, 0.34),
            white_point=(232.0, 236.0, 243.0), crosstalk=((0.97, 0.02, 0.01), (0.02, 0.96, 0.02), (0.00, 0.03, 0.97)),
            gamma=0.90, blur=0.65, noise=1.0, jpeg_quality=None,
        ),
        Laboratory(
            "west", "violet", "magenta",
            stain_matrix=((0.4999, 0.8198, 0.2799), (0.0601, 0.9007, 0.4303)), amounts=(0.70, 0.55),
            white_point=(252.0, 242.0, 246.0), crosstalk=((0.92, 0.06, 0.02), (0.06, 0.88, 0.06), (0.02, 0.10, 0.88)),
            gamma=0.95, blur=0.95, noise=2.0, jpeg_quality=86,
        ),
        Laboratory(
            "abroad", "grey", "yellow",
            stain_matrix=((0.6300, 0.6600, 0.4093), (0.1600, 0.8200, 0.5495)), amounts=(0.62, 0.44),
            white_point=(226.0, 214.0, 190.0), crosstalk=((0.91, 0.07, 0.02), (0.05, 0.91, 0.04), (0.02, 0.06, 0.92)),
            gamma=1.05, blur=0.75, noise=2.2, jpeg_quality=84,
        ),
    )
}  # fmt: skip
"""Named for where they lie; the last sends test images only, a look that training never shows, as in the competition.

Vectors: north is near Ruifrok and Johnston 2001, east is the reference of Macenko 2009, the others lie around these.
"""


def _through_jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream).convert("RGB"))


# --- Nuclei -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NucleusKind:
    """What nuclei of one kind look like; ranges are drawn from for each nucleus; lengths in pixels.

    radius: half the short axis; aspect: long to short axis; haematoxylin, eosin: concentrations of the nucleoplasm;
    irregularity: size of the outline's harmonics; grain, clump: relative size of fine and coarse chromatin; rim:
    concentration added at the membrane; bend: curve of the long axis; taper: 0 ellipse to 1 pointed ends; nucleoli:
    most of them; halo: largest share of cytoplasm retracted around the nucleus.
    """

    radius: Range
    aspect: Range
    haematoxylin: Range
    eosin: float
    irregularity: float
    grain: float
    clump: float
    rim: float
    bend: float = 0.0
    taper: float = 0.0
    nucleoli: int = 0
    halo: float = 0.0


NUCLEUS_KINDS: dict[str, NucleusKind] = {
    "columnar": NucleusKind((4.6, 6.2), (1.3, 2.0), (0.42, 0.95), 0.22, 0.04, 0.16, 0.30, 0.26, nucleoli=1),
    "pale": NucleusKind((5.0, 6.8), (1.15, 1.7), (0.18, 0.40), 0.14, 0.04, 0.28, 0.60, 0.36, nucleoli=1),
    "oval": NucleusKind((5.6, 8.6), (1.0, 1.5), (0.38, 0.85), 0.20, 0.045, 0.16, 0.32, 0.28, nucleoli=1),
    "vesicular": NucleusKind((7.2, 10.4), (1.0, 1.45), (0.16, 0.36), 0.12, 0.05, 0.30, 0.70, 0.40, nucleoli=2),
    "hyperchromatic": NucleusKind((5.8, 10.2), (1.0, 1.8), (1.15, 1.7), 0.30, 0.10, 0.10, 0.16, 0.10),
    "lymphocyte": NucleusKind((4.5, 6.1), (1.0, 1.25), (0.85, 1.45), 0.25, 0.035, 0.12, 0.30, 0.15, halo=0.6),
    "fibroblast": NucleusKind((2.1, 3.5), (2.4, 4.8), (0.38, 1.1), 0.28, 0.035, 0.14, 0.20, 0.14, bend=0.03, taper=0.3),
    "endothelial": NucleusKind((2.1, 3.0), (2.4, 3.8), (0.70, 1.2), 0.28, 0.03, 0.10, 0.12, 0.08, bend=0.03, taper=0.3),
}


@dataclass(frozen=True)
class Traits:
    """What differs between patients: factors on both stains, on nuclear size and on how much is out of focus."""

    haematoxylin: float = 1.0
    eosin: float = 1.0
    size: float = 1.0
    haze: float = 1.0


@dataclass(frozen=True)
class Tissue:
    """A piece of a section, before any laboratory saw it.

    concentrations: (height, width, 2) float32, haematoxylin and eosin, multiples of CONCENTRATION_STEP, at least 0.
    label: (height, width) uint16; 0 background, 1..n nuclei in focus, each connected, none overlapping.
    """

    concentrations: np.ndarray
    label: np.ndarray

    def cut(self, top: int, left: int, height: int, width: int) -> Tissue:
        """A window of the tissue; nuclei are numbered anew, and pieces of them below MINIMUM_AREA are dropped."""
        window = np.s_[top : top + height, left : left + width]
        return Tissue(self.concentrations[window], _connected(self.label[window]))

    def turned(self, quarters: int, mirrored: bool) -> Tissue:
        """The tissue mirrored left to right (or not), then turned by quarters counter-clockwise."""
        maps = (self.concentrations, self.label)
        first, second = (np.ascontiguousarray(np.rot90(m[:, ::-1] if mirrored else m, quarters)) for m in maps)
        return Tissue(first, second)


@dataclass(frozen=True)
class Field:
    """Tissue as one laboratory shows it; image: (height, width, 3) uint8 RGB."""

    tissue: Tissue
    laboratory: Laboratory
    image: np.ndarray

    def rescanned(self, laboratory: Laboratory, seed: int) -> Field:
        """The same tissue, pixel for pixel, stained and scanned by another laboratory."""
        return Field(self.tissue, laboratory, laboratory.scan(self.tissue.concentrations, np.random.default_rng(seed)))


class _Canvas:
    """The layers of a field while it is painted: cytoplasm and fibres, nuclei over them, and what is out of focus."""

    def __init__(self, height: int, width: int, traits: Traits, generator: np.random.Generator) -> None:
        self.shape = (height, width)
        self.traits = traits
        self.generator = generator
        self.y, self.x = np.mgrid[0:height, 0:width].astype(np.float64)
        self.haematoxylin = np.zeros(self.shape)
        self.eosin = np.zeros(self.shape)
        self.nuclear_haematoxylin = np.zeros(self.shape)
        self.nuclear_eosin = np.zeros(self.shape)
        self.cover = np.zeros(self.shape)
        self.out_of_focus = np.zeros(self.shape)
        self.label = np.zeros(self.shape, np.uint16)
        self.count = 0
        self.centres = np.zeros((0, 3))
        self.windows: list[tuple[slice, slice]] = []
        self.grain = self.noise(1.3)
        self.clumps = np.tanh(1.4 * self.noise(2.6))

    def noise(self, scale: float) -> np.ndarray:
        """Smooth Gaussian noise of unit variance whose bumps are about scale pixels wide: a random cubic B-spline."""
        weights = []
        for length in self.shape:
            at = (np.arange(length) + self.generator.random()) / scale
            distance = np.abs(at[:, np.newaxis] + 1.0 - np.arange(int(at[-1]) + 4))
            near = 2.0 / 3.0 - distance**2 * (1.0 - distance / 2.0)
            far = np.clip(2.0 - distance, 0.0, None) ** 3 / 6.0
            weights.append(np.where(distance < 1.0, near, far))
        knots = self.generator.standard_normal((weights[0].shape[1], weights[1].shape[1]))
        return weights[0] @ knots @ weights[1].T / SPLINE_DEVIATION

    def uniform(self, bounds: Range) -> float:
        """One number between the bounds."""
        return float(self.generator.uniform(*bounds))

    def scatter(self, kinds: dict[str, float], where: np.ndarray, share: float, spacing: float) -> None:
        """Drop nuclei of these kinds (weights) on the pixels of a mask until tries run out.

        share: tries per 100 pixels of the mask; spacing: smallest distance of two centres over the sum of their radii.
        """
        spots = np.flatnonzero(where)
        names, weights = list(kinds), np.array(list(kinds.values()))
        for _ in range(round(share * spots.size / 100.0)):
            row, column = divmod(int(spots[self.generator.integers(spots.size)]), self.shape[1])
            name = names[int(self.generator.choice(len(names), p=weights / weights.sum()))]
            self.place(name, row + self.generator.random(), column + self.generator.random(), None, spacing)

    def place(self, name: str, y: float, x: float, angle: float | None, spacing: float) -> bool:
        """Paint one nucleus unless it comes too near to another; angle: of the long axis, None for any."""
        kind = NUCLEUS_KINDS[name]
        radius = self.uniform(kind.radius) * self.traits.size
        aspect = self.uniform(kind.aspect)
        turn = self.uniform((0.0, np.pi)) if angle is None else angle + 0.18 * float(self.generator.standard_normal())
        reach = radius * np.sqrt(aspect)
        apart = (self.centres[:, 0] - y) ** 2 + (self.centres[:, 1] - x) ** 2
        if (apart < (spacing * (reach + self.centres[:, 2])) ** 2).any():
            return False
        if not self._paint(kind, y, x, radius, aspect, turn):
            return False
        self.centres = np.vstack([self.centres, (y, x, reach)])
        return True

    def window(self, y: float, x: float, reach: float) -> tuple[slice, slice]:
        rows = slice(max(0, int(y - reach)), max(0, min(self.shape[0], int(y + reach) + 2)))
        return rows, slice(max(0, int(x - reach)), max(0, min(self.shape[1], int(x + reach) + 2)))

    def _outline(
        self,
        kind: NucleusKind,
        window: tuple[slice, slice],
        y: float,
        x: float,
        radius: float,
        aspect: float,
        turn: float,
    ) -> np.ndarray:
        """Signed distance to a nucleus' membrane in pixels, positive inside: a bent superellipse with harmonics."""
        down, right = self.y[window] - y, self.x[window] - x
        along = (right * np.cos(turn) + down * np.sin(turn)) / (radius * aspect)
        across = (down * np.cos(turn) - right * np.sin(turn)) / radius
        bend = self.uniform((-kind.bend, kind.bend)) * radius * aspect**2
        across = across - bend * along**2
        power = 2.0 - 0.7 * kind.taper
        level = (np.abs(along) ** power + np.abs(across) ** power) ** (1.0 / power)
        theta = np.arctan2(across, along)
        for order in (2, 3, 4, 5):
            swing = 1.6 * kind.irregularity * float(self.generator.standard_normal()) / (order - 1)
            level = level - swing * np.cos(order * theta + self.uniform((0.0, 2.0 * np.pi))) * np.minimum(level, 1.0)
        slope = np.hypot(*np.gradient(level))
        return (1.0 - level) / np.maximum(slope, 0.3 / (radius * aspect))

    def _gives_way(self, mask: np.ndarray, window: tuple[slice, slice]) -> bool:
        """Whether every nucleus below keeps most of itself, in one piece, when another is laid over it."""
        from scipy import ndimage

        for number in np.unique(self.label[window][mask]):
            if number == 0:
                continue
            own = self.windows[number - 1]
            rest = self.label[own] == number
            before = int(rest.sum())
            after = np.zeros(self.shape, bool)
            after[own] = rest
            after[window] &= ~mask
            if int(after.sum()) < 0.72 * before or ndimage.label(after[own])[1] != 1:
                return False
        return True

    def _paint(self, kind: NucleusKind, y: float, x: float, radius: float, aspect: float, turn: float) -> bool:
        window = self.window(y, x, 1.25 * radius * aspect + 4.0)
        if min(self.label[window].shape) < 4:
            return False
        depth = self._outline(kind, window, y, x, radius, aspect, turn)
        mask = depth > 0.0
        if mask.sum() < MINIMUM_AREA or not self._gives_way(mask, window):
            return False
        self.count += 1
        self.label[window][mask] = self.count
        self.windows.append(window)
        edge = np.clip(0.5 + depth / 1.5, 0.0, 1.0)
        chromatin = 1.0 + kind.grain * self.grain[window] + kind.clump * self.clumps[window]
        value = self.uniform(kind.haematoxylin) * np.clip(chromatin, 0.25, None)
        value = value + kind.rim * np.exp(-(((depth - 1.0) / 0.9) ** 2))
        pink = np.full_like(value, kind.eosin)
        for _ in range(int(self.generator.integers(kind.nucleoli + 1))):
            away, bearing = 0.5 * radius * np.sqrt(self.generator.random()), self.uniform((0.0, 2.0 * np.pi))
            spot_y, spot_x = y + away * np.sin(bearing), x + away * np.cos(bearing)
            distance = np.hypot(self.y[window] - spot_y, self.x[window] - spot_x)
            spot = np.clip(0.5 + (self.uniform((1.2, 2.0)) - distance) / 1.4, 0.0, 1.0)
            value = value + 0.5 * spot
            pink = pink + 0.35 * spot
        self.nuclear_haematoxylin[window] = self.nuclear_haematoxylin[window] * (1.0 - 0.65 * edge) + value * edge
        self.nuclear_eosin[window] = np.maximum(self.nuclear_eosin[window] * (1.0 - edge), pink * edge)
        self.cover[window] = np.maximum(self.cover[window], edge)
        if kind.halo > 0.0:
            kept = 1.0 - kind.halo * self.generator.random() * np.exp(-((np.clip(-depth - 0.5, 0.0, None) / 1.5) ** 2))
            self.haematoxylin[window] *= kept
            self.eosin[window] *= kept
        return True

    def haze(self, where: np.ndarray, share: float) -> None:
        """Nuclei far out of focus: blue shades without an edge, which are not annotated; share: per 1000 pixels."""
        spots = np.flatnonzero(where)
        for _ in range(round(share * self.traits.haze * spots.size / 1000.0)):
            row, column = divmod(int(spots[self.generator.integers(spots.size)]), self.shape[1])
            radius, aspect, turn = self.uniform((4.5, 8.0)), self.uniform((1.0, 1.8)), self.uniform((0.0, np.pi))
            window = self.window(row, column, 2.6 * radius * aspect)
            down, right = self.y[window] - row, self.x[window] - column
            along = (right * np.cos(turn) + down * np.sin(turn)) / (radius * aspect)
            across = (down * np.cos(turn) - right * np.sin(turn)) / radius
            shade = self.uniform((0.2, 0.6)) * np.exp(-((along**2 + across**2) ** 1.25))
            self.out_of_focus[window] = np.maximum(self.out_of_focus[window], shade)

    def cells(self, where: np.ndarray, haematoxylin: float, eosin: float) -> None:
        """Cytoplasm on the pixels of a mask: each nucleus' territory has its own shade, with a membrane between."""
        from scipy.spatial import cKDTree

        points = self.centres[:, :2]
        rows, columns = np.nonzero(where)
        if len(points) < 2 or not rows.size:
            return
        distance, nearest = cKDTree(points).query(np.column_stack([rows, columns]), k=2)
        shade = self.generator.normal(1.0, 0.16, len(points))[nearest[:, 0]]
        membrane = np.exp(-(((distance[:, 1] - distance[:, 0]) / 1.6) ** 2))
        grain = 1.0 + 0.10 * self.grain[where] + 0.12 * self.clumps[where]
        self.haematoxylin[where] = haematoxylin * shade * grain * (1.0 - 0.3 * membrane)
        self.eosin[where] = eosin * (2.0 - shade) * grain * (1.0 + 0.35 * membrane)

    def finished(self, margin: int) -> Tissue:
        """Lay the layers together, let thickness vary, round to the grid and cut the margin off."""
        from scipy import ndimage

        thickness = (1.0 + 0.07 * self.noise(70.0)) * (1.0 + 0.03 * self.grain)
        below = [ndimage.gaussian_filter(layer, 0.7, mode="nearest") for layer in (self.haematoxylin, self.eosin)]
        haematoxylin = below[0] * (1.0 - 0.68 * self.cover) + self.nuclear_haematoxylin + self.out_of_focus
        eosin = below[1] * (1.0 - 0.4 * self.cover) + self.nuclear_eosin
        both = np.stack([haematoxylin * self.traits.haematoxylin, eosin * self.traits.eosin], axis=-1)
        steps = np.rint(np.clip(both * thickness[..., np.newaxis], 0.0, 3.5) / CONCENTRATION_STEP)
        height, width = self.shape[0] - 2 * margin, self.shape[1] - 2 * margin
        return Tissue((steps * CONCENTRATION_STEP).astype(np.float32), self.label).cut(margin, margin, height, width)


# --- Tissues ----------------------------------------------------------------------------------------------------------


def _fibres(canvas: _Canvas, haematoxylin: float = 0.05, eosin: float = 0.5) -> np.ndarray:
    """Collagen over the whole canvas: wavy bundles with clefts between; returns their direction in radians."""
    from scipy import ndimage

    generator = canvas.generator
    turn = canvas.uniform((0.0, np.pi))
    across = canvas.y * np.cos(turn) - canvas.x * np.sin(turn) + 9.0 * canvas.noise(55.0) + 2.4 * canvas.noise(17.0)
    along = canvas.x * np.cos(turn) + canvas.y * np.sin(turn) + 4.0 * canvas.noise(40.0)

    def streaks(thickness: float, length: float) -> np.ndarray:
        texture = generator.standard_normal((128, 128))
        at = np.stack([across / thickness, along / length])
        return ndimage.map_coordinates(texture, at, order=3, mode="grid-wrap", prefilter=False) / SPLINE_DEVIATION

    bundles, strands, threads = streaks(7.0, 75.0), streaks(2.6, 34.0), streaks(1.3, 17.0)
    clefts = np.clip((streaks(4.5, 42.0) - 1.15) / 0.5, 0.0, 1.0)
    loose = np.clip(0.5 + 0.5 * canvas.noise(60.0), 0.15, 1.0)
    body = eosin * (1.0 + 0.22 * bundles + 0.17 * strands + 0.10 * threads)
    canvas.eosin = np.clip(body, 0.03, None) * (1.0 - 0.92 * clefts * loose)
    shade = haematoxylin * (1.0 + 0.5 * canvas.noise(35.0) + 0.3 * strands)
    canvas.haematoxylin = np.clip(shade, 0.0, None) * (1.0 - 0.9 * clefts * loose)
    slope_y, slope_x = np.gradient(across)
    return np.arctan2(-slope_x, slope_y)


def _spindles(canvas: _Canvas, direction: np.ndarray, where: np.ndarray, share: float) -> None:
    """Fibroblasts that lie along the fibres, and a few lymphocytes between them."""
    spots = np.flatnonzero(where)
    for _ in range(round(share * spots.size / 1000.0)):
        row, column = divmod(int(spots[canvas.generator.integers(spots.size)]), canvas.shape[1])
        canvas.place("fibroblast", row + 0.5, column + 0.5, float(direction[row, column]), 0.95)


def _red_cells(canvas: _Canvas, where: np.ndarray, count: int) -> None:
    """Erythrocytes: discs without a nucleus, strong in eosin, paler in the middle."""
    spots = np.flatnonzero(where)
    for _ in range(count if spots.size else 0):
        row, column = divmod(int(spots[canvas.generator.integers(spots.size)]), canvas.shape[1])
        radius, aspect, turn = canvas.uniform((3.6, 4.6)), canvas.uniform((1.0, 1.4)), canvas.uniform((0.0, np.pi))
        window = canvas.window(row, column, radius * aspect + 3.0)
        down, right = canvas.y[window] - row, canvas.x[window] - column
        along = (right * np.cos(turn) + down * np.sin(turn)) / aspect
        distance = np.hypot(along, down * np.cos(turn) - right * np.sin(turn))
        disc = np.clip(0.5 + (radius - distance) / 1.3, 0.0, 1.0) * (1.0 - 0.28 * np.exp(-((distance / 2.0) ** 2)))
        canvas.eosin[window] = np.maximum(canvas.eosin[window], canvas.uniform((0.85, 1.2)) * disc)
        canvas.haematoxylin[window] *= 1.0 - 0.8 * np.clip(disc, 0.0, 1.0)


def _ring(canvas: _Canvas, y: float, x: float, radius: float, wobble: float) -> np.ndarray:
    """Signed distance to a wobbly circle, positive inside."""
    theta = np.arctan2(canvas.y - y, canvas.x - x)
    outline = np.ones(canvas.shape)
    for order in (2, 3, 4, 5):
        swing = wobble * float(canvas.generator.standard_normal()) / np.sqrt(order)
        outline = outline + swing * np.cos(order * theta + canvas.uniform((0.0, 2.0 * np.pi)))
    return outline * radius - np.hypot(canvas.y - y, canvas.x - x)


def _line_with_nuclei(canvas: _Canvas, depth: np.ndarray, level: float, step: float, name: str, radial: bool) -> None:
    """Place nuclei along a contour of a distance map, about step pixels apart, along the contour or across it."""
    slope_y, slope_x = np.gradient(depth)
    spots = np.flatnonzero(np.abs(depth - level) < 0.75)
    for _ in range(round((4.0 if radial else 1.5) * spots.size / step)):
        row, column = divmod(int(spots[canvas.generator.integers(spots.size)]), canvas.shape[1])
        normal = float(np.arctan2(slope_y[row, column], slope_x[row, column]))
        canvas.place(name, row + 0.5, column + 0.5, normal if radial else normal + np.pi / 2.0, 0.86 if radial else 1.1)


def _vessel(canvas: _Canvas, y: float, x: float, radius: float, red_cells: bool) -> np.ndarray:
    """A vessel: wall of smooth muscle, flat nuclei along the lumen, blood; returns the mask of lumen and wall."""
    depth = _ring(canvas, y, x, radius, 0.09)
    wall = (depth > -4.0) & (depth <= 0.0)
    canvas.eosin[wall] = 0.62 * (1.0 + 0.12 * canvas.grain[wall])
    canvas.haematoxylin[wall] = 0.08
    lumen = depth > 0.0
    canvas.eosin[lumen] = 0.015
    canvas.haematoxylin[lumen] = 0.0
    if red_cells:
        _red_cells(canvas, depth > 3.0, round(0.011 * float((depth > 3.0).sum())))
    _line_with_nuclei(canvas, depth, -0.5, 22.0, "endothelial", radial=False)
    return depth > -4.0


def _centres(canvas: _Canvas, radius: Range, gap: float, tries: int) -> Iterator[tuple[float, float, float]]:
    """Circles that keep their distance, also beyond the edge of the canvas."""
    found: list[tuple[float, float, float]] = []
    for _ in range(tries):
        size = canvas.uniform(radius)
        y, x = (canvas.uniform((-0.4 * size, length + 0.4 * size)) for length in canvas.shape)
        if all(np.hypot(y - other[0], x - other[1]) > size + other[2] + gap for other in found):
            found.append((y, x, size))
    yield from found


def _paint_gland(canvas: _Canvas) -> None:
    generator = canvas.generator
    direction = _fibres(canvas, 0.07, canvas.uniform((0.40, 0.55)))
    inside, empty = np.zeros(canvas.shape, bool), np.zeros(canvas.shape, bool)
    for y, x, radius in _centres(canvas, (28.0, 62.0), 5.0, 500):
        depth = _ring(canvas, y, x, radius, 0.075)
        thick = canvas.uniform((15.0, 19.0))
        epithelium, lumen = (depth > 0.0) & (depth <= thick), depth > thick
        first = len(canvas.centres)
        _line_with_nuclei(canvas, depth, 7.0, 7.5, "pale" if generator.random() < 0.45 else "columnar", radial=True)
        if generator.random() < 0.6:
            _line_with_nuclei(canvas, depth, 12.0, 26.0, "oval", radial=True)
        earlier, canvas.centres = canvas.centres[:first], canvas.centres[first:]
        canvas.cells(epithelium, canvas.uniform((0.22, 0.70)), canvas.uniform((0.24, 0.38)))
        canvas.centres = np.vstack([earlier, canvas.centres])
        apex = np.exp(-(((depth - thick) / 1.6) ** 2))
        canvas.eosin += 0.22 * apex * (depth > 0.0) + 0.3 * np.exp(-((depth / 1.1) ** 2))
        retraction = np.exp(-(((depth + 3.0) / 1.6) ** 2)) * np.clip(canvas.noise(24.0) - 0.2, 0.0, 1.0)
        for layer in (canvas.eosin, canvas.haematoxylin):
            layer[lumen] = 0.0
            layer *= 1.0 - 0.95 * np.clip(retraction, 0.0, 1.0)
        _fill_lumen(canvas, lumen, np.clip((depth - thick) / 3.0, 0.0, 1.0))
        _goblets(canvas, depth, thick)
        inside |= depth > -2.0
        empty |= lumen
    stroma = ~inside
    _spindles(canvas, direction, stroma, canvas.uniform((2.0, 5.5)))
    if generator.random() < 0.7:
        canvas.scatter({"lymphocyte": 1.0}, stroma & (canvas.noise(45.0) > 0.5), 0.9, 0.93)
    canvas.haze(~empty, 2.1)


def _fill_lumen(canvas: _Canvas, lumen: np.ndarray, soft: np.ndarray) -> None:
    """A lumen is empty glass, or holds basophilic mucin in strands, or an eosinophilic secretion."""
    content = canvas.generator.random()
    strands = 1.0 + 0.45 * canvas.noise(4.0) + 0.35 * canvas.noise(13.0)
    if content < 0.45:
        canvas.haematoxylin[lumen] = (canvas.uniform((0.25, 0.5)) * np.clip(strands, 0.0, None) * soft)[lumen]
        canvas.eosin[lumen] = 0.05
    elif content < 0.65:
        canvas.eosin[lumen] = (canvas.uniform((0.3, 0.5)) * np.clip(strands, 0.5, 1.5) * soft)[lumen]


def _goblets(canvas: _Canvas, depth: np.ndarray, thick: float) -> None:
    """Goblet cells: pale blue drops of mucin near the lumen."""
    spots = np.flatnonzero(np.abs(depth - thick + 4.0) < 1.0)
    for _ in range(int(canvas.generator.integers(0, 1 + spots.size // 40)) if canvas.generator.random() < 0.6 else 0):
        row, column = divmod(int(spots[canvas.generator.integers(spots.size)]), canvas.shape[1])
        radius = canvas.uniform((3.4, 5.2))
        window = canvas.window(row, column, radius + 3.0)
        distance = np.hypot(canvas.y[window] - row, canvas.x[window] - column)
        drop = np.clip(0.5 + (radius - distance) / 1.5, 0.0, 1.0)
        mucin = canvas.uniform((0.22, 0.5)) * (1.0 + 0.15 * canvas.clumps[window])
        canvas.haematoxylin[window] += (mucin - canvas.haematoxylin[window]) * drop
        canvas.eosin[window] += (0.06 - canvas.eosin[window]) * drop


def _paint_nest(canvas: _Canvas) -> None:
    direction = _fibres(canvas, 0.08, canvas.uniform((0.42, 0.58)))
    shape = canvas.noise(52.0) + 0.25 * canvas.noise(20.0)
    nests = shape > canvas.uniform((-0.6, -0.1))
    pale = canvas.uniform((0.3, 1.0))
    canvas.scatter({"vesicular": pale, "oval": 0.7, "hyperchromatic": 0.3}, shape > 0.1 + shape[nests].min(), 2.2, 0.9)
    canvas.cells(nests, canvas.uniform((0.22, 0.54)), canvas.uniform((0.28, 0.42)))
    for layer in (canvas.eosin, canvas.haematoxylin):
        layer *= 1.0 - np.clip(canvas.noise(22.0) - 1.6, 0.0, 0.95) * nests
    _spindles(canvas, direction, ~nests, canvas.uniform((2.0, 5.0)))
    canvas.scatter({"lymphocyte": 1.0}, ~nests & (canvas.noise(40.0) > 0.2), 1.2, 0.93)
    if canvas.generator.random() < 0.5:
        _red_cells(canvas, ~nests & (canvas.noise(30.0) > 1.0), 25)
    canvas.haze(np.ones(canvas.shape, bool), 1.6)


def _paint_lymphoid(canvas: _Canvas) -> None:
    direction = _fibres(canvas, 0.12, 0.34)
    sinus = canvas.noise(45.0) + 0.45 * canvas.noise(19.0) > 1.4
    follicle = canvas.noise(70.0) > 0.1
    _spindles(canvas, direction, ~sinus, 1.0)
    canvas.scatter({"vesicular": 0.7, "pale": 0.5, "oval": 0.4, "lymphocyte": 0.3}, follicle & ~sinus, 1.6, 0.95)
    canvas.scatter({"lymphocyte": 1.0}, ~sinus, canvas.uniform((3.0, 5.0)), 0.97)
    canvas.cells(~sinus, canvas.uniform((0.22, 0.56)), canvas.uniform((0.2, 0.32)))
    gaps = np.clip(canvas.noise(9.0) - 0.9, 0.0, 0.9)
    for layer in (canvas.eosin, canvas.haematoxylin):
        layer[sinus] *= 0.12
        layer *= 1.0 - gaps
    _red_cells(canvas, sinus, int(canvas.generator.integers(0, 14)))
    canvas.haze(~sinus, 2.4)


def _fat(canvas: _Canvas) -> np.ndarray:
    """Fat in a patch: packed empty cells with thin pink walls; returns the mask of what they fill."""
    from scipy.spatial import cKDTree

    patch = np.clip(1.5 * (canvas.noise(75.0) + 0.35 * canvas.noise(24.0)) + 0.2, 0.0, 1.0)
    centres = np.array([centre[:2] for centre in _centres(canvas, (11.0, 17.0), -1.0, 600)])
    at = np.stack([canvas.y + 1.6 * canvas.noise(14.0), canvas.x + 1.6 * canvas.noise(14.0)], axis=-1)
    distance, _ = cKDTree(centres).query(at, k=2)
    between = distance[..., 1] - distance[..., 0]
    inside = np.clip((between - 1.6) / 1.8, 0.0, 1.0) * np.clip(3.0 * patch - 1.0, 0.0, 1.0)
    canvas.eosin = canvas.eosin * (1.0 - inside) * (1.0 - 0.35 * patch)
    canvas.haematoxylin *= 1.0 - inside
    return inside > 0.3


def _paint_stroma(canvas: _Canvas) -> None:
    direction = _fibres(canvas, 0.08, canvas.uniform((0.45, 0.65)))
    free = ~_fat(canvas) if canvas.generator.random() < 0.4 else np.ones(canvas.shape, bool)
    for y, x, radius in _centres(canvas, (10.0, 24.0), 40.0, 12):
        free &= ~_vessel(canvas, y, x, radius, bool(canvas.generator.random() < 0.75))
    myxoid = np.clip(canvas.noise(48.0), 0.0, 1.5)
    canvas.haematoxylin += free * canvas.uniform((0.15, 0.5)) * myxoid * (1.0 + 0.3 * canvas.noise(6.0))
    canvas.eosin *= 1.0 - 0.35 * np.clip(myxoid, 0.0, 1.0) * free
    _spindles(canvas, direction, free, canvas.uniform((1.5, 4.5)))
    canvas.scatter({"lymphocyte": 0.8, "oval": 0.2}, free & (canvas.noise(38.0) > 0.9), 1.6, 0.95)
    canvas.haze(free, 2.5)


def _paint_glass(canvas: _Canvas) -> None:
    wisps = np.clip(canvas.noise(30.0) - 1.3, 0.0, 1.0) * np.clip(1.0 + 0.6 * canvas.noise(5.0), 0.0, None)
    canvas.eosin += 0.06 * wisps
    canvas.haematoxylin += 0.02 * wisps


_PAINTERS: dict[TissueKind, Callable[[_Canvas], None]] = {
    "gland": _paint_gland,
    "nest": _paint_nest,
    "lymphoid": _paint_lymphoid,
    "stroma": _paint_stroma,
    "glass": _paint_glass,
}


def render_tissue(
    kind: TissueKind, height: int, width: int, generator: np.random.Generator, traits: Traits | None = None
) -> Tissue:
    """Grow a piece of tissue of one kind, height x width pixels, at about 0.45 microns a pixel (20x).

    gland: glands with lumen, mucin and goblet cells in stroma; nest: solid, pleomorphic epithelium; lymphoid: node with
    follicles and sinus; stroma: collagen, vessels with red cells, fat; glass: nothing but a little debris.
    """
    margin = 14
    canvas = _Canvas(height + 2 * margin, width + 2 * margin, traits or Traits(), generator)
    _PAINTERS[kind](canvas)
    return canvas.finished(margin)


def render_field(
    kind: TissueKind, height: int, width: int, laboratory: Laboratory, seed: int, traits: Traits | None = None
) -> Field:
    """Grow tissue and scan it; the same arguments give the same pixels, another laboratory only another scan."""
    grown, scanned = (np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(2))
    tissue = render_tissue(kind, height, width, grown, traits)
    return Field(tissue, laboratory, laboratory.scan(tissue.concentrations, scanned))


def _connected(label: np.ndarray) -> np.ndarray:
    """Number every connected piece (4 neighbours) of at least MINIMUM_AREA pixels from 1."""
    from skimage.measure import label as pieces_of

    pieces = pieces_of(label, background=0, connectivity=1)
    keep = np.bincount(pieces.ravel()) >= MINIMUM_AREA
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0)
    return numbers[pieces].astype(np.uint16)


# --- The data set -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """One field of a patient: rows x columns crops of one size, or one crop and its copy, mirrored or turned."""

    kind: TissueKind | None
    rows: int
    columns: int
    height: int
    width: int
    copy_quarters: int | None = None
    copy_mirrored: bool = False


_TRAINING_FIELDS: tuple[tuple[_Plan, ...], ...] = (
    (_Plan(None, 2, 2, 128, 128), _Plan(None, 1, 1, 192, 160), _Plan(None, 1, 1, 160, 160, 0, True)),
    (_Plan(None, 2, 2, 128, 144), _Plan(None, 1, 2, 160, 128), _Plan("glass", 1, 1, 144, 160)),
    (_Plan(None, 2, 2, 144, 128), _Plan(None, 1, 1, 176, 128, 1), _Plan(None, 1, 1, 192, 192)),
    (_Plan(None, 2, 2, 128, 128), _Plan(None, 2, 1, 128, 160), _Plan(None, 1, 1, 144, 192)),
)
"""Seven images for each of a laboratory's four patients."""
_TEST_FIELDS: tuple[_Plan, ...] = (_Plan(None, 1, 2, 128, 160), _Plan(None, 1, 1, 160, 192))
_TEST_GLASS = _Plan("glass", 1, 1, 128, 128)
_KINDS: tuple[TissueKind, ...] = ("gland", "nest", "lymphoid", "stroma")


@dataclass(frozen=True)
class SampleImage:
    """One image of the data set with all that is known of it; case_id says nothing of patient or field.

    top, left: where the image was cut from its field, in pixels; copy: the whole field again, mirrored or turned, from
    a second scan. pixels: (height, width, 3) uint8 RGB.
    """

    case_id: str
    part: Literal["train", "test"]
    patient: str
    field: str
    laboratory: Laboratory
    top: int
    left: int
    copy: bool
    pixels: np.ndarray
    tissue: Tissue


def _digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def _scanned(section: Section) -> Iterator[tuple[int, int, bool, np.ndarray, Tissue]]:
    """The images of one section as (top, left, copy, pixels, tissue): its crops are cut from one scan."""
    plan, laboratory, whole = section.plan, section.laboratory, section.grow()
    _, first, second = (np.random.default_rng(part) for part in np.random.SeedSequence(section.seed).spawn(3))
    image = laboratory.scan(whole.concentrations, first)
    for top in range(0, image.shape[0], plan.height):
        for left in range(0, image.shape[1], plan.width):
            crop = image[top : top + plan.height, left : left + plan.width]
            yield top, left, False, crop, whole.cut(top, left, plan.height, plan.width)
    if plan.copy_quarters is not None:
        copy = whole.turned(plan.copy_quarters, plan.copy_mirrored)
        yield 0, 0, True, laboratory.scan(copy.concentrations, second), copy


def _traits(generator: np.random.Generator) -> Traits:
    haematoxylin, eosin, size, haze = generator.uniform((0.82, 0.82, 0.93, 0.6), (1.2, 1.2, 1.08, 1.4))
    return Traits(float(haematoxylin), float(eosin), float(size), float(haze))


def _patients(rounds: int) -> Iterator[tuple[Literal["train", "test"], Laboratory, tuple[_Plan, ...]]]:
    names = list(LABORATORIES)
    for fields in _TRAINING_FIELDS:
        for name in names[:-1]:
            yield "train", LABORATORIES[name], fields
    for name in names:
        yield "test", LABORATORIES[name], (*_TEST_FIELDS, _TEST_GLASS) if name == names[-1] else _TEST_FIELDS
    # Last, so that the first round's patients are the same in every sample.
    for fields in _TRAINING_FIELDS * (rounds - 1):
        for name in names[:-1]:
            yield "train", LABORATORIES[name], fields


@dataclass(frozen=True)
class Section:
    """One field of a patient before it is grown; seed: three numbers that all of its randomness comes from."""

    part: Literal["train", "test"]
    patient: str
    field: str
    laboratory: Laboratory
    kind: TissueKind
    traits: Traits
    seed: tuple[int, int, int]
    plan: _Plan

    def grow(self) -> Tissue:
        """The whole tissue, of which the sample's images are crops."""
        grown = np.random.default_rng(np.random.SeedSequence(self.seed).spawn(1)[0])
        height, width = self.plan.rows * self.plan.height, self.plan.columns * self.plan.width
        return render_tissue(self.kind, height, width, grown, self.traits)


def sections(seed: int = 1412, rounds: int = 1) -> Iterator[Section]:
    """Every section of the sample: rounds x 16 patients of four laboratories to train on, five for the test set."""
    for number, (part, laboratory, plans) in enumerate(_patients(rounds)):
        traits = _traits(np.random.default_rng(np.random.SeedSequence([seed, number])))
        patient = f"patient-{number + 1:02d}"
        for index, plan in enumerate(plans):
            kind = plan.kind or _KINDS[(number + number // 4 + index) % len(_KINDS)]
            field = f"{patient}-field-{index + 1}"
            yield Section(part, patient, field, laboratory, kind, traits, (seed, number, index), plan)


def render_sample(seed: int = 1412, rounds: int = 1) -> Iterator[SampleImage]:
    """Render every image of every section, one at a time."""
    for section in sections(seed, rounds):
        for crop, (top, left, copy, pixels, tissue) in enumerate(_scanned(section)):
            case_id = _digest("stainseg", VERSION, *section.seed, crop)
            yield SampleImage(
                case_id, section.part, section.patient, section.field, section.laboratory, top, left, copy, pixels,
                tissue,
            )  # fmt: skip


def _png(raster: np.ndarray) -> bytes:
    done, encoded = cv2.imencode(".png", raster, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    assert done
    return encoded.tobytes()


def _table(header: list[str], rows: list[list[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _runs(image: SampleImage) -> list[str]:
    """One run-length text a nucleus; one empty text where there is none."""
    return list(encode_labels(image.tissue.label).values()) or [""]


def _write_image(folder: Path, image: SampleImage) -> None:
    home = folder / f"stage1_{image.part}" / image.case_id
    (home / "images").mkdir(parents=True)
    pixels = image.pixels[..., ::-1]
    if int(image.case_id[:2], 16) % 3 == 0:
        pixels = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    (home / "images" / f"{image.case_id}.png").write_bytes(_png(np.ascontiguousarray(pixels)))
    np.savez_compressed(
        folder / "truth" / "concentrations" / f"{image.case_id}.npz",
        concentrations=image.tissue.concentrations.astype(np.float16),
    )
    if image.part == "test":
        return
    (home / "masks").mkdir()
    for number in range(1, int(image.tissue.label.max()) + 1):
        mask = np.where(image.tissue.label == number, np.uint8(255), np.uint8(0))
        (home / "masks" / f"{_digest(image.case_id, number)}.png").write_bytes(_png(mask))


def _write_tables(folder: Path, images: list[SampleImage]) -> None:
    images = sorted(images, key=lambda image: image.case_id)
    runs = {image.case_id: _runs(image) for image in images}
    test = [image for image in images if image.part == "test"]
    train = [image for image in images if image.part == "train"]
    tables: dict[str, tuple[list[str], list[list[object]]]] = {
        "stage1_train_labels.csv": (
            ["ImageId", "EncodedPixels"],
            [[image.case_id, text] for image in train for text in runs[image.case_id]],
        ),
        "stage1_sample_submission.csv": (["ImageId", "EncodedPixels"], [[image.case_id, "1 1"] for image in test]),
        "classes.csv": (
            ["filename", "foreground", "background"],
            [[f"{i.case_id}.png", i.laboratory.foreground, i.laboratory.background] for i in images],
        ),
        "truth/stage1_solution.csv": (
            ["ImageId", "EncodedPixels", "Height", "Width", "Usage"],
            [[i.case_id, text, *i.tissue.label.shape, "Public"] for i in test for text in runs[i.case_id]],
        ),
        "truth/groups.csv": (
            ["case_id", "group", "patient", "field", "laboratory", "top", "left", "copy"],
            [[i.case_id, i.patient, i.patient, i.field, i.laboratory.name, i.top, i.left, int(i.copy)] for i in images],
        ),
    }
    for name, (header, rows) in tables.items():
        write_text(folder / name, _table(header, rows))
    write_laboratories(folder / "truth" / "laboratories.json")


def write_sample(folder: Path, seed: int = 1412, rounds: int = 1) -> None:
    """Write the sample into a folder in the Data Science Bowl 2018's own layout, with the truth about it apart.

    As in the competition: stage1_train/<ImageId>/{images,masks}, stage1_train_labels.csv, stage1_test/<ImageId>/images,
    stage1_sample_submission.csv, and classes.csv, whose pair of colours names the laboratory (see LABORATORIES).
    truth/, which no stage reads by itself: stage1_solution.csv, the test images' nuclei in Kaggle's solution format;
    groups.csv (case_id, group = patient, patient, field, laboratory, top, left, copy); laboratories.json;
    concentrations/<ImageId>.npz, float16 (height, width, 2), exactly what was rendered; sample.json, version and seed.
    rounds: for each, 16 more patients of the same laboratories. A sample of this version, seed and rounds is left as it
    is, one of another is replaced; a killed run leaves nothing in the folder. Raises ValueError where the folder holds
    something that is not a sample.
    """
    wanted = {"version": VERSION, "seed": seed} | ({"rounds": rounds} if rounds > 1 else {})
    with replaced_whole(folder, "sample.json", wanted) as aside:
        if aside is None:
            return
        (aside / "truth" / "concentrations").mkdir(parents=True)
        images = []
        for image in render_sample(seed, rounds):
            _write_image(aside, image)
            images.append(image)
        _write_tables(aside, images)


def write_laboratories(file: Path) -> None:
    """Write stain matrix, amounts, white point and scanner of every laboratory as JSON, by its name."""
    stain = {name: asdict(laboratory) for name, laboratory in LABORATORIES.items()}
    write_text(file, json.dumps(stain, indent=2) + "\n")


@contextmanager
def replaced_whole(folder: Path, name: str, wanted: dict[str, int]) -> Iterator[Path | None]:
    """Give a folder to render into, which takes the place of this one when the block ends without an error.

    name, wanted: the file in truth/ that says what was rendered, and what it shall say. Gives None where it says so
    already. Raises ValueError where the folder holds something that was not rendered so.
    """
    marker = folder / "truth" / name
    if marker.is_file():
        if json.loads(marker.read_text(encoding="utf-8")) == wanted:
            yield None
            return
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(
            f"{folder}: expected a folder that is new, empty or an earlier sample, found other files; "
            "move them away or write the sample elsewhere"
        )
    aside = folder.with_name(f".{folder.name}.part")
    earlier = folder.with_name(f".{folder.name}.earlier")
    for left_behind in (aside, earlier):
        shutil.rmtree(left_behind, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    write_text(aside / "truth" / name, json.dumps(wanted) + "\n")
    if folder.exists():
        folder.replace(earlier)
    aside.replace(folder)
    shutil.rmtree(earlier, ignore_errors=True)
