"""Probability maps to objects: the one post-processing, and the tuning of its parameters."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import cv2
import numpy as np

from pipeline.machine_code import compiled
from pipeline.metrics.instance import average_precisions, overlaps
from pipeline.outputs import Outputs
from pipeline.records.case import MAXIMUM_OBJECTS
from pipeline.records.objects import means_by_id
from pipeline.records.rasters import from_levels, to_levels
from pipeline.targets import cell_means


class TooManyObjects(ValueError):
    """One image holds more objects than a 16-bit raster can."""


@dataclass(frozen=True)
class Thresholds:
    """Parameters of the post-processing, all chosen on validation cases.

    foreground: probability above which a pixel belongs to an object; seed: interior evidence above which it belongs to
    an object's core; minimum_size: pixels below which an object is dropped; certainty: mean probability of foreground
    below which it is.
    """

    foreground: float = 0.5
    seed: float = 0.5
    minimum_size: int = 0
    certainty: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Values by name, for thresholds.json."""
        return asdict(self)


FOREGROUND_BOUNDS, SEED_BOUNDS = (0.2, 0.8), (0.2, 0.98)
SIZE_GRID, CERTAINTY_GRID = (0, 8, 16, 24, 32, 48, 64, 96), (0.0, 0.7, 0.75, 0.8, 0.85, 0.9)
DROPS = tuple(itertools.product(SIZE_GRID, CERTAINTY_GRID))
"""What tuning tries of minimum_size and certainty, together."""
SIZES, CERTAINTIES = np.array(DROPS).T
INTERIOR_REACH = 2
"""Pixels that the evidence of an interior looks beyond a pixel (Sobel's 5 x 5)."""
TRIALS = 50
"""Places that the tuning looks at, about."""


def label_raster(probabilities: np.ndarray, outputs: Outputs, thresholds: Thresholds) -> np.ndarray:
    """Turn (channels, height, width) probabilities into (height, width) uint16: object ids, or class ids.

    softmax: the most probable class. sigmoid with boundary, distance or offsets: objects grown by watershed from their
    cores. sigmoid with foreground alone: 1 where the probability is above the threshold; of coarse labels, where its
    mean over the square is.
    """
    if outputs.activation == "softmax":
        return probabilities.argmax(axis=0).astype(np.uint16)
    if outputs.cell is not None:
        means = cell_means(probabilities[:1], outputs.cell)[0]
        squares = (means > thresholds.foreground).repeat(outputs.cell, 0).repeat(outputs.cell, 1)
        return squares[: probabilities.shape[1], : probabilities.shape[2]].astype(np.uint16)
    if not outputs.has_objects:
        return (probabilities[0] > thresholds.foreground).astype(np.uint16)
    grown = grow_objects(probabilities, outputs.channels, thresholds)
    return drop_objects(grown, probabilities[0], thresholds.minimum_size, thresholds.certainty)


def object_classes(objects: np.ndarray, probabilities: np.ndarray, outputs: Outputs) -> list[tuple[str, float]]:
    """Give object 1, 2, ..., n of a mask its class, the one most probable on the mean over its pixels, and that mean.

    objects: (height, width) uint16, as label_raster made it of the same (channels, height, width) probabilities. Of
    equal classes the first counts. Empty where outputs tell no classes of objects.
    """
    names = outputs.object_classes
    if not names:
        return []
    means = np.stack([means_by_id(objects, plane)[1:] for plane in probabilities[-len(names) :]])
    return [(names[best], float(means[best, number])) for number, best in enumerate(means.argmax(axis=0))]


def grow_objects(probabilities: np.ndarray, channels: Sequence[str], thresholds: Thresholds) -> np.ndarray:
    """Grow one object from each core over the foreground, by watershed; (height, width) int32 ids 1..n."""
    return flood(probabilities[channels.index("foreground")], interior_of(probabilities, channels), thresholds)


