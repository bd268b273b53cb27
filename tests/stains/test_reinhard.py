"""Reinhard: mean and spread of tissue become the reference's, and CIELAB is scikit-image's."""

from __future__ import annotations

import numpy as np

from pipeline.stains.optical_density import tissue_mask, to_density
from pipeline.stains.reinhard import WHOLE, Reinhard


def tissue(seed: int, base: tuple[float, float, float], spread: float) -> np.ndarray:
    """Colours around a base along one direction, a quarter of the rows glass."""
    generator = np.random.default_rng(seed)
    pixels = (
        np.array(base) + generator.normal(0.0, spread, (160, 160, 3)) + generator.normal(0.0, spread, (160, 160, 1))
    )
    pixels[:40] = 255.0
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


def lab_of(image: np.ndarray) -> np.ndarray:
    from skimage.color import rgb2lab

    return rgb2lab(image)


def test_statistics_are_those_of_scikit_images_lab() -> None:
    """All colours of stained tissue: a mark of any ink among them would leave nothing measured."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 60_000, 3), dtype=np.uint8)
    image = pixels[:, tissue_mask(to_density(pixels))[0]][:, :12_000].reshape(100, 120, 3)
    _, measured = Reinhard().measure(image)
    colours = lab_of(image)
    assert measured is not None
    np.testing.assert_allclose(measured[:6], [*colours.mean(axis=(0, 1)), *colours.std(axis=(0, 1))], atol=0.05)


def test_every_grey_level_comes_back_where_nothing_moves() -> None:
    image = np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    statistics = np.array([60.0, 20.0, -12.0, 15.0, 9.0, 8.0, 255.0, 255.0, 255.0])
    np.testing.assert_array_equal(Reinhard()._apply(image, statistics, statistics)[0], image)


def test_the_plain_formula_gives_the_same_pixels() -> None:
    """All colours there are, against CIELAB by scikit-image: within one grey level on 99.9 % of the pixels."""
    from skimage.color import lab2rgb

    image = np.random.default_rng(2).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    own = np.array([60.0, 20.0, -12.0, 15.0, 9.0, 8.0, 255.0, 255.0, 255.0])
    wanted = np.array([66.0, 24.0, -18.0, 18.0, 8.0, 7.0, 255.0, 255.0, 255.0])
    found, held_back = Reinhard()._apply(image, own, wanted)
    assert not held_back
    lab = lab_of(image)
    moved = (lab - own[:3]) * (wanted[3:6] / own[3:6]) + wanted[:3]
    share = np.clip(to_density(image).mean(axis=2, keepdims=True) / WHOLE, 0.0, 1.0)
    mixed = lab + share * (moved - lab)
    mixed[..., 1] = np.maximum(mixed[..., 1], np.minimum(lab[..., 1], 0.0))
    plain = np.rint(255.0 * lab2rgb(mixed).clip(0.0, 1.0))
    # Z below 0 has no definition: scikit-image cuts it off, here the linear part of f goes on.
    defined = (mixed[..., 0] + 16.0) / 116.0 - mixed[..., 2] / 200.0 > 0.0
    near = np.abs(found - plain).max(axis=2) <= 1
    assert near[defined].mean() > 0.999


def test_statistics_of_the_result_are_the_references() -> None:
    reference, image = tissue(0, (170.0, 90.0, 160.0), 10.0), tissue(1, (190.0, 140.0, 200.0), 7.0)
    normaliser = Reinhard().fit([reference])
    normalised, status = normaliser.transform(image)
    assert status == "ok" and normaliser.reference_ is not None
    colours = lab_of(normalised)[tissue_mask(to_density(image))]
    found = np.concatenate([colours.mean(axis=0), colours.std(axis=0)])
    np.testing.assert_allclose(found, normaliser.reference_[:6], atol=0.7)


def test_glass_is_untouched_and_no_edge_appears_between_it_and_tissue() -> None:
    image = tissue(1, (190.0, 140.0, 200.0), 7.0)
    ramp = np.linspace(255.0, 190.0, 160)[:, np.newaxis] * [1.0, 0.87, 1.0] + np.array([0.0, 0.13, 0.0]) * 255.0
    image[80] = np.rint(ramp.clip(0, 255)).astype(np.uint8)
    image[80, 0] = 255
    normalised, _ = Reinhard().fit([tissue(0, (150.0, 90.0, 150.0), 10.0)]).transform(image)
    assert (normalised[:40] == 255).all() and (normalised[80, 0] == 255).all()
    assert np.abs(np.diff(normalised[80].astype(int), axis=0)).max() < 12


def test_a_faint_stain_is_held_back() -> None:
    reference, faint = tissue(0, (150.0, 90.0, 150.0), 20.0), tissue(1, (200.0, 150.0, 200.0), 4.0)
    normalised, status = Reinhard(maximum_gain=2.0).fit([reference]).transform(faint)
    assert status == "clipped_gain"
    own, after = (lab_of(picture)[40:].std(axis=(0, 1)) for picture in (faint, normalised))
    assert (after < 2.2 * own).all()
