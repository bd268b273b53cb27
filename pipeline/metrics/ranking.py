"""Objects ranked by confidence over all cases, as challenges of detection score them."""

from __future__ import annotations

import numpy as np

from pipeline.metrics import instance
from pipeline.records.objects import means_by_id

THRESHOLDS = {"ap_50": 0.5, "ap_60": 0.6, "ap_75": 0.75}
"""Names in metrics.json and IoU that a match must be above; 0.6 is HuBMAP 2023's."""


class Ranking:
    """Collects objects, how sure the network is of each, and which are found, over as many cases as are added."""

    def __init__(self) -> None:
        self.true_objects_ = 0
        self.confidences_: list[np.ndarray] = []
        self.matched_: list[np.ndarray] = []
        self.counted_: list[np.ndarray] = []

    def add(self, foreground: np.ndarray, truth: np.ndarray, objects: np.ndarray) -> None:
        """Take one case in. foreground: (height, width) probability; truth, objects: (height, width) object ids.

        An object is as sure as its foreground is on average, as in submissions. What lies in ignored pixels of the
        truth counts for nothing, as `instance.left_out` says.
        """
        found = instance.overlaps(truth, objects)
        self.true_objects_ += found.truth_ids.size
        self.confidences_.append(means_by_id(objects, foreground)[found.predicted_ids])
        thresholds = tuple(THRESHOLDS.values())
        self.matched_.append(instance.matched_predictions(found, thresholds))
        self.counted_.append(~instance.left_out(found, thresholds))

    def as_dict(self) -> dict[str, float]:
        """Return what metrics.json holds: the average precision at each of THRESHOLDS; empty where nothing was added.

        The area under precision over recall, where each recall has the best precision at that or a higher one (PASCAL
        VOC since 2010, Open Images, doi:10.1007/s11263-009-0275-4). Nothing in truth nor prediction is 1, nothing in
        one of them 0.
        """
        if not self.matched_:
            return {}
        order = np.argsort(-np.concatenate(self.confidences_), kind="stable")
        matched, counted = (np.concatenate(of_cases)[order] for of_cases in (self.matched_, self.counted_))
        if not self.true_objects_:
            empty = ~np.any(counted, axis=0)
            return dict(zip(THRESHOLDS, empty.astype(float).tolist(), strict=True))
        precision = np.cumsum(matched, axis=0) / np.maximum(np.cumsum(counted, axis=0), 1)
        best = np.maximum.accumulate(precision[::-1], axis=0)[::-1]
        areas = (best * matched).sum(axis=0) / self.true_objects_
        return {name: round(float(area), 6) for name, area in zip(THRESHOLDS, areas, strict=True)}
