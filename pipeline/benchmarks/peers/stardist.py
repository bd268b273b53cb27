"""StarDist's side of the contest of matching: matching at ten thresholds, as its documentation calls it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata

import numpy as np
from stardist.matching import matching


def prepare(score: str, truth: str, prediction: str, thresholds: Sequence[float]) -> Callable[[], float]:
    """Return one scoring of two label rasters in .npy files; score: AP."""
    labels, found = np.load(truth).astype(np.int32), np.load(prediction).astype(np.int32)
    assert score == "AP", f"no {score} here"
    return lambda: float(np.mean([one.accuracy for one in matching(labels, found, thresh=tuple(thresholds))]))


def answer(**task: object) -> float:
    """Return the score itself."""
    return prepare(**task)()  # type: ignore[arg-type]


def versions() -> str:
    """Say which versions take part."""
    return f"stardist {metadata.version('stardist')}"
