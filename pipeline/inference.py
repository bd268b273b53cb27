"""Probability maps of images of any size: tiles, blending, test-time flips; memory bounded by the tile."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn

from pipeline.config import ComputeSettings, PredictSettings
from pipeline.intensity import INTENSITIES, as_input
from pipeline.networks import Network
from pipeline.networks.classifier import Classifier

Orientation = tuple[int, bool]
"""Quarter turns, then whether mirrored left to right."""

FLIPS: dict[str, tuple[Orientation, ...]] = {
    "none": ((0, False),),
    "mirror": ((0, False), (0, True), (2, True)),
    "all": tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4)),
}

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda logits: torch.softmax(logits, dim=1),
    "identity": lambda values: values.clamp(0.0, 1.0),
}


class Predictor:
    """A network with everything that turns one image into probability maps.

    activation: sigmoid (each channel alone), softmax (channels of one pixel sum to 1) or identity (values as they are,
    clipped);
    intensity: the same preparation of the image as in training; border: pixels by which the image is mirrored beyond
    its edges before it is predicted, where the zeros that convolutions see there would show as a frame.
    """

    def __init__(
        self, network: Network, activation: str, intensity: str, settings: PredictSettings, compute: ComputeSettings,
        border: int = 0,
    ) -> None:  # fmt: skip
        self.network, self.border = network, border
        self.activation = ACTIVATIONS[activation]
        self.prepare = INTENSITIES[intensity]
        self.settings = settings
        self.device = torch.device(compute.device)
        self.autocast_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(compute.precision)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return (channels, height, width) float32 in [0, 1] for (height, width, 3) uint8."""
        prepared = self.prepare(image)
        if self.border:
            around = (self.border, self.border)
            prepared = np.pad(prepared, (around, around, (0, 0)), mode="symmetric")
        orientations = FLIPS[self.settings.flips]
        total: np.ndarray | None = None
        for turns, mirrored in orientations:
            turned = np.rot90(prepared, turns)
            probabilities = self._tiled((turned[:, ::-1] if mirrored else turned).copy())
            back = np.rot90(probabilities[:, :, ::-1] if mirrored else probabilities, -turns, axes=(1, 2))
            total = back.copy() if total is None else total + back
        assert total is not None
        height, width = image.shape[:2]
        inside = slice(self.border, self.border + height), slice(self.border, self.border + width)
        return total[:, *inside] / len(orientations)

    def _tiled(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        rows = tile_starts(height, self.settings.tile, self.settings.overlap)
        columns = tile_starts(width, self.settings.tile, self.settings.overlap)
        tile_height, tile_width = min(height, self.settings.tile), min(width, self.settings.tile)
        places = [(row, column) for row in rows for column in columns]
        if len(places) == 1:
            return self._forward(image[np.newaxis])[0]
        window = blending_window(tile_height, tile_width)
        total: np.ndarray | None = None
        weight = np.zeros((height, width), np.float32)
        for batch in _batches(places, self.settings.batch):
            tiles = np.stack([image[row : row + tile_height, column : column + tile_width] for row, column in batch])
            for (row, column), probabilities in zip(batch, self._forward(tiles), strict=True):
                if total is None:
                    total = np.zeros((len(probabilities), height, width), np.float32)
                total[:, row : row + tile_height, column : column + tile_width] += probabilities * window
                weight[row : row + tile_height, column : column + tile_width] += window
        assert total is not None
        return total / weight

    @torch.inference_mode()
    def _forward(self, tiles: np.ndarray) -> np.ndarray:
        """Map (N, height, width, 3) uint8 to (N, channels, height, width) float32, at the tiles' own size."""
        height, width = tiles.shape[1:3]
        margin, stride = self.network.margin, self.network.stride
        input_height, input_width = self.network.input_size(-(-height // stride), -(-width // stride))
        below, right = max(input_height - height - margin, 0), max(input_width - width - margin, 0)
        if margin or below or right:
            tiles = np.pad(tiles, ((0, 0), (margin, below), (margin, right), (0, 0)), mode="symmetric")
        inputs = as_input(torch.from_numpy(tiles).to(self.device))
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            logits = self.network(inputs)
        probabilities = self.activation(logits.float())
        if stride > 1:
            probabilities = nn.functional.interpolate(probabilities, scale_factor=stride, mode="bilinear")
        return probabilities[:, :, :height, :width].cpu().numpy()


class ClassPredictor(Predictor):
    """A classifier with everything that turns images into probabilities of classes."""

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return (classes,) float32 that sum to 1 for (height, width, 3) uint8."""
        return self.classify([image])[0]

    def classify(self, images: Iterable[np.ndarray]) -> np.ndarray:
        """Return (images, classes) float32; images of one size go through together.

        Of an image larger than a tile, tiles that cover it are classified and averaged. Images are taken one by one, so
        that memory holds a few batches of tiles at a time.
        """
        enough = self.settings.batch * self.settings.tile**2
        rows: list[np.ndarray] = []
        waiting: list[np.ndarray] = []
        pixels = 0
        for image in images:
            waiting.append(self.prepare(image))
            pixels += image.shape[0] * image.shape[1]
            if pixels >= enough:
                rows += self._classified(waiting)
                waiting, pixels = [], 0
        return np.stack(rows + self._classified(waiting))

    def _classified(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        alike: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = defaultdict(list)
        side, overlap = self.settings.tile, self.settings.overlap
        for number, image in enumerate(images):
            for row in tile_starts(image.shape[0], side, overlap):
                for column in tile_starts(image.shape[1], side, overlap):
                    tile = image[row : row + side, column : column + side]
                    alike[tile.shape].append((number, tile))
        found: list[list[np.ndarray]] = [[] for _ in images]
        for (height, width, _), tiles in alike.items():
            together = max(1, self.settings.batch * side**2 // (height * width))
            for start in range(0, len(tiles), together):
                batch = tiles[start : start + together]
                probabilities = self._of_tiles(np.stack([tile for _, tile in batch]))
                for (number, _), own in zip(batch, probabilities, strict=True):
                    found[number].append(own)
        return [np.mean(own, axis=0) for own in found]

    @torch.inference_mode()
    def _of_tiles(self, tiles: np.ndarray) -> np.ndarray:
        """Map (N, height, width, 3) uint8 to (N, classes) float32, the mean over the flips."""
        orientations = FLIPS[self.settings.flips]
        total = torch.zeros(())
        for turns, mirrored in orientations:
            turned = np.rot90(tiles, turns, axes=(1, 2))
            turned = np.ascontiguousarray(turned[:, :, ::-1] if mirrored else turned)
            with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
                logits = self.network(as_input(torch.from_numpy(turned).to(self.device)))
            total = total + self.activation(logits.float()).cpu()
        return (total / len(orientations)).numpy()


def predictor_of(
    network: nn.Module, activation: str, intensity: str, settings: PredictSettings, compute: ComputeSettings,
    border: int = 0,
) -> Predictor:  # fmt: skip
    """Return the predictor of a network: of probabilities of classes for a classifier, else of maps."""
    kind = ClassPredictor if isinstance(network, Classifier) else Predictor
    return kind(cast(Network, network), activation, intensity, settings, compute, border)


def tile_starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of equally spaced tiles that cover a length; neighbours overlap by at least the share."""
    if length <= tile:
        return [0]
    count = int(np.ceil((length - tile) / (tile * (1 - overlap)))) + 1
    return [int(start) for start in np.rint(np.linspace(0, length - tile, count))]


def blending_window(height: int, width: int) -> np.ndarray:
    """Weights (height, width) float32 that fall to the edges (a raised cosine), never to 0, so that no seam shows."""

    def side(length: int) -> np.ndarray:
        return np.sin(np.pi * (np.arange(length) + 0.5) / length) ** 2 + 1e-3

    return np.outer(side(height), side(width)).astype(np.float32)


def _batches(places: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]
