"""Maps of images of any size, of probabilities or of colours: tiles, blending, flips; memory bounded by the tile."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import product
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import nn

from pipeline.config import ComputeSettings, PredictSettings
from pipeline.engines import check_engine, forward_of
from pipeline.intensity import INTENSITIES, as_input
from pipeline.networks import Network
from pipeline.networks.autoencoders import Autoencoder
from pipeline.networks.classifier import Classifier
from pipeline.networks.inside import NO_MARGINS, Margins
from pipeline.tiling import Side, seamless_side, tile_starts, whole_cells

Place = tuple[int, int]
"""Row and column of a window in a larger image."""
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

INSIDE = 1.25
"""Pixels that the memory for one has room for, of a window whose rim is left out (2144 of 2,048, OpenVINO, float32)."""
RESIZED = 2
"""Pixels of a map of another magnification that are looked at beyond what is wanted when it is brought back."""
IMAGE_BORDER = 16
"""Pixels by which images are mirrored at their edges before a network makes another image of them."""


class Predictor:
    """A network with everything that turns one image into probability maps, or into another image.

    activation: sigmoid (each channel alone), softmax (channels of one pixel sum to 1) or identity (values as they are,
    clipped);
    intensity: the same preparation of the image as in training; border: 0 for maps, and for a network that makes images
    the pixels by which an image is mirrored beyond its edges, where the zeros that convolutions see there would show as
    a frame; name: of the network, in errors; directions: the channels that point down and right (0 to 1 for -1 to 1),
    which turn with the image, None where there are none.

    What comes out does not depend on the tiles: they begin at multiples of Network.cell, and what lies nearer to an
    inner edge than Network.reach has no weight; a tile is larger than settings.tile by that reach on every side. What
    is drawn at random (a variational code in use as a sample) depends on the image's pixels alone.
    """

    def __init__(
        self, network: Network, activation: str, intensity: str, settings: PredictSettings, compute: ComputeSettings,
        border: int = 0, name: str = "the network", directions: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        self.network, self.border, self.name, self.directions = network, border, name, directions
        self.activation = ACTIVATIONS[activation]
        self.prepare: Callable[[np.ndarray], np.ndarray] = INTENSITIES[intensity]
        self.settings = settings
        self.device = torch.device(compute.device)
        self.precision = compute.precision
        self.forward = forward_of(network, settings.engine, compute)

    def __call__(self, image: np.ndarray, off: Margins = NO_MARGINS, at: Place = (0, 0)) -> np.ndarray:
        """Return (channels, height, width) float32 in [0, 1] for (height, width, 3) uint8.

        off: what is seen and not wanted; the maps are those of the image with these margins taken off. at: row and
        column where a window lies in a larger image, so that it is seen as there; at a magnification, where it lies and
        how large it is should be whole pixels (see `grid_of`).
        Raises ValueError where a network that makes images gives values that are no numbers.
        """
        prepared = self.prepare(image)
        made = average(off.of(self._magnified(prepared, scale, off, at)) for scale in self.settings.scales)
        if self.border and not np.isfinite(made).all():
            raise ValueError(
                f"{self.name}: expected an image of numbers, found {int((~np.isfinite(made)).sum())} of {made.size} "
                f"values that are none; the weights are broken, or too large for compute.precision "
                f"({self.precision}): take compute.precision=fp32, or train again"
            )
        return made

    def _magnified(self, image: np.ndarray, scale: float, off: Margins, at: Place) -> np.ndarray:
        """Map the image as it looks that much larger, and bring the maps back to its size; 0 where nothing is made."""
        if scale == 1.0:
            return self._flipped(image, off, at)
        height, width = image.shape[:2]
        # To whole pixels at both sizes: by any other end a window would be magnified otherwise than the image it is of.
        more = [whole_cells(side, grid_of([scale])) - side for side in (height, width)]
        image = np.pad(image, ((0, more[0]), (0, more[1]), (0, 0)), mode="symmetric")
        size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        seen = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        place = round(at[0] * scale), round(at[1] * scale)
        maps = self._flipped(seen, off.magnified(scale).smaller(RESIZED), place)
        back = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
        whole = image.shape[1], image.shape[0]
        return np.stack([cv2.resize(plane, whole, interpolation=back)[:height, :width] for plane in maps])

    def _flipped(self, image: np.ndarray, off: Margins, at: Place) -> np.ndarray:
        """Average over the flips; of a prepared image, (height, width, 3) uint8."""
        # Whole cells, so that the network itself has nothing to fill up, and the cells of the image it is a window of.
        cell, height, width = self.network.cell, *image.shape[:2]
        above, before = (self.border + place % cell for place in at)
        # Windows of one size stay so, wherever they lie; one that ends where the image does is filled up as the image.
        most = 2 * self.border + (cell - 1 if at[0] % cell or at[1] % cell else 0)
        tall, wide = (
            max(whole_cells(side + (most if beyond else first + self.border), cell), 2 * cell)
            for side, first, beyond in ((height, above, off.bottom), (width, before, off.right))
        )
        beside = Margins(above, tall - height - above, before, wide - width - before)
        prepared = np.pad(image, (beside[:2], beside[2:], (0, 0)), mode="symmetric")
        unwanted = Margins(*(one + other for one, other in zip(beside, off, strict=True)))
        turned = (self._turned(prepared, *orientation, unwanted) for orientation in FLIPS[self.settings.flips])
        return beside.of(average(turned))

    def _turned(self, image: np.ndarray, turns: int, mirrored: bool, off: Margins) -> np.ndarray:
        """Map the turned and mirrored image, and bring the maps back."""
        turned = np.rot90(image, turns)
        probabilities = self._tiled((turned[:, ::-1] if mirrored else turned).copy(), off.turned(turns, mirrored))
        back = np.rot90(probabilities[:, :, ::-1] if mirrored else probabilities, -turns, axes=(1, 2))
        # As it lay, nothing points elsewhere; three copies of a slide's window would take a twentieth of its time.
        if self.directions is None or not (turns or mirrored):
            return back
        return _turned_back(back, self.directions, turns, mirrored)

    def _tiled(self, image: np.ndarray, off: Margins) -> np.ndarray:
        height, width = image.shape[:2]
        rows, columns, together = self._sides(height, width, off)
        noise = self._noise(image)
        tall = [rows.own(row, off.top, height - off.bottom) for row in range(len(rows.starts))]
        wide = [columns.own(column, off.left, width - off.right) for column in range(len(columns.starts))]
        cuts: dict[Margins, list[tuple[int, int]]] = defaultdict(list)
        for row, column in product(range(len(tall)), range(len(wide))):
            if tall[row].start < tall[row].stop and wide[column].start < wide[column].stop:
                cuts[self._cut(rows, tall[row], columns, wide[column])].append((row, column))
        total: np.ndarray | None = None
        for cut, batch in ((cut, batch) for cut, places in cuts.items() for batch in _batches(places, together)):
            windows = [(rows.tile(row), columns.tile(column)) for row, column in batch]
            tiles = np.stack([image[window] for window in windows])
            drawn = None if noise is None else torch.stack([noise[:, *self._cells(window)] for window in windows])
            made = self._forward(tiles, drawn, cut)
            if len(tall) == len(wide) == 1 and cut == NO_MARGINS:
                return made[0]
            for (row, column), window, values in zip(batch, windows, made, strict=True):
                if total is None:
                    total = np.zeros((len(values), height, width), np.float32)
                own = tall[row], wide[column]
                share = np.outer(rows.weights[row][own[0]], columns.weights[column][own[1]]).astype(np.float32)
                # In place and in one pass: of a slide every further copy is gigabytes, slower to come by than to fill.
                there = torch.from_numpy(total[:, *window])[:, *own]
                there.addcmul_(torch.from_numpy(values)[:, *_within(own, cut)], torch.from_numpy(share))
        assert total is not None
        return total

    def _cut(self, rows: Side, tall: slice, columns: Side, wide: slice) -> Margins:
        """What a network may leave out of a tile of which a part is wanted: the reach, or whole cells of it.

        No more, so that few networks are to be compiled, each for the tiles that are cut alike.
        """
        beside = Margins(tall.start, rows.length - tall.stop, wide.start, columns.length - wide.stop)
        return Margins(*(min(side, self.network.reach) for side in beside.smaller(0, self.network.cell)))

    def _sides(self, height: int, width: int, off: Margins) -> tuple[Side, Side, int]:
        """Lay tiles over an image; return them by rows and columns, and how many go through together.

        A batch of tiles is taken as one larger tile where the network takes it: that costs the same memory, and less of
        it is looked at twice.
        """
        cell, reach, tile, overlap = self.network.cell, self.network.reach, self.settings.tile, self.settings.overlap
        largest = getattr(self.network, "largest", None)
        if largest is not None:
            rows, columns = (seamless_side(side, tile, overlap, cell, reach, largest) for side in (height, width))
            return rows, columns, self.settings.batch
        wanted = whole_cells(tile, cell) + 2 * reach
        pixels = self.settings.batch * wanted**2
        most = INSIDE * pixels if self.network.spares else pixels
        if min(off) >= reach and height * width <= most:
            rows, columns = (seamless_side(side, side, 0, cell, reach) for side in (height, width))
            return rows, columns, 1
        larger = pixels // min(height, width, math.isqrt(pixels)) // cell * cell
        shared = overlap * wanted / larger
        rows, columns = (seamless_side(side, larger - 2 * reach, shared, cell, reach) for side in (height, width))
        return rows, columns, max(1, pixels // (rows.length * columns.length))

    def _noise(self, image: np.ndarray) -> torch.Tensor | None:
        """Draw what a code in use as a sample needs for the whole image, so that all tiles see the same of it."""
        network = self.network
        if not (self.border and isinstance(network, Autoencoder) and network.draws):
            return None
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        shape = (network.channels_of_code, *network.code_size(*image.shape[:2]))
        return torch.randn(shape, generator=generator)

    def _cells(self, window: tuple[slice, slice]) -> tuple[slice, slice]:
        cell = self.network.cell
        rows, columns = (slice(side.start // cell, side.stop // cell) for side in window)
        return rows, columns

    @torch.inference_mode()
    def _forward(self, tiles: np.ndarray, noise: torch.Tensor | None = None, off: Margins = NO_MARGINS) -> np.ndarray:
        """Map (N, height, width, 3) uint8 to (N, channels, height, width) float32, with the margins taken off."""
        height, width = tiles.shape[1:3]
        margin, stride = self.network.margin, self.network.stride
        input_height, input_width = self.network.input_size(-(-height // stride), -(-width // stride))
        below, right = max(input_height - height - margin, 0), max(input_width - width - margin, 0)
        if margin or below or right:
            tiles = np.pad(tiles, ((0, 0), (margin, below), (margin, right), (0, 0)), mode="symmetric")
        inputs = as_input(torch.from_numpy(tiles).to(self.device))
        drawn = {} if noise is None else {"noise": noise.to(self.device)}
        if off != NO_MARGINS and noise is None and stride == 1 and not (margin or below or right):
            return self.activation(self.forward(inputs, off)).cpu().numpy()
        probabilities = self.activation(self.forward(inputs, **drawn))
        if stride > 1:
            probabilities = nn.functional.interpolate(probabilities, scale_factor=stride, mode="bilinear")
        return off.of(probabilities[:, :, :height, :width]).cpu().numpy()


def average(maps: Iterable[np.ndarray]) -> np.ndarray:
    """Average maps that are made one after another, with two of them in memory."""
    total, count = None, 0
    for made in maps:
        total, count = made if total is None else total + made, count + 1
    assert total is not None
    return total if count == 1 else total / count


def _turned_back(maps: np.ndarray, directions: tuple[int, int], turns: int, mirrored: bool) -> np.ndarray:
    """Point directions of a turned and mirrored image, brought back to their places, as they do in the image itself."""
    maps = maps.copy()
    down, right = (maps[channel].copy() for channel in directions)
    if mirrored:
        right = 1.0 - right
    for _ in range(turns):
        # A quarter turn to the left showed what points right as pointing up, what points down as pointing right.
        down, right = right, 1.0 - down
    maps[list(directions)] = down, right
    return maps


class ClassPredictor(Predictor):
    """A classifier with everything that turns images into probabilities of classes."""

    def __call__(self, image: np.ndarray, off: Margins = NO_MARGINS, at: Place = (0, 0)) -> np.ndarray:
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
            logits = self.forward(as_input(torch.from_numpy(turned).to(self.device)))
            total = total + self.activation(logits).cpu()
        return (total / len(orientations)).numpy()


class VolumePredictor:
    """A network of three dimensions with everything that turns the planes of a volume into probability maps.

    activation, intensity, name: as of Predictor; window: planes, height and width of what it was trained on, by which
    MONAI's sliding windows look at the volume, blended by Gaussian weights. They overlap by settings.overlap, and
    settings.batch go through together; the volume and its maps are in memory whole.
    """

    takes_volumes = True

    def __init__(
        self, network: Network, activation: str, intensity: str, settings: PredictSettings, compute: ComputeSettings,
        window: tuple[int, int, int], name: str,
    ) -> None:  # fmt: skip
        self.network, self.name, self.settings, self.window = network, name, settings, window
        self.activation = ACTIVATIONS[activation]
        self.prepare = INTENSITIES[intensity]
        self.device = torch.device(compute.device)
        self.forward = forward_of(network, settings.engine, compute)

    @torch.inference_mode()
    def __call__(self, planes: np.ndarray) -> np.ndarray:
        """Return (channels, planes, height, width) float32 in [0, 1] for (planes, height, width, 3) uint8.

        Raises ValueError for an image.
        """
        from monai.inferers import sliding_window_inference

        if planes.ndim != 4:
            raise ValueError(
                f"{self.name}: expected the planes of a volume, found an image; the run was trained with "
                "augment.planes above 1 and takes NIfTI volumes"
            )
        prepared = prepare_volume(self.prepare, planes)

        def turned(turns: int, mirrored: bool) -> np.ndarray:
            seen = np.rot90(prepared, turns, axes=(1, 2))
            seen = np.ascontiguousarray(seen[:, :, ::-1] if mirrored else seen)
            maps = sliding_window_inference(
                as_input(torch.from_numpy(seen)[np.newaxis]), self.window, self.settings.batch,
                lambda windows: self.activation(self.forward(windows)), self.settings.overlap, mode="gaussian",
                padding_mode="replicate", sw_device=self.device, device="cpu", progress=False,
            )[0].numpy()  # fmt: skip
            return np.rot90(maps[..., ::-1] if mirrored else maps, -turns, axes=(2, 3))

        return np.ascontiguousarray(average(turned(*orientation) for orientation in FLIPS[self.settings.flips]))


def prepare_volume(prepare: Callable[[np.ndarray], np.ndarray], planes: np.ndarray) -> np.ndarray:
    """Prepare all planes of a volume alike, as one image; (planes, height, width, 3) uint8, as it returns."""
    return prepare(planes.reshape(-1, *planes.shape[2:])).reshape(planes.shape)


class Ensemble:
    """The mean of the maps of several predictors."""

    def __init__(self, members: Sequence[Callable[..., np.ndarray]]) -> None:
        self.members = members
        kinds = {takes_volumes(member) for member in members}
        if len(kinds) > 1:
            raise ValueError("train.members: expected runs of images, or runs of volumes, found both")
        self.takes_volumes = kinds == {True}

    def __call__(self, image: np.ndarray, *window: Any) -> np.ndarray:
        """Return what its members do, averaged: (channels, [planes,] height, width) float32 in [0, 1]."""
        return average(member(image, *window) for member in self.members)


AnyPredictor = Predictor | VolumePredictor | Ensemble


def takes_volumes(predict: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Whether a predictor looks at the planes of a volume together, not at an image."""
    return bool(getattr(predict, "takes_volumes", False))