def interior_of(probabilities: np.ndarray, channels: Sequence[str]) -> np.ndarray:
    """Evidence, from all maps, that a pixel lies within an object and not at its edge: (height, width) in [0, 1].

    A pixel depends on those at most INTERIOR_REACH away.
    """
    named = dict(zip(channels, probabilities, strict=True))
    foreground = named["foreground"]
    evidence = [foreground * (1.0 - named["boundary"])] if "boundary" in named else []
    evidence += [named["distance"]] if "distance" in named else []
    evidence += [foreground * (1.0 - _jumps(named["down"], named["right"]))] if "down" in named else []
    return sum(evidence) / len(evidence) if evidence else foreground


def flood(foreground: np.ndarray, interior: np.ndarray, thresholds: Thresholds) -> np.ndarray:
    """Grow objects over the foreground from where the interior is above the seed threshold; (height, width) int32 ids.

    A piece of foreground without a core is an object too: a small nucleus may have no interior away from its rim.
    Connected pieces of foreground (4 neighbours) do not know of each other.
    """
    from skimage.segmentation import watershed

    inside = (foreground > thresholds.foreground).astype(np.uint8)
    core = ((interior > thresholds.seed) & (inside > 0)).astype(np.uint8)
    count, seeds = cv2.connectedComponents(core, connectivity=4)
    pieces_count, found = cv2.connectedComponents(inside, connectivity=4)
    pieces = np.asarray(found, np.int32)
    piece_of = np.zeros(count, np.int32)
    piece_of[seeds] = pieces
    cores = np.bincount(piece_of[1:], minlength=pieces_count)
    # A piece of one core or none is an object as it is: only what several share, a small part as a rule, is flooded.
    ids = np.zeros(pieces_count, np.int32)
    ids[piece_of[1:]] = np.arange(1, count)
    without_core = np.flatnonzero(cores[1:] == 0) + 1
    ids[without_core] = np.arange(count, count + without_core.size)
    ids[cores > 1] = -1
    objects = ids.take(pieces)
    shared = objects < 0
    if shared.any():
        objects[shared] = watershed(-interior, markers=np.where(shared, seeds, 0), mask=shared)[shared]
    return objects


def _jumps(down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Where offsets fall, as they do from one object to the next and nowhere within one: (height, width) in [0, 1]."""
    # Sobel's 5 x 5 weights sum to 128 for a rise of 1 a pixel; over about four pixels a trained map falls from 1 to 0.
    falls = [cv2.Sobel(side, cv2.CV_32F, *order, ksize=5) / -128.0 for side, order in ((down, (0, 1)), (right, (1, 0)))]
    return np.clip(4.0 * np.maximum(*falls), 0.0, 1.0)


def drop_objects(
    objects: np.ndarray, foreground: np.ndarray, minimum_size: int = 0, certainty: float = 0.0
) -> np.ndarray:
    """Drop objects of fewer pixels or a lower mean of foreground, and number the rest 1..n; returns uint16.

    objects: (height, width) int32 ids, numbered in the order that is kept; foreground: their probability, the same
    shape. Raises TooManyObjects where more remain than a 16-bit raster holds.
    """
    numbers = numbers_of_kept(objects, foreground, minimum_size, certainty)
    if (kept := int(numbers.max())) > MAXIMUM_OBJECTS:
        raise TooManyObjects(
            f"expected at most {MAXIMUM_OBJECTS:,} objects in one image, found {kept:,}; cut it into tiles"
        )
    return numbers.astype(np.uint16)[objects]


def numbers_of_kept(
    objects: np.ndarray, foreground: np.ndarray, minimum_size: int = 0, certainty: float = 0.0
) -> np.ndarray:
    """Choose objects as drop_objects does, however many: (largest id + 1,) int32, each id's number, 0 if dropped."""
    sizes, means = _sizes_and_means(objects, foreground)
    keep = (sizes >= max(minimum_size, 1)) & (means >= certainty)
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)


