"""Maps of the inside of a window: decoders of U-Nets make what it needs, and not the window's rim.

Windows overlap because coarse levels see far; fine levels, which cost most, see a few pixels. What comes out is what
the whole window's map shows there.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor, nn

Maps = TypeVar("Maps", Tensor, np.ndarray)

CONVOLUTIONS = 2
"""Pixels that the two 3x3 convolutions of a decoder's level look to each side."""


class Margins(NamedTuple):
    """Pixels taken off at the sides of a map."""

    top: int = 0
    bottom: int = 0
    left: int = 0
    right: int = 0

    def of(self, maps: Maps) -> Maps:
        """What is left of (..., height, width), a tensor or an array."""
        height, width = maps.shape[-2:]
        return maps[..., self.top : height - self.bottom, self.left : width - self.right]

    def beyond(self, other: Margins) -> Margins:
        """What is to be taken off where another's is off already."""
        return Margins(*(own - off for own, off in zip(self, other, strict=True)))

    def smaller(self, pixels: int, cell: int = 1) -> Margins:
        """So many pixels less at each side, down to a multiple of cell; at least 0."""
        return Margins(*(max(side - pixels, 0) // cell * cell for side in self))

    def magnified(self, scale: float) -> Margins:
        """The same on a map that is so much larger, rounded down."""
        return Margins(*(int(side * scale) for side in self))

    def turned(self, turns: int, mirrored: bool) -> Margins:
        """The same on a map that is turned to the left by quarters, then mirrored left to right."""
        top, bottom, left, right = self
        for _ in range(turns):
            top, bottom, left, right = right, left, top, bottom
        return Margins(top, bottom, *((right, left) if mirrored else (left, right)))


NO_MARGINS = Margins()


class Level(NamedTuple):
    """What may be left out at one level of a decoder: of its map, of what its convolutions see, of the coarser map."""

    map: Margins
    seen: Margins
    coarser: Margins


def levels_of(margins: Margins, depth: int, last: int, enlarging: int = 0) -> list[Level]:
    """Find what a decoder of double convolutions may leave out, the coarsest level first.

    last: pixels that the layers after the decoder look to each side; enlarging: pixels of the coarser map that the way
    to twice its size looks to each side.
    """
    levels: list[Level] = []
    off = margins.smaller(last)
    for _ in range(depth):
        seen = off.smaller(CONVOLUTIONS, 2)
        levels.append(Level(off, seen, seen.magnified(0.5).smaller(enlarging)))
        off = levels[-1].coarser
    return levels[::-1]


def decodes_inside(network: nn.Module) -> bool:
    """Whether a network is a U-Net of segmentation-models-pytorch whose decoder sees no more than its convolutions do.

    Attention and norms over a whole map, other ways to enlarge one, and encoders that leave out levels are none.
    """
    import segmentation_models_pytorch as smp

    if not isinstance(network, smp.Unet) or network.classification_head is not None:
        return False
    blocks = list(network.decoder.blocks)
    local = (nn.Conv2d, nn.BatchNorm2d, nn.Identity, nn.ReLU)
    leaves = [module for module in network.decoder.modules() if not list(module.children())]
    return (
        all(isinstance(leaf, local) for leaf in leaves)
        and all(block.interpolation_mode == "nearest" for block in blocks)
        and network.encoder.output_stride == 2 ** len(blocks)
    )


def decode_inside(network: Any, image: Tensor, margins: Margins) -> Tensor:
    """Logits of a network that decodes_inside, of an image of whole cells, with the margins taken off."""
    features = network.encoder(image)
    decoder, head = network.decoder, network.segmentation_head
    levels = levels_of(margins, len(decoder.blocks), head[0].kernel_size[0] // 2)
    maps = levels[0].coarser.of(decoder.center(features[-1]))
    for level, block, skip in zip(levels, decoder.blocks, features[-2::-1], strict=True):
        height, width = maps.shape[-2:]
        # The finest of the features is the image itself, which no level is shown.
        skip = None if skip is features[0] else level.seen.of(skip)
        maps = block(maps, 2 * height, 2 * width, skip_connection=skip)
        maps = level.map.beyond(level.seen).of(maps)
    return margins.beyond(levels[-1].map).of(head(maps))
