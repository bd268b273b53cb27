"""Classification: crops in, logits of the classes out; validated by whole images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from pipeline.augmentation import Augmentation
from pipeline.config import Config
from pipeline.inference import ClassPredictor, Predictor
from pipeline.intensity import INTENSITIES, as_input
from pipeline.metrics.classification import class_scores
from pipeline.networks import Network
from pipeline.networks.classifier import Classifier, build_classifier
from pipeline.outputs import Outputs
from pipeline.records.case import Case
from pipeline.records.paths import Paths
from pipeline.records.rasters import read_image
from pipeline.tasks.crops import Crops, draw_weights
from pipeline.tasks.players import NETWORK, Player
from pipeline.trained import IMAGE_CHANNELS, open_run


class ClassifiedCrops(Crops):
    """Crops of images with their class; train.balance evens out classes, where other tasks have strata."""

    def __init__(self, cases: Sequence[Case], paths: Paths, config: Config, outputs: Outputs, workers: int) -> None:
        super().__init__(cases, config, workers)
        self.weights = draw_weights([case.class_name for case in self.cases], config.train.balance)
        self.paths = paths
        self.outputs = outputs
        self.augmentation = Augmentation(config.augment)
        self.prepare = INTENSITIES[config.train.intensity]

    def read(self, case: Case) -> tuple[np.ndarray, np.ndarray]:
        """Return the prepared image and the number of its class."""
        return self.prepare(read_image(self.paths.image(case.image))), np.array([class_number(case, self.outputs)])

    def cut(self, case: Case, image: np.ndarray, learned: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """Return image (h, w, 3) uint8 and class (1,), a number."""
        crop, _ = self.augmentation(image, np.zeros(image.shape[:2], np.uint16), seed)
        return {"image": crop, "class": learned}


class Classification:
    """An encoder with a linear head, its loss and its score; the loop in training.py knows no more than this."""

    headline = ("validation_auc", "AUC")

    def __init__(
        self, config: Config, paths: Paths, outputs: Outputs, training: Sequence[Case], validation: Sequence[Case]
    ) -> None:
        self.config = config
        self.paths = paths
        self.outputs = outputs
        self.training = training
        self.validation = validation
        start = start_of(config, paths)
        torch.manual_seed(config.seed)
        self.network = build_classifier(
            config.train.network, IMAGE_CHANNELS, len(outputs.channels), start=start,
            frozen=config.train.classification.frozen,
        )  # fmt: skip
        self.players = {NETWORK: Player(self.network, config.train.learning_rate)}
        self.weights = class_weights(training, outputs, config.train.classification.class_weight)

    def crops(self, workers: int) -> ClassifiedCrops:
        """Return the training crops."""
        return ClassifiedCrops(self.training, self.paths, self.config, self.outputs, workers)

    def step(
        self, networks: Mapping[str, nn.Module], batch: dict[str, torch.Tensor], progress: float
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the loss of one batch: the cross-entropy, each image by the weight of its class."""
        logits = networks[NETWORK](as_input(batch["image"])).float()
        truth = batch["class"].flatten()
        losses = nn.functional.cross_entropy(logits, truth, reduction="none")
        yield NETWORK, (losses * self.weights.to(logits.device)[truth]).mean()

    def validate(self, predict: Predictor) -> dict[str, float]:
        """Score whole validation images: auc (which decides what is best), balanced_accuracy and accuracy."""
        images = (read_image(self.paths.image(case.image)) for case in self.validation)
        probabilities = cast(ClassPredictor, predict).classify(images)
        truth = np.array([class_number(case, self.outputs) for case in self.validation])
        scores = class_scores(truth, probabilities)
        assert scores["auc"] is not None
        return {f"validation_{name}": float(value or 0.0) for name, value in scores.items()} | {
            "validation_score": scores["auc"]
        }


def class_number(case: Case, outputs: Outputs) -> int:
    """The place of a case's class among the outputs."""
    return outputs.channels.index(str(case.class_name))


def class_weights(cases: Sequence[Case], outputs: Outputs, power: float) -> torch.Tensor:
    """Weight of each class: its share of the cases to the power of minus this, so that the mean over cases is 1."""
    counts = Counter(str(case.class_name) for case in cases)
    shares = np.array([max(counts[name], 1) for name in outputs.channels], np.float64) / len(cases)
    weights = shares**-power
    return torch.tensor(weights / (weights * shares).sum(), dtype=torch.float32)


def start_of(config: Config, paths: Paths) -> Network | Classifier | None:
    """The trained network that the settings start from, None where they name none.

    Raises ValueError where it is another than they describe, and where a frozen encoder was never trained.
    """
    settings = config.train.classification
    wanted = config.train.network
    if settings.start is None:
        if settings.frozen and wanted.arguments.get("encoder_weights") is None:
            raise ValueError(
                "train.classification.frozen: expected an encoder that was trained already, found random weights; name "
                "a run with train.classification.start, or pretrained weights with train.network.arguments."
                "encoder_weights"
            )
        return None
    trained = open_run(paths.run_folder(settings.start))
    found = trained.config.train.network
    different = [
        f"{name} {getattr(wanted, name)!r} (the run has {getattr(found, name)!r})"
        for name in type(wanted).model_fields
        # What is added to an image that is made is no part of the encoder.
        if getattr(wanted, name) != getattr(found, name) and name != "residual"
    ]
    if different:
        raise ValueError(
            f"train.network: expected the network of {trained.folder}, which train.classification.start names, found "
            f"{', '.join(different)}; copy train.network of {trained.folder / 'config.yaml'} into the settings, "
            "without residual"
        )
    return trained.network()
