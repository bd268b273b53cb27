"""Sides of the contest of matching that run here: the product's scores, MONAI's panoptic quality, and plain loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Literal

import numpy as np

from pipeline.metrics import instance

Score = Literal["AP", "PQ", "AJI"]


def prepare(
    score: Score, truth: str, prediction: str, thresholds: Sequence[float], variant: Literal["ours", "monai", "plain"]
) -> Callable[[], float]:
    """Return one scoring of two label rasters in .npy files."""
    labels, found = np.load(truth), np.load(prediction)
    if variant == "monai":
        import torch
        from monai.metrics.panoptic_quality import compute_panoptic_quality

        predicted, true = (torch.from_numpy(one.astype(np.int32)) for one in (found, labels))
        return lambda: float(compute_panoptic_quality(predicted, true, metric_name="pq", match_iou_threshold=0.5))
    if variant == "plain":
        return lambda: _plain(score, labels, found, thresholds)
    scores: dict[str, Callable[[instance.Overlaps], float]] = {
        "AP": lambda overlaps: instance.average_precision(overlaps, thresholds),
        "PQ": lambda overlaps: instance.panoptic_quality(overlaps).pq,
        "AJI": instance.aggregated_jaccard,
    }
    return lambda: scores[score](instance.overlaps(labels, found))


def _plain(score: Score, labels: np.ndarray, found: np.ndarray, thresholds: Sequence[float]) -> float:
    """The lines of many public notebooks: a 2-D histogram of ids, then each definition in full."""
    shared, *_ = np.histogram2d(
        labels.ravel(), found.ravel(), bins=(np.arange(labels.max() + 2) - 0.5, np.arange(found.max() + 2) - 0.5)
    )
    areas, others = shared.sum(axis=1)[1:, None], shared.sum(axis=0)[None, 1:]
    both = shared[1:, 1:]
    union = areas + others - both
    iou = both / union
    if score == "AP":
        hits = [np.count_nonzero(iou > threshold) for threshold in thresholds]
        return float(np.mean([hit / (len(areas) + others.size - hit) for hit in hits]))
    if score == "PQ":
        matched = iou > 0.5
        return float(iou[matched].sum() / ((len(areas) + others.size) / 2))
    best = iou.argmax(axis=1)
    touched = iou.max(axis=1) > 0
    rows = np.flatnonzero(touched)
    unused = np.setdiff1d(np.arange(others.size), best[rows])
    total = union[rows, best[rows]].sum() + areas[~touched].sum() + others[0, unused].sum()
    return float(both[rows, best[rows]].sum() / total)


def answer(**task: object) -> float:
    """Return the score itself."""
    return prepare(**task)()  # type: ignore[arg-type]


def versions() -> str:
    """Say which versions take part."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "monai"))
