"""Tissue rendered with every nucleus known: the concentration of haematoxylin and eosin in each pixel, and the nuclei.

It is kept apart from the laboratory (stain vectors, amounts, scanner), so that one tissue can be scanned by several.
Everything random comes from the generator that is given; concentrations are rounded to a grid, so that the last bits of
a processor's arithmetic do not reach a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.canvas import MINIMUM_AREA, SPLINE_DEVIATION, Canvas, Range, Traits
from pipeline.laboratories import Laboratory

TissueKind = Literal["gland", "nest", "lymphoid", "stroma", "glass"]


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


def _connected(label: np.ndarray) -> np.ndarray:
    """Number every connected piece (4 neighbours) of at least MINIMUM_AREA pixels from 1."""
    from skimage.measure import label as pieces_of

    pieces = pieces_of(label, background=0, connectivity=1)
    keep = np.bincount(pieces.ravel()) >= MINIMUM_AREA
    keep[0] = False
    numbers = np.where(keep, np.cumsum(keep), 0)
    return numbers[pieces].astype(np.uint16)


# --- Tissues ----------------------------------------------------------------------------------------------------------


def _fibres(canvas: Canvas, haematoxylin: float = 0.05, eosin: float = 0.5) -> np.ndarray:
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


def _spindles(canvas: Canvas, direction: np.ndarray, where: np.ndarray, share: float) -> None:
    """Fibroblasts that lie along the fibres, and a few lymphocytes between them."""
    spots = np.flatnonzero(where)
    for _ in range(round(share * spots.size / 1000.0)):
        row, column = divmod(int(spots[canvas.generator.integers(spots.size)]), canvas.shape[1])
        canvas.place("fibroblast", row + 0.5, column + 0.5, float(direction[row, column]), 0.95)


def _red_cells(canvas: Canvas, where: np.ndarray, count: int) -> None:
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


def _ring(canvas: Canvas, y: float, x: float, radius: float, wobble: float) -> np.ndarray:
    """Signed distance to a wobbly circle, positive inside."""
    theta = np.arctan2(canvas.y - y, canvas.x - x)
    outline = np.ones(canvas.shape)
    for order in (2, 3, 4, 5):
        swing = wobble * float(canvas.generator.standard_normal()) / np.sqrt(order)
        outline = outline + swing * np.cos(order * theta + canvas.uniform((0.0, 2.0 * np.pi)))
    return outline * radius - np.hypot(canvas.y - y, canvas.x - x)


def _line_with_nuclei(canvas: Canvas, depth: np.ndarray, level: float, step: float, name: str, radial: bool) -> None:
    """Place nuclei along a contour of a distance map, about step pixels apart, along the contour or across it."""
    slope_y, slope_x = np.gradient(depth)
    spots = np.flatnonzero(np.abs(depth - level) < 0.75)
    for _ in range(round((4.0 if radial else 1.5) * spots.size / step)):
        row, column = divmod(int(spots[canvas.generator.integers(spots.size)]), canvas.shape[1])
        normal = float(np.arctan2(slope_y[row, column], slope_x[row, column]))
        canvas.place(name, row + 0.5, column + 0.5, normal if radial else normal + np.pi / 2.0, 0.86 if radial else 1.1)


def _vessel(canvas: Canvas, y: float, x: float, radius: float, red_cells: bool) -> np.ndarray:
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


def _centres(canvas: Canvas, radius: Range, gap: float, tries: int) -> Iterator[tuple[float, float, float]]:
    """Circles that keep their distance, also beyond the edge of the canvas."""
    found: list[tuple[float, float, float]] = []
    for _ in range(tries):
        size = canvas.uniform(radius)
        y, x = (canvas.uniform((-0.4 * size, length + 0.4 * size)) for length in canvas.shape)
        if all(np.hypot(y - other[0], x - other[1]) > size + other[2] + gap for other in found):
            found.append((y, x, size))
    yield from found


def _paint_gland(canvas: Canvas) -> None:
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


def _fill_lumen(canvas: Canvas, lumen: np.ndarray, soft: np.ndarray) -> None:
    """A lumen is empty glass, or holds basophilic mucin in strands, or an eosinophilic secretion."""
    content = canvas.generator.random()
    strands = 1.0 + 0.45 * canvas.noise(4.0) + 0.35 * canvas.noise(13.0)
    if content < 0.45:
        canvas.haematoxylin[lumen] = (canvas.uniform((0.25, 0.5)) * np.clip(strands, 0.0, None) * soft)[lumen]
        canvas.eosin[lumen] = 0.05
    elif content < 0.65:
        canvas.eosin[lumen] = (canvas.uniform((0.3, 0.5)) * np.clip(strands, 0.5, 1.5) * soft)[lumen]


def _goblets(canvas: Canvas, depth: np.ndarray, thick: float) -> None:
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


def _paint_nest(canvas: Canvas) -> None:
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


def _paint_lymphoid(canvas: Canvas) -> None:
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


def _fat(canvas: Canvas) -> np.ndarray:
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


def _paint_stroma(canvas: Canvas) -> None:
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


def _paint_glass(canvas: Canvas) -> None:
    wisps = np.clip(canvas.noise(30.0) - 1.3, 0.0, 1.0) * np.clip(1.0 + 0.6 * canvas.noise(5.0), 0.0, None)
    canvas.eosin += 0.06 * wisps
    canvas.haematoxylin += 0.02 * wisps


_PAINTERS: dict[TissueKind, Callable[[Canvas], None]] = {
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
    canvas = Canvas(height + 2 * margin, width + 2 * margin, traits or Traits(), generator)
    _PAINTERS[kind](canvas)
    return Tissue(canvas.concentrations(), canvas.label).cut(margin, margin, height, width)


def render_field(
    kind: TissueKind, height: int, width: int, laboratory: Laboratory, seed: int, traits: Traits | None = None
) -> Field:
    """Grow tissue and scan it; the same arguments give the same pixels, another laboratory only another scan."""
    grown, scanned = (np.random.default_rng(part) for part in np.random.SeedSequence(seed).spawn(2))
    tissue = render_tissue(kind, height, width, grown, traits)
    return Field(tissue, laboratory, laboratory.scan(tissue.concentrations, scanned))
