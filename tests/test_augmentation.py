"""Crops depend on (settings, image, label, seed) alone, and masks follow the pixels exactly."""

from __future__ import annotations

import multiprocessing
import pickle
import time
import warnings
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from pipeline import augmentation
from pipeline.augmentation import (
    SHEET_CROPS,
    SHEET_GAP,
    SHEET_TILE,
    Augmentation,
    contact_sheet,
    jitter_stains,
    sample_seed,
)
from pipeline.config import AugmentSettings
from pipeline.stains.optical_density import HAEMATOXYLIN_EOSIN, stain_basis, to_density, to_image

PIXELS_OFF = {
    "stain_jitter": 0.0, "colour": 0.0, "invert": 0.0, "grey": 0.0, "blur": 0.0, "noise": 0.0, "dropout": 0.0
}  # fmt: skip
SEEDS = range(24)


def settings(**given: object) -> AugmentSettings:
    return AugmentSettings(**({"crop": 96} | given))  # type: ignore[arg-type]


def stained(height: int = 160, width: int = 200, objects: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin discs on eosin; ids start at 60,000, so that 8 bits or an average would show."""
    generator = np.random.default_rng(5)
    label = np.zeros((height, width), np.uint16)
    for number in range(objects):
        place = (int(generator.integers(width)), int(generator.integers(height)))
        cv2.circle(label, place, int(generator.integers(4, 10)), 60000 + number, -1)
    amounts = np.stack([0.1 + 0.8 * (label > 0), 0.3 * np.ones(label.shape)], axis=-1)
    density = amounts @ np.array(HAEMATOXYLIN_EOSIN) + generator.normal(0.0, 0.01, (height, width, 3))
    return to_image(density.astype(np.float32)), label


def draw(number: int) -> tuple[bytes, bytes]:
    """In a worker: a crop of the stained picture; other numbers first, since history must not matter."""
    augment = Augmentation(settings(colour=1.0, blur=0.5, noise=0.5, dropout=0.5))
    pair = stained()
    for other in range(number):
        augment(*pair, seed=sample_seed(2, 9, "other", other))
    image, label = augment(*pair, seed=sample_seed(1412, 3, "case", number))
    return image.tobytes(), label.tobytes()


# --- Determinism ----------------------------------------------------------------------------------------------------


def test_the_seed_is_the_same_for_ever_and_differs_in_every_part() -> None:
    assert sample_seed(1412, 0, "case", 0) == 17694736766151027308
    seeds = {
        sample_seed(run, epoch, case, crop)
        for run in (0, 1412, 2**32 - 1)
        for epoch in (0, 1, 2**20)
        for case in ("a", "b", "ä", "")
        for crop in (0, 1, 700)
    }
    assert len(seeds) == 108


def test_worker_processes_and_this_one_give_the_same() -> None:
    here = [draw(number) for number in range(4)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        there = pool.map(draw, range(4), chunksize=1)
    assert here == there
    assert len(set(here)) == 4


def test_a_loader_gives_the_same_with_any_number_of_workers() -> None:
    from torch.utils.data import DataLoader

    augment, pair = Augmentation(settings()), stained()

    class Crops:
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> np.ndarray:
            return augment(*pair, seed=sample_seed(7, 0, "case", index))[0]

    drawn = [[batch.numpy() for batch in DataLoader(Crops(), batch_size=3, num_workers=n)] for n in (0, 2)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(*drawn)


@pytest.mark.parametrize("recipe", ["none", "geometry", "tissue"])
def test_epochs_cases_and_crops_differ_and_a_seed_repeats(recipe: str) -> None:
    augment, pair = Augmentation(settings(recipe=recipe)), stained()
    seeds = [sample_seed(1412, epoch, case, crop) for epoch in (0, 1) for case in ("a", "b") for crop in (0, 1)]
    first = [augment(*pair, seed=seed)[0].tobytes() for seed in seeds]
    assert len(set(first)) == len(seeds)
    assert [augment(*pair, seed=seed)[0].tobytes() for seed in reversed(seeds)] == first[::-1]


def test_it_survives_being_sent_to_another_process() -> None:
    augment, pair = Augmentation(settings()), stained()
    sent = pickle.loads(pickle.dumps(augment))
    for seed in SEEDS:
        np.testing.assert_array_equal(sent(*pair, seed=seed)[0], augment(*pair, seed=seed)[0])


def test_the_input_is_never_written_to() -> None:
    image, label = stained(96, 96)
    before = image.copy(), label.copy()
    image.flags.writeable = label.flags.writeable = False
    augment = Augmentation(settings(recipe="tissue", invert=0.5, dropout=1.0))
    for seed in SEEDS:
        augment(image, label, seed)
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


# --- Geometry: masks follow exactly ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (31, 40), (95, 97), (96, 96), (500, 90), (700, 900)])
@pytest.mark.parametrize("recipe", ["none", "geometry", "tissue"])
def test_any_size_gives_crops_of_the_asked_size_with_ids_of_the_label(size: tuple[int, int], recipe: str) -> None:
    image, label = stained(*size)
    augment = Augmentation(settings(recipe=recipe, elastic=0.5, scale=(0.3, 3.0)))
    for seed in range(6):
        crop, crop_label = augment(image, label, seed)
        assert crop.shape == (96, 96, 3) and crop.dtype == np.uint8 and crop.flags.c_contiguous
        assert crop_label.shape == (96, 96) and crop_label.dtype == np.uint16 and crop_label.flags.c_contiguous
        assert set(np.unique(crop_label)) <= set(np.unique(label))


def test_without_scale_and_elastic_every_crop_is_a_window_in_one_of_eight_positions() -> None:
    """Each pixel knows where it came from: the label holds its number, the image the same number in two bytes."""
    label = np.arange(120 * 130, dtype=np.uint16).reshape(120, 130)
    image = np.dstack([label // 256, label % 256, label % 7]).astype(np.uint8)
    augment = Augmentation(settings(**PIXELS_OFF, scale=(1.0, 1.0), elastic=0.0))
    turns = set()
    for seed in range(60):
        crop, crop_label = augment(image, label, seed)
        np.testing.assert_array_equal(crop[..., 0].astype(int) * 256 + crop[..., 1], crop_label)
        steps = int(crop_label[0, 1]) - int(crop_label[0, 0]), int(crop_label[1, 0]) - int(crop_label[0, 0])
        assert sorted(map(abs, steps)) == [1, 130]
        turns.add(steps)
    assert len(turns) == 8


def test_none_is_a_window_that_reaches_every_place() -> None:
    label = np.arange(100 * 99, dtype=np.uint16).reshape(100, 99)
    image = np.dstack([label // 256, label % 256, label % 7]).astype(np.uint8)
    augment = Augmentation(settings(recipe="none"))
    corners = set()
    for seed in range(300):
        crop, crop_label = augment(image, label, seed)
        top, left = divmod(int(crop_label[0, 0]), 99)
        np.testing.assert_array_equal(crop_label, label[top : top + 96, left : left + 96])
        np.testing.assert_array_equal(crop, image[top : top + 96, left : left + 96])
        corners.add((top, left))
    assert corners == {(top, left) for top in range(5) for left in range(4)}


@pytest.mark.parametrize(
    "given",
    [
        {"scale": (0.5, 2.0), "elastic": 0.0},
        {"scale": (1.0, 1.0), "elastic": 1.0},
        {"scale": (0.5, 2.0), "elastic": 1.0},
    ],
)
def test_the_mask_follows_the_image_to_half_a_pixel(given: dict[str, object]) -> None:
    """The image is the mask itself: where its interpolation crosses one half, the label must change."""
    _, label = stained(300, 300, objects=60)
    image = np.repeat(np.where(label > 0, 255, 0).astype(np.uint8)[..., np.newaxis], 3, axis=2)
    augment = Augmentation(settings(**PIXELS_OFF, **given))
    for seed in SEEDS:
        crop, crop_label = augment(image, label, seed)
        clear = np.abs(crop[..., 0].astype(int) - 128) > 100
        assert clear.mean() > 0.8
        np.testing.assert_array_equal(crop[..., 0][clear] > 128, crop_label[clear] > 0)
        # Half-way pixels go either way; a shift of half a pixel would send most of them one way.
        assert np.mean((crop[..., 0] > 128) == (crop_label > 0)) > 0.98


def test_magnification_spans_the_range_evenly_in_its_logarithm() -> None:
    """A ramp of labels shows by its slope how much was magnified; a quarter of the crops keep their size."""
    label = np.broadcast_to(np.arange(1200, dtype=np.uint16), (1200, 1200)).copy()
    image = np.zeros((1200, 1200, 3), np.uint8)
    augment = Augmentation(settings(**PIXELS_OFF, scale=(0.5, 2.0), elastic=0.0))
    found = []
    for seed in range(1000):
        _, crop_label = augment(image, label, seed)
        found.append(95.0 / np.ptp(crop_label.astype(int)))
    logarithms = np.log2(found)
    assert logarithms.min() > -1.05 and logarithms.max() < 1.05
    assert 0.2 < np.mean(np.abs(logarithms) < 1e-9) < 0.35
    assert np.abs(np.quantile(logarithms, [0.1, 0.9]) - [-0.73, 0.73]).max() < 0.12


def test_elastic_never_folds_over() -> None:
    """Rows and columns of the source keep their order everywhere in the crop."""
    for seed in range(40):
        x, y = augmentation._elastic_map(256, 1.0, 0, 0, np.random.default_rng(seed))
        assert np.diff(x, axis=1).min() > 0.0 and np.diff(y, axis=0).min() > 0.0
        assert np.abs(x - np.arange(256)).max() < 20.0


def test_small_images_are_mirrored_with_their_label() -> None:
    image, label = stained(40, 50)
    augment = Augmentation(settings(recipe="none"))
    crop, crop_label = augment(image, label, seed=3)
    ids, means = np.unique(crop_label), []
    for number in ids:
        means.append(crop[crop_label == number].mean())
    assert np.mean(crop_label > 0) > 0.5 * np.mean(label > 0)
    assert max(means[1:]) < means[0], "the mirrored nuclei lie under the mirrored label"


def test_cost_does_not_grow_with_the_image() -> None:
    def seconds(image: np.ndarray, label: np.ndarray) -> float:
        augment, best = Augmentation(settings(recipe="geometry", crop=256)), np.inf
        for _ in range(5):
            started = time.perf_counter()
            for seed in range(10):
                augment(image, label, seed)
            best = min(best, time.perf_counter() - started)
        return best

    small, large = stained(256, 256), tuple(np.tile(raster, (6, 7, 1)[: raster.ndim]) for raster in stained(170, 200))
    assert seconds(*large) < 3 * seconds(*small)


def test_more_pixels_a_side_than_opencv_can_move() -> None:
    image, label = np.zeros((40, 33000, 3), np.uint8), np.zeros((40, 33000), np.uint16)
    image[:, 32990:] = label[:, 32990:] = 200
    crops = [Augmentation(settings(recipe="geometry", elastic=0.5))(image, label, seed) for seed in range(10)]
    assert all(crop.shape == (96, 96, 3) for crop, _ in crops)


@pytest.mark.parametrize("shapes", [((9, 9), (9, 9)), ((9, 9, 4), (9, 9)), ((9, 9, 3), (9, 8)), ((0, 9, 3), (0, 9))])
def test_what_does_not_fit_together_is_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"expected an image \(h, w, 3\) and a label \(h, w\), found"):
        Augmentation(settings())(np.zeros(shapes[0], np.uint8), np.zeros(shapes[1], np.uint16), 0)


# --- Pixels ---------------------------------------------------------------------------------------------------------


def roughness(image: np.ndarray) -> float:
    return float(np.std(np.diff(image.astype(int), axis=0)))


def difference(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.abs(after.astype(int) - before)


CHANGES: dict[str, Callable[[np.ndarray, np.ndarray], bool]] = {
    "invert": lambda before, after: bool((after == 255 - before).all()),
    "grey": lambda before, after: bool((np.ptp(after, axis=2) == 0).all()),
    "tint": lambda before, after: all(
        difference(np.rint(before[..., channel] * gain), after[..., channel]).max() <= 2 and 0.49 < gain <= 1.0
        for channel, gain in enumerate(after.sum(axis=(0, 1)) / before.sum(axis=(0, 1)))
    ),
    "blur": lambda before, after: roughness(after) < roughness(before),
    "noise": lambda before, after: bool(1.0 < difference(before, after).mean() < 16.0),
    "dropout": lambda before, after: bool(0.001 < difference(before, after).any(axis=2).mean() < 0.2),
    "colour": lambda before, after: bool(difference(before, after).mean() < 90.0),
    "stain_jitter": lambda before, after: bool(difference(before, after).mean() < 40.0),
}


@pytest.mark.parametrize("name", CHANGES)
def test_each_setting_does_its_own_work_and_leaves_the_label(name: str) -> None:
    pair = stained()
    still = PIXELS_OFF | {"scale": (1.0, 1.0), "elastic": 0.0}
    plain = Augmentation(settings(**still))
    changed = Augmentation(settings(**still | {name: 1.0 if name != "stain_jitter" else 0.25}))
    for seed in SEEDS:
        (before, label), (after, changed_label) = plain(*pair, seed=seed), changed(*pair, seed=seed)
        assert CHANGES[name](before, after), seed
        assert (after != before).any()
        np.testing.assert_array_equal(label, changed_label)


def test_one_change_comes_with_and_without_another() -> None:
    """albumentations' own seeding gives every transform one stream: then all of them come together or none does."""
    image, label = np.full((96, 96, 3), 120, np.uint8), np.zeros((96, 96), np.uint16)
    augment = Augmentation(settings(**PIXELS_OFF | {"invert": 0.5, "dropout": 0.5}))
    found = np.zeros((2, 2), int)
    for seed in range(300):
        values = np.unique(augment(image, label, seed)[0])
        found[int(135 in values), int(values.size > 1)] += 1
    assert found.min() > 45, found


def test_an_argument_that_albumentations_does_not_know_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import albumentations

    to_grey = albumentations.ToGray
    monkeypatch.setattr(albumentations, "ToGray", lambda **given: to_grey(**given, probability=0.5))
    with pytest.raises(UserWarning, match="probability"):
        Augmentation(settings())


def test_building_and_drawing_warn_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        augment = Augmentation(settings(colour=1.0, invert=0.5, grey=0.5, blur=1.0, noise=1.0, dropout=1.0))
        for seed in SEEDS:
            augment(*stained(96, 96), seed=seed)


# --- Stain jitter ---------------------------------------------------------------------------------------------------


def test_stain_jitter_changes_each_stain_by_its_own_factor() -> None:
    """A pixel of pure haematoxylin keeps its colour's direction in density and changes in length only."""
    vectors = stain_basis(HAEMATOXYLIN_EOSIN)[:2]
    image = to_image((np.array([[0.5, 0.0], [0.0, 0.5]]) @ vectors)[np.newaxis].astype(np.float32))
    factors = []
    for seed in SEEDS:
        density = to_density(jitter_stains(image, 0.25, np.random.default_rng(seed)))[0]
        angles = np.degrees(np.arccos((density * vectors).sum(axis=1) / np.linalg.norm(density, axis=1)))
        assert angles.max() < 1.5
        factors.append(np.linalg.norm(density, axis=1) / 0.5)
    assert np.min(factors) > 0.73 and np.max(factors) < 1.27
    assert np.std(factors, axis=0).min() > 0.1
    assert abs(np.corrcoef(np.array(factors).T)[0, 1]) < 0.6


def test_white_glass_stays_white() -> None:
    glass = np.full((64, 64, 3), 255, np.uint8)
    nearly = np.full((64, 64, 3), (243, 240, 245), np.uint8)
    for seed in SEEDS:
        np.testing.assert_array_equal(jitter_stains(glass, 1.0, np.random.default_rng(seed)), glass)
        change = jitter_stains(nearly, 0.25, np.random.default_rng(seed)).astype(int) - nearly
        assert np.abs(change).max() <= 5


def test_what_is_no_stained_tissue_is_left_alone() -> None:
    generator = np.random.default_rng(1)
    fluorescence = np.repeat(generator.gamma(1.0, 12.0, (96, 96, 1)).clip(0, 255).astype(np.uint8), 3, axis=2)
    grey = 255 - fluorescence
    green = fluorescence * np.array([0, 1, 0], np.uint8)
    label = np.zeros((96, 96), np.uint16)
    still = PIXELS_OFF | {"scale": (1.0, 1.0), "elastic": 0.0}
    plain, jittered = Augmentation(settings(**still)), Augmentation(settings(**still | {"stain_jitter": 1.0}))
    for image in (fluorescence, grey, green, np.zeros_like(grey), np.full_like(grey, 255)):
        np.testing.assert_array_equal(plain(image, label, 4)[0], jittered(image, label, 4)[0])


def test_stain_jitter_is_quick() -> None:
    image, best = stained(256, 256)[0], np.inf
    for _ in range(10):
        started = time.perf_counter()
        jitter_stains(image, 0.25, np.random.default_rng(0))
        best = min(best, time.perf_counter() - started)
    assert best < 0.005, "0.3 ms on an idle core; the bound leaves room for a busy one"


# --- Contact sheet --------------------------------------------------------------------------------------------------


def test_the_contact_sheet_shows_the_image_and_its_crops_with_outlines() -> None:
    pairs = [stained(96, 96), stained(300, 120)]
    seeds = [[sample_seed(1, 0, str(row), crop) for crop in range(SHEET_CROPS)] for row in range(2)]
    sheet = contact_sheet(pairs, settings(), seeds)
    side = SHEET_TILE + SHEET_GAP
    assert sheet.shape == (SHEET_GAP + 2 * side, SHEET_GAP + (1 + SHEET_CROPS) * side, 3) and sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet, contact_sheet(pairs, settings(), seeds))
    outlined = (sheet == augmentation.OUTLINE).all(axis=2)
    for row in range(2):
        for column in range(1 + SHEET_CROPS):
            tile = (
                slice(SHEET_GAP + row * side, (row + 1) * side),
                slice(SHEET_GAP + column * side, (column + 1) * side),
            )
            assert 0.01 < outlined[tile].mean() < 0.5
    assert (sheet[SHEET_GAP + side : SHEET_GAP + 2 * side, SHEET_GAP + 80 : SHEET_TILE] == 255).all()
