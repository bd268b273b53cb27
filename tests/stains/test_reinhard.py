"""Reinhard: mean and spread of tissue become the reference's, and CIELAB is scikit-image's."""

from __future__ import annotations

import numpy as np

from pipeline.stains.optical_density import tissue_mask, to_density
from pipeline.stains.reinhard import Reinhard, _lab


def tissue(seed: int, base: tuple[float, float, float], spread: float) -> np.ndarray:
    """Colours around a base along one direction, a quarter of the rows glass."""
    generator = np.random.default_rng(seed)
    pixels = (
        np.array(base) + generator.normal(0.0, spread, (160, 160, 3)) + generator.normal(0.0, spread, (160, 160, 1))
    )
    pixels[:40] = 255.0
    return np.rint(pixels.clip(0, 255)).astype(np.uint8)


def test_lab_is_scikit_images() -> None:
    """OpenCV interpolates in a table: within 0.4, a sixth of the difference that an eye can see."""
    from skimage.color import rgb2lab

    image = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    np.testing.assert_allclose(_lab(image), rgb2lab(image), atol=0.4)


def test_statistics_of_the_result_are_the_references() -> None:
    reference, image = tissue(0, (170.0, 90.0, 160.0), 10.0), tissue(1, (190.0, 140.0, 200.0), 7.0)
    normaliser = Reinhard().fit([reference])
    normalised, status = normaliser.transform(image)
    assert status == "ok" and normaliser.reference_ is not None
    colours = _lab(normalised)[tissue_mask(to_density(image))]
    found = np.concatenate([colours.mean(axis=0), colours.std(axis=0)])
    np.testing.assert_allclose(found, normaliser.reference_, atol=0.5)


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
    own, after = (_lab(picture)[40:].std(axis=(0, 1)) for picture in (faint, normalised))
    assert (after < 2.2 * own).all()
