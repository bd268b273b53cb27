"""Pairs of images: what a reconstruction is given and what it should make of it, the same for every stage."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipeline.augmentation import Augmentation, sample_seed
from pipeline.config import Config
from pipeline.corruption import Corruption
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image

PAIRS_SHOWN = 4
"""Crops of each case on the contact sheet."""


class Pairs:
    """Input and target of every case.

    The target is the case's label where that is an image, else the case's own image; the input is its image, spoilt as
    train.corruption says.
    """

    def __init__(self, config: Config, paths: Paths) -> None:
        self.seed = config.seed
        self.paths = paths
        self.spoil = Corruption(config.train.corruption)
        self.augmentation = Augmentation(config.augment)

    def read(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """Return image and target before any corruption, (height, width, 3) uint8 RGB each."""
        image = read_image(self.paths.image(case.image))
        return image, read_image(self.paths.ingest / str(case.label)) if case.label_kind == "image" else image

    def cut(self, image: np.ndarray, target: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return one crop of both as training sees it, moved alike; the input is spoilt after it is cut."""
        image, target = self.augmentation.move_pair(image, target, seed)
        return self.spoil(image, seed), target

    def given(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """Return input and target as validation, prediction and evaluation see them: the same every time.

        A real pair is given as it is: what it is spoilt by in training only makes the network robust.
        """
        image, target = self.read(case)
        if case.label_kind == "image":
            return image, target
        return self.spoil(image, sample_seed(self.seed, 0, case.case_id, 0)), target


def learnable(cases: Sequence[Case], config: Config) -> list[Case]:
    """Return the cases that a reconstruction can learn from: pairs, or images of the reference strata.

    Raises ValueError where there are none, naming the strata there are.
    """
    wanted = config.train.reconstruction.reference_strata
    kept = [case for case in cases if case.label_kind == "image" or not wanted or case.stratum in wanted]
    if not kept:
        strata = sorted({case.stratum or "none" for case in cases})
        raise ValueError(
            f"train.reconstruction.reference_strata: expected strata of the data set, found {', '.join(wanted)}; "
            f"there are {', '.join(strata)}"
        )
    return kept
