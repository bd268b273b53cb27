"""What a network's channels mean: decided from the settings and the labels, stored beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.config import Config
from pipeline.metrics.summary import score_case
from pipeline.records.case import IGNORED, Case
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_label
from pipeline.targets import channels_of


@dataclass(frozen=True)
class Outputs:
    """The channels of a segmenter.

    target: binary, classes, boundary, distance or boundary_distance; channels: a name each; activation: sigmoid (each
    channel alone) or softmax (the channels of a pixel sum to 1); label_kind: what labels and
    predicted masks hold: instance (an id an object) or semantic (class ids).
    """

    target: str
    channels: tuple[str, ...]
    activation: str
    label_kind: str

    @property
    def has_objects(self) -> bool:
        """Whether masks hold objects rather than classes."""
        return self.label_kind == "instance"

    def score(self, truth: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        """Score one mask against its truth: the columns of per_case.csv from height on."""
        if self.has_objects:
            return score_case(truth, mask, "instance")
        if self.activation == "softmax":
            return score_case(truth, mask, "semantic", len(self.channels) - 1)
        return score_case(np.where(truth == IGNORED, IGNORED, truth > 0).astype(np.uint16), mask, "semantic")

    @classmethod
    def of(cls, config: Config, cases: Sequence[Case], paths: Paths) -> Outputs:
        """Decide the channels from the settings and the labels there are.

        Raises ValueError where the target does not fit the labels.
        """
        kinds = {case.label_kind for case in cases if case.label}
        target = config.train.target
        classes = 1
        if len(kinds) > 1:
            raise ValueError(f"expected labels of one kind, found {', '.join(sorted(kinds))}; set ingest.label_kind")
        if kinds == {"semantic"} and target in ("auto", "classes"):
            labels = (read_label(paths.ingest / case.label) for case in cases if case.label)
            classes = max(int(label[label != IGNORED].max(initial=0)) for label in labels)
        if target == "auto":
            target = "boundary" if kinds == {"instance"} else "classes" if classes > 1 else "binary"
        if kinds == {"semantic"} and target not in ("binary", "classes"):
            raise ValueError(
                f"train.target: {target} needs labels with one id an object, found class rasters; "
                f"take train.target=binary or classes, or tell ingest that they are objects: ingest.label_kind=instance"
            )
        if kinds == {"instance"} and target == "classes":
            raise ValueError(
                "train.target: classes needs class rasters, found object ids; take boundary, distance or binary"
            )
        return cls(target, channels_of(target, classes), "softmax" if target == "classes" else "sigmoid", *kinds)
