"""Depthwise convolutions that train in float32 where the rest of the network is in bf16 on a CPU.

The backward pass of PyTorch's bf16 kernels is slow for them: a training step of an EfficientNet-Lite0 U-Net takes 1.28
times as long with them. Forward alone they are the faster ones, so that in use nothing changes.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn


def train_depthwise_in_float32(network: nn.Module) -> None:
    """Let every convolution of more than one group do so; weights, their names and the network in use stay the same."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.__class__ = _in_float32(type(module))  # type: ignore[arg-type]


@cache
def _in_float32(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    # A class rather than a function on the module: a copy of the network would go on calling the original's.
    class TrainedInFloat32(kind):  # type: ignore[misc, valid-type]
        def forward(self, image: Tensor) -> Tensor:
            device = image.device.type
            if not (self.training and torch.is_autocast_enabled(device)):
                return super().forward(image)
            with torch.autocast(device, enabled=False):
                features: Tensor = super().forward(image.float())
            return features.to(torch.get_autocast_dtype(device))

    return TrainedInFloat32
