"""A class for a whole image: the encoder of any of the networks, its features averaged over the image, and a head."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from pipeline.config import NetworkSettings
from pipeline.networks import Network, build_network
from pipeline.networks.autoencoders import Autoencoder
from pipeline.networks.named import AnySize, Standardised
from pipeline.networks.unet import UNet, enlarged

PROBE = 64
"""Side of the image by which the number of features of an encoder is found."""


class Classifier(nn.Module):
    """Encoder, mean of its features over the image, linear layer; (N, channels, H, W) to logits (N, classes).

    Images in [0, 1], of any size. encoder: gives (N, features, h, w).
    frozen: the encoder keeps its weights and its statistics, and the linear layer alone is trained.
    """

    def __init__(self, encoder: nn.Module, channels: int, classes: int, frozen: bool = False) -> None:
        super().__init__()
        self.encoder = encoder
        self.frozen = frozen
        with torch.inference_mode():
            features = encoder.eval()(torch.zeros(1, channels, PROBE, PROBE)).shape[1]
        self.head = nn.Linear(features, classes)
        for parameter in encoder.parameters():
            parameter.requires_grad_(not frozen)
        self.train()

    def train(self, mode: bool = True) -> Classifier:
        """Switch to training or use; a frozen encoder stays in use, so that its statistics do not move."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the classes."""
        return self.head(self.encoder(image).mean(dim=(2, 3)))


class UNetEncoder(nn.Module):
    """The contracting path and the bottleneck of our U-Net."""

    def __init__(self, network: UNet) -> None:
        super().__init__()
        self.least = network.input_size(1, 1)[0] if not network.padded else 2 ** (network.depth + 1)
        self.encoder, self.pool = network.encoder, network.pool
        self.bottleneck, self.dropout = network.bottleneck, network.dropout

    def forward(self, image: Tensor) -> Tensor:
        """Features (N, width * 2^depth, h, w) of images (N, channels, H, W) in [0, 1]."""
        features = enlarged(image, max(self.least, image.shape[-2]), max(self.least, image.shape[-1]))
        for block in self.encoder:
            features = self.pool(block(features))
        return self.dropout(self.bottleneck(features))


class CodeEncoder(nn.Module):
    """An autoencoder up to its code; of a variational one the mean."""

    def __init__(self, network: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = network
        self.autoencoder.decoder = nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """Code (N, code, h, w) of images (N, channels, H, W) in [0, 1]."""
        code = self.autoencoder.encode(image)
        return code.values if code.mean is None else code.mean


class DeepestFeatures(nn.Module):
    """An encoder of segmentation-models-pytorch, with the colours that its weights expect."""

    def __init__(self, network: AnySize) -> None:
        super().__init__()
        self.name, self.multiple, self.least = network.name, network.multiple, network.least
        inner = cast(Any, network.network)
        if isinstance(inner, Standardised):
            inner.network = cast(nn.Module, inner.network.encoder)
        self.features: nn.Module = inner if isinstance(inner, Standardised) else inner.encoder

    def forward(self, image: Tensor) -> Tensor:
        """Features (N, features, h, w) of images (N, 3, H, W) in [0, 1]."""
        height, width = (max(self.least, -(-side // self.multiple) * self.multiple) for side in image.shape[-2:])
        deepest = self.features(enlarged(image, height, width))[-1]
        if not isinstance(deepest, Tensor) or deepest.ndim != 4:
            raise ValueError(f"{self.name}: expected an encoder that gives maps of features; take another encoder")
        return deepest


def encoder_of(network: nn.Module, name: str) -> nn.Module:
    """Take the encoder out of a network, which is of no use afterwards: (N, channels, H, W) to (N, features, h, w).

    Raises ValueError for networks whose encoder cannot be told from the rest.
    """
    if isinstance(network, Classifier):
        return network.encoder
    if isinstance(network, UNet):
        return UNetEncoder(network)
    if isinstance(network, Autoencoder):
        return CodeEncoder(network)
    if isinstance(network, AnySize) and name.startswith("smp:"):
        return DeepestFeatures(network)
    raise ValueError(
        f"train.network.name: a classification takes the encoder of unet, autoencoder:<kind> or smp:<Architecture>; "
        f"found {name}, whose encoder cannot be told from the rest"
    )


def build_classifier(
    settings: NetworkSettings,
    channels: int,
    classes: int,
    *,
    pretrained: bool = True,
    start: Network | Classifier | None = None,
    frozen: bool = False,
) -> Classifier:
    """Build a classifier on the encoder of the network that the settings name, or of one that is trained already.

    pretrained=False: as in build_network; start: a network of the same settings, which is taken apart.
    """
    network = build_network(settings, channels, 1, pretrained=pretrained) if start is None else start
    return Classifier(encoder_of(network, settings.name), channels, classes, frozen)
