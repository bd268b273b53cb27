"""Segmentation: crops with targets in, logits out; validated by whole images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from pipeline.augmentation import Augmentation, sample_seed
from pipeline.config import Config
from pipeline.instances import Thresholds, label_raster
from pipeline.intensity import INTENSITIES, as_input
from pipeline.losses import build_loss
from pipeline.networks import Network, build_network
from pipeline.outputs import Outputs
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, read_label
from pipeline.targets import border_weights, fit_target, make_target
from pipeline.trained import IMAGE_CHANNELS


class TrainingCrops(Dataset[dict[str, torch.Tensor]]):
    """Augmented crops of the training cases; crop n is a function of (seed, n) only.

    An epoch draws as many crops as there are cases. Every case is drawn by its weight (systematic sampling, so that its
    count is within one of what the weight says), in an order of the epoch's own.
    """

    def __init__(
        self, cases: Sequence[Case], paths: Paths, config: Config, outputs: Outputs, workers: int, network: Network
    ) -> None:
        cv2_single_threaded()
        self.cases = sorted(cases, key=lambda case: case.case_id)
        self.paths = paths
        self.seed = config.seed
        self.weights = draw_weights([case.stratum for case in self.cases], config.train.balance)
        self.augmentation = Augmentation(config.augment)
        self.prepare = INTENSITIES[config.train.intensity]
        self.outputs = outputs
        self.boundary_weight = config.train.loss.boundary_weight
        side = config.augment.crop
        self.place = network.margin, network.stride, network.output_size(side, side)
        self.memory = config.train.cache_megabytes * 2**20 // max(workers, 1)
        self.kept: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self.kept_bytes = 0
        self.epoch_order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, crop: int) -> dict[str, torch.Tensor]:
        epoch, place = divmod(crop, len(self.cases))
        index = int(self._order(epoch)[place])
        image, label = self._load(index)
        seed = sample_seed(self.seed, epoch, self.cases[index].case_id, place)
        image, label = self.augmentation(image, label, seed)
        planes, pixels = make_target(label, self.outputs.target, len(self.outputs.channels) - 1)
        target, valid = fit_target(planes, pixels, *self.place)
        sample = {"image": image, "target": target, "valid": valid}
        if self.boundary_weight:
            sample["weight"] = fit_target(border_weights(label)[np.newaxis], pixels, *self.place)[0][0]
        return {name: torch.from_numpy(np.ascontiguousarray(raster)) for name, raster in sample.items()}

    def _order(self, epoch: int) -> np.ndarray:
        if self.epoch_order[0] != epoch:
            generator = np.random.default_rng([self.seed, epoch])
            count = len(self.cases)
            marks = (np.arange(count) + generator.random()) / count
            drawn = np.searchsorted(np.cumsum(self.weights), marks).clip(max=count - 1)
            self.epoch_order = (epoch, generator.permutation(drawn))
        return self.epoch_order[1]

    def _load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index in self.kept:
            self.kept.move_to_end(index)
            return self.kept[index]
        case = self.cases[index]
        assert case.label is not None
        pair = self.prepare(read_image(self.paths.image(case.image))), read_label(self.paths.ingest / case.label)
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


class Segmentation:
    """The network, its loss and its score; the loop in training.py knows no more than this."""

    def __init__(
        self, config: Config, paths: Paths, outputs: Outputs, training: Sequence[Case], validation: Sequence[Case]
    ) -> None:
        self.config = config
        self.paths = paths
        self.outputs = outputs
        self.training = training
        self.validation = validation
        torch.manual_seed(config.seed)
        self.network = build_network(config.train.network, IMAGE_CHANNELS, len(outputs.channels))
        self.loss = build_loss(
            config.train.loss, "softmax" if outputs.activation == "softmax" else "sigmoid", outputs.channels
        )

    def crops(self, workers: int) -> TrainingCrops:
        """Return the training crops."""
        return TrainingCrops(self.training, self.paths, self.config, self.outputs, workers, self.network)

    def step(self, network: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the loss of one batch."""
        return self.loss(network(as_input(batch["image"])), batch["target"], batch["valid"], batch.get("weight"))

    def validate(self, predict: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
        """Score whole validation images at moderate thresholds: dice, iou and score (what 'best' means).

        score is the average precision over IoU 0.50 to 0.95 for objects, the Dice otherwise; means over images.
        """
        name = "ap" if self.outputs.has_objects else "dice"
        rows = []
        for case in self.validation:
            assert case.label is not None
            mask = label_raster(predict(read_image(self.paths.image(case.image))), self.outputs, Thresholds())
            row = self.outputs.score(read_label(self.paths.ingest / case.label), mask)
            rows.append((row["dice"], row["iou"], row[name]))
        dice, iou, score = np.mean(rows, axis=0).tolist()
        return {"validation_dice": dice, "validation_iou": iou, "validation_score": score}
