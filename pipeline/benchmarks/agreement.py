"""Whether the fast transforms still give the pixels and the stain vectors that their definitions say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pipeline.benchmarks import plain
from pipeline.benchmarks.history import Check
from pipeline.stains import METHODS
from pipeline.stains import optical_density as fast
from pipeline.stains.normaliser import StatisticalNormaliser

AGREEING, ANGLE = 99.9, 0.5
"""Aims: percent of the pixels within one grey level; degrees between stain vectors of a subsample and of all pixels."""
TORCHSTAIN_LIGHT = 240.0
"""Transmitted light that torchstain assumes unless told otherwise."""


def with_plain(method: str, stacks: Sequence[np.ndarray], reference: np.ndarray) -> Check:
    """Compare a method with the plain NumPy of its definition, from the same statistics, on (n, h, w, 3) tiles each."""
    normaliser = METHODS[method]().fit([reference])
    shares = []
    for tile in (tile for stack in stacks for tile in stack):
        _, measured = normaliser.measure(tile)
        if measured is not None:
            shares.append((100.0 * plain.share_within(normaliser.transform(tile)[0], plain_of(normaliser, tile)), tile))
    if not shares:
        return Check(f"{method} as plain NumPy", None, "", AGREEING, detail="no tile could be measured")
    sizes = [tile.size for _, tile in shares]
    found = float(np.average([share for share, _ in shares], weights=sizes))
    worst = min(share for share, _ in shares)
    detail = f"pixels within 1 grey level, {len(shares)} tiles; the worst tile has {worst:.3f} %"
    return Check(f"{method} as plain NumPy", found, "%", AGREEING, detail=detail)


def plain_of(normaliser: StatisticalNormaliser, tile: np.ndarray) -> np.ndarray:
    """Transform a tile by plain NumPy and the statistics that a fitted normaliser measures of it."""
    _, measured = normaliser.measure(tile)
    assert measured is not None and normaliser.reference_ is not None
    own, wanted = (statistics_of(normaliser, vector) for vector in (measured, normaliser.reference_))
    bounds = 1.0 / normaliser.maximum_gain, normaliser.maximum_gain
    if normaliser.method == "reinhard":
        gain = np.clip(wanted["standard_deviation"] / own["standard_deviation"], *bounds)
        return plain.reinhard(tile, own["mean"], gain, wanted["mean"])
    gain = np.clip(wanted["maximum_concentration"] / own["maximum_concentration"], *bounds)
    # Ruifrok's vectors are no laboratory's own: what they do not explain follows both stains.
    return plain.exchange(
        tile,
        own["stain_matrix"],
        wanted["stain_matrix"],
        gain,
        nonnegative=normaliser.method != "macenko",
        rest=float(np.sqrt(gain.prod())) if normaliser.method == "ruifrok" else None,
    )


def statistics_of(normaliser: StatisticalNormaliser, vector: np.ndarray) -> dict[str, np.ndarray]:
    """Take a normaliser's vector of statistics apart by name."""
    found, start = {}, 0
    for name, shape in normaliser.statistics.items():
        end = start + math.prod(shape)
        found[name], start = vector[start:end].reshape(shape), end
    return found


def of_a_subsample(method: str, stacks: Sequence[np.ndarray]) -> Check:
    """Compare the stain vectors that a method measures, from a subsample, with those of all pixels: the worst angle."""
    normaliser = METHODS[method]()
    angles = []
    for tile in (tile for stack in stacks for tile in stack):
        _, sampled = normaliser.measure(tile)
        with _every_pixel(tile):
            _, full = normaliser.measure(tile)
        if sampled is not None and full is not None:
            vectors = [statistics_of(normaliser, vector)["stain_matrix"] for vector in (sampled, full)]
            angles.append(float(plain.angle(*vectors).max()))
    what = f"{method} from a subsample"
    if not angles:
        return Check(what, None, "", ANGLE, at_most=True, detail="no tile could be measured")
    detail = f"largest angle to the vectors of all pixels; median over {len(angles)} tiles {np.median(angles):.3f}"
    return Check(what, max(angles), "degrees", ANGLE, at_most=True, detail=detail)


@contextmanager
def _every_pixel(tile: np.ndarray) -> Iterator[None]:
    """Let statistics be measured from every pixel of a tile."""
    usual = fast.SAMPLE
    # A method may take a part of the usual sample only; a sample this large leaves no step between pixels even then.
    fast.SAMPLE = 100 * tile.size
    try:
        yield
    finally:
        fast.SAMPLE = usual


def with_torchstain(tiles: np.ndarray, theirs: np.ndarray, measured: dict[str, Any]) -> list[Check]:
    """Compare with torchstain's Macenko where the definitions agree, and the stain vectors of both.

    tiles: (n, h, w, 3) uint8; theirs: what torchstain made of them; measured: what its script returned. The transform
    agrees when fed its vectors, largest concentrations and white point (240), and its grey levels: it adds 1 before the
    logarithm and takes none away after. It then still cuts off decimals where ours rounds, so that at most 1 level is
    left between the two. The estimates differ by definition: a pixel is tissue to it where every channel absorbs 0.15
    or more (ours: the mean, and colour), its plane goes through the mean (ours: the origin), and its largest
    concentrations are over all pixels (ours: tissue).
    """
    reference = measured["reference"]
    white = (TORCHSTAIN_LIGHT,) * 3
    shares, angles = [], []
    macenko = METHODS["macenko"]()
    for tile, made, own in zip(tiles, theirs, measured["tiles"], strict=True):
        vectors, wanted = np.array(own["vectors"]), np.array(reference["vectors"])
        gain = np.array(reference["largest"]) / np.array(own["largest"])
        brightened = np.minimum(tile, 254) + np.uint8(1)
        ours = fast.mix(brightened, plain.exchange_matrix(vectors, wanted, gain), white, white)
        shares.append(100.0 * plain.share_within(ours, made))
        _, statistics = macenko.measure(tile)
        if statistics is not None:
            angles.append(float(plain.angle(statistics_of(macenko, statistics)["stain_matrix"], vectors).max()))
    median = float(np.median(angles)) if angles else None
    return [
        Check(
            "transform as torchstain", min(shares), "%", AGREEING,
            detail="pixels within 1 grey level, worst tile; fed its vectors, concentrations, white and offset of 1",
        ),
        Check(
            "vectors of torchstain", median, "degrees",
            detail="median over tiles of the larger angle; other definitions of tissue and of the plane",
        ),
    ]  # fmt: skip
