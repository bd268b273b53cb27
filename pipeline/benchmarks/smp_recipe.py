"""The recipe of segmentation-models-pytorch's own examples: float32, a DataLoader, DiceLoss and Adam, as they come.

Images are read from their files each time, as there; the augmentation, of which those examples have none, is a random
crop and flips. Nothing of the pipeline takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler

LEARNING_RATE = 2e-4
CASES = "data/ingest/fields"
DRAWN = 10**6
"""Samples of one epoch: loaders are started once, as an epoch of a large data set would."""


class Crops(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A random crop of an image, (3, crop, crop) float32 in [0, 1], and its mask, (1, crop, crop) float32."""

    def __init__(self, folder: Path, crop: int) -> None:
        self.images, self.labels = (sorted((folder / name).iterdir()) for name in ("images", "labels"))
        self.crop = crop

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = (cv2.imread(str(files[index]), cv2.IMREAD_UNCHANGED) for files in (self.images, self.labels))
        assert image is not None and label is not None
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        mask = np.greater(label, 0).astype(np.float32)
        top, left = (int(torch.randint(length - self.crop + 1, ())) for length in mask.shape)
        window = np.s_[top : top + self.crop, left : left + self.crop]
        image, mask = image[window], mask[window]
        for axis in (0, 1):
            if torch.rand(()) < 0.5:
                image, mask = np.flip(image, axis), np.flip(mask, axis)
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(planes).float() / 255.0, torch.from_numpy(np.ascontiguousarray(mask)).unsqueeze(0)


class Recipe:
    """So many steps at each call."""

    def __init__(self, network: dict[str, Any], crops: Crops, batch: int, steps: int, workers: int) -> None:
        self.network = smp.create_model(
            network["name"].partition(":")[2], in_channels=3, classes=1, **network["arguments"]
        ).train()
        self.mean, self.deviation = (
            torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        self.loss = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)
        self.optimiser = torch.optim.Adam(self.network.parameters(), lr=LEARNING_RATE)
        sampler = RandomSampler(crops, replacement=True, num_samples=DRAWN)
        self.ahead = 2 * workers  # what a DataLoader makes ahead unless told otherwise
        self.batches = iter(DataLoader(crops, batch, sampler=sampler, num_workers=workers))
        self.steps = steps
        self.last_loss = float("nan")

    def __call__(self) -> None:
        """Take the steps of one pass."""
        for _ in range(self.steps):
            images, masks = next(self.batches)
            self.optimiser.zero_grad()
            loss = self.loss(self.network((images - self.mean) / self.deviation), masks)
            loss.backward()
            self.optimiser.step()
            self.last_loss = loss.item()

    def settle(self) -> None:
        """Use up the batches that loaders made while others had their turn."""
        for _ in range(self.ahead):
            next(self.batches)


def prepare(
    root: str, network: dict[str, Any], batch: int, crop: int, steps: int, threads: int
) -> Callable[[], object]:
    """Return what takes so many steps a pass, with a loader process a thread, as the examples take one a core."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    return Recipe(network, Crops(Path(root) / CASES, crop), batch, steps, workers=threads)


def versions() -> str:
    """Say which versions take part."""
    return ", ".join(f"{name} {metadata.version(name)}" for name in ("segmentation-models-pytorch", "timm", "torch"))
