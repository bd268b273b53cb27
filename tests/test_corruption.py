"""Corruptions: functions of (settings, image, seed) alone, each doing what its name says and nothing besides."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import CorruptionSettings
from pipeline.corruption import Corruption, restain
from pipeline.laboratories import LABORATORIES
from pipeline.metrics.stain import psnr, stain_vectors, structure, vector_angles
from pipeline.tissue import render_field

EVERY = {
    "restain": CorruptionSettings(restain=1.0),
    "noise": CorruptionSettings(noise=0.1),
    "grey": CorruptionSettings(grey=True),
    "watermark": CorruptionSettings(watermark=True),
    "holes": CorruptionSettings(holes=3),
    "all": CorruptionSettings(restain=0.5, noise=0.05, grey=True, watermark=True, holes=2, hole_fill=255),
}


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return render_field("gland", 128, 160, LABORATORIES["north"], 5).image


@pytest.fixture(params=EVERY)
def corruption(request: pytest.FixtureRequest) -> Corruption:
    return Corruption(EVERY[request.param])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(corruption: Corruption, tissue: np.ndarray) -> None:
    before = tissue.copy()
    first, again, other = (corruption(tissue, seed) for seed in (8, 8, 9))
    assert np.array_equal(first, again) and np.array_equal(tissue, before)
    assert first.shape == tissue.shape and first.dtype == np.uint8 and not np.array_equal(first, tissue)
    assert np.array_equal(first, other) == (corruption.settings == EVERY["grey"])


def test_a_seed_of_64_bits_is_taken(corruption: Corruption, tissue: np.ndarray) -> None:
    assert corruption(tissue, 2**64 - 1).shape == tissue.shape


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (17, 3)])
def test_every_size_is_taken(corruption: Corruption, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)
    assert corruption(image, 1).shape == image.shape


def test_off_is_the_identity(tissue: np.ndarray) -> None:
    assert Corruption(CorruptionSettings())(tissue, 3) is tissue


def test_one_kind_changes_nothing_of_the_draws_of_another(tissue: np.ndarray) -> None:
    marked = Corruption(CorruptionSettings(watermark=True))(tissue, 4)
    both = Corruption(CorruptionSettings(watermark=True, holes=2))(tissue, 4)
    holes = Corruption(CorruptionSettings(holes=2))(tissue, 4)
    untouched = (holes == tissue).all(axis=2)
    assert np.array_equal(both[untouched], marked[untouched]) and not both[~untouched].any()


def test_wrong_images_are_refused() -> None:
    for image in (np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"expected an image \(height, width, 3\) uint8, found"):
            Corruption(CorruptionSettings())(image, 0)


# --- Each kind ----------------------------------------------------------------------------------------------------


def test_noise_has_the_deviation_that_is_set() -> None:
    grey = np.full((200, 200, 3), 128, np.uint8)
    noise = Corruption(CorruptionSettings(noise=0.1))(grey, 1).astype(float) - 128.0
    assert noise.std() == pytest.approx(25.5, rel=0.02) and abs(noise.mean()) < 0.3
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.02


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    holes=st.integers(1, 5),
    side=st.tuples(st.floats(0.01, 1.0), st.floats(0.01, 1.0)).map(lambda pair: (min(pair), max(pair))),
    fill=st.sampled_from([0, 255]),
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_holes_are_rectangles_of_their_fill_and_nothing_else_changes(
    seed: int, holes: int, side: tuple[float, float], fill: int, shape: tuple[int, int]
) -> None:
    image = np.full((*shape, 3), 100, np.uint8)
    cut = Corruption(CorruptionSettings(holes=holes, hole_side=side, hole_fill=fill))(image, seed)
    changed = (cut != 100).any(axis=2)
    assert (cut[changed] == fill).all() and changed.any()
    # Pieces that overlap make no rectangle; with one hole there is one, and its sides are those asked for.
    if holes == 1:
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        for found, length in ((len(rows), shape[0]), (len(columns), shape[1])):
            assert max(1, round(side[0] * length - 0.51)) <= found <= max(1, round(side[1] * length + 0.51))


def test_grey_is_grey_and_keeps_brightness(tissue: np.ndarray) -> None:
    grey = Corruption(CorruptionSettings(grey=True))(tissue, 0)
    assert np.array_equal(grey[..., 0], grey[..., 1]) and np.array_equal(grey[..., 1], grey[..., 2])
    assert np.array_equal(grey[..., 0], cv2.cvtColor(tissue, cv2.COLOR_RGB2GRAY))


def test_writing_covers_a_part_and_stays_half_transparent() -> None:
    covered, strongest = [], []
    for seed in range(40):
        dark, light = (np.full((160, 200, 3), level, np.uint8) for level in (40, 200))
        mark = Corruption(CorruptionSettings(watermark=True))
        change = (mark(dark, seed).astype(int) - 40)[..., 0], (mark(light, seed).astype(int) - 200)[..., 0]
        # Blending by a: change = a (level - grey), the same a on both, so their difference gives it.
        opacity = (change[0] - change[1]) / 160.0
        covered.append(float((opacity > 0.1).mean()))
        strongest.append(float(opacity.max()))
    assert min(covered) > 0.02 and max(covered) < 0.5 and np.mean(covered) > 0.06
    assert min(strongest) > 0.1 and max(strongest) < 0.62


def test_writing_reaches_every_corner_of_large_and_long_images() -> None:
    image = np.full((90, 700, 3), 60, np.uint8)
    changed = np.mean([Corruption(CorruptionSettings(watermark=True))(image, seed) != 60 for seed in range(60)], axis=0)
    assert all(part.any() for rows in np.array_split(changed, 3) for part in np.array_split(rows, 14, axis=1))


# --- Another stain ------------------------------------------------------------------------------------------------


def test_restaining_keeps_structure_and_grows_with_its_strength(tissue: np.ndarray) -> None:
    distances = []
    for strength in (0.2, 0.5, 1.0):
        other = [restain(tissue, strength, np.random.default_rng(seed)) for seed in range(12)]
        distances.append(float(np.mean([psnr(image, tissue) for image in other])))
        kept = [structure(tissue, image) or 0.0 for image in other]
        assert np.median(kept) > 0.9
    assert distances == sorted(distances, reverse=True) and distances[-1] < 20.0


def test_restaining_covers_the_sample_s_laboratories() -> None:
    field = render_field("gland", 160, 160, LABORATORIES["north"], 5)
    own = stain_vectors(field.image)
    assert own is not None
    # What the map that restaining is does to the vectors: read off from how it moves two small pictures of them.
    moved = []
    pure = np.rint(255.0 * 10.0 ** -(0.5 * own)).astype(np.uint8)
    for seed in range(400):
        image = field.image.copy()
        image[0, 0], image[0, 1], image[0, 2] = pure[0], pure[1], (255, 255, 255)
        changed = restain(image, 1.0, np.random.default_rng(seed))[0, :3].astype(float)
        moved.append(np.log10(changed[2] / np.maximum(changed[:2], 0.4)))
    for name in ("east", "south", "west"):
        looks = stain_vectors(field.rescanned(LABORATORIES[name], 1).image)
        assert looks is not None and min(vector_angles(vectors, looks).max() for vectors in moved) < 6.0


def test_what_is_not_stained_is_left_alone() -> None:
    generator = np.random.default_rng(0)
    nuclei = np.zeros((96, 96, 3), np.uint8)
    cv2.circle(nuclei, (40, 40), 9, (40, 40, 40), -1)
    glass = np.full((96, 96, 3), 244, np.uint8)
    grey = np.repeat(generator.integers(0, 256, (96, 96, 1)), 3, axis=2).astype(np.uint8)
    for image in (nuclei, glass, grey):
        assert np.array_equal(restain(image, 1.0, np.random.default_rng(1)), image)


@pytest.mark.real
def test_real_tissue_keeps_its_structure(real_data: Path) -> None:
    files = sorted((real_data / "camelyon17_centres").glob("*/*.png"))[::3]
    kept = []
    for number, file in enumerate(files):
        image = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)[:256, :256].copy()
        changed = restain(image, 0.7, np.random.default_rng(number))
        assert not np.array_equal(changed, image)
        found = structure(image, changed)
        kept += [found] if found is not None else []
    assert len(kept) >= 3 and np.median(kept) > 0.9
