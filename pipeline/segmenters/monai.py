"""The recipe of MONAI's 2-D U-Net tutorial (unet_training_dict), its foreground cut into connected components.

Residual U-Net of 16, 32, 64, 128 and 256 channels, DiceLoss, Adam 1e-3, two images of four crops a step, half of them
about foreground, random quarter turns, the weights with the best validation Dice, sliding windows. The tutorial's crops
are three quarters of its images' side; so are these of the most common one. Its colour images have three channels here.
"""

from __future__ import annotations

import copy
import itertools
import time
from typing import Any

import numpy as np
import torch
from monai.data import DataLoader, Dataset, list_data_collate
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    RandCropByPosNegLabeld,
    RandRotate90d,
    ScaleIntensityd,
    SpatialPadd,
)
from monai.utils import set_determinism

from pipeline.segmenters.trial import Trial, connected, foreground_settings, run

CROP = (192, 192)
IMAGES, CROPS, LEARNING_RATE, VALIDATIONS, WINDOWS = 2, 4, 1e-3, 8, 4
KEYS = ("img", "seg")


def segment(trial: Trial) -> None:
    """Train, choose threshold and smallest object, and write the masks."""
    set_determinism(trial.seed)
    torch.set_num_threads(trial.threads)
    prepare = [
        EnsureChannelFirstd("img", channel_dim=-1),
        EnsureChannelFirstd("seg", channel_dim="no_channel"),
        ScaleIntensityd("img"),
    ]
    augment = [
        SpatialPadd(KEYS, spatial_size=CROP),
        RandCropByPosNegLabeld(KEYS, label_key="seg", spatial_size=CROP, pos=1, neg=1, num_samples=CROPS),
        RandRotate90d(KEYS, prob=0.5, spatial_axes=(0, 1)),
    ]
    as_input = Compose(prepare)
    loader = DataLoader(
        Dataset(entries(trial, "train"), Compose([*prepare, *augment])), batch_size=IMAGES, shuffle=True,
        collate_fn=list_data_collate,
    )  # fmt: skip
    validation = [as_input(entry) for entry in entries(trial, "validation")]
    model = UNet(
        spatial_dims=2, in_channels=3, out_channels=1, channels=(16, 32, 64, 128, 256), strides=(2, 2, 2, 2),
        num_res_units=2,
    )  # fmt: skip
    loss_function, metric = DiceLoss(sigmoid=True), DiceMetric(include_background=True, reduction="mean")
    batches = itertools.chain.from_iterable(iter(lambda: loader, None))

    def step(network: torch.nn.Module, optimiser: torch.optim.Optimizer) -> None:
        network.train()
        batch = next(batches)
        optimiser.zero_grad()
        loss_function(network(batch["img"]), batch["seg"]).backward()
        optimiser.step()

    @torch.inference_mode()
    def foreground(image: Any) -> Any:
        model.eval()
        found = sliding_window_inference(image.unsqueeze(0), CROP, WINDOWS, model)
        return torch.as_tensor(found).sigmoid()[0]

    def dice() -> float:
        metric.reset()
        for entry in validation:
            metric((foreground(entry["img"]) > 0.5).unsqueeze(0), entry["seg"].unsqueeze(0))
        return float(torch.as_tensor(metric.aggregate()))

    started = time.perf_counter()
    dice()
    validations_s = VALIDATIONS * (time.perf_counter() - started)
    spare = copy.deepcopy(model)
    spare_optimiser = torch.optim.Adam(spare.parameters(), LEARNING_RATE)
    steps = trial.steps_that_fit(lambda: step(spare, spare_optimiser), validations_s)
    optimiser = torch.optim.Adam(model.parameters(), LEARNING_RATE)
    validated = {round(steps * (one + 1) / VALIDATIONS) for one in range(VALIDATIONS)}
    best, weights = -1.0, copy.deepcopy(model.state_dict())
    with trial.clock("trained"):
        for number in range(1, steps + 1):
            step(model, optimiser)
            if number in validated:
                score = dice()
                trial.say(f"step {number}: validation Dice {score:.4f}")
                if score > best:
                    best, weights = score, copy.deepcopy(model.state_dict())
    model.load_state_dict(weights)
    maps = [foreground(entry["img"])[0].numpy() for entry in validation]
    chosen = trial.choose(foreground_settings(), lambda at, setting: connected(maps[at], **setting))

    def objects(image: np.ndarray) -> np.ndarray:
        entry = as_input({"img": image, "seg": image[..., 0]})
        return connected(foreground(entry["img"])[0].numpy(), **chosen)

    trial.write_masks(objects)


def entries(trial: Trial, part: str) -> list[dict[str, np.ndarray]]:
    """Return image and foreground of every case of a part, as the transforms take them."""
    return [
        {"img": image, "seg": (label > 0).astype(np.float32)} for image, label in zip(*trial.pairs(part), strict=True)
    ]


if __name__ == "__main__":
    run(segment, ("monai", "torch", "numpy"))
