"""Segmentation: crops with targets in, logits out; validated by whole images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from pipeline.augmentation import Augmentation
from pipeline.case_maps import CaseMaps, by_volume, read_planes
from pipeline.config import Config
from pipeline.inference import AnyPredictor, prepare_volume
from pipeline.instances import Thresholds, TooManyObjects, label_raster
from pipeline.intensity import INTENSITIES, as_input
from pipeline.losses import build_loss
from pipeline.networks import Network, build_network
from pipeline.outputs import Outputs
from pipeline.records.case import IGNORED, Case, read_cases
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image, read_label
from pipeline.targets import border_weights, class_planes, fit_target, make_target
from pipeline.tasks.crops import Crops
from pipeline.tasks.players import NETWORK, Player
from pipeline.trained import IMAGE_CHANNELS
from pipeline.whole_batch import whole_batch

DRAWS = 8
"""Crops tried until one holds a pixel whose label is known."""


class LabelledCrops(Crops):
    """Crops of images and labels, the labels turned into the network's target."""

    def __init__(
        self, cases: Sequence[Case], paths: Paths, config: Config, outputs: Outputs, workers: int, network: Network
    ) -> None:
        super().__init__(cases, config, workers)
        self.paths = paths
        self.augmentation = Augmentation(config.augment)
        self.prepare = INTENSITIES[config.train.intensity]
        self.outputs = outputs
        self.of_objects = outputs.of_objects if network.stride > 1 else []
        self.boundary_weight = config.train.loss.boundary_weight
        side = config.augment.crop
        self.place = network.margin, network.stride, network.output_size(side, side)

    def read(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """Return the prepared image and the label."""
        assert case.label is not None
        return self.prepare(read_image(self.paths.image(case.image))), read_label(self.paths.ingest / case.label)

    def cut(self, case: Case, image: np.ndarray, learned: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Return image (h, w, 3) uint8, target and valid, and weight where borders between objects count more."""
        image, label = draw_known(lambda one: self.augmentation(image, learned, one), seed)
        planes, pixels = make_target(label, self.outputs.target, len(self.outputs.channels) - 1)
        if names := self.outputs.object_classes:
            planes = np.concatenate([planes, class_planes(label, case.classes or (), names)])
        target, valid = fit_target(planes, pixels, *self.place)
        if self.of_objects:
            # Where the network's pixels are blocks, what objects alone have is the mean over their share of each.
            target[self.of_objects] /= np.maximum(target[0], np.float32(1e-6))
        sample = {"image": image, "target": target, "valid": valid}
        if self.boundary_weight:
            sample["weight"] = fit_target(border_weights(label)[np.newaxis], pixels, *self.place)[0][0]
        return sample


class Blocks(Crops):
    """Blocks of neighbouring planes and their labels, for a network of volumes; an epoch draws one a volume."""

    def __init__(self, cases: Sequence[Case], paths: Paths, config: Config, outputs: Outputs, workers: int) -> None:
        self.volumes = by_volume(cases)
        super().__init__([planes[0] for planes in self.volumes.values()], config, workers)
        self.paths, self.outputs, self.planes = paths, outputs, config.augment.planes
        self.augmentation = Augmentation(config.augment)
        self.prepare = INTENSITIES[config.train.intensity]

    def read(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """Return the prepared volume (planes, height, width, 3) and its label (planes, height, width)."""
        planes = self.volumes[case.source]
        label = np.stack([read_label(self.paths.ingest / str(plane.label)) for plane in planes])
        return prepare_volume(self.prepare, read_planes(planes, self.paths)), label

    def cut(self, case: Case, image: np.ndarray, learned: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Return image (planes, h, w, 3) uint8, target (channels, planes, h, w) and valid (planes, h, w)."""
        block, label = draw_known(lambda one: self.augmentation.block(image, learned, self.planes, one), seed)
        made = [make_target(plane, self.outputs.target, len(self.outputs.channels) - 1) for plane in label]
        target = np.stack([planes for planes, _ in made], axis=1)
        return {"image": block, "target": target, "valid": np.stack([valid for _, valid in made])}


def draw_known(
    draw: Callable[[int], tuple[np.ndarray, np.ndarray]], seed: int
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Draw a crop, anew where all of it is unknown: much of a slide can be, and nothing is learned from it."""
    for again in range(DRAWS):
        crop, label = draw((seed + again) % 2**64)
        if (label != IGNORED).any():
            break
    return crop, label


class Segmentation:
    """The network, its loss and its score; the loop in training.py knows no more than this."""

    headline = ("validation_dice", "Dice")

    def __init__(
        self, config: Config, paths: Paths, outputs: Outputs, training: Sequence[Case], validation: Sequence[Case]
    ) -> None:
        self.config = config
        self.paths = paths
        self.outputs = outputs
        self.training = training
        self.validation = validation
        if config.augment.dimensions == 3:
            _refuse_divided_volumes((training, validation), read_cases(paths.cases))
        torch.manual_seed(config.seed)
        self.network = build_network(
            config.train.network, IMAGE_CHANNELS, len(outputs.channels), dimensions=config.augment.dimensions
        )
        self.players = {NETWORK: Player(self.network, config.train.learning_rate)}
        self.loss = build_loss(
            config.train.loss, "softmax" if outputs.activation == "softmax" else "sigmoid", outputs.channels
        )

    def crops(self, workers: int) -> LabelledCrops | Blocks:
        """Return the training crops."""
        if self.config.augment.dimensions == 3:
            return Blocks(self.training, self.paths, self.config, self.outputs, workers)
        return LabelledCrops(self.training, self.paths, self.config, self.outputs, workers, self.network)

    def step(
        self, networks: Mapping[str, nn.Module], batch: dict[str, torch.Tensor], progress: float
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the loss of one batch."""
        logits = whole_batch(networks[NETWORK](as_input(batch["image"])))
        truth = {name: whole_batch(batch[name]) for name in ("target", "valid", "weight") if name in batch}
        yield NETWORK, self.loss(logits, truth["target"], truth["valid"], truth.get("weight"))

    def validate(self, predict: AnyPredictor) -> dict[str, float]:
        """Score whole validation images at moderate thresholds: dice, iou and score (what 'best' means).

        score is the average precision over IoU 0.50 to 0.95 for objects, the Dice otherwise; means over images. An
        image that falls into more objects than a raster holds, as noise does, scores 0 in all three.
        """
        name = "ap" if self.outputs.has_objects else "dice"
        rows = []
        maps_of = CaseMaps(predict, self.paths, self.validation)
        for case in self.validation:
            assert case.label is not None
            maps = maps_of(case)
            try:
                mask = label_raster(maps, self.outputs, Thresholds())
            except TooManyObjects:
                rows.append((0.0, 0.0, 0.0))
                continue
            row = self.outputs.score(read_label(self.paths.ingest / case.label), mask)
            rows.append((row["dice"], row["iou"], row[name]))
        dice, iou, score = np.mean(rows, axis=0).tolist()
        return {"validation_dice": dice, "validation_iou": iou, "validation_score": score}


def _refuse_divided_volumes(parts: Sequence[Sequence[Case]], everything: Sequence[Case]) -> None:
    """Refuse volumes of which other planes are in another part: what lies between is no block, and it would leak."""
    whole = {source: len(planes) for source, planes in by_volume(everything).items()}
    divided = sorted(
        source for part in parts for source, planes in by_volume(part).items() if len(planes) < whole[source]
    )
    if divided:
        raise ValueError(
            f"augment.planes: expected every volume in one part, found planes of {', '.join(divided[:3])} in several; "
            "set split.groups=given, with groups (ingest.group_csv) that hold whole volumes"
        )