def predictor_of(
    network: nn.Module, activation: str, intensity: str, settings: PredictSettings, compute: ComputeSettings, *,
    makes_images: bool, name: str = "the network", directions: tuple[int, int] | None = None,
    window: tuple[int, int, int] | None = None,
) -> Predictor | VolumePredictor:  # fmt: skip
    """Return the predictor of a network: of probabilities of classes for a classifier, else of maps, or of images.

    window: of a network of volumes, what it was trained on (AugmentSettings.window).
    Training validates by it, and every use goes through it: what is measured there is what comes out here.
    """
    makes_masks = not (makes_images or isinstance(network, Classifier))
    check_settings(settings, compute.device, makes_masks=makes_masks, window=window, name=name)
    if settings.engine == "auto" and (makes_images or window is not None):
        settings = settings.model_copy(update={"engine": "pytorch"})
    if window is not None:
        return VolumePredictor(cast(Network, network), activation, intensity, settings, compute, window, name)
    kind = ClassPredictor if isinstance(network, Classifier) else Predictor
    border = IMAGE_BORDER if makes_images else 0
    return kind(cast(Network, network), activation, intensity, settings, compute, border, name, directions)


def check_settings(
    settings: PredictSettings, device: str, *, makes_masks: bool, window: tuple[int, int, int] | None, name: str
) -> None:
    """Raise ValueError for settings of which a network has no use; window, name: as of predictor_of."""
    by_default = PredictSettings.model_fields["tile"].default
    if window is not None and (
        settings.scales != (1.0,) or settings.engine == "openvino" or settings.tile != by_default
    ):
        raise ValueError(
            f"{name}: a network of volumes takes predict.scales=[1.0], predict.engine=pytorch and no predict.tile "
            f"(its windows are those of augment.planes and augment.crop), found {[*settings.scales]}, "
            f"{settings.engine} and {settings.tile}"
        )
    if not makes_masks and settings.scales != (1.0,):
        raise ValueError(f"predict.scales: expected [1.0] for {name}, which makes no masks, found {[*settings.scales]}")
    check_engine(settings.engine, device)


def grid_of(scales: Iterable[float]) -> int:
    """Pixels of an image that every one of the magnifications makes whole pixels of, of up to 100."""
    return math.lcm(*(Fraction(scale).limit_denominator(100).denominator for scale in scales))


def _within(own: tuple[slice, slice], off: Margins) -> tuple[slice, slice]:
    """Parts of a tile as parts of what is left of it."""
    rows, columns = own
    return slice(rows.start - off.top, rows.stop - off.top), slice(columns.start - off.left, columns.stop - off.left)


def _batches(places: Sequence[tuple[int, int]], size: int) -> Iterator[Sequence[tuple[int, int]]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]
