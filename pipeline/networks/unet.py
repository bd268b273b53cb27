"""The U-Net of Ronneberger, Fischer and Brox (2015, arXiv:1505.04597), for images of any size.

Two things differ from the paper's figure: transposed convolutions of kernel 4, stride 2 and padding 1 (no
checkerboard), and an output convolution of 3x3. One channel in, two classes, width 64 and unpadded convolutions give
39,393,410 parameters, 235.07 G multiply-adds at 572x572 and an output of 388x388.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks import Network
from pipeline.networks.inside import Margins, levels_of

Normalisation = Literal["batch", "group", "instance", "none"]

LOST = 4
"""Pixels that an unpadded double convolution takes off each dimension."""
QUARTER_LEVEL = 0.25 / 255.0
"""How far from 0 and 1 an image of 8 bits is taken to stay, so that its logits are finite; rounding gives it back."""


def enlarged(image: Tensor, height: int, width: int) -> Tensor:
    """Pad (N, C, H, W) at the bottom and the right to height x width: mirrored, or the last row and column repeated.

    A mirror image cannot be larger than the image; where it would have to be, edges are repeated.
    """
    below, beside = height - image.shape[-2], width - image.shape[-1]
    if below == 0 and beside == 0:
        return image
    mirrored = below < image.shape[-2] and beside < image.shape[-1]
    return F.pad(image, (0, beside, 0, below), mode="reflect" if mirrored else "replicate")


def _normalisation(kind: Normalisation, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(math.gcd(8, channels), channels)
    if kind == "instance":
        return nn.InstanceNorm2d(channels, affine=True)
    return nn.Identity()


class DoubleConvolution(nn.Sequential):
    """Twice: 3x3 convolution, normalisation, ReLU; the convolutions have a bias only where nothing normalises."""

    def __init__(self, channels: int, outputs: int, padded: bool, normalisation: Normalisation) -> None:
        layers: list[nn.Module] = []
        for inward in (channels, outputs):
            layers += [
                nn.Conv2d(inward, outputs, 3, padding=int(padded), bias=normalisation == "none"),
                _normalisation(normalisation, outputs),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(Network):
    """Encoder, bottleneck and decoder with skips; (N, channels, H, W) float to logits (N, outputs, H', W').

    Padded: margin 0 and H' = ceil(H / stride), for every H and W. Unpadded: `output_size` says; where an image is too
    small, ValueError names the smallest that fits.

    Pooling rounds up and the larger of skip and upsampled map is cropped, never resampled, so that both keep the place
    they were seen at and the label meets the output to the pixel, at odd sizes too.
    A stride of 2^k leaves out the k finest levels of the decoder.
    residual: the image's own logits are added to the output, which starts at zero, so that the network begins as the
    identity and learns a change (He 2016, arXiv:1512.03385); padded, as many outputs as channels, in [0, 1].
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        width: int = 64,
        depth: int = 4,
        padded: bool = True,
        normalisation: Normalisation = "batch",
        dropout: float = 0.0,
        output_stride: int = 1,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if residual and (outputs != channels or not padded or output_stride != 1):
            raise ValueError(
                "train.network.residual: expected an image as output, of the input's size, found "
                f"{outputs} output channels for {channels}, train.network.padded={str(padded).lower()} and "
                f"train.network.output_stride={output_stride}; leave it out for masks and classes"
            )
        finest = output_stride.bit_length() - 1
        if output_stride != 2**finest or finest > depth:
            raise ValueError(
                f"train.network.output_stride: expected a power of 2 up to 2^depth = {2**depth}, found "
                f"{output_stride}; give train.network.depth at least {finest}"
            )
        self.depth, self.padded, self.stride, self.finest = depth, padded, output_stride, finest
        self.cell, self.reach = 2**depth, 7 * 2**depth
        self.residual = residual
        # A norm that is taken over a whole map sees the rim.
        self.spares = padded and output_stride == 1 and normalisation in ("batch", "none")
        self.lost = 0 if padded else LOST
        self.margin = self.lost // 2 * (2 ** (depth + 1) - 1 + 2**depth - output_stride)
        widths = [width * 2**level for level in range(depth + 1)]
        self.encoder = nn.ModuleList(
            DoubleConvolution(inward, outward, padded, normalisation)
            for inward, outward in zip([channels, *widths[:-2]], widths[:-1], strict=True)
        )
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.bottleneck = DoubleConvolution(widths[-2], widths[-1], padded, normalisation)
        self.dropout = nn.Dropout2d(dropout)
        levels = range(depth - 1, finest - 1, -1)
        self.upward = nn.ModuleList(
            nn.ConvTranspose2d(widths[level + 1], widths[level], kernel_size=4, stride=2, padding=1) for level in levels
        )
        self.decoder = nn.ModuleList(
            DoubleConvolution(2 * widths[level], widths[level], padded, normalisation) for level in levels
        )
        self.output = nn.Conv2d(widths[finest], outputs, 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """Draw weights that keep the variance of the features (He 2015, as section 3 of the paper asks)."""
        for module in self.modules():
            if isinstance(module, nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=(4 * module.in_channels) ** -0.5)  # 4 of the 16 taps meet a pixel
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module is self.output else "relu")
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.residual:
            nn.init.zeros_(self.output.weight)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the output for an input of height x width; ValueError where that is too small."""
        if self.padded:
            return -(-height // self.stride), -(-width // self.stride)
        smallest, _ = self.input_size(1, 1)
        if min(height, width) < smallest:
            raise ValueError(
                f"an unpadded U-Net of depth {self.depth} expects images of at least {smallest}x{smallest} pixels, "
                f"found {height}x{width}; use larger crops (augment.crop), train.network.padded=true or a smaller "
                f"train.network.depth"
            )
        return self._output_side(height), self._output_side(width)

    def _output_side(self, side: int) -> int:
        for _ in range(self.depth):
            side = (side - self.lost + 1) // 2
        side -= self.lost
        for _ in range(self.depth - self.finest):
            side = 2 * side - self.lost
        return side

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the smallest input whose output has at least height x width pixels."""
        return self._input_side(height), self._input_side(width)

    def _input_side(self, side: int) -> int:
        if self.padded:
            return (side - 1) * self.stride + 1
        for _ in range(self.depth - self.finest):
            side = (side + self.lost + 1) // 2
        side += self.lost
        for _ in range(self.depth):
            side = 2 * side - 1 + self.lost
        return side

    def forward(self, image: Tensor) -> Tensor:
        """Logits of the output's classes or channels."""
        rows, columns = self.output_size(*image.shape[-2:])
        features = image
        if self.padded:
            # Instance and batch statistics need more than one value a channel at the bottleneck.
            least = 2 ** (self.depth + 1)
            features = enlarged(image, max(least, image.shape[-2]), max(least, image.shape[-1]))
        skips, features = self._encoded(features)
        for level, (upward, block) in enumerate(zip(self.upward, self.decoder, strict=True)):
            skip = skips[self.depth - 1 - level]
            features = block(self._joined(upward(features), skip, level))
        logits = self.output(features)[..., :rows, :columns]
        return logits + torch.logit(image.float(), eps=QUARTER_LEVEL) if self.residual else logits

    def _encoded(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        """The maps that the decoder is shown beside the coarser ones, the finest first, and the coarsest."""
        skips = []
        for block in self.encoder:
            features = block(features)
            skips.append(features)
            features = self.pool(features)
        return skips, self.dropout(self.bottleneck(features))

    def inside(self, image: Tensor, margins: Margins) -> Tensor:
        """Logits with the margins taken off, for which the decoder makes little else.

        Not so where an image is not of whole cells.
        """
        whole = all(side % self.cell == 0 and side >= 2 * self.cell for side in image.shape[-2:])
        if not (whole and self.spares):
            return super().inside(image, margins)
        skips, features = self._encoded(image)
        levels = levels_of(margins, self.depth, last=1, enlarging=1)
        features = levels[0].coarser.of(features)
        for level, upward, block, skip in zip(levels, self.upward, self.decoder, skips[::-1], strict=True):
            larger = level.seen.beyond(level.coarser.magnified(2)).of(upward(features))
            features = level.map.beyond(level.seen).of(block(torch.cat([level.seen.of(skip), larger], dim=1)))
        logits = margins.beyond(levels[-1].map).of(self.output(features))
        return logits + torch.logit(margins.of(image).float(), eps=QUARTER_LEVEL) if self.residual else logits

    def _joined(self, features: Tensor, skip: Tensor, level: int) -> Tensor:
        """Join the upsampled map with the skip, both cropped to what they share; level counts from the bottleneck."""
        # What the double convolutions took off at this and all coarser levels since the skip, in pixels of this level.
        start = self.lost // 2 * (3 * 2 ** (level + 1) - 4)
        height = min(features.shape[-2], skip.shape[-2] - start)
        width = min(features.shape[-1], skip.shape[-1] - start)
        skip = skip[..., start : start + height, start : start + width]
        return torch.cat([skip, features[..., :height, :width]], dim=1)
