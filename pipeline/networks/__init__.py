"""Networks by name: the U-Net and the autoencoders of this project, and any of segmentation-models-pytorch and MONAI.

All keep the contract of `Network`. `pipeline.targets.fit_target` brings a target to the place of the output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipeline.config import NetworkSettings
from pipeline.networks.inside import Margins


class Network(nn.Module):
    """Images to logits; every height and width will do.

    Takes (N, channels, H, W) float in [0, 1], gives (N, outputs, *output_size(H, W)).
    margin, stride: output pixel (i, j) belongs to the image's rows margin + i * stride up to margin + (i + 1) * stride,
    columns alike.
    cell: pixels of the image along one side of a place of the coarsest level; reach: pixels, a multiple of cell, beyond
    which what the image shows changes an output no more (or hardly, where a network's reach is not known).
    spares: whether `inside` makes little beside what is wanted.
    dimensions: 3 where it takes volumes, (N, channels, planes, H, W), and gives (N, outputs, planes, H, W).
    """

    dimensions: int = 2
    margin: int = 0
    stride: int = 1
    cell: int = 1
    reach: int = 0
    spares: bool = False

    def inside(self, image: Tensor, margins: Margins) -> Tensor:
        """Logits of an image with the margins taken off, pixels of the image; of networks of margin 0 and stride 1.

        Networks that need not make what is taken off do so here, and say it by `spares`.
        """
        return margins.of(self(image))

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output for an input of height x width pixels."""
        return height, width

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the smallest input whose output has at least height x width pixels."""
        return height, width


def _unet(settings: NetworkSettings, channels: int, outputs: int, pretrained: bool) -> Network:
    from pipeline.networks.unet import UNet

    if settings.arguments:
        raise ValueError(
            f"train.network.arguments: expected none for unet, found {', '.join(settings.arguments)}; unet is set by "
            f"width, depth, padded, normalisation, dropout, output_stride and residual"
        )
    _refuse_settings(settings, ("code",), "autoencoders")
    return UNet(
        channels, outputs, settings.width, settings.depth, settings.padded, settings.normalisation, settings.dropout,
        settings.output_stride, settings.residual,
    )  # fmt: skip


def _autoencoder(settings: NetworkSettings, channels: int, outputs: int, pretrained: bool) -> Network:
    from pipeline.networks.autoencoders import KINDS, Autoencoder
    from pipeline.networks.named import unknown

    kind = next((kind for kind in KINDS if settings.name == f"autoencoder:{kind}"), None)
    if kind is None:
        raise ValueError(unknown("train.network.name", settings.name, [f"autoencoder:{known}" for known in KINDS]))
    if settings.arguments:
        raise ValueError(
            f"train.network.arguments: expected none for {settings.name}, found {', '.join(settings.arguments)}; "
            f"autoencoders are set by width, depth, code, normalisation and dropout"
        )
    _refuse_settings(settings, ("padded", "output_stride", "residual"), "unet")
    if kind == "linear":
        _refuse_settings(settings, ("width", "normalisation", "dropout"), "the other autoencoders and unet")
    return Autoencoder(
        kind, channels, outputs, settings.width, settings.depth, settings.code, settings.normalisation,
        settings.dropout,
    )  # fmt: skip


def _refuse_settings(settings: NetworkSettings, names: tuple[str, ...], owners: str, instead: str = "") -> None:
    fields = NetworkSettings.model_fields
    given = [name for name in names if getattr(settings, name) != fields[name].default]
    if given:
        raise ValueError(
            f"train.network.name {settings.name}: {', '.join(given)} belong to {owners} and would have no effect; "
            f"leave them out{instead}"
        )


def _refuse_own_settings(settings: NetworkSettings) -> None:
    instead = f", and put what {settings.name} takes under train.network.arguments"
    own = ("width", "depth", "padded", "normalisation", "dropout", "output_stride", "residual")
    _refuse_settings(settings, own, "unet", instead)
    _refuse_settings(settings, ("code",), "autoencoders", instead)


def _smp(settings: NetworkSettings, channels: int, outputs: int, pretrained: bool) -> Network:
    from pipeline.networks.named import build_smp

    _refuse_own_settings(settings)
    return build_smp(settings.name.partition(":")[2], channels, outputs, settings.arguments, pretrained)


def _monai(settings: NetworkSettings, channels: int, outputs: int, pretrained: bool) -> Network:
    from pipeline.networks.named import build_monai

    _refuse_own_settings(settings)
    return build_monai(settings.name.partition(":")[2], channels, outputs, settings.arguments, pretrained)


NETWORKS: dict[str, Callable[[NetworkSettings, int, int, bool], Network]] = {
    "unet": _unet,
    "autoencoder": _autoencoder,
    "smp": _smp,
    "monai": _monai,
}

EXAMPLES = ("unet", "autoencoder:convolutional", "smp:Unet", "smp:DeepLabV3Plus", "monai:BasicUNet")


def build_network(
    settings: NetworkSettings, channels: int, outputs: int, *, pretrained: bool = True, dimensions: int = 2
) -> Network:  # fmt: skip
    """Build a network for images of so many channels and so many output channels or classes.

    pretrained=False starts from random weights whatever the settings say, for a network whose checkpoint follows.
    dimensions: 3 for volumes, which MONAI's networks alone take.
    Raises ValueError naming the setting that cannot be used and what is near it.
    """
    family, colon, name = settings.name.partition(":")
    if family not in NETWORKS or bool(colon) != (family != "unet") or (colon and not name):
        from pipeline.networks.named import unknown

        raise ValueError(
            unknown("train.network.name", settings.name, EXAMPLES)
            + " (unet, autoencoder:<kind>, smp:<Architecture> or monai:<Network>)"
        )
    if dimensions == 3:
        if family != "monai":
            raise ValueError(f"train.network.name: expected monai:<Network> for volumes, found {settings.name}")
        _refuse_own_settings(settings)
        from pipeline.networks.named import build_monai

        return build_monai(name, channels, outputs, settings.arguments, pretrained, dimensions)
    return NETWORKS[family](settings, channels, outputs, pretrained)


def summary(
    settings: NetworkSettings,
    channels: int,
    outputs: int,
    height: int,
    width: int,
    build: Callable[..., nn.Module] = build_network,
    planes: int = 1,
) -> str:
    """Table of the layers with parameters and multiply-adds for one image of height x width, as torchinfo counts them.

    build: build_network, or build_classifier for its encoder with a head; planes: more than one of a volume. Nothing is
    computed: shapes alone travel through the network.
    """
    import torchinfo

    volumes = {"dimensions": 3} if planes > 1 else {}
    network = build(settings, channels, outputs, pretrained=False, **volumes).to("meta").eval()
    sides = (planes, height, width) if planes > 1 else (height, width)
    table = torchinfo.summary(
        network,
        input_data=torch.empty(1, channels, *sides, device="meta"),
        device="meta",
        depth=2,
        col_names=("output_size", "num_params", "mult_adds"),
        verbose=0,
    )
    text = str(table)
    for unit, letter in {"TERA": "T", "GIGA": "G", "MEGA": "M", "KILO": "k"}.items():
        text = text.replace(f"(Units.{unit}BYTES)", f"({letter})")  # torchinfo prints its enum's name
    return text
