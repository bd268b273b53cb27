"""Training crops: which case crop n is cut from, and a bounded memory of decoded images."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.augmentation import sample_seed
from pipeline.config import Config
from pipeline.records.case import Case

Rasters = tuple[np.ndarray, np.ndarray]
"""An image and what is learned from it: a label or another image."""


class Crops(Dataset[dict[str, torch.Tensor]]):
    """Augmented crops of the training cases; crop n is a function of (seed, n) only.

    An epoch draws as many crops as there are cases. Every case is drawn by its weight (systematic sampling, so that its
    count is within one of what the weight says), in an order of the epoch's own.
    """

    def __init__(self, cases: Sequence[Case], config: Config, workers: int) -> None:
        cv2_single_threaded()
        self.cases = sorted(cases, key=lambda case: case.case_id)
        self.seed = config.seed
        self.weights = draw_weights([case.stratum for case in self.cases], config.train.balance)
        self.memory = config.train.cache_megabytes * 2**20 // max(workers, 1)
        self.kept: OrderedDict[int, Rasters] = OrderedDict()
        self.kept_bytes = 0
        self.epoch_order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @abstractmethod
    def read(self, case: Case) -> Rasters:
        """Read a case whole, as it is kept in memory."""

    @abstractmethod
    def cut(self, case: Case, image: np.ndarray, learned: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Cut one crop of a case and prepare it for the network; random in nothing but the seed."""

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, crop: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(crop, len(self.cases))
        index = int(self._order(epoch)[place])
        seed = sample_seed(self.seed, epoch, self.cases[index].case_id, place)
        sample = self.cut(self.cases[index], *self._load(index), seed)
        return {name: torch.from_numpy(np.ascontiguousarray(raster)) for name, raster in sample.items()}

    def _order(self, epoch: int) -> np.ndarray:
        if self.epoch_order[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            count = len(self.cases)
            marks = (np.arange(count) + generator.random()) / count
            drawn = np.searchsorted(np.cumsum(self.weights), marks).clip(max=count - 1)
            self.epoch_order = (epoch, generator.permutation(drawn))
        return self.epoch_order[1]

    def _load(self, index: int) -> Rasters:
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        pair = self.read(self.cases[index])
        size = sum(raster.nbytes for raster in pair)
        if size <= self.memory:
            self.kept[index] = pair
            self.kept_bytes += size
            while self.kept_bytes > self.memory:
                _, oldest = self.kept.popitem(last=False)
                self.kept_bytes -= sum(raster.nbytes for raster in oldest)
        return pair


def draw_weights(strata: Sequence[str | None], balance: float) -> np.ndarray:
    """Return each case's probability of being drawn: a stratum's share to the power 1 - balance, even within it."""
    _names, inverse, counts = np.unique([stratum or "" for stratum in strata], return_inverse=True, return_counts=True)
    shares = (counts / counts.sum()) ** (1 - balance)
    weights = (shares / counts)[inverse]
    return weights / weights.sum()


def cv2_single_threaded() -> None:
    """Keep OpenCV from starting threads of its own beside PyTorch's."""
    import cv2

    cv2.setNumThreads(0)
