"""Accuracy on rendered tissue, whose stain vectors and concentrations are known in every pixel.

`PYTHONPATH=. python tests/stains/test_accuracy.py` prints the table: median and 95th percentile over tiles, of tissue
as it is rendered and with pure pixels, under a plain camera and behind the whole scanner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest

from pipeline.laboratories import LABORATORIES, Laboratory
from pipeline.stains import METHODS
from pipeline.stains.optical_density import tissue_mask, to_density
from pipeline.stains.separation import unmixing
from pipeline.tissue import TissueKind, render_tissue

KINDS: tuple[TissueKind, ...] = ("gland", "nest", "lymphoid", "stroma")
PURE = 0.025
"""Share of the pixels that are made pure in each stain: rendered nuclei hold some eosin, and few pixels of it none."""
NOISE = 1.5


@cache
def concentrations(kind: TissueKind, seed: int) -> np.ndarray:
    return render_tissue(kind, 256, 320, np.random.default_rng([seed, 7])).concentrations.astype(np.float64)


def amounts_of(tissue: np.ndarray, laboratory: Laboratory) -> np.ndarray:
    """Density along each vector of length 1: (n, 2)."""
    return tissue.reshape(-1, 2) * laboratory.amounts


def with_pure_pixels(tissue: np.ndarray) -> np.ndarray:
    """Take the other stain away where a stain prevails most."""
    pixels = tissue.reshape(-1, 2).copy()
    total = pixels.sum(axis=1)
    share = pixels[:, 0] / np.maximum(total, 1e-9)
    count = round(PURE * len(pixels))
    pixels[np.argsort(np.where(total > 0.3, share, -1.0))[-count:], 1] = 0.0
    pixels[np.argsort(np.where(total > 0.3, share, 2.0))[:count], 0] = 0.0
    return pixels.reshape(tissue.shape)


def nonnegative(density: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Non-negative least squares of two stains, case by case, plainly."""
    found = density @ unmixing(vectors)
    alone = np.maximum(density @ vectors.T, 0.0)
    for stain, other in ((0, 1), (1, 0)):
        below = density @ unmixing(vectors)[:, stain] < 0.0
        found[below, stain], found[below, other] = 0.0, alone[below, other]
    return found


def angles(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    return np.degrees(np.arccos(np.clip((found * true).sum(axis=1), -1.0, 1.0)))


def errors(method: str, tissue: np.ndarray, laboratory: Laboratory, seed: int) -> tuple[float, float, float] | None:
    """Angles of both vectors in degrees, and relative RMSE of the concentrations over tissue in percent."""
    image = laboratory.scan(tissue, np.random.default_rng(seed))
    normaliser = METHODS[method](white=laboratory.white_point)
    _, measured = normaliser.measure(image)
    if measured is None:
        return None
    true = np.array(laboratory.stain_matrix)
    found = measured[:6].reshape(2, 3)
    density = to_density(image, laboratory.white_point).astype(np.float64)
    mask = tissue_mask(density)
    unmixed = nonnegative(density[mask], found) if method == "vahadane" else density[mask] @ unmixing(found)
    known = amounts_of(tissue, laboratory)[mask.ravel()]
    haematoxylin, eosin = angles(found, true / np.linalg.norm(true, axis=1, keepdims=True)).tolist()
    return haematoxylin, eosin, 100.0 * float(np.sqrt(((unmixed - known) ** 2).mean() / (known**2).mean()))


def table(method: str, seeds: Sequence[int], pure: bool, scanner: bool) -> np.ndarray:
    """(tiles, 3): larger angle of haematoxylin, of eosin, and error of the concentrations, of every tile measured."""

    def rows() -> Iterator[tuple[float, float, float] | None]:
        for seed in seeds:
            for kind in KINDS:
                tissue = concentrations(kind, seed)
                for laboratory in LABORATORIES.values():
                    seen = laboratory if scanner else laboratory.plain(NOISE)
                    yield errors(method, with_pure_pixels(tissue) if pure else tissue, seen, seed)

    return np.array([row for row in rows() if row is not None])


@pytest.mark.parametrize(("method", "largest_angle"), [("macenko", 3.0), ("vahadane", 2.0)])
def test_known_stains_come_back(method: str, largest_angle: float) -> None:
    found = table(method, range(1), pure=True, scanner=False)
    assert len(found) == len(KINDS) * len(LABORATORIES)
    median, worst = np.median(found, axis=0), np.percentile(found, 95, axis=0)
    assert (median[:2] < largest_angle).all() and (worst[:2] < largest_angle).all()
    assert median[2] < 5.0 and worst[2] < 5.0


@pytest.mark.parametrize("method", ["macenko", "vahadane"])
def test_behind_a_scanner_they_are_still_told_apart(method: str) -> None:
    """Crosstalk, gamma, blur and JPEG move the vectors themselves: no method can come nearer than these do."""
    found = table(method, range(1), pure=False, scanner=True)
    assert (np.median(found, axis=0)[:2] < 8.0).all()


if __name__ == "__main__":
    for name in ("macenko", "vahadane"):
        for pure, scanner in ((True, False), (False, False), (True, True), (False, True)):
            values = table(name, range(6), pure, scanner)
            title = ("pure pixels" if pure else "as rendered") + (", scanner" if scanner else "")
            for what, percent in (("median", 50), ("95th percentile", 95)):
                haematoxylin, eosin, amount = np.percentile(values, percent, axis=0)
                print(
                    f"{name:9} {title:21} {len(values):4} tiles {what:16} haematoxylin {haematoxylin:5.2f} "
                    f"eosin {eosin:5.2f} degrees, concentrations {amount:5.2f} %"
                )
