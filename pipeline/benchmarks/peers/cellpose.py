"""Cellpose's side of the contest of matching: average precision and aggregated Jaccard index of its metrics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata

import numpy as np
from cellpose import metrics


def prepare(score: str, truth: str, prediction: str, thresholds: Sequence[float]) -> Callable[[], float]:
    """Return one scoring of two label rasters in .npy files; score: AP or AJI."""
    labels, found = np.load(truth).astype(np.int32), np.load(prediction).astype(np.int32)
    if score == "AP":
        return lambda: float(metrics.average_precision(labels, found, threshold=list(thresholds))[0].mean())
    assert score == "AJI", f"no {score} here"
    return lambda: float(metrics.aggregated_jaccard_index([labels], [found])[0])


def answer(**task: object) -> float:
    """Return the score itself."""
    return prepare(**task)()  # type: ignore[arg-type]


def versions() -> str:
    """Say which versions take part."""
    return f"cellpose {metadata.version('cellpose')}"
