"""Augmentation of training crops: geometry that image and label share, then what changes pixels only.

The only module that imports albumentations. A sample is a function of (settings, image, label, seed), never of the
process that draws it.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np

from pipeline.config import AugmentSettings
from pipeline.stains.optical_density import HAEMATOXYLIN_EOSIN, is_stained, mix, stain_basis

RESCALED = 0.75
"""Share of crops that are magnified or reduced; the others keep the sharpness of the stored pixels."""
TINT = (0.5, 1.0)
"""What each channel is multiplied by under light of another colour."""
KNOTS_APART, KNOT_SHIFT = 32, 3.0
"""Pixels between the knots of an elastic deformation, and standard deviation of their shifts: too little to fold."""
SHEET_CROPS, SHEET_TILE, SHEET_GAP = 7, 192, 4
"""The contact sheet: crops a row beside the whole image, the square that each is fitted into, and what lies between."""
OUTLINE = (0, 255, 0)
_QUARTER_TURNS = {1: cv2.ROTATE_90_COUNTERCLOCKWISE, 2: cv2.ROTATE_180, 3: cv2.ROTATE_90_CLOCKWISE}


def sample_seed(run_seed: int, epoch: int, case_id: str, crop: int) -> int:
    """Return the 64-bit seed of one crop: the same on every machine, in every process, in any order."""
    digest = hashlib.blake2b(case_id.encode("utf-8"), digest_size=16).digest()
    words = np.frombuffer(digest, dtype="<u4").tolist()
    return int(np.random.SeedSequence([run_seed, epoch, crop, *words]).generate_state(1, np.uint64)[0])


class Augmentation:
    """Draws one augmented crop of an image and its label.

    Where the image is smaller than what a crop shows, image and label are both mirrored at the edge: prediction mirrors
    in the same way, mirrored nuclei are as good to learn from as others, and the loss leaves nothing out.
    """

    def __init__(self, settings: AugmentSettings) -> None:
        self.settings = settings
        policies: list[Any] = _pixel_policies(settings) if settings.recipe == "tissue" else [None]
        self.pixels, self.of_planes = policies[0], policies[1:]

    def __call__(self, image: np.ndarray, label: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Crop and augment, at a cost that does not grow with the image.

        image: (height, width, 3) uint8 RGB; label: (height, width) uint16; seed: from sample_seed. Returns (crop, crop,
        3) uint8 and (crop, crop) uint16; ids are moved, never mixed. Raises ValueError where the two do not fit.
        """
        if image.shape != (*label.shape, 3) or not label.size:
            raise ValueError(f"expected an image (h, w, 3) and a label (h, w), found {image.shape} and {label.shape}")
        generator = np.random.default_rng(seed)
        image, label = self._move(image, label, generator, cv2.INTER_NEAREST)
        return self._change(image, generator, seed), label

    def _change(self, image: np.ndarray, generator: np.random.Generator, seed: int, planes: int = 1) -> np.ndarray:
        """Change what pixels show, and not where it is; planes: so many crops, one below the other.

        Light changes by one rule for all planes, blur and holes are the same in each, noise is drawn for each.
        """
        if self.pixels is None:
            return image
        if self.settings.stain_jitter and is_stained(image):
            image = jitter_stains(image, self.settings.stain_jitter, generator)
        # Its own set_random_seed gives every transform the same stream, so that blur, noise and dropout always come
        # together; one stream shared by all keeps them independent.
        chance = random.Random(seed)
        for policy in (self.pixels, *self.of_planes):
            policy.set_random_state(generator, chance)
        changed: np.ndarray
        if planes == 1:
            changed = self.pixels(image=image)["image"]
            return changed
        optics, light, holes = self.of_planes
        apart = planes, -1, *image.shape[1:]
        blurred = np.concatenate(optics(images=image.reshape(apart))["images"])
        changed = holes(images=light(image=blurred)["image"].reshape(apart))["images"]
        return np.concatenate(changed)

    def block(
        self, image: np.ndarray, label: np.ndarray, planes: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Cut so many neighbouring planes out of a volume, and move and change all of them alike.

        image: (planes, height, width, 3) uint8; label: (planes, height, width) uint16. A volume of fewer planes is
        mirrored at its ends; half of the blocks are turned upside down. Returns the same with planes and crop as sides.
        """
        generator = np.random.default_rng([seed, planes])
        room = len(image) - planes
        start = int(generator.integers(min(0, room), max(0, room), endpoint=True))
        places = _mirrored_places(np.arange(start, start + planes), len(image))
        if self.settings.recipe != "none" and generator.random() < 0.5:
            places = places[::-1]
        crops, labels = [], []
        for place in places:
            # The same seed and size: the same move.
            generator = np.random.default_rng(seed)
            crop, crop_label = self._move(image[place], label[place], generator, cv2.INTER_NEAREST)
            crops.append(crop)
            labels.append(crop_label)
        changed = self._change(np.concatenate(crops), generator, seed, planes)
        return changed.reshape(planes, *crops[0].shape), np.stack(labels)

    def move_pair(self, image: np.ndarray, target: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Crop and move two images of one tissue alike; their colours stay. (height, width, 3) uint8 RGB each."""
        if image.shape != target.shape or not target.size:
            raise ValueError(f"expected two images of one size, found {image.shape} and {target.shape}")
        return self._move(image, target, np.random.default_rng(seed), cv2.INTER_LINEAR)

    def _move(
        self, image: np.ndarray, label: np.ndarray, generator: np.random.Generator, between: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Crop, magnify and deform in one pass, so that pixels are interpolated once; then flip and turn.

        between: how OpenCV interpolates the label.
        """
        settings, crop = self.settings, self.settings.crop
        moves = settings.recipe != "none"
        magnification = 1.0
        if moves and generator.random() < RESCALED:
            magnification = math.exp(generator.uniform(*np.log(settings.scale)))
        shown = math.ceil(crop / magnification)
        places = []
        for length in label.shape[:2]:
            room = length - shown
            start = int(generator.integers(min(0, room), max(0, room), endpoint=True))
            # Twice the crop's own surroundings are more than mirroring and deforming reach: the cut is never seen.
            cut = slice(max(0, start - shown), start + 2 * shown)
            places.append((cut, start - cut.start))
        (rows, top), (columns, left) = places
        image, label = image[rows, columns], label[rows, columns]
        if moves and generator.random() < settings.elastic:
            x, y = _elastic_map(crop, magnification, top, left, generator)
            moved_image = cv2.remap(image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
            moved_label = cv2.remap(label, x, y, between, borderMode=cv2.BORDER_REFLECT_101)
        else:
            source = _affine_map(magnification, top, left)
            flags, border, size = cv2.WARP_INVERSE_MAP, cv2.BORDER_REFLECT_101, (crop, crop)
            moved_image = cv2.warpAffine(image, source, size, flags=flags | cv2.INTER_LINEAR, borderMode=border)
            moved_label = cv2.warpAffine(label, source, size, flags=flags | between, borderMode=border)
        turn = int(generator.integers(8)) if moves else 0
        return _turned(moved_image, turn), _turned(moved_label, turn)


def jitter_stains(image: np.ndarray, largest: float, generator: np.random.Generator) -> np.ndarray:
    """Change the amount of haematoxylin, eosin and what is neither, each by a factor of its own in 1 +- largest.

    image: (height, width, 3) uint8 RGB of stained tissue; returns the same. Works in optical density with the fixed
    stain vectors of Ruifrok and Johnston 2001; white stays white.
    """
    basis, inverse = _jittered_basis()
    factors = generator.uniform(1.0 - largest, 1.0 + largest, 3)
    return mix(image, inverse @ np.diag(factors) @ basis)


@cache
def _jittered_basis() -> tuple[np.ndarray, np.ndarray]:
    basis = stain_basis(HAEMATOXYLIN_EOSIN)
    return basis, np.linalg.inv(basis)


def contact_sheet(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], settings: AugmentSettings, seeds: Sequence[Sequence[int]]
) -> np.ndarray:
    """Show what training sees: a row for each image, first the whole of it, then a crop for each of its seeds.

    pairs: images (height, width, 3) uint8 RGB with labels (height, width) uint16, outlined in green; seeds: for each
    pair as many seeds as crops, SHEET_CROPS for a full row. Returns uint8 RGB.
    """
    augmentation = Augmentation(settings)
    return lay_out(
        [
            [pair, *(augmentation(*pair, seed) for seed in own_seeds)]
            for pair, own_seeds in zip(pairs, seeds, strict=True)
        ]
    )


def lay_out(rows: Sequence[Sequence[tuple[np.ndarray, np.ndarray | None]]]) -> np.ndarray:
    """Lay images out in rows of tiles of one size, uint8 RGB; those with a label (height, width) get its outlines."""
    sheet = np.vstack([np.hstack([_tile(*pair) for pair in row]) for row in rows])
    return np.pad(sheet, ((SHEET_GAP, 0), (SHEET_GAP, 0), (0, 0)), constant_values=255)


def _pixel_policies(settings: AugmentSettings) -> list[Any]:
    """Build what changes pixels only, in the order in which it comes about: optics, sensor, colour, display.

    Returns the whole, then its parts: what looks at neighbours, what changes each pixel by one rule, holes.
    """
    # It would ask the network for a newer version of itself.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations as A

    with warnings.catch_warnings():
        # It only warns of an argument that it does not know, and goes on without.
        warnings.simplefilter("error", UserWarning)
        optics = [
            A.OneOf([A.GaussianBlur(blur_limit=0, sigma_limit=(0.5, 2.0)), A.MotionBlur((3, 7))], p=settings.blur)
        ]
        light = [
            A.GaussNoise(std_range=(0.01, 0.05), p=settings.noise),
            A.Sequential(
                [
                    # Relative to the mean, so that a dark field keeps its black and its dim nuclei.
                    A.RandomBrightnessContrast(0.2, 0.2, brightness_by_max=False, p=1.0),
                    A.RandomGamma(gamma_limit=(70, 140), p=0.5),
                    A.HueSaturationValue(hue_shift_limit=8, sat_shift_limit=25, val_shift_limit=0, p=0.5),
                    A.PlanckianJitter(temperature_limit=(4500, 10000), p=0.3),
                ],
                p=settings.colour,
            ),
            A.MultiplicativeNoise(multiplier=TINT, per_channel=True, elementwise=False, p=settings.tint),
            A.ToGray(p=settings.grey),
            A.InvertImg(p=settings.invert),
        ]
        holes = [
            # A colour that no tissue has says that something is hidden; a plausible one would teach that nuclei
            # hide in what looks empty.
            A.CoarseDropout(
                num_holes_range=(1, 4), hole_height_range=(0.05, 0.2), hole_width_range=(0.05, 0.2),
                fill="random_uniform", p=settings.dropout,
            )
        ]  # fmt: skip
        return [A.Compose(steps) for steps in ([*optics, *light, *holes], optics, light, holes)]


def _affine_map(magnification: float, top: int, left: int) -> np.ndarray:
    """Map the crop's pixels to the image's: (2, 3), for x and y; pixel centres lie at whole numbers."""
    step = 1.0 / magnification
    return np.array([[step, 0.0, left + step / 2 - 0.5], [0.0, step, top + step / 2 - 0.5]])


def _elastic_map(
    crop: int, magnification: float, top: int, left: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The same with smooth random shifts, cubic between knots: x and y of the image, each (crop, crop) float32."""
    knots = math.ceil(crop / KNOTS_APART) + 1
    side = knots * KNOTS_APART
    line = np.arange(crop) / magnification
    places = (line + left, line[:, np.newaxis] + top)
    shifts = generator.normal(0.0, KNOT_SHIFT, (2, knots, knots)).astype(np.float32)
    smooth = [cv2.resize(plane, (side, side), interpolation=cv2.INTER_CUBIC)[:crop, :crop] for plane in shifts]
    centre = 0.5 / magnification - 0.5
    x, y = (place.astype(np.float32) + shift + np.float32(centre) for place, shift in zip(places, smooth, strict=True))
    return x, y


def _mirrored_places(places: np.ndarray, length: int) -> np.ndarray:
    """Bring places beyond the ends of a line of some length back into it, mirrored at its first and last place."""
    if length == 1:
        return np.zeros_like(places)
    around = places % (2 * (length - 1))
    return np.minimum(around, 2 * (length - 1) - around)


def _turned(raster: np.ndarray, turn: int) -> np.ndarray:
    """One of the eight symmetries of the square: 0 to 3 quarter turns, and the same of the mirror image."""
    # A tenth of the time that NumPy takes to copy turned pixels of three channels.
    mirrored = cv2.flip(raster, 1) if turn >= 4 else raster
    return cv2.rotate(mirrored, _QUARTER_TURNS[turn % 4]) if turn % 4 else mirrored


def _tile(image: np.ndarray, label: np.ndarray | None) -> np.ndarray:
    """Fit an image into a white square, its objects outlined."""
    height, width = image.shape[:2]
    scale = SHEET_TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1.0 else cv2.INTER_NEAREST)
    if label is not None:
        objects = cv2.resize(label, size, interpolation=cv2.INTER_NEAREST_EXACT)
        # Of two objects that touch, erosion (the smallest id around) moves the edge of one only: a line of one pixel.
        shown[objects != cv2.erode(objects, np.ones((3, 3), np.uint8))] = OUTLINE
    tile = np.full((SHEET_TILE + SHEET_GAP, SHEET_TILE + SHEET_GAP, 3), 255, np.uint8)
    tile[: size[1], : size[0]] = shown
    return tile
