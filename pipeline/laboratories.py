"""Laboratories: what turns concentrations of stains in tissue into pixels, by the Beer-Lambert law and a scanner."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from pipeline.records.files import write_text


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


def write_laboratories(file: Path) -> None:
    """Write stain matrix, amounts, white point and scanner of every laboratory as JSON, by its name."""
    stain = {name: asdict(laboratory) for name, laboratory in LABORATORIES.items()}
    write_text(file, json.dumps(stain, indent=2) + "\n")
