"""The discriminator of patches and the adversarial loss of Isola, Zhu, Zhou and Efros (2017, arXiv:1611.07004).

The generator is the U-Net with three outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.networks.unet import Normalisation, _normalisation

WIDEST = 8
"""Widths double from level to level, up to so many times the first."""
SLOPE = 0.2
"""Of the leaky ReLU, below 0."""

OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": F.binary_cross_entropy_with_logits,
    "squared": F.mse_loss,
}
"""How far logits are from 1 (real) or 0 (generated)."""


class PatchDiscriminator(nn.Module):
    """Tell whether a patch of `output` is real, given the same patch of `image`: one logit a patch.

    (N, channels, H, W) and (N, outputs, H, W), both in [0, 1], to (N, 1, h, w); depth 3 sees patches of 70x70 pixels.
    Convolutions of kernel 4: `depth` of stride 2, two of stride 1, the last to the logit; normalised but for the first
    and the last. Instance norm by default: real and generated images, and the processes of a distributed run, share no
    statistics; batch is the paper's. Weights are drawn from N(0, 0.02).
    """

    def __init__(
        self,
        channels: int = 3,
        outputs: int = 3,
        width: int = 64,
        depth: int = 3,
        normalisation: Normalisation = "instance",
    ) -> None:
        super().__init__()
        self.depth = depth
        widths = [channels + outputs] + [width * min(2**level, WIDEST) for level in range(depth + 1)]
        layers: list[nn.Module] = []
        for level, (inward, outward) in enumerate(itertools.pairwise(widths)):
            kind: Normalisation = normalisation if level else "none"
            stride = 2 if level < depth else 1
            layers += [
                nn.Conv2d(inward, outward, 4, stride, padding=1, bias=kind == "none"),
                _normalisation(kind, outward),
                nn.LeakyReLU(SLOPE, inplace=True),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm | nn.InstanceNorm2d):
                nn.init.normal_(cast(Tensor, module.weight), mean=1.0, std=0.02)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of logits for images of height x width; ValueError where they are too small for one."""
        rows, columns = (side // 2**self.depth - 2 for side in (height, width))
        if min(rows, columns) < 1:
            least = 3 * 2**self.depth
            raise ValueError(
                f"a discriminator of depth {self.depth} expects images of at least {least}x{least} pixels, found "
                f"{height}x{width}; use larger crops (augment.crop) or a smaller train.translation.depth"
            )
        return rows, columns

    def forward(self, image: Tensor, output: Tensor) -> Tensor:
        """Logits of the patches: above 0 where `output` looks like a real counterpart of `image`."""
        self.output_size(*image.shape[-2:])
        return self.layers(2 * torch.cat([image, output], dim=1) - 1)


class AdversarialLoss:
    """What the discriminator and the generator pay; scalars, float32 under autocast too.

    objective cross_entropy: -log D for what should pass for real (the paper; the generator's is the non-saturating
    form); squared: the squared distance of the logit from 1 for real and 0 for generated (Mao 2017, arXiv:1611.04076).
    """

    def __init__(self, objective: Literal["cross_entropy", "squared"]) -> None:
        self.distance = OBJECTIVES[objective]

    def discriminator(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Half the sum over real and generated patches, each a mean (section 3.3: D learns at half speed)."""
        return 0.5 * (self._from(real_logits, 1.0) + self._from(fake_logits, 0.0))

    def generator(self, fake_logits: Tensor) -> Tensor:
        """Mean over the generated patches, which should pass for real."""
        return self._from(fake_logits, 1.0)

    def _from(self, logits: Tensor, wanted: float) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            return self.distance(logits, torch.full_like(logits, wanted))