def _sizes_and_means(objects: np.ndarray, foreground: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of each id from 0 on, and their mean foreground: (largest id + 1,) each."""
    sizes = np.zeros(int(objects.max(initial=0)) + 1, np.int64)
    sums = np.zeros(sizes.size)
    _count_and_sum(objects.ravel(), foreground.ravel(), sizes, sums)
    return sizes, sums / np.maximum(sizes, 1)


@compiled
def _count_and_sum(ids: np.ndarray, values: np.ndarray, sizes: np.ndarray, sums: np.ndarray) -> None:
    """What np.bincount does twice over copies of the rasters."""
    for at in range(ids.size):
        sizes[ids[at]] += 1
        sums[ids[at]] += values[at]


def tune(
    probabilities: Callable[[int], np.ndarray],
    truths: Callable[[int], np.ndarray],
    cases: Iterable[int],
    outputs: Outputs,
) -> tuple[Thresholds, float]:
    """Choose the thresholds with the best mean score over cases; return them and that score.

    probabilities(i), truths(i): map and label of case i, asked for once each; maps are kept as the 16-bit numbers that
    predict writes. The score is the average precision over IoU 0.50 to 0.95 for objects, the Dice otherwise. SciPy's
    DIRECT (Jones 1993), which draws nothing at random, searches foreground and seed in steps of 0.01; minimum_size and
    certainty are the best of SIZE_GRID and CERTAINTY_GRID at each place. Ties go to what was tried first, from the
    middle outwards, and to dropping less.
    """
    from scipy.optimize import direct

    # What classes objects have is not asked here, and would be kept for nothing.
    outputs = replace(outputs, channels=outputs.channels[: len(outputs.channels) - len(outputs.object_classes)])
    scored = (outputs.by_cell(probabilities(i)[: len(outputs.channels)], truths(i)) for i in cases)
    kept = [_Kept.of(maps, truth, outputs) for maps, truth in scored]
    outputs = replace(outputs, cell=None)
    if outputs.activation == "softmax":
        return Thresholds(), float(_scores_of_drops(kept, outputs, Thresholds())[0])
    bounds = [FOREGROUND_BOUNDS, SEED_BOUNDS] if outputs.has_objects else [FOREGROUND_BOUNDS]
    tried: dict[tuple[float, ...], tuple[float, Thresholds]] = {}

    def lost(place: np.ndarray) -> float:
        key = tuple(np.round(place, 2).tolist())
        if key not in tried:
            scores = _scores_of_drops(kept, outputs, Thresholds(*key))
            best = int(np.argmax(scores))
            size, certainty = DROPS[best]
            tried[key] = float(scores[best]), replace(Thresholds(*key), minimum_size=size, certainty=certainty)
        return -tried[key][0]

    direct(lost, bounds, maxfun=TRIALS, locally_biased=True)
    score, thresholds = max(tried.values(), key=lambda found: found[0])
    return thresholds, score


@dataclass(frozen=True)
class _Kept:
    """What tuning keeps of a case, for as long as it tries thresholds.

    levels: maps as 16-bit levels, of objects the foreground alone; interior: evidence of it (height, width) float32,
    which depends on no threshold, None where there are no objects; truth: (height, width) labels.
    """

    levels: np.ndarray
    interior: np.ndarray | None
    truth: np.ndarray

    @classmethod
    def of(cls, maps: np.ndarray, truth: np.ndarray, outputs: Outputs) -> _Kept:
        levels = to_levels(maps)
        if not outputs.has_objects:
            return cls(levels, None, truth)
        foreground = levels[[outputs.channels.index("foreground")]]
        return cls(foreground, interior_of(from_levels(levels), outputs.channels), truth)


def _scores_of_drops(kept: Sequence[_Kept], outputs: Outputs, thresholds: Thresholds) -> np.ndarray:
    """Mean score over cases for each of DROPS (of objects), or for none, rounded so that equal ones are equal."""
    scores: list[np.ndarray] = []
    for case in kept:
        maps = from_levels(case.levels)
        if case.interior is None:
            scores.append(np.array([outputs.score(case.truth, label_raster(maps, outputs, thresholds))["dice"]]))
            continue
        try:
            grown = drop_objects(flood(maps[0], case.interior, thresholds), maps[0])
        except TooManyObjects:  # noise, from a network that has learned little yet
            scores.append(np.zeros(len(DROPS)))
            continue
        # Counted once: to drop an object takes its pairs out of the table and leaves the others as they are.
        found = overlaps(case.truth, grown)
        sizes, means = (of_each[found.predicted_ids] for of_each in _sizes_and_means(grown, maps[0]))
        scores.append(average_precisions(found, (sizes >= SIZES[:, None]) & (means >= CERTAINTIES[:, None])))
    return np.mean(scores, axis=0).round(6)
