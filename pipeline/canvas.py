"""The layers that tissue is painted on, and the nuclei painted into them, each with its label."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CONCENTRATION_STEP = 1.0 / 512.0
"""Concentrations are multiples of this, exact in float16 up to 4; in optical density finer than 8 bits at white."""
MINIMUM_AREA = 16
"""Pixels below which a piece of a nucleus is not annotated."""
SPLINE_DEVIATION = 0.4794
"""Standard deviation of a plane of cubic B-splines on independent knots of unit variance (151/315 in each axis)."""

Range = tuple[float, float]


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


class Canvas:
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
        """Rows and columns within reach of a point, as far as the canvas goes."""
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

    def concentrations(self) -> np.ndarray:
        """Lay the layers together, let thickness vary and round to the grid: (height, width, 2) float32."""
        from scipy import ndimage

        thickness = (1.0 + 0.07 * self.noise(70.0)) * (1.0 + 0.03 * self.grain)
        below = [ndimage.gaussian_filter(layer, 0.7, mode="nearest") for layer in (self.haematoxylin, self.eosin)]
        haematoxylin = below[0] * (1.0 - 0.68 * self.cover) + self.nuclear_haematoxylin + self.out_of_focus
        eosin = below[1] * (1.0 - 0.4 * self.cover) + self.nuclear_eosin
        both = np.stack([haematoxylin * self.traits.haematoxylin, eosin * self.traits.eosin], axis=-1)
        steps = np.rint(np.clip(both * thickness[..., np.newaxis], 0.0, 3.5) / CONCENTRATION_STEP)
        return (steps * CONCENTRATION_STEP).astype(np.float32)
