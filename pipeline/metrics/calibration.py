"""Whether probabilities are true to their word: of the pixels said to be foreground at 0.7, seven in ten should be."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.records.case import IGNORED

BINS = 10
"""Equal intervals of probability."""


class Calibration:
    """Counts pixels by the probability that they were given, over as many cases as are added."""

    def __init__(self) -> None:
        self.pixels_ = np.zeros(BINS)
        self.probability_ = np.zeros(BINS)
        self.foreground_ = np.zeros(BINS)
        self.squares_ = 0.0

    def add(self, probability: np.ndarray, truth: np.ndarray) -> None:
        """Count one case. probability: (height, width) float in [0, 1] of any foreground; truth: uint16 label raster.

        Ignored pixels count for nothing.
        """
        counted = truth != IGNORED
        said, seen = probability[counted].astype(np.float64), truth[counted] > 0
        place = np.minimum((said * BINS).astype(np.intp), BINS - 1)
        self.pixels_ += np.bincount(place, minlength=BINS)
        self.probability_ += np.bincount(place, weights=said, minlength=BINS)
        self.foreground_ += np.bincount(place, weights=seen, minlength=BINS)
        self.squares_ += float(np.square(said - seen).sum())

    def as_dict(self) -> dict[str, Any]:
        """Return what metrics.json holds: error, brier, and for each bin with pixels what was said and what was seen.

        error: the expected calibration error, the distance of said and seen share, averaged over pixels (Guo 2017);
        unsure: share of the pixels outside the first and the last bin, and error of those alone (None without any);
        brier: the mean squared difference of probability and truth. Empty where nothing was counted.
        """
        pixels = self.pixels_.sum()
        if not pixels:
            return {}
        filled = self.pixels_ > 0
        said, seen = (sums[filled] / self.pixels_[filled] for sums in (self.probability_, self.foreground_))
        distances, unsure = np.abs(self.probability_ - self.foreground_), self.pixels_[1:-1].sum()
        return {
            "error": round(float(distances.sum() / pixels), 6),
            "brier": round(self.squares_ / float(pixels), 6),
            "unsure": {
                "share": round(float(unsure / pixels), 6),
                "error": round(float(distances[1:-1].sum() / unsure), 6) if unsure else None,
            },
            "bins": [
                {"said": round(float(one), 6), "seen": round(float(other), 6), "pixels": int(count)}
                for one, other, count in zip(said, seen, self.pixels_[filled], strict=True)
            ],
        }
