"""What training would refuse whatever the images hold, told from the settings alone."""

from __future__ import annotations

from contextlib import suppress
from functools import reduce
from typing import Any

import torch
from torch import nn

from pipeline import device
from pipeline.config import Config, TrainSettings
from pipeline.inference import check_settings
from pipeline.outputs import Outputs
from pipeline.reconstruction_losses import ReconstructionLoss
from pipeline.records.paths import Paths
from pipeline.tasks.classification import start_of
from pipeline.trained import IMAGE_CHANNELS, build_for

NEEDED_BY = {
    "loss.focal_gamma": "loss.focal",
    "loss.tversky_alpha": "loss.tversky",
    "loss.boundary_weight": "loss.cross_entropy",
    "corruption.hole_side": "corruption.holes",
    "corruption.hole_fill": "corruption.holes",
}
"""Settings of train, and what must be above 0 for them to have an effect."""


def check_task(config: Config, paths: Paths) -> None:
    """Build what would be trained, and look whether it takes a crop; nothing is computed, shapes alone go through.

    Encoder weights are read, or fetched, as training would.
    Raises ValueError for settings without effect, for a device or numbers that are not here, for a network that cannot
    be had, does not take crops of augment.crop or is none of its task, and for settings of predict that it could not be
    used with.
    """
    _refuse_idle(config.train)
    outputs = Outputs.foreseen(config)
    compute, window = device.freeze(config.compute), config.augment.window
    makes_masks = not (outputs.is_image or outputs.is_class)
    check_settings(config.predict, compute.device, makes_masks=makes_masks, window=window, name=f"run {config.run}")
    start = start_of(config, paths) if outputs.is_class else None
    network: nn.Module = build_for(config, outputs, pretrained=True) if start is None else start
    if outputs.is_image:
        ReconstructionLoss(config.train.reconstruction, getattr(network, "kind", "unet"))
    sides = window or (config.augment.crop, config.augment.crop)
    # A network whose shapes depend on values cannot be followed without them; ours refuse by ValueError.
    with torch.inference_mode(), suppress(RuntimeError, NotImplementedError):
        network.eval().to("meta")(torch.empty(1, IMAGE_CHANNELS, *sides, device="meta"))


def _refuse_idle(settings: TrainSettings) -> None:
    def value(of: TrainSettings, name: str) -> Any:
        return reduce(getattr, name.split("."), of)

    default = TrainSettings()
    idle = [
        f"train.{name} has no effect with train.{needed}=0"
        for name, needed in NEEDED_BY.items()
        if value(settings, name) != value(default, name) and not value(settings, needed)
    ]
    if idle:
        raise ValueError("; ".join(idle) + ": leave out")
